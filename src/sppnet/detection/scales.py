"""One image at several scales: a map at each, and every window pooled from the map where its object looks the usual size.

image [H, W, 3] -> maps at short sides 480 to 1200 -> one tensor [S, C, h, w] of maps beside each other -> for every box the
scale that brings its area nearest to 224 x 224 pixels -> windows [R, 5], whose first number says which map. All windows of an
image are then pooled in one call. Source: arXiv:1406.4729, section 4.1 (s in {480, 576, 688, 864, 1200}).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sppnet.data.fit import fit_image
from sppnet.models.geometry import boxes_to_windows, window_residuals
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet

SHORT_SIDES = (480, 576, 688, 864, 1200)  # pixels (the release has 874 for 864)
LONGEST = 2.5  # short sides: longer images would take memory without end; the paper has no limit
USUAL_SIDE = 224  # pixels: the side of the square that a window's area should be nearest to
RELEASE_SIDE = 208  # the same of the authors' release: 13 cells of 16 pixels

ScaleRule = Literal["area", "side"]


@dataclass(frozen=True, eq=False)
class ScaledMaps:
    """The maps of one image, one for each scale."""

    features: Tensor  # [S, C, h, w]; each map is the upper left part, and nothing reads what lies beyond
    sizes: tuple[tuple[int, int], ...]  # (height, width) of each map, in cells
    scales: tuple[tuple[float, float], ...]  # (vertical, horizontal) factor, from the image to what the backbone saw

    def windows(self, model: SPPNet, boxes: Tensor, rule: ScaleRule = "area") -> tuple[Tensor, Tensor]:
        """Where to pool boxes, each on the map that `choose_scale` gives it.

        Args:
            model: gives the geometry.
            boxes: [R, 4] in pixels of the image.
            rule: see `choose_scale`.

        Returns:
            windows [R, 5] int64 (map, x0, y0, x1, y1), as `region_pyramid_pool` takes them, and residuals [R, 4] as
            `window_residuals` gives them.
        """
        which = choose_scale(boxes, self.scales, rule)
        windows = torch.empty(len(boxes), 5, dtype=torch.int64)
        windows[:, 0] = which
        residuals = torch.empty(len(boxes), 4)
        for index, (size, scale) in enumerate(zip(self.sizes, self.scales, strict=True)):
            here = which == index
            windows[here, 1:] = boxes_to_windows(boxes[here], model.geometry, size, scale)
            residuals[here] = window_residuals(boxes[here], windows[here, 1:], model.geometry, scale)
        return windows, residuals


def scaled_maps(
    model: SPPNet, image: np.ndarray, short_sides: Sequence[int] = SHORT_SIDES, *, bfloat16: bool = True
) -> ScaledMaps:
    """The maps of an image at several scales.

    Args:
        model: gives the backbone. Its own input size is not used.
        image: [H, W, 3] uint8.
        short_sides: of the resized image, in pixels; an image more than `LONGEST` times as long as wide is smaller.
        bfloat16: convolve in it where the device is fast at that; else in float32.

    Returns:
        Half precision, channels last in memory.

    Example:
        >>> maps = scaled_maps(sppnet.load("voc"), np.zeros((100, 150, 3), np.uint8), short_sides=(64, 128))
        >>> maps.sizes, maps.features.shape
        (((2, 3), (4, 6)), torch.Size([2, 384, 4, 6]))
    """
    red, green, blue = (round(255 * value) for value in model.architecture.mean)
    parts, scales = [], []
    limit = torch.finfo(torch.float16).max
    for side in short_sides:
        resized = fit_image(
            image, "native", side, round(LONGEST * side), minimum=model.smallest_side, fill=(red, green, blue)
        )
        scales.append((resized.shape[0] / image.shape[0], resized.shape[1] / image.shape[1]))
        with torch.inference_mode(), autocast(model.device, enabled=bfloat16):
            part = model.features(model.normalise(resized).contiguous(memory_format=torch.channels_last))
        parts.append(part.clamp(-limit, limit).half())
    sizes = tuple((part.shape[2], part.shape[3]) for part in parts)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    shape = (len(parts), parts[0].shape[1], height, width)
    features = torch.empty(shape, dtype=torch.half, device=model.device, memory_format=torch.channels_last)
    for place, part in zip(features, parts, strict=True):
        place[:, : part.shape[2], : part.shape[3]] = part[0]
    return ScaledMaps(features, sizes, tuple(scales))


def choose_scale(boxes: Tensor, scales: Sequence[tuple[float, float]], rule: ScaleRule = "area") -> Tensor:
    """At which scale each box should be pooled.

    Args:
        boxes: [R, 4] in pixels of the image.
        scales: (vertical, horizontal) factor of each, from the image to what the backbone sees.
        rule: ``"area"``: where the box's area is nearest to 224 x 224 pixels, as the paper says and Fast R-CNN does;
            ``"side"``: where the root of its area is nearest to 208 pixels, measured in the image's own scale, as the
            authors' release does. They differ, as areas grow with the square: ``"side"`` takes smaller scales.

    Returns:
        [R] int64, an index into ``scales``; of two as near, the first.

    Raises:
        ValueError: no scales, or another rule.

    Source: arXiv:1406.4729, section 4.1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 60, 60]])
        >>> choose_scale(boxes, [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)])
        tensor([0, 2])
    """
    if not len(scales) or rule not in get_args(ScaleRule):
        raise ValueError(
            f"expected at least one scale and one of the rules {', '.join(get_args(ScaleRule))}: "
            f"got {len(scales)} scales and {rule!r}"
        )
    factors = torch.tensor([vertical * horizontal for vertical, horizontal in scales], dtype=torch.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).double().clamp(min=0).prod(1, keepdim=True)
    if rule == "area":
        distances = (areas * factors - USUAL_SIDE**2).abs()
    else:
        distances = (factors.sqrt() - RELEASE_SIDE / areas.sqrt().clamp(min=1e-9)).abs()
    return distances.argmin(1)
