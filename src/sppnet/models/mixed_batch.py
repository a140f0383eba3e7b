"""Batches of images of different sizes: each image gets the features that it gets alone.

It sits before the pyramid: images [3, h_i, w_i] of any sizes -> one zero-padded batch [N, 3, H, W] -> features
[N, C, H', W'], and for every image the size (rows, columns) of its own part of the map, the upper left one.

What lies beyond an image's own edge fills up on the way: a bias makes it other than zero, a convolution smears the image
into it. A layer that looks sideways would read that where, alone, it reads its own padding. So just before each such layer
what it can reach beyond the edge is set back to that padding: 0 for a convolution, -inf for a maximum. What looks at the
whole map (squeeze-and-excite, a BatchNorm that learns) is given the image's own part. How large that is at each layer comes
from running the traced graph on the meta device, which knows shapes but no numbers. Beyond the edges all stays finite, so
that nothing of it reaches a result or a gradient, not even as infinity times zero.

From top to bottom: what is called; how a batch runs; what a layer may need; the graph; the rules, which say what each kind
of layer needs.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from sppnet.errors import UserError

Size = tuple[int, int]  # (height, width): of an image in pixels, of its part of a map in cells
SAMPLE = (
    352,
    544,
)  # pixels: an image to look at the layers with; 11 and 17 times 32, so rows are never as many as columns
PLANS = 4  # graphs kept for each backbone: training, evaluation, and both with a part of it frozen
SIDES = 4096  # heights, and widths, whose sizes in cells are kept for each graph
NOT_A_MAP = "the backbone must end in one feature map [N, C, h, w]: leave its pooling and classifier out"


class MixedBatch(nn.Module):
    """`mixed_features` as a module: for an optimiser, `DistributedDataParallel`, or ``nn.Sequential``.

    Args:
        backbone: see `mixed_features`. It is held, not copied: the same weights, named ``backbone.*`` here.

    Raises:
        UserError: as `mixed_features`, here already, before there are images.

    Example:
        >>> mixed = MixedBatch(nn.Conv2d(3, 8, 3, stride=2))
        >>> features, sizes = mixed([torch.rand(3, 20, 30), torch.rand(3, 40, 10)])
        >>> features.shape, sizes
        (torch.Size([2, 8, 19, 14]), [(9, 14), (19, 4)])
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        _plan_of(backbone)

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        return mixed_features(self.backbone, images)


