"""Boxes of an image -> windows of its feature map, and what rounding to cells loses."""

from __future__ import annotations

import torch
from torch import Tensor

from sppnet.models.geometry import Geometry


def boxes_to_windows(
    boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Map boxes of the original image to windows of its feature map.

    A window holds the cells whose centres lie inside the box (x0 <= centre < x1), as in the paper. Where no centre
    does, it is the one cell whose centre is nearest the box's; windows are clipped to the map. So no window is empty,
    wherever the box lies.

    Args:
        boxes: [R, 4] in pixels of the original image; R may be 0.
        geometry: stride and offset of the backbone.
        map_size: (height, width) of the map, in cells, each at least 1.
        scale: (vertical, horizontal) factor from the original image to the image that the backbone saw.

    Returns:
        [R, 4] int64, on the device of ``boxes``: x0, y0, x1, y1 in cells, half-open, 0 <= x0 < x1 <= width, likewise y.

    Raises:
        ValueError: boxes of another shape, or a map without cells.

    Source: arXiv:1406.4729, appendix A: left = floor(x/S) + 1, right = ceil(x/S) - 1, counted in cells' centres.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 64, 40], [21, 21, 22, 22]])
        >>> boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0))
        tensor([[0, 0, 4, 2],
                [1, 1, 2, 2]])
    """
    height, width = map_size
    if boxes.ndim != 2 or boxes.shape[1] != 4 or min(map_size) < 1:
        raise ValueError(
            f"expected boxes [R, 4] and a map of at least one cell: got boxes {list(boxes.shape)} and a map of "
            f"{height} x {width} cells"
        )
    factors = torch.tensor([scale[1], scale[0]] * 2, dtype=torch.float64, device=boxes.device)
    cells = (boxes.double() * factors - geometry.offset) / geometry.stride  # the box in cell centres
    limits = torch.tensor([width, height], device=boxes.device)
    nearest = ((cells[:, :2] + cells[:, 2:]) / 2).round().long().clamp(min=0).minimum(limits - 1)
    start = cells[:, :2].ceil().long().clamp(min=0).minimum(limits)
    stop = cells[:, 2:].ceil().long().clamp(min=0).minimum(limits)
    empty = stop <= start
    start, stop = torch.where(empty, nearest, start), torch.where(empty, nearest + 1, stop)
    return torch.cat([start, stop], dim=1)


def window_residuals(boxes: Tensor, windows: Tensor, geometry: Geometry, scale: tuple[float, float]) -> Tensor:
    """Where the edges of windows lie beside those of the boxes that they stand for: what rounding to cells lost.

    A cell is taken to cover a stride's width around its centre.

    Args:
        boxes: [R, 4] in pixels of the original image, each side above 0.
        windows: [R, 4] in cells, as `boxes_to_windows` gives for them.
        geometry: stride and offset of the backbone.
        scale: (vertical, horizontal) factor from the original image to the image that the backbone saw.

    Returns:
        [R, 4] float32: window edge minus box edge, for x0, y0, x1, y1, in sides of the box; between -1 and 1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 64, 40]])
        >>> windows = boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0))
        >>> window_residuals(boxes, windows, Geometry(16, 8.0), (1.0, 1.0))
        tensor([[ 0.0000,  0.0000,  0.0000, -0.2000]])
    """
    factors = boxes.new_tensor([scale[1], scale[0]] * 2)
    edges = ((windows - 0.5) * geometry.stride + geometry.offset) / factors  # in pixels of the original
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3).repeat(1, 2)
    return ((edges - boxes) / sides).clamp(-1, 1).float()
