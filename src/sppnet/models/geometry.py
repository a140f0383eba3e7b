"""Where a feature cell looks in the image: stride and offset of a backbone, its channels, the smallest image it takes.

Cell i of a map is centred at pixel ``offset + stride * i`` (continuous: pixel i covers i..i+1). Both numbers follow from
the kernel, stride, padding and dilation of every layer on the way, read from the backbone's traced graph; anything else
on the way must keep the map's height and width, which a run without data (PyTorch's meta device) shows. Source of the
idea: arXiv:1406.4729, appendix A ("Mapping a Window to Feature Maps"); the authors' release sets the offset by hand.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POOLING = ("input", "kernel_size", "stride", "padding", "dilation")
SLIDING_FUNCTIONS: dict[Any, tuple[str, ...]] = {  # and their arguments
    functional.max_pool2d: POOLING,
    torch.max_pool2d: POOLING,
    functional.avg_pool2d: POOLING[:4],
    functional.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation"),
}
# What makes one value, or one vector, of a map.
REDUCING_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)
REDUCING: set[Any] = {torch.flatten, "flatten", "view", "reshape", "mean", torch.mean}
IMAGE_SIZE = (512, 704)  # of the run without data; its maps have two different sides above 1, up to a stride of 256


@dataclass(frozen=True)
class Geometry:
    """Cell i is centered at pixel ``offset + stride * i``, along both axes."""

    stride: int  # pixels from one cell's center to the next
    offset: float  # pixels from the image's edge to the center of cell 0
    smallest_side: int = 1  # pixels: a smaller image has no map
    channels: int = 0  # of the map


def backbone_geometry(backbone: nn.Module) -> Geometry:
    """Stride and offset of a backbone, computed from its modules.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]; convolutions, poolings and anything that keeps the
            map's height and width, in sequence, in parallel branches that meet again, or around shortcuts. Stride
            and offset must be the same along both axes. Where branches meet that lie up to half a cell apart (in
            ResNet-D, a shortcut averages 2 x 2 cells), the middle counts. A layer that pads by the image's size
            (TensorFlow's "same") counts as it works on sides that its stride divides.

    Returns:
        The `Geometry` of its map.

    Raises:
        ValueError: the graph cannot be traced or run, a layer is not known to keep a place's position, branches that
            meet disagree, or the result is not a map. The message names the layer.

    Example:
        >>> backbone_geometry(nn.Sequential(nn.Conv2d(3, 8, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2)))
        Geometry(stride=4, offset=5.5, smallest_side=11, channels=8)
    """
    geometry, features = map_geometry(without_data(backbone), torch.empty(1, 3, *IMAGE_SIZE, device="meta"))
    return replace(geometry, smallest_side=smallest_side(backbone), channels=features.shape[1])


def smallest_side(backbone: nn.Module) -> int:
    """The smallest side, in pixels, of an image that has a cell on the map; a smaller one is an error in PyTorch.

    Raises:
        ValueError: not even an image of 4096 pixels has one.

    Example:
        >>> smallest_side(nn.Sequential(nn.Conv2d(3, 8, 7, stride=2), nn.MaxPool2d(3, 2)))
        11
    """
    shapes = without_data(backbone)

    def suffices(side: int) -> bool:
        try:
            with torch.no_grad():
                return min(shapes(torch.empty(1, 3, side, side, device="meta")).shape[2:]) > 0
        except RuntimeError:
            return False

    low, high = 0, 1  # too small, large enough
    while not suffices(high):
        low, high = high, 2 * high
        if high > 4096:
            raise ValueError("the backbone gives no map of any image")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def map_geometry(net: nn.Module, images: Tensor) -> tuple[Geometry, Tensor]:
    """The geometry of the map that ``net`` makes of images or of another map, and that map's shape.

    Args:
        net: as for `backbone_geometry`, of any number of input channels; on the meta device, as `without_data` gives it.
        images: [N, C, H, W] on the meta device, of two different sides; cell i counts as centred at i + 0.5.

    Returns:
        The geometry of the result in cells of ``images``, and the result on the meta device.

    Raises:
        ValueError: as for `backbone_geometry`.

    Example:
        >>> pool = nn.MaxPool2d(3, 2, ceil_mode=True)  # without data anyway
        >>> geometry, features = map_geometry(pool, torch.empty(1, 96, 110, 90, device="meta"))
        >>> geometry, features.shape
        (Geometry(stride=2, offset=1.5, smallest_side=1, channels=0), torch.Size([1, 96, 55, 45]))
    """
    net = nn.Sequential(net)  # in a container, a single layer is traced as one
    try:
        graph = _LayerTracer().trace(net)
    except Exception as error:
        raise ValueError(f"the backbone's graph cannot be traced, so its stride is unknown: {error}") from error
    run = _PlacingRun(net, graph)
    features = run.run(images)
    if run.result is None or features.ndim != 4 or features.shape[2:] != run.result.size:
        raise ValueError("the backbone must end in a feature map [N, C, h, w], not in a vector: leave its pooling out")
    return run.result.geometry, features


def without_data(module: nn.Module) -> nn.Module:
    """A copy of ``module`` on the meta device, which works out shapes alone; the data are neither copied nor changed.

    It is in evaluation mode, as a BatchNorm in training refuses one image of one cell, and has no hooks, which would be
    given tensors without data.

    Example:
        >>> without_data(nn.Conv2d(3, 8, 3))(torch.empty(1, 3, 600, 800, device="meta")).shape
        torch.Size([1, 8, 598, 798])
    """
    copies: dict[int, Any] = {id(value): torch.empty_like(value, device="meta") for value in module.buffers()}
    for value in module.parameters():
        copies[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), value.requires_grad)
    copy: nn.Module = deepcopy(module, copies).eval()
    for part in copy.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return copy


class _LayerTracer(fx.Tracer):
    """Down to layers: PyTorch's own modules, and what other packages derive from its convolutions and poolings."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SLIDING) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Place:
    """Where the cells of a map lie, on its way through the net."""

    geometry: Geometry
    size: tuple[int, ...]  # height and width in cells, in the run without data


class _PlacingRun(fx.Interpreter):
    """Runs a traced net and works out the place of every value; None: not a map, such as a squeeze-and-excite gate."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        super().__init__(net, graph=graph)
        self.extra_traceback = False  # the messages below are for people
        self.places: dict[fx.Node, _Place | None] = {}
        self.result: _Place | None = None

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            results = [self.places[node] for node in n.all_input_nodes]
            self.result = results[0] if n.args == (n.all_input_nodes[0],) else None
            return super().run_node(n)
        place = _meet([place for node in n.all_input_nodes if (place := self.places[node]) is not None], n.name)
        try:
            value = super().run_node(n)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{self._called(n)} cannot be run on {IMAGE_SIZE} pixels: {reason}") from error
        if n.op == "placeholder":
            self.places[n] = _Place(Geometry(1, 0.5), value.shape[-2:])
        else:
            self.places[n] = None if place is None else self._through(n, place, value)
        return value

    def _through(self, node: fx.Node, place: _Place, value: Any) -> _Place | None:
        """The place of a node's value, made of a map at ``place``."""
        layer = self.fetch_attr(str(node.target)) if node.op == "call_module" else node.target
        tensors = [
            part for part in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(part, Tensor)
        ]
        settings = self._sliding(layer, node)
        if settings is not None:
            return _Place(_slide(place.geometry, self._called(node), **settings), value.shape[-2:])
        if not tensors:
            return None  # a size
        if all(_holds(tensor, place.size) for tensor in tensors):
            return place
        if layer in REDUCING or isinstance(layer, REDUCING_MODULES) or tensors[0].shape[-2:] == (1, 1):
            return None
        raise ValueError(f"{self._called(node)} is not known to this geometry")

    def _sliding(self, layer: Any, node: fx.Node) -> dict[str, Any] | None:
        """Kernel size, stride, padding and dilation of a layer that has them."""
        if isinstance(layer, SLIDING):
            settings = dict(vars(layer))
            if type(layer).__name__.endswith("Same") and getattr(layer, "same_pad", True):  # timm's
                settings["padding"] = "by size"
        elif layer in SLIDING_FUNCTIONS:
            settings = dict(zip(SLIDING_FUNCTIONS[layer], node.args, strict=False)) | dict(node.kwargs)
            if "weight" in settings:
                weight: Any = settings["weight"]
                settings["kernel_size"] = tuple(self.env[weight].shape[2:])
        elif layer is functional.pad:
            sides: Any = node.args[1]  # left, right, top, bottom
            settings = {"kernel_size": 1, "padding": (sides[2], sides[0])}
        else:
            return None
        return {key: settings[key] for key in POOLING[1:] if settings.get(key) is not None}

    def _called(self, node: fx.Node) -> str:
        if node.op == "call_module":
            name = str(node.target).removeprefix("0.")
            return f"layer {name!r} ({type(self.fetch_attr(str(node.target))).__name__})"
        return f"operation {node.name!r}"


def _meet(places: list[_Place], name: str) -> _Place | None:
    """One place for branches that meet."""
    if not places:
        return None
    strides, offsets = ({getattr(place.geometry, field) for place in places} for field in ("stride", "offset"))
    stride, first, last = places[0].geometry.stride, min(offsets), max(offsets)
    if len(strides) > 1 or last - first > stride / 2:
        found = sorted(str(place.geometry) for place in places)
        raise ValueError(f"branches that meet at {name!r} disagree on where their cells are: {found}")
    return _Place(Geometry(stride, (first + last) / 2), places[0].size)


def _slide(
    geometry: Geometry, called: str, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1
) -> Geometry:
    """The geometry behind a window that slides over a map."""
    kernels, strides, dilations = _pair(kernel_size), _pair(stride or kernel_size), _pair(dilation)
    found = set()
    for axis in (0, 1):
        reach = dilations[axis] * (kernels[axis] - 1)  # cells from the window's first to its last
        if isinstance(padding, str):
            total = {"valid": 0, "same": reach, "by size": max(reach + 1 - strides[axis], 0)}[padding]
            before = total // 2
        else:
            before = _pair(padding)[axis]
        found.add(Geometry(geometry.stride * strides[axis], geometry.offset + (reach / 2 - before) * geometry.stride))
    if len(found) > 1:
        raise ValueError(
            f"{called} is not square: kernel {kernels}, stride {strides}, padding {padding}; "
            "stride and offset must be the same along both axes"
        )
    return found.pop()


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, (tuple, list)) else (value, value)
    return int(first), int(second)


def _holds(tensor: Tensor, size: tuple[int, ...]) -> bool:
    """Whether two neighbouring dimensions of a tensor are the height and width of a map."""
    return any(tensor.shape[start : start + 2] == size for start in range(tensor.ndim - 1))
