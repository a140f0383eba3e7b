"""What a layer may need in a padded batch: each of these is called in place of the layer.

A map [N, ..., H, W] whose parts beyond the images' edges hold anything finite -> the layer's result, right in each image's
own part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from sppnet.models.mixed_batch.graph import Arguments, Named, source_of
from sppnet.models.mixed_batch.padded_batch import PaddedBatch, Size


@dataclass(frozen=True)
class Slide:
    """How the windows of a layer lie along one axis."""

    kernel: int
    stride: int
    padding: int  # before the first cell
    dilation: int

    def reach(self, cells: int, results: int) -> int:
        """How many cells past the edge the last of an image's own `results` looks."""
        last = (results - 1) * self.stride - self.padding + self.dilation * (self.kernel - 1)
        return max(0, last - cells + 1)


Slides = tuple[Slide, Slide]  # along rows and columns


def _reach(batch: PaddedBatch, node: fx.Node, slides: Slides) -> list[Size]:
    down, across = slides
    return [
        (down.reach(h, rows), across.reach(w, columns))
        for (h, w), (rows, columns) in zip(batch.sizes[source_of(node)], batch.sizes[node], strict=True)
    ]


@dataclass(frozen=True)
class Reset:
    """The layer, after what lies beyond the edges was set to the layer's own padding."""

    value: float
    slides: Slides | None = None  # None: it looks everywhere

    def __call__(self, batch: PaddedBatch, node: fx.Node, args: Arguments, kwargs: Named) -> Any:
        reach = None if self.slides is None else _reach(batch, node, self.slides)
        inputs = list(args)
        for place, source in enumerate(node.args):
            if isinstance(source, fx.Node) and source in batch.maps.rows:
                inputs[place] = batch.reset(args[place], source, self.value, reach)
        result = batch.call(node, tuple(inputs), kwargs)
        if self.value == -torch.inf:  # which must not go on, neither by the result nor by what else uses the map
            if node in batch.maps.rows:
                result = batch.reset(result, node, 0.0)
            if not torch.is_grad_enabled():
                batch.reset(args[0], source_of(node), 0.0, reach)
        return result


@dataclass(frozen=True)
class Average:
    """Average pooling that divides by a count of cells, which at an edge depends on where the edge is."""

    slides: Slides
    ceil_mode: bool
    include_padding: bool

    def __call__(self, batch: PaddedBatch, node: fx.Node, args: Arguments, kwargs: Named) -> Tensor:
        features = batch.reset(args[0], source_of(node), 0.0, _reach(batch, node, self.slides))
        features = features.to(_exact(features.dtype))
        kernel, stride, padding = zip(*((each.kernel, each.stride, each.padding) for each in self.slides), strict=True)
        sums = F.avg_pool2d(features, kernel, stride, padding, self.ceil_mode, divisor_override=1)
        heights, widths = zip(*batch.sizes[source_of(node)], strict=True)
        rows = self._counts(self.slides[0], heights, sums.shape[2])[:, None, :, None]
        columns = self._counts(self.slides[1], widths, sums.shape[3])[:, None, None, :]
        return (sums / (rows * columns).to(sums.device)).to(args[0].dtype)

    def _counts(self, slide: Slide, sides: Sequence[int], results: int) -> Tensor:
        """[N, results]: how many cells along this axis each window is averaged over, as PyTorch counts them."""
        cells = torch.tensor(sides)[:, None]
        start = torch.arange(results) * slide.stride - slide.padding
        stop = torch.minimum(start + slide.kernel, cells + slide.padding)
        if not self.include_padding:
            start, stop = start.clamp(min=0), torch.minimum(stop, cells)
        return (stop - start).clamp(min=1)  # less than 1 only beyond the image's own results


@dataclass(frozen=True)
class Mean:
    """The mean over rows and columns of each image's own part."""

    keepdim: bool

    def __call__(self, batch: PaddedBatch, node: fx.Node, args: Arguments, kwargs: Named) -> Tensor:
        source, rows = source_of(node), batch.maps.rows[source_of(node)]
        features = batch.reset(args[0], source, 0.0)
        sums = features.sum((rows, rows + 1), keepdim=self.keepdim, dtype=_exact(features.dtype))
        cells = sums.new_tensor([h * w for h, w in batch.sizes[source]])
        return (sums / cells.view(-1, *[1] * (sums.ndim - 1))).to(args[0].dtype)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision: so a sum and its division round once, as in PyTorch's own averages."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def by_itself(batch: PaddedBatch, node: fx.Node, args: Arguments, kwargs: Named) -> Tensor:
    """A layer with its own way of looking at an image: on the images' own parts, once for each size."""
    sizes = batch.sizes[source_of(node)]
    parts = _own_parts(args[0], sizes)
    groups: dict[Size, list[int]] = defaultdict(list)
    for image, size in enumerate(sizes):
        groups[size].append(image)
    results: dict[int, Tensor] = {}
    for group in groups.values():
        together = batch.call(node, (torch.stack([parts[image] for image in group]), *args[1:]), kwargs)
        results.update(zip(group, together.unbind(), strict=True))
    return put_together([results[image] for image in range(len(parts))])


def expanded(batch: PaddedBatch, node: fx.Node, args: Arguments, kwargs: Named) -> Tensor:
    """A value per channel as a map, with memory of its own for every cell, so that cells can be set."""
    return batch.call(node, args, kwargs).contiguous()


def _own_parts(features: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Each image's own part. By way of `unbind`: the gradient of a slice of the batch would be as large as the batch."""
    return [image[..., :rows, :columns] for image, (rows, columns) in zip(features.unbind(), sizes, strict=True)]


def put_together(parts: Sequence[Tensor]) -> Tensor:
    """A batch of the maps [..., h_i, w_i]: 0 beyond the edges."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.stack([F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])) for part in parts])
