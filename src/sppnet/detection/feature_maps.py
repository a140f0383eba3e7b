"""The feature maps of one image, at one scale or several, and the windows of boxes on them.

image [H, W, 3] -> features [1, C, h, w], one map for each scale -> for every box the map that it is pooled from, and its window
there -> windows [R, 5], whose first number says which map -> pooled [R, M, C]. The convolutions run once for each scale, whatever
the number of boxes: arXiv:1406.4729, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.models.precision import to_half
from sppnet.models.sppnet import WINDOW_CHUNK, SPPNet

SHORT_SIDES = (480, 576, 688, 864, 1200)  # pixels: the paper's five scales (the release has 874 for 864)
USUAL_SIDE = 224  # pixels: the side of the square that a window's area should be nearest to


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The feature maps of one image, in the order of the scales that were asked for."""

    features: tuple[Tensor, ...]  # of each scale, [1, C, h, w], channels last in memory
    scales: tuple[tuple[float, float], ...]  # (vertical, horizontal) factor, from the image to what the backbone saw
    size: tuple[int, int]  # (height, width) of the image, in pixels
    whole: int = 0  # which map answers questions about the whole image

    @property
    def whole_map(self) -> Tensor:
        """[1, C, h, w]."""
        return self.features[self.whole]

    def to(self, device: torch.device) -> FeatureMaps:
        return replace(self, features=tuple(part.to(device) for part in self.features))

    def whole_window(self) -> Tensor:
        """The window [1, 5] of the whole image."""
        height, width = self.whole_map.shape[2:]
        return torch.tensor([[self.whole, 0, 0, width, height]])

    def windows(self, model: SPPNet, boxes: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where to pool boxes.

        Args:
            model: gives the geometry.
            boxes: [R, 4] in pixels of the image.
            which: [R] int64, the map of each box; where it is not given, the one that `choose_scale` finds.

        Returns:
            windows [R, 5] int64 (map, x0, y0, x1, y1), in cells, and residuals [R, 4] as `SPPNet.windows` gives them.
        """
        which = choose_scale(boxes, self.scales) if which is None else which
        windows = torch.empty(len(boxes), 5, dtype=torch.int64)
        windows[:, 0] = which
        residuals = torch.empty(len(boxes), 4)
        for index, (features, scale) in enumerate(zip(self.features, self.scales, strict=True)):
            here = which == index
            size = (features.shape[2], features.shape[3])
            windows[here, 1:], residuals[here] = model.windows(boxes[here], size, scale)
        return windows, residuals

    def pool(self, model: SPPNet, windows: Tensor) -> Tensor:
        """Windows [R, 5] int64, on any device -> pooled [R, M, C] in the maps' precision, on their device; differentiable."""
        device = self.features[0].device
        if len(self.features) == 1 or not len(windows):
            pooled: Tensor = model.pool(self.features[0], windows.to(device))
            return pooled
        order = windows[:, 0].argsort(stable=True)
        counts = windows[:, 0].bincount(minlength=len(self.features)).tolist()
        parts = [
            model.pool(features, F.pad(part[:, 1:], (1, 0)).to(device))
            for features, part in zip(self.features, windows[order].split(counts), strict=True)
            if len(part)
        ]
        with torch.autocast(device.type, enabled=False):  # which on a CPU knows no half precision
            return torch.cat(parts)[order.argsort().to(device)]

    def head_features(self, model: SPPNet, windows: Tensor) -> Tensor:
        """Head features [R, D] of windows [R, 5], within `SPPNet.inference`; windows on the same cells are computed once."""
        unique, which = windows.unique(dim=0, return_inverse=True)
        parts = [model.fully_connected(self.pool(model, chunk)) for chunk in unique.split(WINDOW_CHUNK)]
        with torch.autocast(self.features[0].device.type, enabled=False):  # which on a CPU knows no half precision
            return torch.cat(parts)[which.to(self.features[0].device)]

    def embed(self, model: SPPNet, boxes: Tensor) -> Tensor:
        """Head features [R, D] of boxes [R, 4], in half precision, on the maps' device."""
        windows, _ = self.windows(model, boxes)
        with model.inference():
            return to_half(self.head_features(model, windows))


def choose_scale(boxes: Tensor, scales: Sequence[tuple[float, float]]) -> Tensor:
    """At which scale each box should be pooled: where its area is nearest to 224 x 224 pixels.

    Args:
        boxes: [R, 4] in pixels of the image.
        scales: (vertical, horizontal) factor of each, at least one, from the image to what the backbone sees.

    Returns:
        [R] int64, an index into ``scales``; of two as near, the first.

    Source: arXiv:1406.4729, section 4.1. The authors' release takes the scale at which the root of the area is nearest to 208.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 60, 60]])
        >>> choose_scale(boxes, [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)])
        tensor([0, 2])
    """
    factors = torch.tensor([vertical * horizontal for vertical, horizontal in scales], dtype=torch.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).double().clamp(min=0).prod(1, keepdim=True)
    return (areas * factors - USUAL_SIDE**2).abs().argmin(1)


def compute_feature_maps(
    model: SPPNet, image: np.ndarray, short_sides: Sequence[int] | None = None, *, bfloat16: bool = True
) -> FeatureMaps:
    """The feature maps of one image.

    Args:
        model: gives the backbone.
        image: [H, W, 3] uint8.
        short_sides: of the resized image, one for each map, in pixels; the model's own where not given. Long images are
            smaller: see `Preprocess.sides`.
        bfloat16: convolve in it where the device is fast at that; else in float32.

    Returns:
        Half precision, channels last in memory.

    Example:
        >>> maps = compute_feature_maps(sppnet.load("voc"), np.zeros((100, 150, 3), np.uint8), short_sides=(64, 128))
        >>> [tuple(features.shape) for features in maps.features]
        [(1, 320, 4, 6), (1, 320, 8, 12)]
    """
    sides = model.short_sides if short_sides is None else tuple(short_sides)
    parts, scales = [], []
    for side in sides:
        prepared, scale = model.preprocess(image, side)
        with model.inference(bfloat16=bfloat16):
            features = model.image_features(prepared)
        parts.append(to_half(features).contiguous(memory_format=torch.channels_last))
        scales.append(scale)
    whole = min(range(len(sides)), key=lambda index: abs(sides[index] - model.preprocess.short_side))
    return FeatureMaps(tuple(parts), tuple(scales), (image.shape[0], image.shape[1]), whole)
