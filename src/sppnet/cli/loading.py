"""The models and the device that a command works with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sppnet.errors import UserError

if TYPE_CHECKING:
    from sppnet.models.sppnet import SPPNet


# PyTorch's CPU library keeps what it prepared for the last 1024 shapes of each kind, for shapes that come again. Maps and
# windows of other images seldom have the same: memory would grow by 60 % over some hundred photos, and be no faster for it.
# It reads these once, before its first convolution. 64: one pass of the shipped model needs 30, two image sizes 47.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "8"}


def load_model(model: str, device: str) -> SPPNet:
    """A shipped model by name, or one of a file, on the device that was asked for."""
    _bound_caches()
    from sppnet.models.files import load

    return load(model, chosen_device(device))


def load_each(models: str, device: str) -> list[SPPNet]:
    """The models of ``A+B``; a name or path that has a + itself is one."""
    from sppnet.models.files import SHIPPED

    one = models in SHIPPED or Path(models).exists()
    return [load_model(model, device) for model in ([models] if one else models.split("+"))]


def pretrained(backbone: str, weights: str | None, names: tuple[str, ...], device: str) -> SPPNet:
    """A backbone that has learned, without a head: compact as in the shipped model, or one of torchvision's."""
    _bound_caches()
    from sppnet.models.backbones import OWN, build_backbone
    from sppnet.models.files import SHIPPED
    from sppnet.models.sppnet import Architecture, SPPNet

    learned = weights or (SHIPPED["voc"] if backbone == OWN else "DEFAULT")
    architecture = Architecture(names, backbone, levels=(3, 2, 1), hidden=(), detects=False, multi_label=False)
    return SPPNet(architecture, build_backbone(backbone, learned)).eval().to(chosen_device(device))


def chosen_device(name: str) -> str:
    """PyTorch's name of the device that ``--device`` says.

    Raises:
        UserError: it is not there.

    Example:
        >>> chosen_device("cpu")
        'cpu'
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise UserError(f"device {name!r} is not available here; use --device cpu")
    return name


def _bound_caches() -> None:
    for name, size in CACHES.items():
        os.environ.setdefault(name, size)
