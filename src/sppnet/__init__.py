"""sppnet: vision models that take images at their own size.

The names below are the whole public interface. Each is loaded when it is first asked for, so that importing the package,
and `sppnet --help`, cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sppnet.errors import UserError

if TYPE_CHECKING:
    from sppnet.classification.predict import classify, embed
    from sppnet.classification.train import ClassifierSettings, train_classifier
    from sppnet.data.annotations import DetectionData
    from sppnet.data.dataset import read_dataset
    from sppnet.data.labelled import LabelledImages
    from sppnet.detection.predict import detect
    from sppnet.detection.suppression import DetectSettings
    from sppnet.detection.train import DetectorSettings, train_detector
    from sppnet.evaluation import evaluate
    from sppnet.layers import PyramidPool, RegionPyramidPool
    from sppnet.models.files import load
    from sppnet.models.preprocess import Preprocess
    from sppnet.models.sppnet import Architecture, DetectionSettings, SPPNet, build_model
    from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool
    from sppnet.proposals.compute import propose
    from sppnet.results import Classification, Detections

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "models.sppnet",
    "Classification": "results",
    "ClassifierSettings": "classification.train",
    "DetectSettings": "detection.suppression",
    "DetectionData": "data.annotations",
    "DetectionSettings": "models.sppnet",
    "Detections": "results",
    "DetectorSettings": "detection.train",
    "LabelledImages": "data.labelled",
    "Preprocess": "models.preprocess",
    "PyramidPool": "layers",
    "RegionPyramidPool": "layers",
    "SPPNet": "models.sppnet",
    "build_model": "models.sppnet",
    "classify": "classification.predict",
    "detect": "detection.predict",
    "embed": "classification.predict",
    "evaluate": "evaluation",
    "load": "models.files",
    "propose": "proposals.compute",
    "pyramid_pool": "ops.pyramid_pool",
    "read_dataset": "data.dataset",
    "region_pyramid_pool": "ops.pyramid_pool",
    "train_classifier": "classification.train",
    "train_detector": "detection.train",
}

__all__ = [
    "Architecture",
    "Classification",
    "ClassifierSettings",
    "DetectSettings",
    "DetectionData",
    "DetectionSettings",
    "Detections",
    "DetectorSettings",
    "LabelledImages",
    "Preprocess",
    "PyramidPool",
    "RegionPyramidPool",
    "SPPNet",
    "UserError",
    "__version__",
    "build_model",
    "classify",
    "detect",
    "embed",
    "evaluate",
    "load",
    "propose",
    "pyramid_pool",
    "read_dataset",
    "region_pyramid_pool",
    "train_classifier",
    "train_detector",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sppnet' has no attribute {name!r}")
    return getattr(import_module(f"sppnet.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
