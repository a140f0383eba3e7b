"""The feature maps of one image, at one scale or several, and the windows of boxes on them.

image [H, W, 3] -> maps [1, C, h, w], one for each scale -> for every box the map that it is pooled from, and its window there
-> windows [R, 5], whose first number says which map -> pooled [R, M, C]. The convolutions run once for each scale, whatever the
number of boxes: arXiv:1406.4729, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.detection.scales import choose_scale
from sppnet.models.geometry import window_residuals
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.models.window_mappings import windows_by

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True, eq=False)
class ImageMaps:
    """The maps of one image, by falling or rising scale as they were asked for."""

    features: tuple[Tensor, ...]  # of each scale, [1, C, h, w], channels last in memory
    scales: tuple[tuple[float, float], ...]  # (vertical, horizontal) factor, from the image to what the backbone saw
    size: tuple[int, int]  # (height, width) of the image, in pixels
    whole: int = 0  # which map answers questions about the whole image

    @property
    def whole_map(self) -> Tensor:
        """[1, C, h, w]."""
        return self.features[self.whole]

    def to(self, device: torch.device) -> ImageMaps:
        return replace(self, features=tuple(part.to(device) for part in self.features))

    def whole_window(self) -> Tensor:
        """The window [1, 5] of the whole image."""
        height, width = self.whole_map.shape[2:]
        return torch.tensor([[self.whole, 0, 0, width, height]])

    def windows(self, model: SPPNet, boxes: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where to pool boxes.

        Args:
            model: says by what rules, and gives the geometry.
            boxes: [R, 4] in pixels of the image.
            which: [R] int64, the map of each box; where it is not given, the one whose scale suits it
                (`sppnet.detection.scales.choose_scale`).

        Returns:
            windows [R, 5] int64 (map, x0, y0, x1, y1), in cells, and residuals [R, 4] as
            `sppnet.models.geometry.window_residuals` gives them; on the CPU.
        """
        settings = model.architecture
        if which is None:
            which = choose_scale(boxes, self.scales, settings.scale_rule)
        windows = torch.empty(len(boxes), 5, dtype=torch.int64)
        windows[:, 0] = which
        residuals = torch.empty(len(boxes), 4)
        for index, (features, scale) in enumerate(zip(self.features, self.scales, strict=True)):
            here = which == index
            size = (features.shape[2], features.shape[3])
            cells = windows_by(settings.mapping, boxes[here], model.geometry, size, scale)
            windows[here, 1:] = cells
            residuals[here] = window_residuals(boxes[here], cells, model.geometry, scale)
        return windows, residuals

    def pool(self, model: SPPNet, windows: Tensor) -> Tensor:
        """Pool windows, each from its map.

        Args:
            model: gives the pyramid.
            windows: [R, 5] int64, as `windows` gives them, on any device.

        Returns:
            [R, M, C] in the maps' precision, on their device. Differentiable with respect to the maps.
        """
        device = self.features[0].device
        if len(self.features) == 1:
            pooled: Tensor = model.pool(self.features[0], windows.to(device))
            return pooled
        order = windows[:, 0].argsort(stable=True)
        ordered = windows[order]
        counts = windows[:, 0].bincount(minlength=len(self.features)).tolist()
        parts = [
            model.pool(features, F.pad(part[:, 1:], (1, 0)).to(device))
            for features, part in zip(self.features, ordered.split(counts), strict=True)
            if len(part)
        ]
        if not parts:  # no windows: [0, M, C]
            parts.append(model.pool(self.features[0], windows.to(device)))
        with torch.autocast(device.type, enabled=False):  # which on a CPU knows no half precision
            pooled = torch.cat(parts)
        if torch.equal(order, torch.arange(len(order), device=order.device)):
            return pooled
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return pooled[back.to(device)]


def compute_maps(
    model: SPPNet, image: np.ndarray, short_sides: Sequence[int] | None = None, *, bfloat16: bool = True
) -> ImageMaps:
    """The maps of one image.

    Args:
        model: gives the backbone.
        image: [H, W, 3] uint8.
        short_sides: of the resized image, one for each map, in pixels; the model's own where not given. Long images are
            smaller: see `Architecture.sides`.
        bfloat16: convolve in it where the device is fast at that; else in float32.

    Returns:
        Half precision, channels last in memory.

    Example:
        >>> maps = compute_maps(sppnet.load("voc"), np.zeros((100, 150, 3), np.uint8), short_sides=(64, 128))
        >>> [tuple(features.shape) for features in maps.features]
        [(1, 384, 2, 3), (1, 384, 4, 6)]
    """
    sides = model.architecture.short_sides if short_sides is None else tuple(short_sides)
    parts, scales = [], []
    for side in sides:
        prepared, scale = model.prepare(image, side)
        with torch.inference_mode(), autocast(model.device, enabled=bfloat16):
            features = model.features(prepared.contiguous(memory_format=torch.channels_last))
        limit = torch.finfo(torch.float16).max
        half = features.float().clamp(-limit, limit).half()
        parts.append(half.contiguous(memory_format=torch.channels_last))
        scales.append(scale)
    size = (image.shape[0], image.shape[1])
    return ImageMaps(tuple(parts), tuple(scales), size, _whole(sides, model.architecture.short_side))


def _whole(sides: Sequence[int], wanted: int) -> int:
    return min(range(len(sides)), key=lambda index: abs(sides[index] - wanted))
