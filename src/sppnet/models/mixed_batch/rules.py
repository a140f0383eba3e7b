"""What each kind of layer needs: one pass over a backbone's graph finds it, or refuses a layer by name.

In: a graph, and every value of it for one image, without numbers. Out: `Maps`, which says what values are maps, and what
each layer that cannot run as it is needs instead.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from sppnet.errors import UserError
from sppnet.models.mixed_batch.graph import Graph, operation_name
from sppnet.models.mixed_batch.needs import Average, Mean, Reset, Slide, Slides, by_itself, expanded
from sppnet.models.mixed_batch.operations import (
    BY_ITSELF,
    ELEMENT_BY_ELEMENT,
    FINITE_AT_ONE,
    FREE_OF_SIZE,
    OF_NUMBERS,
    REGROUPINGS,
    operation_of_layer,
)
from sppnet.models.mixed_batch.own_cells import over_all_cells
from sppnet.models.mixed_batch.padded_batch import Maps, Need, map_size


def find_maps(graph: Graph, values: dict[fx.Node, Any]) -> Maps:
    """The maps of a graph, and the needs of its layers.

    Args:
        graph: of a backbone.
        values: every value of it for one image size, without numbers: see `sppnet.models.mixed_batch.graph.ShapeRun`.

    Raises:
        UserError: a layer that cannot be made exact; the message names it.
    """
    rules = _Rules(graph, values)
    rules.apply()
    return rules.found


class _Rules:
    """Goes through a graph once, and notes which values are maps and what each layer needs.

    One method for each operation, with PyTorch's own arguments after the map (`_conv2d`), or for several of a kind. An
    operation without one is refused.
    """

    node: fx.Node  # the one at hand,
    maps: list[fx.Node]  # those of its inputs that are maps,
    rows: int  # the first map's axis of rows,
    shape: torch.Size  # and its shape for the sample

    def __init__(self, graph: Graph, values: dict[fx.Node, Any]) -> None:
        self.graph, self.values = graph, values
        self.found = Maps()
        # Numbers, or shapes, that depend on the padded batch's height or width;
        self.lengths: set[fx.Node] = set()
        # and those of them that are whole shapes of maps, with the places of height and width.
        self.shapes: dict[fx.Node, set[int]] = {}

    def apply(self) -> None:
        for node, _ in self.graph.schedule:
            self.node, self.maps = node, [each for each in node.all_input_nodes if each in self.found.rows]
            if node.op == "placeholder" and not node.args:
                self.found.rows[node] = -2
            elif self.maps:
                self.rows, value = self.found.rows[self.maps[0]], self.values[self.maps[0]]
                self.shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
                self.classify()
            elif not self.lengths.isdisjoint(node.all_input_nodes):
                self.compute_length()

    def classify(self) -> None:
        """A node that takes at least one map."""
        name, arguments = operation_name(self.node), self.node.args[1:]
        if self.node.op == "call_module":
            name, arguments = operation_of_layer(self.graph.modules[str(self.node.target)])
        if name != "getitem" and any(isinstance(self.values[each], (tuple, list)) for each in self.maps):
            self.refuse("it takes several maps at once")
        if name not in REGROUPINGS and not self.lengths.isdisjoint(self.node.all_input_nodes):
            self.refuse("it uses the height or width of the padded batch")
        if name in ("to", "type_as") and self.node.args[0] not in self.found.rows:
            return  # only the map's type is asked for
        if name in ELEMENT_BY_ELEMENT:
            self.by_element()
        elif name in FINITE_AT_ONE:
            self.by_element(Reset(1.0))
        elif name in ("cat", "concat", "expand_as"):
            self.apply_rule(name, self.node.args)
        elif self.node.args[:1] != (self.maps[0],):
            self.refuse("its first argument is not a map")
        elif name in BY_ITSELF:
            self.map(by_itself)
        elif name in REGROUPINGS:
            self.regroup()
        elif name in FREE_OF_SIZE:
            return
        elif hasattr(self, f"_{name}"):
            self.apply_rule(name, arguments)
        else:
            self.refuse("what it needs is not known")

    def apply_rule(self, name: str, arguments: tuple[Any, ...]) -> None:
        rule = getattr(self, f"_{name}")
        try:
            signature(rule).bind(*arguments, **self.node.kwargs)
        except TypeError:
            self.refuse("not all of its arguments are known")
        rule(*arguments, **self.node.kwargs)

    def refuse(self, reason: str) -> NoReturn:
        raise UserError(
            f"{self.graph.describe(self.node)} cannot be made exact for images of different sizes in one batch: {reason}; "
            "use images of one size, or one at a time"
        )

    def map(self, need: Need | None = None, rows: int | None = None) -> None:
        """The node gives a map. Without `rows`, rows and columns are the last axes, and must be so in its input."""
        if rows is None and self.rows != -2:
            self.refuse("rows and columns are not the last two axes")
        self.found.rows[self.node] = -2 if rows is None else rows
        if need is not None:
            self.found.needs[self.node] = need

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
        down, across = (Slide(*settings) for settings in zip(*pairs, strict=True))
        return down, across

    # Operations of a kind

    def by_element(self, need: Need | None = None) -> None:
        if need is not None and (str(self.node.target).endswith("_") or not {*self.maps} <= {*self.node.args}):
            self.refuse("it changes a map in place, or takes it by name")
        if (
            len({(self.found.rows[each], *map_size(self.values[each], self.found.rows[each])) for each in self.maps})
            > 1
        ):
            self.refuse("the maps that it puts together differ in size")
        self.map(need, self.rows)
        if len(self.maps) > 1:
            self.found.meets[self.node] = self.maps
        elif self.node.op == "call_module":
            self.found.same.add(self.node)

    def regroup(self) -> None:
        """A view that leaves images, rows and columns as they are, as in a channel shuffle."""
        after = self.values[self.node].shape
        if len(after) < 3 or (self.shape[0], *self.shape[-2:]) != (after[0], *after[-2:]):
            self.refuse("it mixes cells or images")
        self.map()

    def reduce(self, dim: Any, keepdim: bool, over_cells: Need) -> None:
        if sorted(self.axes(dim)) == [self.rows, self.rows + 1]:
            self.found.needs[self.node] = over_cells
        else:
            behind = sum(axis > self.rows for axis in self.other_axes(dim))
            self.map(rows=self.rows + (0 if keepdim else behind))

    def adaptive(self, output_size: Any, to_one_cell: Need) -> None:
        """To a fixed number of cells: no map any more, as there is nothing beyond an edge."""
        sides = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        if self.rows != -2 or not all(isinstance(side, int) for side in sides):
            self.refuse(f"an output of {output_size} cells is not known")
        self.found.needs[self.node] = to_one_cell if sides == (1, 1) else by_itself

    def compute_length(self) -> None:
        """Arithmetic with heights and widths. Of the result only a view may be made: all else would depend on the batch."""
        name, source = operation_name(self.node), self.node.args[0]
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
        self.map(Reset(0.0, self.slides(kernel, stride, 0 if padding == "valid" else padding, dilation)))

    def _max_pool2d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> None:  # fmt: skip
        if return_indices:
            self.refuse("its indices count the cells of the padded map")
        self.map(Reset(-torch.inf, self.slides(kernel_size, stride or kernel_size, padding, dilation)))

    def _avg_pool2d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        slides = self.slides(kernel_size, stride or kernel_size, padding)
        counts_vary = ceil_mode or (not count_include_pad and any(slide.padding for slide in slides))
        if counts_vary and divisor_override is None:
            self.map(Average(slides, ceil_mode, count_include_pad))
        else:
            self.map(Reset(0.0, slides))

    def _adaptive_avg_pool2d(self, output_size: Any) -> None:
        self.adaptive(output_size, Mean(keepdim=True))

    def _adaptive_max_pool2d(self, output_size: Any, return_indices: bool = False) -> None:
        if return_indices:
            self.refuse("its indices count the cells of the padded map")
        self.adaptive(output_size, Reset(-torch.inf))

    def _mean(self, dim: Any = None, keepdim: bool = False) -> None:
        self.reduce(dim, keepdim, Mean(keepdim))

    def _sum(self, dim: Any = None, keepdim: bool = False) -> None:
        self.reduce(dim, keepdim, Reset(0.0))

    def _amax(self, dim: Any = (), keepdim: bool = False) -> None:
        self.reduce(dim, keepdim, Reset(-torch.inf))

    def _norm(self, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> None:
        if p not in (1, 2, "fro"):
            self.refuse(f"a norm of order {p} is not known")
        self.reduce(dim, keepdim, Reset(0.0))

    def _pad(self, pad: Any, mode: str = "constant", value: float | None = None) -> None:
        if mode != "constant":
            return self.map(by_itself)
        left, _, top, *_ = sides = (pad,) * 4 if isinstance(pad, int) else tuple(pad)
        if len(sides) != 4:
            self.refuse("it pads other axes than rows and columns")
        self.map(Reset(value or 0.0, self.slides(1, 1, (top, left))))

    def _batch_norm(
        self, mean: Any, variance: Any, weight: Any = None, bias: Any = None, training: Any = False, *_: Any, **__: Any
    ) -> None:
        if training and len(self.shape) != 4:
            self.refuse("its statistics are of other maps than [N, C, h, w]")
        self.map(over_all_cells if training else None)
        self.found.same.add(self.node)

    def _layer_norm(self, normalized_shape: Any, *_: Any, **__: Any) -> None:
        self.other_axes([-1 - axis for axis in range(len(normalized_shape))])
        self.map(rows=self.rows)

    def _linear(self, *_: Any, **__: Any) -> None:
        self.other_axes(-1)
        self.map(rows=self.rows)

    def _cat(self, tensors: Any, dim: int = 0) -> None:
        if {self.found.rows.get(each) for each in tensors} != {self.rows}:
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
        self.map(expanded, self.found.rows.get(other))

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
