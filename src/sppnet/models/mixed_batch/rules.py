"""What each kind of operation needs in a padded batch, so that it is right in each image's own part; or that it is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partialmethod
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor

from sppnet.errors import UserError
from sppnet.models.geometry import LostMap, leaves, slides_of
from sppnet.models.mixed_batch.padded_batch import Length, Own, PaddedBatch, own_parts, put_together

# fmt: off
# Where a cell of the result depends on that cell alone, or on its neighbors among the channels: nothing is needed.
ELEMENT_BY_ELEMENT = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh",
    "hardsigmoid", "hardtanh", "sigmoid", "logsigmoid", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink",
    "threshold", "exp", "abs", "absolute", "neg", "negative", "square", "sin", "cos", "erf", "add", "sub", "rsub", "subtract",
    "mul", "multiply", "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "where", "lerp", "addcmul", "dropout",
    "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "channel_shuffle", "native_channel_shuffle",
    "local_response_norm", "contiguous", "clone", "detach", "float", "half", "bfloat16", "type_as", "to",
}
# Likewise, but not finite, or without a slope, at some values: what lies beyond the edges is set to 1 first.
FINITE_AT_ONE = {"sqrt", "rsqrt", "log", "log2", "log10", "reciprocal", "div", "rdiv", "divide", "true_divide", "pow", "rpow"}
# Known as long as they leave images, rows and columns as they are.
REGROUPINGS = {"view", "reshape", "flatten", "unflatten", "unsqueeze"}
# Run on each image's own part by itself.
BY_ITSELF = ("group_norm", "interpolate", "pixel_shuffle", "pixel_unshuffle", "lp_pool2d")
KINDS = dict.fromkeys(BY_ITSELF, "by_itself") | dict.fromkeys(REGROUPINGS, "regroup")
# Questions to a map whose answer is the same for any size.
FREE_OF_SIZE = {"dim", "ndim", "dtype", "device", "requires_grad", "is_cuda", "is_floating_point", "is_contiguous"}
# fmt: on


class Rules(PaddedBatch):
    """Gives each operation what it needs to see, for every image, what it sees alone.

    One method for each operation, with PyTorch's own arguments after the map (`_max_pool2d`), or for several of a kind. An
    operation without one is refused.
    """

    func: Callable[..., Any]  # the operation at hand,
    args: Sequence[Any]  # its arguments,
    kwargs: dict[str, Any]
    own: Own  # and the own parts of its first map

    def step(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if "input" in kwargs:  # the map is the first argument, never one by name
            args, kwargs = (kwargs["input"], *args), {key: kwargs[key] for key in kwargs if key != "input"}
        given = list(leaves([*args, *kwargs.values()]))
        maps = [each for each in given if self.is_map(each)]
        if name not in REGROUPINGS:
            [each.refuse() for each in given if isinstance(each, Length)]
        if any(self.is_unknown(each) for each in given):
            raise LostMap("it takes a map that was made by something that cannot be followed")
        if not maps or name in FREE_OF_SIZE or (name in ("to", "type_as") and args[0] is not maps[0]):
            return self.keep(func(*args, **kwargs), None)
        self.func, self.args, self.kwargs, self.own = func, args, kwargs, self.maps[maps[0]]
        if name in ELEMENT_BY_ELEMENT or name in FINITE_AT_ONE:
            return self.by_element(maps, name in FINITE_AT_ONE)
        if name not in ("cat", "concat", "expand_as") and args[0] is not maps[0]:
            raise LostMap("its first argument is not a map")
        rule = getattr(self, KINDS.get(name, f"_{name}"), None)
        if rule is None:
            raise LostMap("what it needs is not known")
        try:
            signature(rule).bind(*args, **kwargs)
        except TypeError:
            raise LostMap("not all of its arguments are known") from None
        return rule(*args, **kwargs)

    def call(self, first: Any) -> Any:
        """The operation as it is, on another first argument."""
        return self.func(first, *self.args[1:], **self.kwargs)

    def same(self, first: Any, rows: int | None = None) -> Any:
        """The operation as it is; each result is a map with own parts of the same sizes."""
        return self.keep(self.call(first), Own(self.own.rows if rows is None else rows, self.own.sizes))

    def check_last(self) -> None:
        if self.own.rows != -2:
            raise LostMap("rows and columns are not the last two axes")

    def axes(self, features: Tensor, dims: Any) -> list[int]:
        """Axes as counted from the end."""
        several = dims if isinstance(dims, (tuple, list)) else (dims,)
        if not several or not all(isinstance(dim, int) for dim in several):
            raise LostMap("it does not say along which axes it goes")
        return [dim - features.ndim if dim >= 0 else dim for dim in several]

    def other_axes(self, features: Tensor, dims: Any) -> list[int]:
        """Axes as counted from the end, none of them that of images, rows or columns."""
        axes = self.axes(features, dims)
        if not {-features.ndim, self.own.rows, self.own.rows + 1}.isdisjoint(axes):
            raise LostMap("it mixes cells or images")
        return axes

    # Operations of a kind

    def by_element(self, maps: list[Tensor], finite_at_one: bool) -> Any:
        if any(self.maps[each] != self.own for each in maps):
            raise LostMap("the maps that it puts together differ in size")
        if not finite_at_one:
            return self.same(self.args[0])
        in_place = self.func.__name__.endswith("_") and not self.func.__name__.startswith("_")
        if in_place or any(self.is_map(each) for each in self.kwargs.values()):
            raise LostMap("it changes a map in place, or takes it by name")
        args = [self.reset(each, 1.0) if self.is_map(each) else each for each in self.args]
        return self.keep(self.func(*args, **self.kwargs), self.own)

    def by_itself(self, features: Tensor, *_: Any, is_map: bool = True, **__: Any) -> Tensor:
        """An operation with its own way of looking at an image: on each image's own part."""
        self.check_last()
        made = [self.call(part[None])[0] for part in own_parts(features, self.own.sizes)]
        sizes = [(each.shape[-2], each.shape[-1]) for each in made]
        return cast(Tensor, self.keep(put_together(made), Own(-2, sizes) if is_map else None))

    def regroup(self, features: Tensor, *_: Any, **__: Any) -> Tensor:
        """A view that leaves images, rows and columns as they are, as in a channel shuffle."""
        self.check_last()
        result: Tensor = self.same(features)
        if result.ndim < 3 or (len(result), result.shape[-2:]) != (len(features), features.shape[-2:]):
            raise LostMap("it mixes cells or images")
        return result

    def slide(self, features: Tensor, *_: Any, value: float, **__: Any) -> Tensor:
        """Windows slide over the map: what they reach beyond each image's own edge is set to the operation's padding."""
        self.check_last()
        down, across = slides_of(self.operation, self.args, self.kwargs)
        sizes = [(down.results(h), across.results(w)) for h, w in self.own.sizes]
        for size, (height, width) in zip(sizes, self.sizes, strict=True):
            if min(size) < 1:
                what = f"an image of {height} x {width} pixels: {self.operation!r} leaves it no cell"
                raise UserError(f"the backbone cannot take {what}")
        looks_past = any(each.reach or each.after for each in (down, across))
        own = self.reset(features, value) if looks_past else features
        result: Tensor = self.keep(self.call(own), Own(-2, sizes))
        if value == -torch.inf:  # which must not go on, neither by the result nor by what else uses the map
            result = self.reset(result, 0.0)
            if not torch.is_grad_enabled():
                self.reset(features, 0.0)
        return result

    def reduce(
        self, features: Tensor, dim: Any = None, keepdim: bool = False, *, value: float, mean: bool = False
    ) -> Tensor:
        """To one number of each image's own part, which is no map, as there is nothing beyond an edge; or over other axes."""
        rows = self.own.rows
        if sorted(self.axes(features, dim)) != [rows, rows + 1]:
            behind = sum(axis > rows for axis in self.other_axes(features, dim))
            return cast(Tensor, self.same(features, rows + (0 if keepdim else behind)))
        own = self.reset(features, value)
        if mean:
            # a sum and its division round once, as in PyTorch
            exact = torch.promote_types(features.dtype, torch.float32)
            sums = own.sum((rows, rows + 1), keepdim=keepdim, dtype=exact)
            cells = sums.new_tensor([h * w for h, w in self.own.sizes])
            result = (sums / cells.view(-1, *[1] * (sums.ndim - 1))).to(features.dtype)
        else:
            result = self.call(own)
            if value == -torch.inf and not torch.is_grad_enabled():
                self.reset(features, 0.0)
        return cast(Tensor, self.keep(result, None))

    def adaptive(self, features: Tensor, output_size: Any, return_indices: bool = False, *, value: float) -> Tensor:
        """To a fixed number of cells: no map any more."""
        self.check_last()
        sides = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        if not all(isinstance(side, int) for side in sides):
            raise LostMap(f"an output of {output_size} cells is not known")
        if sides != (1, 1):
            return self.by_itself(features, is_map=False)
        return self.reduce(features, (-2, -1), True, value=value, mean=value == 0)

    # One operation each

    _conv2d, _max_pool2d = partialmethod(slide, value=0.0), partialmethod(slide, value=-torch.inf)
    _adaptive_avg_pool2d = partialmethod(adaptive, value=0.0)
    _adaptive_max_pool2d = partialmethod(adaptive, value=-torch.inf)
    _mean, _sum = partialmethod(reduce, value=0.0, mean=True), partialmethod(reduce, value=0.0)
    _amax = partialmethod(reduce, value=-torch.inf)

    def _avg_pool2d(
        self, features: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        if divisor_override is None and (ceil_mode or not count_include_pad):
            return self.by_itself(features)  # a count of cells to divide by depends on where the edge is
        return self.slide(features, value=0.0)

    def _norm(
        self, features: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: None = None
    ) -> Tensor:
        if p not in (1, 2, "fro") or dtype is not None:
            raise LostMap(f"a norm of order {p} in {dtype} is not known")
        return self.reduce(features, dim, keepdim, value=0.0)

    def _pad(self, features: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        if mode != "constant":
            return self.by_itself(features)
        if not isinstance(pad, int) and len(pad) != 4:
            raise LostMap("it pads other axes than rows and columns")
        return self.slide(features, value=value or 0.0)

    def _batch_norm(
        self, features: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
        training: bool = False, *_: Any, **__: Any,
    ) -> Tensor:  # fmt: skip
        self.check_last()
        if not training:
            return cast(Tensor, self.same(features))
        if features.ndim != 4:
            raise LostMap("its statistics are of other maps than [N, C, h, w]")
        cells = [part.flatten(1) for part in own_parts(features, self.own.sizes)]
        long = torch.cat(cells, 1)[None, :, None]  # [1, C, 1, cells]: as if all images were one long one
        parts = self.call(long)[0, :, 0].split([part.shape[1] for part in cells], 1)
        maps = [part.unflatten(1, size) for part, size in zip(parts, self.own.sizes, strict=True)]
        return cast(Tensor, self.keep(put_together(maps), self.own))

    def _instance_norm(self, features: Tensor, running_mean: Any = None, *_: Any, **__: Any) -> Tensor:
        if running_mean is not None:
            raise LostMap("it has statistics of more than one image")
        return self.by_itself(features)

    def _layer_norm(self, features: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Any:
        self.other_axes(features, [-1 - axis for axis in range(len(normalized_shape))])
        return self.same(features)

    def _linear(self, features: Tensor, *_: Any, **__: Any) -> Any:
        self.other_axes(features, -1)
        return self.same(features)

    def _cat(self, tensors: Sequence[Tensor], dim: int = 0) -> Any:
        if any(self.maps.get(each) != self.own for each in tensors):
            raise LostMap("not all that it puts together are maps of one size")
        self.other_axes(tensors[0], dim)
        return self.same(tensors)

    def _chunk(self, features: Tensor, parts: Any, dim: int = 0) -> Any:
        self.other_axes(features, dim)
        return self.same(features)

    _rms_norm, _split, _concat = _layer_norm, _chunk, _cat

    def _getitem(self, features: Tensor, index: Any) -> Any:
        slices = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(each, slice) for each in slices):
            raise LostMap("of its indices only slices of channels are known")
        self.other_axes(features, [axis for axis, each in enumerate(slices) if each != slice(None)])
        return self.same(features)

    def _expand_as(self, source: Tensor, other: Tensor) -> Any:
        # With memory of its own for every cell, so that cells can be set.
        return self.keep(self.call(source).contiguous(), self.own)

    def _permute(self, features: Tensor, *dims: Any) -> Any:
        order = self.axes(features, dims[0] if len(dims) == 1 else dims)
        images, rows, columns = (order.index(axis) for axis in (-len(order), self.own.rows, self.own.rows + 1))
        if images != 0 or columns != rows + 1:
            raise LostMap("it parts rows from columns, or moves images")
        return self.same(features, rows - len(order))

    def _transpose(self, features: Tensor, first: int, second: int) -> Any:
        order = [*range(features.ndim)]
        order[first], order[second] = order[second], order[first]
        return self._permute(features, order)

    def _size(self, features: Tensor, dim: int | None = None) -> Any:
        shape: list[Any] = list(features.shape)
        for axis in (self.own.rows, self.own.rows + 1):
            shape[axis] = Length(shape[axis])
        return tuple(shape) if dim is None else shape[dim]

    _shape = _size
