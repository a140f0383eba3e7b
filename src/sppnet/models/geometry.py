"""Where a feature cell looks in the image: stride and offset of a backbone, its smallest image, boxes as windows of its map.

Cell i of a map is centered at pixel ``offset + stride * i`` (continuous: pixel i covers i..i+1). Both numbers follow from the
kernel, stride, padding and dilation of every operation on the way. They are read while the backbone runs without data, on PyTorch's
meta device, which works out shapes alone; any other operation must keep the map's height and width. Source of the idea:
arXiv:1406.4729, appendix A ("Mapping a Window to Feature Maps"); the authors' release sets the offset by hand.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Size = tuple[int, int]  # (height, width): of an image in pixels, of a map, or an image's part of it, in cells
IMAGE_SIZE = (512, 704)  # of the run without data; its maps have two different sides above 1, up to a stride of 256
# What makes one value, or one vector, of a map.
REDUCING = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "flatten", "view", "reshape", "mean"}


@dataclass(frozen=True)
class Geometry:
    """Cell i is centered at pixel ``offset + stride * i``, along both axes."""

    stride: int  # pixels from one cell's center to the next
    offset: float  # pixels from the image's edge to the center of cell 0
    smallest_side: int = 1  # pixels: a smaller image has no map
    channels: int = 0  # of the map


def backbone_geometry(backbone: nn.Module) -> Geometry:
    """Stride and offset of a backbone, computed from its operations.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]; convolutions, poolings and anything that keeps the
            map's height and width, in sequence, in parallel branches that meet again, or around shortcuts. Stride
            and offset must be the same along both axes. Where branches meet that lie up to half a cell apart (in
            ResNet-D, a shortcut averages 2 x 2 cells), the middle counts. A layer that pads by the image's size
            (TensorFlow's "same") counts as it works on sides that its stride divides.

    Returns:
        The `Geometry` of its map.

    Raises:
        ValueError: it cannot be run, an operation is not known to keep a cell's position, branches that meet disagree, or the
            result is not a map. The message names the layer.

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

    side = bisect_left(range(4097), True, lo=1, key=suffices)
    if side > 4096:
        raise ValueError("the backbone gives no map of any image")
    return side


def map_geometry(net: nn.Module, images: Tensor, placing: _Placing | None = None) -> tuple[Geometry, Tensor]:
    """The geometry of the map that ``net`` makes of images or of another map, and that map's shape.

    Args:
        net: as for `backbone_geometry`, of any number of input channels; on the meta device, as `without_data` gives it.
        images: [N, C, H, W] on the meta device, of two different sides; cell i counts as centered at i + 0.5.
        placing: notes the geometry of every map on the way.

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
    net = nn.Sequential(net)  # so that a single layer has a name, too
    placing = placing or _Placing()
    placing.maps[images] = Geometry(1, 0.5), images.shape[-2:]
    try:
        with torch.no_grad(), torch.device("meta"), placing:
            features = net(images)
    except LostMap as error:
        raise ValueError(f"{placing.where(error, net)} {error}") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{placing.where(error, net)} cannot be run on {IMAGE_SIZE} pixels: {reason}") from error
    geometry, size = placing.maps.get(features, (None, None)) if isinstance(features, Tensor) else (None, None)
    if geometry is None or features.ndim != 4 or features.shape[2:] != size:
        raise ValueError("the backbone must end in a feature map [N, C, h, w], not in a vector: leave its pooling out")
    return geometry, features


def layer_strides(backbone: nn.Module) -> tuple[list[tuple[str, int]], int]:
    """How far apart the cells lie, in pixels, that each convolution, pooling and padding layer reads, in the order of calls.

    Returns:
        (name, pixels) of each, and those of the backbone's map.

    Raises:
        ValueError: as for `backbone_geometry`.

    Example:
        >>> layer_strides(nn.Sequential(nn.Conv2d(3, 8, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2)))
        ([('0', 1), ('2', 2)], 4)
    """
    net, placing, strides = without_data(backbone), _Placing(), list[tuple[str, int]]()
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d)):

            def note(_: nn.Module, given: tuple[Tensor], name: str = name) -> None:
                if given[0] in placing.maps:  # not a gate
                    strides.append((name, placing.maps[given[0]][0].stride))

            module.register_forward_pre_hook(note)
    geometry, _ = map_geometry(net, torch.empty(1, 3, *IMAGE_SIZE, device="meta"), placing)
    return strides, geometry.stride


def boxes_to_windows(boxes: Tensor, geometry: Geometry, map_size: Size, scale: tuple[float, float]) -> Tensor:
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
        found = f"boxes {list(boxes.shape)} and a map of {height} x {width} cells"
        raise ValueError(f"expected boxes [R, 4] and a map of at least one cell: got {found}")
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


# How maps are followed through a network


class LostMap(Exception):
    """What an operation does to a map is not known; the message completes a sentence that begins with the operation."""


class Follow(TorchFunctionMode):
    """Within it, every operation goes by way of `step`, under one name for layers, functions, methods and operators.

    It sees what the network itself calls, in whole: `nn.ReLU`, ``functional.relu`` and ``x.relu_()`` are all "relu".
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation = ""  # the latest
        self.maps: Any = WeakTensorKeyDictionary()  # what is known of each value that is a map

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.operation = func.__self__.__name__ if name == "__get__" else name.strip("_")  # an attribute, or a call
        return self.step(self.operation, func, args, kwargs or {})

    def step(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def where(self, error: Exception, net: nn.Module) -> str:
        """The layer of ``net`` in which an error came up, or the operation and the layer that it is in."""
        names = {id(module): name for name, module in net.named_modules()}
        frames = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
        module = next((each for each in reversed(frames) if names.get(id(each))), None)
        if module is None:
            return f"operation {self.operation!r} of the backbone"
        layer = f"layer {names[id(module)].removeprefix('0.')!r} ({type(module).__name__})"
        own = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
        return layer if own else f"operation {self.operation!r} in {layer}"


def leaves(values: Any) -> Iterator[Any]:
    """All values in lists of lists, or the one value that is no list."""
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from leaves(value)
    else:
        yield values


@dataclass(frozen=True)
class Slide:
    """How the windows of a convolution or a pooling lie along one axis."""

    kernel: int
    stride: int
    before: int  # cells of padding,
    after: int  # on either end
    dilation: int = 1
    ceil_mode: bool = False

    @property
    def reach(self) -> int:
        """Cells from a window's first to its last."""
        return self.dilation * (self.kernel - 1)

    def results(self, cells: int) -> int:
        """How many windows a side of so many cells has, as PyTorch counts them; below 1: it is too short."""
        steps, rest = divmod(cells + self.before + self.after - self.reach - 1, self.stride)
        if self.ceil_mode and rest and (steps + 1) * self.stride < cells + self.before:  # or it would see padding alone
            steps += 1
        return steps + 1


Slides = tuple[Slide, Slide]  # along rows and columns
POOLING = ("input", "kernel_size", "stride", "padding")
SLIDING: dict[str, tuple[str, ...]] = {  # operations whose windows slide, and their arguments
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "max_pool2d": (*POOLING, "dilation", "ceil_mode"),
    "avg_pool2d": (*POOLING, "ceil_mode"),
    "pad": ("input", "pad"),
}


def slides_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Slides:
    """How the windows of a call of one of `SLIDING` lie."""
    given = dict(zip(SLIDING[name], args, strict=False)) | dict(kwargs)
    if name == "pad":
        left, right, top, bottom = (given["pad"],) * 4 if isinstance(given["pad"], int) else (*given["pad"], 0, 0)[:4]
        return Slide(1, 1, top, bottom), Slide(1, 1, left, right)
    kernels = pair(given["weight"].shape[2:] if name == "conv2d" else given["kernel_size"])
    strides = pair(given.get("stride") or (1 if name == "conv2d" else kernels))
    dilations, padding = pair(given.get("dilation", 1)), given.get("padding", 0)
    if padding == "same":
        totals = tuple(dilation * (kernel - 1) for kernel, dilation in zip(kernels, dilations, strict=True))
    else:
        totals = (0, 0) if padding == "valid" else tuple(2 * side for side in pair(padding))
    down, across = (  # where a total is odd, its odd cell comes after
        Slide(kernel, stride, total // 2, total - total // 2, dilation, given.get("ceil_mode", False))
        for kernel, stride, total, dilation in zip(kernels, strides, totals, dilations, strict=True)
    )
    return down, across


def pair(value: Any) -> tuple[int, int]:
    """A kernel, stride, padding or dilation, along rows and columns."""
    first, second = tuple(value) * (2 // len(value)) if isinstance(value, (tuple, list)) else (value, value)
    return int(first), int(second)


class _Placing(Follow):
    """Gives each map its place: geometry, and (height, width) in cells. A value without one is no map, such as a gate."""

    def step(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = leaves([*args, *kwargs.values()])
        maps = [each for each in given if isinstance(each, Tensor) and each in self.maps]
        geometry = _meet([self.maps[each][0] for each in maps]) if maps else None
        result = func(*args, **kwargs)
        made = [each for each in leaves(result) if isinstance(each, Tensor)]
        if geometry is None or not made:  # a gate; a size
            return result
        size = self.maps[maps[0]][1]
        if name in SLIDING:
            if maps[0].shape[-2:] != size:
                raise LostMap("slides along other axes than rows and columns")
            geometry, size = _behind(geometry, slides_of(name, args, kwargs)), made[0].shape[-2:]
        elif not all(any(each.shape[axis : axis + 2] == size for axis in range(each.ndim - 1)) for each in made):
            if name not in REDUCING and made[0].shape[-2:] != (1, 1):
                raise LostMap("is not known to this geometry")
            return result
        self.maps.update((each, (geometry, size)) for each in made)
        return result


def _meet(places: list[Geometry]) -> Geometry:
    """One geometry for branches that meet."""
    stride, first, last = places[0].stride, min(place.offset for place in places), max(place.offset for place in places)
    if len({place.stride for place in places}) > 1 or last - first > stride / 2:
        raise LostMap(f"puts branches together that disagree on where their cells are: {sorted(map(str, places))}")
    return Geometry(stride, (first + last) / 2)


def _behind(geometry: Geometry, slides: Slides) -> Geometry:
    """The geometry behind windows that slide over a map."""
    down, across = (
        Geometry(geometry.stride * each.stride, geometry.offset + (each.reach / 2 - each.before) * geometry.stride)
        for each in slides
    )
    if down != across:
        raise LostMap(f"is not square: {slides[0]} along rows, {slides[1]} along columns")
    return down