def mixed_features(backbone: nn.Module, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Features of images of different sizes, computed in one batch, each as if it were alone.

    Alone means ``backbone(image[None])``; only the order in which sums are taken may differ. A BatchNorm in training mode,
    which is never about one image, takes its statistics over the cells of all the images and no others.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]. `torch.fx` must be able to trace it, and each of its layers
            be one whose padding can be set back: convolutions, poolings, normalisations, linear layers over channels,
            squeeze-and-excite, whatever works element by element, shortcuts, branches, channel shuffles. In training or
            evaluation mode, on any device, under autocast or not. Where sizes differ, a traced copy of its ``forward`` runs:
            hooks on modules that hold others do not, and plain numbers in it stay as they were at the first call.
        images: N tensors [3, h_i, w_i], floating point, of one type and on one device; at least one. Not modified.
            Images of one size cost nothing extra; very different sizes waste time on padding.

    Returns:
        features: [N, C, H', W'], where H' and W' are the largest of the sizes. Beyond an image's own size it is 0.
        sizes: for each image its (rows, columns) of the map, in cells; see `own_windows`.

    Raises:
        UserError: a layer that cannot be made exact (the message names it), or an image too small for the backbone.
        ValueError, TypeError: something else than such images.

    Gradient: exact, the sum of those of the images alone; none from what lies beyond an image's edge.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()
        >>> images = [torch.rand(3, 20, 30), torch.rand(3, 40, 10)]
        >>> features, sizes = mixed_features(backbone, images)
        >>> sizes
        [(10, 15), (20, 5)]
        >>> torch.allclose(features[0, :, :10, :15], backbone(images[0][None])[0], atol=1e-6)
        True
    """
    _check_images(images)
    if len({image.shape for image in images}) == 1:
        features = backbone(torch.stack(list(images)))
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise UserError(NOT_A_MAP)
        return features, [(features.shape[2], features.shape[3])] * len(images)
    plan = _plan_of(backbone)
    batch = _PaddedBatch(plan, backbone, [(image.shape[1], image.shape[2]) for image in images])
    features = batch.evaluate(_pad(images))
    return batch.reset(features, plan.output, 0.0), batch.sizes(plan.output)


def own_windows(sizes: Sequence[Size], device: torch.device | str | None = None) -> Tensor:
    """One window per image, the whole of its own part of the map: [N, 5] int64, as `region_pyramid_pool` takes them.

    Args:
        sizes: (rows, columns) of each image, in cells, from `mixed_features`.
        device: where the windows are wanted: that of the features.

    Example:
        >>> own_windows([(10, 15), (20, 5)])
        tensor([[ 0,  0,  0, 15, 10],
                [ 1,  0,  0,  5, 20]])
    """
    windows = [(index, 0, 0, columns, rows) for index, (rows, columns) in enumerate(sizes)]
    return torch.tensor(windows, dtype=torch.int64, device=device).reshape(-1, 5)


def _check_images(images: Sequence[Tensor]) -> None:
    if len(images) == 0:
        raise ValueError("images must hold at least one tensor [3, h, w]: got none")
    first = images[0]
    for index, image in enumerate(images):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            what = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"images must be floating point tensors [3, h, w]: image {index} is {what}")
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"images must be [3, h, w]: image {index} has shape {list(image.shape)}")
        if (image.dtype, image.device) != (first.dtype, first.device):
            raise ValueError(
                f"images must be of one type and on one device: image {index} is {image.dtype} on {image.device}, "
                f"image 0 {first.dtype} on {first.device}"
            )


def _pad(images: Sequence[Tensor]) -> Tensor:
    """[N, 3, H, W] with zeros below and to the right of each image; channels last in memory if the images are."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if torch.is_grad_enabled() and any(image.requires_grad for image in images):
        return _put_together(images)
    batch = images[0].new_zeros(len(images), 3, height, width)
    if all(image.stride(0) == 1 for image in images):
        batch = batch.to(memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


# How a batch runs


class _Evaluation:
    """Runs a traced graph node by node, and forgets each value after its last use."""

    def __init__(self, plan: _Plan, backbone: nn.Module, modules: dict[str, nn.Module]) -> None:
        self.plan, self.backbone, self.modules = plan, backbone, modules

    def evaluate(self, images: Tensor) -> Any:
        values: dict[fx.Node, Any] = {}
        for node, done in self.plan.schedule:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                args = args or (images,)
            values[node] = self.compute(node, args, kwargs)
            for used in done:
                del values[used]
        return values[self.plan.output]

    def compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The node's own operation, as it is."""
        if node.op == "placeholder":
            return args[0]
        if node.op == "get_attr":
            constant = self.plan.constants.get(str(node.target))
            return operator.attrgetter(str(node.target))(self.backbone) if constant is None else constant
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class _PaddedBatch(_Evaluation):
    """A padded batch on its way through the graph. Each image's own part of a map is the upper left one."""

    def __init__(self, plan: _Plan, backbone: nn.Module, images: Sequence[Size]) -> None:
        super().__init__(plan, backbone, plan.modules)
        self.sides = [plan.cells(size) for size in images]
        self.masks: dict[tuple[Any, ...], Tensor] = {}

    def compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        need = self.plan.needs.get(node)
        return self.call(node, args, kwargs) if need is None else need(self, node, args, kwargs)

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().compute(node, args, kwargs)

    def sizes(self, node: fx.Node) -> list[Size]:
        """(rows, columns) of each image's own part of the map that `node` gives."""
        index = self.plan.index[node]
        return [(heights[index], widths[index]) for heights, widths in self.sides]

    def beyond(self, features: Tensor, node: fx.Node) -> Tensor:
        """True beyond each image's own edges; with as many axes as the map."""
        sizes, rows = self.sizes(node), self.plan.rows[node]
        height, width = features.shape[rows], features.shape[rows + 1]
        key = (height, width, *sizes)
        if key not in self.masks:
            own = torch.tensor(sizes, device=features.device)
            down, across = (torch.arange(side, device=features.device) for side in (height, width))
            self.masks[key] = (down >= own[:, :1])[:, :, None] | (across >= own[:, 1:])[:, None]
        before, after = [1] * (features.ndim + rows - 1), [1] * (-2 - rows)
        return self.masks[key].reshape(len(sizes), *before, height, width, *after)

    def reset(self, features: Tensor, node: fx.Node, value: float, reach: Sequence[Size] | None = None) -> Tensor:
        """Set what lies beyond each image's edges to `value`, up to `reach` rows and columns from them; all by default.

        Returns the very same tensor if there is nothing beyond. Otherwise, where no gradient is asked for, it is changed in
        place: what lies beyond the edges is nobody's.
        """
        rows = self.plan.rows[node]
        height, width = features.shape[rows], features.shape[rows + 1]
        strips = []
        for image, (h, w) in enumerate(self.sizes(node)):
            down, across = (height, width) if reach is None else reach[image]
            bottom, right = min(h + down, height), min(w + across, width)
            if bottom > h or right > w:
                strips.append((image, h, w, bottom, right))
        if not strips:
            return features
        if torch.is_grad_enabled():
            return features.masked_fill(self.beyond(features, node), value)
        if not features.is_cpu:  # one kernel over the whole map is faster there than two for every image
            return features.masked_fill_(self.beyond(features, node), value)
        for image, h, w, bottom, right in strips:
            features[image].narrow(rows, h, bottom - h).narrow(rows + 1, 0, right).fill_(value)
            features[image].narrow(rows, 0, h).narrow(rows + 1, w, right - w).fill_(value)
        return features


# What a layer may need: each of these is called in place of the layer


@dataclass(frozen=True)
class _Slide:
    """How the windows of a layer lie along one axis."""

    kernel: int
    stride: int
    padding: int  # before the first cell
    dilation: int

    def reach(self, cells: int, results: int) -> int:
        """How many cells past the edge the last of an image's own `results` looks."""
        last = (results - 1) * self.stride - self.padding + self.dilation * (self.kernel - 1)
        return max(0, last - cells + 1)


Slides = tuple[_Slide, _Slide]  # along rows and columns


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _reach(batch: _PaddedBatch, node: fx.Node, slides: Slides) -> list[Size]:
    down, across = slides
    return [
        (down.reach(h, rows), across.reach(w, columns))
        for (h, w), (rows, columns) in zip(batch.sizes(_source(node)), batch.sizes(node), strict=True)
    ]


@dataclass(frozen=True)
class _Reset:
    """The layer, after what lies beyond the edges was set to the layer's own padding."""

    value: float
    slides: Slides | None = None  # None: it looks everywhere

    def __call__(self, batch: _PaddedBatch, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reach = None if self.slides is None else _reach(batch, node, self.slides)
        inputs = list(args)
        for place, source in enumerate(node.args):
            if isinstance(source, fx.Node) and source in batch.plan.rows:
                inputs[place] = batch.reset(args[place], source, self.value, reach)
        result = batch.call(node, tuple(inputs), kwargs)
        if self.value == -torch.inf:  # which must not go on, neither by the result nor by what else uses the map
            if node in batch.plan.rows:
                result = batch.reset(result, node, 0.0)
            if not torch.is_grad_enabled():
                batch.reset(args[0], _source(node), 0.0, reach)
        return result


@dataclass(frozen=True)
class _Average:
    """Average pooling that divides by a count of cells, which at an edge depends on where the edge is."""

    slides: Slides
    ceil_mode: bool
    include_padding: bool

    def __call__(self, batch: _PaddedBatch, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        features = batch.reset(args[0], _source(node), 0.0, _reach(batch, node, self.slides))
        features = features.to(_exact(features.dtype))
        kernel, stride, padding = zip(*((each.kernel, each.stride, each.padding) for each in self.slides), strict=True)
        sums = F.avg_pool2d(features, kernel, stride, padding, self.ceil_mode, divisor_override=1)
        heights, widths = zip(*batch.sizes(_source(node)), strict=True)
        rows = self._counts(self.slides[0], heights, sums.shape[2])[:, None, :, None]
        columns = self._counts(self.slides[1], widths, sums.shape[3])[:, None, None, :]
        return (sums / (rows * columns).to(sums.device)).to(args[0].dtype)

    def _counts(self, slide: _Slide, sides: Sequence[int], results: int) -> Tensor:
        """[N, results]: how many cells along this axis each window is averaged over, as PyTorch counts them."""
        cells = torch.tensor(sides)[:, None]
        start = torch.arange(results) * slide.stride - slide.padding
        stop = torch.minimum(start + slide.kernel, cells + slide.padding)
        if not self.include_padding:
            start, stop = start.clamp(min=0), torch.minimum(stop, cells)
        return (stop - start).clamp(min=1)  # less than 1 only beyond the image's own results


@dataclass(frozen=True)
class _Mean:
    """The mean over rows and columns of each image's own part."""

    keepdim: bool

    def __call__(self, batch: _PaddedBatch, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        source, rows = _source(node), batch.plan.rows[_source(node)]
        features = batch.reset(args[0], source, 0.0)
        sums = features.sum((rows, rows + 1), keepdim=self.keepdim, dtype=_exact(features.dtype))
        cells = sums.new_tensor([h * w for h, w in batch.sizes(source)])
        return (sums / cells.view(-1, *[1] * (sums.ndim - 1))).to(args[0].dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision: so a sum and its division round once, as in PyTorch's own averages."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _over_all_cells(batch: _PaddedBatch, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A BatchNorm that learns: on the cells of all images as one long image."""
    sizes = batch.sizes(_source(node))
    cells = batch.call(node, (_Gather.apply(args[0], sizes), *args[1:]), kwargs)
    return _Scatter.apply(cells, sizes, args[0].shape[2:])


class _Gather(torch.autograd.Function):
    """Maps [N, C, H, W] -> their own cells [1, C, 1, cells], image after image; one copy, and one for the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, sizes: Sequence[Size]) -> Tensor:
        ctx.sizes, ctx.side = sizes, features.shape[2:]
        last = features.is_contiguous(memory_format=torch.channels_last)
        # Made so, as BatchNorm's gradient is wrong for memory whose axes of one cell have other strides (torch 2.15).
        cells = torch.empty(
            (1, features.shape[1], 1, sum(rows * columns for rows, columns in sizes)),
            dtype=features.dtype,
            device=features.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for own, image, (rows, columns) in _image_by_image(cells, features, sizes):
            own.copy_(image[:, :rows, :columns])
        return cells

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(gradient, ctx.sizes, ctx.side), None


class _Scatter(torch.autograd.Function):
    """Cells [1, C, 1, cells] -> maps [N, C, H, W], 0 beyond the edges: the way back from `_Gather`."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, sizes: Sequence[Size], side: Size) -> Tensor:
        ctx.sizes = sizes
        features = cells.new_zeros(len(sizes), cells.shape[1], *side)
        if cells.stride(1) == 1:
            features = features.to(memory_format=torch.channels_last)
        for own, image, (rows, columns) in _image_by_image(cells, features, sizes):
            image[:, :rows, :columns] = own
        return features

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(gradient, ctx.sizes), None, None


def _image_by_image(cells: Tensor, features: Tensor, sizes: Sequence[Size]) -> Iterator[tuple[Tensor, Tensor, Size]]:
    parts = cells[0, :, 0].split([rows * columns for rows, columns in sizes], 1)
    for part, image, size in zip(parts, features, sizes, strict=True):
        yield part.unflatten(1, size), image, size


def _by_itself(batch: _PaddedBatch, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A layer with its own way of looking at an image: on the images' own parts, once for each size."""
    sizes = batch.sizes(_source(node))
    parts = _own_parts(args[0], sizes)
    groups: dict[Size, list[int]] = defaultdict(list)
    for image, size in enumerate(sizes):
        groups[size].append(image)
    results: dict[int, Tensor] = {}
    for group in groups.values():
        together = batch.call(node, (torch.stack([parts[image] for image in group]), *args[1:]), kwargs)
        results.update(zip(group, together.unbind(), strict=True))
    return _put_together([results[image] for image in range(len(parts))])


def _expanded(batch: _PaddedBatch, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A value per channel as a map, with memory of its own for every cell, so that cells can be set."""
    return batch.call(node, args, kwargs).contiguous()


def _own_parts(features: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Each image's own part. By way of `unbind`: the gradient of a slice of the batch would be as large as the batch."""
    return [image[..., :rows, :columns] for image, (rows, columns) in zip(features.unbind(), sizes, strict=True)]


def _put_together(parts: Sequence[Tensor]) -> Tensor:
    """A batch of the maps [..., h_i, w_i]: 0 beyond the edges."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.stack([F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])) for part in parts])


# A backbone's graph, and the sizes of its maps

Need = Callable[[_PaddedBatch, fx.Node, tuple[Any, ...], dict[str, Any]], Any]


class _Plan:
    """A backbone's graph: which of its values are maps, what its layers need, and how large a map each image gets.

    A *map* is a value with the image's rows and columns as two neighbouring axes, so it has a part beyond each image's edges.
    Everything else (weights, a gate of squeeze-and-excite, a number of channels) is for each image as it is alone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        before = set(vars(backbone))
        try:
            graph = fx.Tracer().trace(backbone)
            self._without_numbers = _without_numbers(backbone)
        except Exception as error:
            raise UserError(
                f"the backbone's graph cannot be traced, so that mixed sizes cannot be exact: {_first_line(error)}; "
                "use images of one size, or one at a time"
            ) from error
        self.constants = {name: vars(backbone).pop(name) for name in set(vars(backbone)) - before}  # the tracer's own
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        self.modules = {name: backbone.get_submodule(name) for name in called}
        self.schedule, self.output = _schedule(graph)
        self.rows: dict[fx.Node, int] = {}  # of each map, its axis of rows, counted from the end; columns are the next
        self.needs: dict[fx.Node, Need] = {}
        self.meets: dict[fx.Node, list[fx.Node]] = {}  # where maps are put together cell by cell
        self.same: set[fx.Node] = set()  # layers whose result has the shape of what they are given
        values = self._measure(SAMPLE)
        _Rules(self, values).apply()
        if self.rows.get(self.output) != -2 or not isinstance(values[self.output], Tensor):
            raise UserError(NOT_A_MAP)
        asked = {self.output, *self.needs, *(node for need in self.needs for node in need.all_input_nodes)}
        self.index = {node: index for index, node in enumerate(node for node in self.rows if node in asked)}
        self._known: tuple[OrderedDict[int, tuple[int, ...]], ...] = (OrderedDict(), OrderedDict())

    def cells(self, size: Size) -> tuple[tuple[int, ...], ...]:
        """Heights and widths of the maps of `index` for an image of `size`; remembered by side, as no layer mixes them."""
        if any(side not in known for side, known in zip(size, self._known, strict=True)):
            values = self._measure(size)
            for axis, (side, known) in enumerate(zip(size, self._known, strict=True)):
                known[side] = tuple(_cells(values[node], self.rows[node])[axis] for node in self.index)
        result = tuple(known[side] for side, known in zip(size, self._known, strict=True))
        for known in self._known:
            if len(known) > SIDES:
                known.popitem(last=False)
        return result

    def _measure(self, size: Size) -> dict[fx.Node, Any]:
        """Every value of the graph for two images of `size`, on the meta device."""
        survey = _Survey(self, *self._without_numbers)
        try:
            with torch.no_grad():
                survey.evaluate(torch.empty(2, 3, *size, device="meta"))
            for survey.node, maps in self.meets.items():
                if len({_cells(survey.values[each], self.rows[each]) for each in maps}) > 1:
                    raise ValueError("the maps that it puts together differ in size")
        except Exception as error:
            raise UserError(
                f"the backbone cannot take an image of {size[0]} x {size[1]} pixels: {_first_line(error)} "
                f"(in {self.describe(survey.node)})"
            ) from error
        return survey.values

    def describe(self, node: fx.Node) -> str:
        """A layer, or an operation and the layer that it is in, for messages."""
        if node.op == "call_module":
            return f"layer {str(node.target)!r} ({type(self.modules[str(node.target)]).__name__})"
        layer, kind = [("", nn.Module), *(node.meta.get("nn_module_stack") or {}).values()][-1]
        name = _operation_name(node) or getattr(node.target, "__name__", str(node.target))
        return (
            f"operation {name!r} in layer {layer!r} ({kind.__name__})"
            if layer
            else f"operation {name!r} of the backbone"
        )


class _Survey(_Evaluation):
    """A run on the meta device that keeps every value. What changes no shape is left out: there it would take longest."""

    def __init__(self, plan: _Plan, backbone: nn.Module, modules: dict[str, nn.Module]) -> None:
        super().__init__(plan, backbone, modules)
        self.values: dict[fx.Node, Any] = {}
        self.node = plan.output  # the one at hand

    def compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.node = node
        value = args[0] if node in self.plan.same else super().compute(node, args, kwargs)
        self.values[node] = value.to("meta") if isinstance(value, Tensor) else value
        return self.values[node]


_PLANS: WeakKeyDictionary[nn.Module, OrderedDict[Any, _Plan]] = WeakKeyDictionary()


def _plan_of(backbone: nn.Module) -> _Plan:
    """The plan for the backbone as it is now: other modules, or another mode of one of them, make another graph."""
    key = (backbone.training, *((module, module.training) for module in backbone.modules() if module is not backbone))
    plans = _PLANS.setdefault(backbone, OrderedDict())
    if key not in plans:
        plans[key] = _Plan(backbone)
    plans.move_to_end(key)
    if len(plans) > PLANS:
        plans.popitem(last=False)
    return plans[key]


def _schedule(graph: fx.Graph) -> tuple[list[tuple[fx.Node, list[fx.Node]]], fx.Node]:
    """The nodes in order, each with those whose values nobody needs after it; and the node of the result."""
    *nodes, end = graph.nodes
    output = end.args[0]
    if not isinstance(output, fx.Node):
        raise UserError(NOT_A_MAP)
    if [node.args for node in nodes if node.op == "placeholder"].count(()) != 1:
        raise UserError("the backbone must be called with images [N, 3, H, W] and nothing else that it needs")
    done: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    seen = {output}
    for node in reversed(nodes):
        if "input" in node.kwargs and not node.args:  # the map is the first argument, never one by name
            node.args = (node.kwargs["input"],)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        for used in (node, *node.all_input_nodes):
            if used not in seen:
                seen.add(used)
                done[node].append(used)
    return [(node, done[node]) for node in nodes], output


def _without_numbers(backbone: nn.Module) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A copy on the meta device, in evaluation mode and without hooks; its modules by name."""
    copies: dict[int, Any] = {}
    for tensor in chain(backbone.parameters(), backbone.buffers()):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        copies[id(tensor)] = nn.Parameter(torch.empty_like(tensor, device="meta", dtype=dtype), requires_grad=False)
    copy = deepcopy(backbone, copies).eval()
    for module in copy.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copy, dict(copy.named_modules())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cells(value: Any, rows: int) -> Size:
    """(rows, columns) of a map; of the parts that a map was split into, those of the first."""
    shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
    return shape[rows], shape[rows + 1]


# The rules: what each kind of layer needs

# fmt: off
ELEMENT_BY_ELEMENT = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh",
    "hardsigmoid", "hardtanh", "sigmoid", "logsigmoid", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink",
    "threshold", "exp", "abs", "absolute", "neg", "negative", "square", "sin", "cos", "erf", "add", "iadd", "sub", "isub",
    "subtract", "mul", "imul", "multiply", "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "where", "lerp",
    "addcmul", "dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "channel_shuffle",
    "local_response_norm", "contiguous", "clone", "detach", "float", "half", "bfloat16", "type_as", "to",
}
FINITE_AT_ONE = {"sqrt", "rsqrt", "log", "log2", "log10", "reciprocal", "div", "divide", "true_divide", "truediv", "pow"}
BY_ITSELF = {"own_way", "group_norm", "interpolate", "pixel_shuffle", "pixel_unshuffle", "lp_pool2d"}
REGROUPINGS = {"view", "reshape", "flatten", "unflatten", "unsqueeze"}
OF_NUMBERS = {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg"}
FREE_OF_SIZE = {"dim", "ndim", "dtype", "device", "requires_grad", "is_cuda", "is_floating_point"}
# fmt: on
MODULES_BY_ELEMENT = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "torch.nn.modules.channelshuffle")


def _operation(module: nn.Module) -> tuple[str, tuple[Any, ...]]:
    """The operation that a layer is, and its arguments after the map."""
    match module:
        case nn.Conv2d(padding_mode="zeros"):
            return "conv2d", (module.weight, None, module.stride, module.padding, module.dilation)
        case nn.MaxPool2d(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode):
            return "max_pool2d", (kernel, stride, padding, module.dilation, ceil_mode, module.return_indices)
        case nn.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode):
            return "avg_pool2d", (kernel, stride, padding, ceil_mode, module.count_include_pad, module.divisor_override)
        case nn.AdaptiveAvgPool2d():
            return "adaptive_avg_pool2d", (module.output_size,)
        case nn.AdaptiveMaxPool2d():
            return "adaptive_max_pool2d", (module.output_size, module.return_indices)
        case nn.modules.batchnorm._BatchNorm():
            return "batch_norm", (None, None, None, None, module.training or module.running_mean is None)
        case nn.LayerNorm() | nn.RMSNorm():
            return "layer_norm", (module.normalized_shape,)
        case nn.Linear():
            return "linear", ()
        case nn.ConstantPad2d():
            return "pad", (module.padding, "constant", module.value)
        case (
            nn.Conv2d() | nn.GroupNorm() | nn.InstanceNorm2d(track_running_stats=False) | nn.LPPool2d() | nn.Upsample()
        ):
            return "own_way", ()
        case (
            nn.ReflectionPad2d() | nn.ReplicationPad2d() | nn.CircularPad2d() | nn.PixelShuffle() | nn.PixelUnshuffle()
        ):
            return "own_way", ()
        case nn.MultiheadAttention() | nn.Softmax() | nn.Softmin() | nn.LogSoftmax() | nn.GLU():
            return "", ()
        case nn.Identity() | nn.LocalResponseNorm() | nn.CrossMapLRN2d():
            return "relu", ()
    return "relu" if type(module).__module__ in MODULES_BY_ELEMENT else "", ()


def _operation_name(node: fx.Node) -> str:
    """`add` for ``+``, `torch.add`, ``x.add`` and ``x.add_``; "" for a function that is not PyTorch's."""
    if isinstance(node.target, str):
        return node.target.rstrip("_")
    origin = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    return getattr(node.target, "__name__", "") if origin in ("torch", "torchvision", "_operator", "builtins") else ""


class _Rules:
    """Goes through a graph once, and writes into its plan which values are maps and what each layer needs.

    One method for each operation, with PyTorch's own arguments after the map (`_conv2d`), or for several of a kind. An
    operation without one is refused.
    """

    node: fx.Node  # the one at hand,
    maps: list[fx.Node]  # those of its inputs that are maps,
    rows: int  # the first map's axis of rows,
    shape: torch.Size  # and its shape for the sample

    def __init__(self, plan: _Plan, values: dict[fx.Node, Any]) -> None:
        self.plan, self.values = plan, values
        self.lengths: set[fx.Node] = set()  # numbers, or shapes, that depend on the padded batch's height or width
        self.shapes: dict[
            fx.Node, set[int]
        ] = {}  # of those, whole shapes of maps, and where they hold height and width

    def apply(self) -> None:
        for node, _ in self.plan.schedule:
            self.node, self.maps = node, [each for each in node.all_input_nodes if each in self.plan.rows]
            if node.op == "placeholder" and not node.args:
                self.plan.rows[node] = -2
            elif self.maps:
                self.rows, value = self.plan.rows[self.maps[0]], self.values[self.maps[0]]
                self.shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
                self.classify()
            elif not self.lengths.isdisjoint(node.all_input_nodes):
                self.compute_length()

    def classify(self) -> None:
        """A node that takes at least one map."""
        name, arguments = _operation_name(self.node), self.node.args[1:]
        if self.node.op == "call_module":
            name, arguments = _operation(self.plan.modules[str(self.node.target)])
        if name != "getitem" and any(isinstance(self.values[each], (tuple, list)) for each in self.maps):
            self.refuse("it takes several maps at once")
        if name not in REGROUPINGS and not self.lengths.isdisjoint(self.node.all_input_nodes):
            self.refuse("it uses the height or width of the padded batch")
        if name in ("to", "type_as") and self.node.args[0] not in self.plan.rows:
            return  # only the map's type is asked for
        if name in ELEMENT_BY_ELEMENT:
            self.by_element()
        elif name in FINITE_AT_ONE:
            self.by_element(_Reset(1.0))
        elif name in ("cat", "concat", "expand_as"):
            getattr(self, f"_{name}")(*self.node.args, **self.node.kwargs)
        elif self.node.args[:1] != (self.maps[0],):
            self.refuse("its first argument is not a map")
        elif name in BY_ITSELF:
            self.map(_by_itself)
        elif name in REGROUPINGS:
            self.regroup()
        elif name in FREE_OF_SIZE:
            return
        elif hasattr(self, f"_{name}"):
            getattr(self, f"_{name}")(*arguments, **self.node.kwargs)
        else:
            self.refuse("what it needs is not known")

    def refuse(self, reason: str) -> NoReturn:
        raise UserError(
            f"{self.plan.describe(self.node)} cannot be made exact for images of different sizes in one batch: {reason}; "
            "use images of one size, or one at a time"
        )

    def map(self, need: Need | None = None, rows: int | None = None) -> None:
        """The node gives a map. Without `rows`, rows and columns are the last axes, and must be so in its input."""
        if rows is None and self.rows != -2:
            self.refuse("rows and columns are not the last two axes")
        self.plan.rows[self.node] = -2 if rows is None else rows
        if need is not None:
            self.plan.needs[self.node] = need

    def axes(self, dims: Any) -> list[int]:
        """Axes as counted from the end."""
        several = dims if isinstance(dims, (tuple, list)) else (dims,)
        if not all(isinstance(dim, int) for dim in several):
            self.refuse("it does not say along which axes it goes")
        return [dim - len(self.shape) if dim >= 0 else dim for dim in several]

    def other_axes(self, dims: Any) -> list[int]:
        """Axes as counted from the end, none of them that of images, rows or columns."""
        axes = self.axes(dims)
        if not {-len(self.shape), self.rows, self.rows + 1}.isdisjoint(axes):
            self.refuse("it mixes cells or images")
        return axes

    def slides(self, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Slides:
        pairs = []
        for value in (kernel, stride, padding, dilation):
            pair = tuple(value) * (2 // len(value)) if isinstance(value, (tuple, list)) else (value, value)
            if not all(isinstance(side, int) for side in pair):
                self.refuse(f"it is set by {value}, not by whole numbers")
            pairs.append(pair)
        down, across = (_Slide(*settings) for settings in zip(*pairs, strict=True))
        return down, across

    # Operations of a kind

    def by_element(self, need: Need | None = None) -> None:
        if need is not None and (str(self.node.target).endswith("_") or not {*self.maps} <= {*self.node.args}):
            self.refuse("it changes a map in place, or takes it by name")
        if len({(self.plan.rows[each], *_cells(self.values[each], self.plan.rows[each])) for each in self.maps}) > 1:
            self.refuse("the maps that it puts together differ in size")
        self.map(need, self.rows)
        if len(self.maps) > 1:
            self.plan.meets[self.node] = self.maps
        elif self.node.op == "call_module":
            self.plan.same.add(self.node)

    def regroup(self) -> None:
        """A view that leaves images, rows and columns as they are, as in a channel shuffle."""
        after = self.values[self.node].shape
        if len(after) < 3 or (self.shape[0], *self.shape[-2:]) != (after[0], *after[-2:]):
            self.refuse("it mixes cells or images")
        self.map()

    def reduce(self, dim: Any, keepdim: bool, over_cells: Need) -> None:
        if sorted(self.axes(dim)) == [self.rows, self.rows + 1]:
            self.plan.needs[self.node] = over_cells
        else:
            behind = sum(axis > self.rows for axis in self.other_axes(dim))
            self.map(rows=self.rows + (0 if keepdim else behind))

    def adaptive(self, output_size: Any, to_one_cell: Need) -> None:
        """To a fixed number of cells: no map any more, as there is nothing beyond an edge."""
        sides = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        if self.rows != -2 or not all(isinstance(side, int) for side in sides):
            self.refuse(f"an output of {output_size} cells is not known")
        self.plan.needs[self.node] = to_one_cell if sides == (1, 1) else _by_itself

    def compute_length(self) -> None:
        """Arithmetic with heights and widths. Of the result only a view may be made: all else would depend on the batch."""
        name, source = _operation_name(self.node), self.node.args[0]
        if name == "getitem" and isinstance(source, fx.Node) and source in self.shapes:
            index = self.node.args[1]
            if isinstance(index, int) and index % len(self.values[source]) not in self.shapes[source]:
                return
        elif name not in OF_NUMBERS:
            self.refuse("it uses the height or width of the padded batch")
        self.lengths.add(self.node)

    # One operation each

    def _conv2d(
        self, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
    ) -> None:
        kernel = tuple((self.values[weight] if isinstance(weight, fx.Node) else weight).shape[2:])
        if padding == "same":
            reaches = (slide.dilation * (slide.kernel - 1) for slide in self.slides(kernel, 1, 0, dilation))
            padding = tuple(reach // 2 for reach in reaches)  # the odd cell comes after
        self.map(_Reset(0.0, self.slides(kernel, stride, 0 if padding == "valid" else padding, dilation)))

    def _max_pool2d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> None:  # fmt: skip
        if return_indices:
            self.refuse("its indices count the cells of the padded map")
        self.map(_Reset(-torch.inf, self.slides(kernel_size, stride or kernel_size, padding, dilation)))

    def _avg_pool2d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        slides = self.slides(kernel_size, stride or kernel_size, padding)
        counts_vary = ceil_mode or (not count_include_pad and any(slide.padding for slide in slides))
        if counts_vary and divisor_override is None:
            self.map(_Average(slides, ceil_mode, count_include_pad))
        else:
            self.map(_Reset(0.0, slides))

    def _adaptive_avg_pool2d(self, output_size: Any) -> None:
        self.adaptive(output_size, _Mean(keepdim=True))

    def _adaptive_max_pool2d(self, output_size: Any, return_indices: bool = False) -> None:
        if return_indices:
            self.refuse("its indices count the cells of the padded map")
        self.adaptive(output_size, _Reset(-torch.inf))

    def _mean(self, dim: Any = None, keepdim: bool = False) -> None:
        self.reduce(dim, keepdim, _Mean(keepdim))

    def _sum(self, dim: Any = None, keepdim: bool = False) -> None:
        self.reduce(dim, keepdim, _Reset(0.0))

    def _amax(self, dim: Any = (), keepdim: bool = False) -> None:
        self.reduce(dim, keepdim, _Reset(-torch.inf))

    def _norm(self, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> None:
        if p not in (1, 2, "fro"):
            self.refuse(f"a norm of order {p} is not known")
        self.reduce(dim, keepdim, _Reset(0.0))

    def _pad(self, pad: Any, mode: str = "constant", value: float | None = None) -> None:
        if mode != "constant":
            return self.map(_by_itself)
        left, _, top, *_ = sides = (pad,) * 4 if isinstance(pad, int) else tuple(pad)
        if len(sides) != 4:
            self.refuse("it pads other axes than rows and columns")
        self.map(_Reset(value or 0.0, self.slides(1, 1, (top, left))))

    def _batch_norm(
        self, mean: Any, variance: Any, weight: Any = None, bias: Any = None, training: Any = False, *_: Any, **__: Any
    ) -> None:
        if training and len(self.shape) != 4:
            self.refuse("its statistics are of other maps than [N, C, h, w]")
        self.map(_over_all_cells if training else None)
        self.plan.same.add(self.node)

    def _layer_norm(self, normalized_shape: Any, *_: Any, **__: Any) -> None:
        self.other_axes([-1 - axis for axis in range(len(normalized_shape))])
        self.map(rows=self.rows)

    def _linear(self, *_: Any, **__: Any) -> None:
        self.other_axes(-1)
        self.map(rows=self.rows)

    def _cat(self, tensors: Any, dim: int = 0) -> None:
        if {self.plan.rows.get(each) for each in tensors} != {self.rows}:
            self.refuse("not all that it puts together are maps")
        self.other_axes(dim)
        self.map(rows=self.rows)

    def _chunk(self, parts: Any, dim: int = 0) -> None:
        self.other_axes(dim)
        self.map(rows=self.rows)

    _split = _chunk
    _concat = _cat

    def _getitem(self, index: Any) -> None:
        if isinstance(self.values[self.maps[0]], Tensor):  # and not one of the parts that a map was split into
            slices = index if isinstance(index, tuple) else (index,)
            if not all(isinstance(each, slice) for each in slices):
                self.refuse("of its indices only slices of channels are known")
            self.other_axes([axis for axis, each in enumerate(slices) if each != slice(None)])
        self.map(rows=self.rows)

    def _expand_as(self, source: fx.Node, other: fx.Node) -> None:
        self.map(_expanded, self.plan.rows.get(other))

    def _permute(self, *dims: Any) -> None:
        order = self.axes(dims[0] if len(dims) == 1 else dims)
        images, rows, columns = (order.index(axis) for axis in (-len(order), self.rows, self.rows + 1))
        if images != 0 or columns != rows + 1:
            self.refuse("it parts rows from columns, or moves images")
        self.map(rows=rows - len(order))

    def _transpose(self, first: int, second: int) -> None:
        order = [*range(-len(self.shape), 0)]
        order[first], order[second] = order[second], order[first]
        self._permute(order)

    def _size(self, dim: int | None = None) -> None:
        own = {len(self.shape) + self.rows, len(self.shape) + self.rows + 1}
        if dim is None:
            self.shapes[self.node] = own
        if dim is None or dim % len(self.shape) in own:
            self.lengths.add(self.node)

    def _getattr(self, name: str) -> None:
        if name == "shape":
            self._size()
        elif name not in FREE_OF_SIZE:
            self.refuse("what it needs is not known")
