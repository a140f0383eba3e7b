"""sppnet: vision models that take images at their own size.

The names below are the whole public interface. Each is loaded when it is first asked for, so that importing the package,
and `sppnet --help`, cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sppnet.errors import UserError

if TYPE_CHECKING:
    from sppnet.classification.predict import classify
    from sppnet.detection.predict import detect
    from sppnet.layers import PyramidPool, RegionPyramidPool
    from sppnet.models.files import load
    from sppnet.models.sppnet import SPPNet
    from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool
    from sppnet.results import Classification, Detections

__version__ = "0.1.0"

__all__ = [
    "Classification",
    "Detections",
    "PyramidPool",
    "RegionPyramidPool",
    "SPPNet",
    "UserError",
    "__version__",
    "classify",
    "detect",
    "load",
    "pyramid_pool",
    "region_pyramid_pool",
]

_HOMES = {
    "Classification": "sppnet.results",
    "Detections": "sppnet.results",
    "PyramidPool": "sppnet.layers",
    "RegionPyramidPool": "sppnet.layers",
    "SPPNet": "sppnet.models.sppnet",
    "classify": "sppnet.classification.predict",
    "detect": "sppnet.detection.predict",
    "load": "sppnet.models.files",
    "pyramid_pool": "sppnet.ops.pyramid_pool",
    "region_pyramid_pool": "sppnet.ops.pyramid_pool",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sppnet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
