"""Where a feature cell looks in the image: stride and offset of a backbone, and boxes -> windows.

Cell i of a map is centred at pixel ``offset + stride * i`` (continuous: pixel i covers i..i+1). Both numbers follow from
the kernel, stride, padding and dilation of every layer on the way, read from the backbone's traced graph. Source of the
idea: arXiv:1406.4729, appendix A ("Mapping a Window to Feature Maps"); the authors' release sets the offset by hand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
MERGES: set[Any] = {
    operator.add,
    operator.iadd,
    operator.mul,
    operator.imul,
    torch.add,
    torch.mul,
    torch.cat,
    torch.maximum,
}
MERGES |= {"add", "add_", "mul", "mul_"}
RESHAPES: set[Any] = {torch.flatten, "flatten", "view", "reshape", "mean", torch.mean}


@dataclass(frozen=True)
class Geometry:
    """Cell i is centred at pixel ``offset + stride * i``, along both axes."""

    stride: int  # pixels from one cell's centre to the next
    offset: float  # pixels from the image's edge to the centre of cell 0


def backbone_geometry(backbone: nn.Module) -> Geometry:
    """Stride and offset of a backbone, computed from its modules.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]; convolutions, poolings and anything that keeps the
            map's shape, in sequence, in parallel branches that meet again, or around shortcuts. Square kernels.

    Returns:
        The `Geometry` of its map.

    Raises:
        ValueError: the graph cannot be traced, a layer is not known to keep a place's position, branches that meet
            disagree, or the result is not a map. The message names the layer.

    Example:
        >>> backbone_geometry(nn.Sequential(nn.Conv2d(3, 8, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2)))
        Geometry(stride=4, offset=5.5)
    """
    try:
        graph = fx.symbolic_trace(backbone).graph
    except Exception as error:
        raise ValueError(f"the backbone's graph cannot be traced, so its stride is unknown: {error}") from error
    modules = dict(backbone.named_modules())
    places: dict[fx.Node, Geometry | None] = {}  # None: one value for the whole map, such as a squeeze-and-excite gate
    for node in graph.nodes:
        inputs = [places[parent] for parent in node.all_input_nodes]
        if node.op == "placeholder":
            places[node] = Geometry(1, 0.5)
        elif node.op == "output":
            if inputs and inputs[0] is not None:
                return inputs[0]
        elif node.op == "get_attr":
            places[node] = None
        elif node.op == "call_module":
            places[node] = _through_module(modules[str(node.target)], inputs[0], str(node.target))
        elif node.target in RESHAPES:
            places[node] = None
        else:
            places[node] = _meet(inputs, node)
    raise ValueError("the backbone must end in a feature map [N, C, h, w], not in a vector: leave its pooling out")


def _through_module(module: nn.Module, place: Geometry | None, name: str) -> Geometry | None:
    if place is None or isinstance(module, (*GLOBAL_POOLS, nn.Flatten)):
        return None
    if not isinstance(module, SLIDING):
        if isinstance(module, (nn.Upsample, nn.ConvTranspose2d, nn.PixelShuffle, nn.Linear)):
            raise ValueError(f"layer {name!r} ({type(module).__name__}) is not known to this geometry")
        return place  # element by element, or normalisation: every value stays at its place
    kernel, stride = _square(module.kernel_size, name), _square(module.stride, name)
    dilation = _square(getattr(module, "dilation", 1), name)
    padding = module.padding
    if padding == "valid":
        padding = 0
    reach = dilation * (kernel - 1) / 2
    padded = reach if padding == "same" else _square(padding, name)
    return Geometry(place.stride * stride, place.offset + (reach - padded) * place.stride)


def _square(value: Any, name: str) -> int:
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) != 1:
        raise ValueError(f"layer {name!r} is not square: {value}; stride and offset must be the same along both axes")
    return int(sides.pop())


def _meet(inputs: list[Geometry | None], node: fx.Node) -> Geometry | None:
    places = {place for place in inputs if place is not None}
    if len(places) > 1:
        raise ValueError(
            f"branches that meet at {node.name!r} disagree on where their cells are: {sorted(map(str, places))}"
        )
    several = sum(place is not None for place in inputs) > 1
    if node.target is nn.functional.interpolate or (several and node.target not in MERGES):
        raise ValueError(f"operation {node.name!r} ({node.target}) is not known to this geometry")
    return places.pop() if places else None


def probe_geometry(backbone: Callable[[Tensor], Tensor], width: int = 512, height: int = 96) -> Geometry:
    """Measure stride and offset instead: the middle of the pixels that move one cell, for two neighbouring cells.

    Slower than `backbone_geometry`, and an independent check of it. Exact to half a pixel for symmetric reach.

    Args:
        backbone: images [1, 3, H, W] -> features [1, C, h, w]; every weight's influence must be non-zero, so give it
            positive weights and no saturating layers (see the tests).
        width: pixels of the probe image, along which is measured; the middle cells must not see its edges.
        height: pixels of the probe image, across.
    """
    image = torch.rand(1, 3, height, width, requires_grad=True)
    features = backbone(image)
    row, middle = features.shape[-2] // 2, features.shape[-1] // 2
    centres = []
    for cell in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(features[0, :, row, cell].sum(), image, retain_graph=True)
        columns = gradient[0].abs().sum((0, 1)).nonzero().flatten()
        centres.append((float(columns.min()) + float(columns.max()) + 1) / 2)
    stride = round(centres[1] - centres[0])
    return Geometry(stride, centres[0] - stride * middle)


def boxes_to_windows(
    boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Map boxes of the original image to windows of its feature map.

    A window holds the cells whose centres lie inside the box (x0 <= centre < x1), as in the paper. Where no centre
    does, it is the one cell whose centre is nearest the box's; windows are clipped to the map. So no window is empty,
    wherever the box lies.

    Args:
        boxes: [R, 4] in pixels of the original image.
        geometry: stride and offset of the backbone.
        map_size: (height, width) of the map, in cells.
        scale: (vertical, horizontal) factor from the original image to the image that the backbone saw.

    Returns:
        [R, 4] int64: x0, y0, x1, y1 in cells, half-open, 0 <= x0 < x1 <= width, likewise y.

    Source: arXiv:1406.4729, appendix A: left = floor(x/S) + 1, right = ceil(x/S) - 1, counted in cells' centres.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 64, 40], [21, 21, 22, 22]])
        >>> boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0))
        tensor([[0, 0, 4, 2],
                [1, 1, 2, 2]])
    """
    height, width = map_size
    factors = torch.tensor([scale[1], scale[0]] * 2, dtype=torch.float64)
    cells = (boxes.double() * factors - geometry.offset) / geometry.stride  # the box in cell centres
    limits = torch.tensor([width, height])
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
