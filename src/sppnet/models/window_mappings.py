"""Four ways from a box to the window of cells that stands for it: this project's, the paper's, its release's, and RoI pooling's.

boxes [R, 4] in pixels -> windows [R, 4] in cells. The figures published for SPP-net and Fast R-CNN were made with three different
ones, a cell or so apart. Along one axis, with S the stride, o the centre of cell 0, and a box from a to b in continuous pixels
(its first pixel is a, its last b - 1, counted from 0):

- ``centre``: the cells whose centres lie in the box, a <= centre < b: `sppnet.models.geometry.boxes_to_windows`.
- ``paper``: those strictly between the centres of the box's first and last pixel: floor + 1 and ceil - 1 (arXiv:1406.4729,
  appendix A).
- ``release``: the box is shrunk by 6.5 pixels on each side, and its ends are rounded to the nearest centre (the authors' code,
  spm_response_boxes.m, for S = 16 and 12). So it reaches past the box's last centres by up to half a stride less 6.5 pixels.
- ``roi_pool``: a / S and b / S are rounded, and both ends belong to the window; o is not asked for, so windows are off by o - S/2
  pixels, and often a cell longer (torchvision, after Fast R-CNN's code).

Where the two ends cross, one cell is left, that of their middle. All are clipped to the map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sppnet.models.geometry import Geometry, boxes_to_windows

RELEASE_SHRINK = 6.5  # pixels, for strides of 16 and 12


def windows_by(
    mapping: str, boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Map boxes of the original image to windows of its feature map, by the rule of one's choice.

    Args:
        mapping: one of `MAPPINGS`; see the module.
        boxes: [R, 4] in pixels of the original image.
        geometry: stride and offset of the backbone.
        map_size: (height, width) of the map, in cells.
        scale: (vertical, horizontal) factor from the original image to the image that the backbone saw.

    Returns:
        [R, 4] int64: x0, y0, x1, y1 in cells, half-open, never empty, inside the map.

    Raises:
        ValueError: no such mapping.

    Example:
        >>> boxes, zf5 = torch.tensor([[49.0, 49, 66, 66]]), Geometry(16, 20.5)
        >>> {name: windows_by(name, boxes, zf5, (30, 30), (1.0, 1.0))[0].tolist()[::2] for name in MAPPINGS}
        {'centre': [2, 3], 'paper': [2, 3], 'release': [2, 3], 'roi_pool': [3, 5]}
    """
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping must be one of {', '.join(MAPPINGS)}: got {mapping!r}")
    return MAPPINGS[mapping](boxes, geometry, map_size, scale)


def _paper(boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    first, last = _ends(boxes, scale)
    centre = geometry.offset - 0.5  # of cell 0, as a pixel counted from 0
    left = ((first - centre) / geometry.stride).floor() + 1
    right = ((last - centre) / geometry.stride).ceil() - 1
    return _windows(left, right, map_size)


def _release(boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    first, last = _ends(boxes, scale)
    centre = geometry.offset - 0.5
    left = ((first - centre + RELEASE_SHRINK) / geometry.stride + 0.5).floor()
    right = ((last - centre - RELEASE_SHRINK) / geometry.stride - 0.5).ceil()
    return _windows(left, right, map_size)


def _roi_pool(boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    ends = boxes.double() * boxes.new_tensor([scale[1], scale[0]] * 2, dtype=torch.float64) / geometry.stride
    ends = (ends + 0.5).floor()  # C's rounding
    return _windows(ends[:, :2], ends[:, 2:].maximum(ends[:, :2]), map_size)


def _ends(boxes: Tensor, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The first and last pixel of each box in the scaled image, counted from 0: [R, 2] each, x and y."""
    scaled = boxes.double() * boxes.new_tensor([scale[1], scale[0]] * 2, dtype=torch.float64)
    return scaled[:, :2], scaled[:, 2:] - 1


def _windows(left: Tensor, right: Tensor, map_size: tuple[int, int]) -> Tensor:
    """From first and last cells [R, 2], which may have crossed or lie outside."""
    middle = ((left + right) / 2).floor()
    crossed = left > right
    left, right = torch.where(crossed, middle, left), torch.where(crossed, middle, right)
    last = left.new_tensor([map_size[1] - 1, map_size[0] - 1])
    left, right = (end.clamp(min=0).minimum(last) for end in (left, right))
    return torch.cat([left, right + 1], dim=1).long()


MAPPINGS: dict[str, Callable[[Tensor, Geometry, tuple[int, int], tuple[float, float]], Tensor]] = {
    "centre": boxes_to_windows,
    "paper": _paper,
    "release": _release,
    "roi_pool": _roi_pool,
}
