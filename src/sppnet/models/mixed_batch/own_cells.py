"""A BatchNorm that learns, on the own cells of all images and no others: as if they were one long image.

Maps [N, C, H, W] -> their own cells [1, C, 1, cells] -> the layer -> maps [N, C, H, W]. A slice of the batch for every
image would do, but the gradient of each would be as large as the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sppnet.models.mixed_batch.graph import Arguments, Named, source_of
from sppnet.models.mixed_batch.padded_batch import PaddedBatch, Size


def over_all_cells(batch: PaddedBatch, node: fx.Node, args: Arguments, kwargs: Named) -> Tensor:
    """The layer, on the cells of all images side by side."""
    sizes = batch.sizes[source_of(node)]
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
