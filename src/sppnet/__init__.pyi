"""The public names, and the files that they are in."""

from .classification.predict import classify as classify, embed as embed
from .classification.train import ClassifierSettings as ClassifierSettings, train_classifier as train_classifier
from .data.annotations import DetectionData as DetectionData
from .data import read_dataset as read_dataset
from .data.labelled import LabelledImages as LabelledImages
from .detection.predict import detect as detect
from .detection.suppression import DetectSettings as DetectSettings
from .detection.train import DetectorSettings as DetectorSettings, train_detector as train_detector
from .errors import UserError as UserError
from .evaluation import evaluate as evaluate
from .layers import PyramidPool as PyramidPool, RegionPyramidPool as RegionPyramidPool
from .models.files import load as load
from .models.preprocess import Preprocess as Preprocess
from .models.sppnet import (
    Architecture as Architecture,
    DetectionSettings as DetectionSettings,
    SPPNet as SPPNet,
    build_model as build_model,
)
from .ops.bins import sliding_window_bins as sliding_window_bins
from .ops.pyramid_pool import pyramid_pool as pyramid_pool, region_pyramid_pool as region_pyramid_pool
from .proposals.compute import propose as propose
from .results import Classification as Classification, Detections as Detections

__version__: str
__all__: list[str]
