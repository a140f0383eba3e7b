"""Where a feature cell looks in the image: stride and offset of a backbone, its channels, the smallest image it takes.

Cell i of a map is centered at pixel ``offset + stride * i`` (continuous: pixel i covers i..i+1). Both numbers follow from the
kernel, stride, padding and dilation of every operation on the way. They are read while the backbone runs without data, on PyTorch's
meta device, which works out shapes alone; any other operation must keep the map's height and width. Source of the idea:
arXiv:1406.4729, appendix A ("Mapping a Window to Feature Maps"); the authors' release sets the offset by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

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
        images: [N, C, H, W] on the meta device, of two different sides; cell i counts as centered at i + 0.5.

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
    placing = _Placing()
    placing.maps[images] = _Place(Geometry(1, 0.5), tuple(images.shape[-2:]))
    try:
        with torch.no_grad(), torch.device("meta"), placing:
            features = net(images)
    except LostMap as error:
        raise ValueError(f"{placing.where(error, net)} {error}") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{placing.where(error, net)} cannot be run on {IMAGE_SIZE} pixels: {reason}") from error
    place = placing.maps.get(features) if isinstance(features, Tensor) else None
    if place is None or features.ndim != 4 or features.shape[2:] != place.size:
        raise ValueError("the backbone must end in a feature map [N, C, h, w], not in a vector: leave its pooling out")
    return place.geometry, features


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

    def past(self, cells: int, results: int) -> int:
        """How many cells past the edge the last of so many windows looks."""
        return max(0, (results - 1) * self.stride - self.before + self.reach - cells + 1)


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
    kernels = _pair(given["weight"].shape[2:] if name == "conv2d" else given["kernel_size"])
    strides = _pair(given.get("stride") or (1 if name == "conv2d" else kernels))
    dilations, padding = _pair(given.get("dilation", 1)), given.get("padding", 0)
    slides = []
    for axis in (0, 1):
        if padding == "same":
            total = dilations[axis] * (kernels[axis] - 1)
            before, after = total // 2, total - total // 2  # the odd cell comes after
        else:
            before = after = 0 if padding == "valid" else _pair(padding)[axis]
        slides.append(
            Slide(kernels[axis], strides[axis], before, after, dilations[axis], given.get("ceil_mode", False))
        )
    return slides[0], slides[1]


def _pair(value: Any) -> tuple[int, int]:
    first, second = tuple(value) * (2 // len(value)) if isinstance(value, (tuple, list)) else (value, value)
    return int(first), int(second)


@dataclass(frozen=True)
class _Place:
    """Where the cells of a map lie, on its way through the net."""

    geometry: Geometry
    size: tuple[int, ...]  # height and width in cells


class _Placing(Follow):
    """Gives each map its place; a value without one is not a map, such as a squeeze-and-excite gate."""

    def step(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = leaves([*args, *kwargs.values()])
        maps = [each for each in given if isinstance(each, Tensor) and each in self.maps]
        place = _meet([self.maps[each] for each in maps]) if maps else None
        result = func(*args, **kwargs)
        made = [each for each in leaves(result) if isinstance(each, Tensor)]
        if place is None or not made:  # a gate; a size
            return result
        if name in SLIDING:
            if maps[0].shape[-2:] != place.size:
                raise LostMap("slides along other axes than rows and columns")
            place = _Place(_behind(place.geometry, slides_of(name, args, kwargs)), tuple(made[0].shape[-2:]))
        elif not all(_holds(each, place.size) for each in made):
            if name not in REDUCING and made[0].shape[-2:] != (1, 1):
                raise LostMap("is not known to this geometry")
            return result
        for each in made:
            self.maps[each] = place
        return result


def _meet(places: list[_Place]) -> _Place:
    """One place for branches that meet."""
    strides, offsets = ({getattr(place.geometry, field) for place in places} for field in ("stride", "offset"))
    stride, first, last = places[0].geometry.stride, min(offsets), max(offsets)
    if len(strides) > 1 or last - first > stride / 2:
        found = sorted(str(place.geometry) for place in places)
        raise LostMap(f"puts branches together that disagree on where their cells are: {found}")
    return _Place(Geometry(stride, (first + last) / 2), places[0].size)


def _behind(geometry: Geometry, slides: Slides) -> Geometry:
    """The geometry behind windows that slide over a map."""
    down, across = (
        Geometry(geometry.stride * each.stride, geometry.offset + (each.reach / 2 - each.before) * geometry.stride)
        for each in slides
    )
    if down != across:
        raise LostMap(
            f"is not square ({slides[0]} along rows, {slides[1]} along columns): stride and offset must be the same"
        )
    return down


def _holds(tensor: Tensor, size: tuple[int, ...]) -> bool:
    """Whether two neighboring dimensions of a tensor are the height and width of a map."""
    return any(tensor.shape[start : start + 2] == size for start in range(tensor.ndim - 1))
