"""What is known of a backbone before there are images, and how large each image's own part of every map will be.

A plan is made once for each form that a backbone takes: traced, surveyed by `rules`, and kept as long as the backbone lives.
The sizes come from running the graph on the meta device, once for each side, as no layer mixes heights and widths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from sppnet.errors import UserError
from sppnet.models.mixed_batch.graph import NOT_A_MAP, Graph, ShapeRun, first_line
from sppnet.models.mixed_batch.padded_batch import Maps, PaddedBatch, Size, map_size
from sppnet.models.mixed_batch.rules import find_maps

# Pixels of an image to look at the layers with; 11 and 17 times 32, so rows are never as many as columns.
SAMPLE = (352, 544)
PLANS = 4  # kept for each backbone: training, evaluation, and both with a part of it frozen
SIDES = 4096  # heights, and widths, whose sizes in cells are kept for each plan


class Plan:
    """A backbone's graph, which of its values are maps, and what its layers need.

    Args:
        backbone: see `mixed_features`.

    Raises:
        UserError: a layer that cannot be made exact, or a result that is no map.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.graph, self.maps = Graph(backbone), Maps()
        values = self._measure(SAMPLE)
        self.maps = find_maps(self.graph, values)
        output, needs = self.graph.output, self.maps.needs
        if self.maps.rows.get(output) != -2 or not isinstance(values[output], Tensor):
            raise UserError(NOT_A_MAP)
        asked = {output, *needs, *(node for need in needs for node in need.all_input_nodes)}
        self.asked = [node for node in self.maps.rows if node in asked]  # maps whose sizes a batch asks for
        self.known: tuple[OrderedDict[int, tuple[int, ...]], ...] = (
            OrderedDict(),
            OrderedDict(),
        )  # by height; by width

    def batch_of(self, backbone: nn.Module, images: Sequence[Size]) -> PaddedBatch:
        """A padded batch of images of these sizes, ready to run."""
        sides = [self._cells(size) for size in images]
        sizes = {
            node: [(heights[index], widths[index]) for heights, widths in sides]
            for index, node in enumerate(self.asked)
        }
        return PaddedBatch(self.graph, self.maps, backbone, sizes)

    def _cells(self, size: Size) -> tuple[tuple[int, ...], ...]:
        """Heights and widths, in cells, of the maps of `asked` for an image of `size`; remembered by side."""
        if any(side not in known for side, known in zip(size, self.known, strict=True)):
            values = self._measure(size)
            for axis, (side, known) in enumerate(zip(size, self.known, strict=True)):
                known[side] = tuple(map_size(values[node], self.maps.rows[node])[axis] for node in self.asked)
        result = tuple(known[side] for side, known in zip(size, self.known, strict=True))
        for known in self.known:
            if len(known) > SIDES:
                known.popitem(last=False)
        return result

    def _measure(self, size: Size) -> dict[fx.Node, Any]:
        """Every value of the graph for two images of `size`, without numbers."""
        shapes = ShapeRun(self.graph, self.maps.same)
        try:
            with torch.no_grad():
                shapes.run(torch.empty(2, 3, *size, device="meta"))
            for shapes.node, maps in self.maps.meets.items():
                if len({map_size(shapes.values[each], self.maps.rows[each]) for each in maps}) > 1:
                    raise ValueError("the maps that it puts together differ in size")
        except Exception as error:
            raise UserError(
                f"the backbone cannot take an image of {size[0]} x {size[1]} pixels: {first_line(error)} "
                f"(in {self.graph.describe(shapes.node)})"
            ) from error
        return shapes.values


_PLANS: WeakKeyDictionary[nn.Module, OrderedDict[Any, Plan]] = WeakKeyDictionary()


def plan_of(backbone: nn.Module) -> Plan:
    """The plan for the backbone as it is now: other modules, or another mode of one of them, make another graph.

    Raises:
        UserError: as `Plan`.
    """
    key = (backbone.training, *((module, module.training) for module in backbone.modules() if module is not backbone))
    plans = _PLANS.setdefault(backbone, OrderedDict())
    if key not in plans:
        plans[key] = Plan(backbone)
    plans.move_to_end(key)
    if len(plans) > PLANS:
        plans.popitem(last=False)
    return plans[key]
