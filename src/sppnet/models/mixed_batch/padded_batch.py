"""A padded batch on its way through a graph: where each image's own part ends, and how what lies beyond is set back.

An image's own part of a map is the upper left one. A *map* is a value with the image's rows and columns as two neighbouring
axes, so it has a part beyond each image's edges. Everything else (weights, a gate of squeeze-and-excite, a number of
channels) is for each image as it is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from sppnet.models.mixed_batch.graph import Arguments, Graph, Named, Run

Size = tuple[int, int]  # (height, width): of an image in pixels, of its part of a map in cells


class PaddedBatch(Run):
    """A run in which each layer is given what it needs to see, for every image, what it sees alone.

    Args:
        graph: of the backbone.
        maps: what `rules` found out about it.
        backbone: that was traced.
        sizes: of each map that is asked for, the (rows, columns) of every image's own part.
    """

    def __init__(self, graph: Graph, maps: Maps, backbone: nn.Module, sizes: dict[fx.Node, list[Size]]) -> None:
        super().__init__(graph, backbone, graph.modules)
        self.maps, self.sizes = maps, sizes
        self.masks: dict[tuple[Any, ...], Tensor] = {}

    def compute(self, node: fx.Node, args: Arguments, kwargs: Named) -> Any:
        need = self.maps.needs.get(node)
        return self.call(node, args, kwargs) if need is None else need(self, node, args, kwargs)

    def call(self, node: fx.Node, args: Arguments, kwargs: Named) -> Any:
        """The node's own operation, as it is."""
        return super().compute(node, args, kwargs)

    def reset(self, features: Tensor, node: fx.Node, value: float, reach: Sequence[Size] | None = None) -> Tensor:
        """Set what lies beyond each image's edges to `value`, up to `reach` rows and columns from them; all by default.

        Returns the very same tensor if there is nothing beyond. Otherwise, where no gradient is asked for, it is changed in
        place: what lies beyond the edges is nobody's.
        """
        rows = self.maps.rows[node]
        height, width = features.shape[rows], features.shape[rows + 1]
        strips = []
        for image, (h, w) in enumerate(self.sizes[node]):
            down, across = (height, width) if reach is None else reach[image]
            bottom, right = min(h + down, height), min(w + across, width)
            if bottom > h or right > w:
                strips.append((image, h, w, bottom, right))
        if not strips:
            return features
        if torch.is_grad_enabled():
            return features.masked_fill(self._beyond(features, node), value)
        if not features.is_cpu:  # one kernel over the whole map is faster there than two for every image
            return features.masked_fill_(self._beyond(features, node), value)
        for image, h, w, bottom, right in strips:
            features[image].narrow(rows, h, bottom - h).narrow(rows + 1, 0, right).fill_(value)
            features[image].narrow(rows, 0, h).narrow(rows + 1, w, right - w).fill_(value)
        return features

    def _beyond(self, features: Tensor, node: fx.Node) -> Tensor:
        """True beyond each image's own edges; with as many axes as the map."""
        sizes, rows = self.sizes[node], self.maps.rows[node]
        height, width = features.shape[rows], features.shape[rows + 1]
        key = (height, width, *sizes)
        if key not in self.masks:
            own = torch.tensor(sizes, device=features.device)
            down, across = (torch.arange(side, device=features.device) for side in (height, width))
            self.masks[key] = (down >= own[:, :1])[:, :, None] | (across >= own[:, 1:])[:, None]
        before, after = [1] * (features.ndim + rows - 1), [1] * (-2 - rows)
        return self.masks[key].reshape(len(sizes), *before, height, width, *after)


# What a layer needs is called in place of the layer, with the layer's own arguments: see `sppnet.models.mixed_batch.needs`.
Need = Callable[[PaddedBatch, fx.Node, Arguments, Named], Any]


@dataclass
class Maps:
    """What is known of a graph's values: see `sppnet.models.mixed_batch.rules`."""

    rows: dict[fx.Node, int] = field(default_factory=dict)  # of each map, its axis of rows, from the end; then columns
    needs: dict[fx.Node, Need] = field(default_factory=dict)  # of the layers that cannot run as they are
    meets: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)  # maps that are put together cell by cell
    same: set[fx.Node] = field(default_factory=set)  # layers whose result has the shape of what they are given


def map_size(value: Any, rows: int) -> Size:
    """(rows, columns) of a map; of the parts that a map was split into, those of the first."""
    shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
    return shape[rows], shape[rows + 1]
