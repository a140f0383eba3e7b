"""Pyramid pooling out of operations that ONNX has, for maps, windows and batches whose sizes are only known when it runs.

features [N, C, H, W] -> [N, M, C], and with windows [R, 5] -> [R, M, C]. N, H, W and R (which may be 0) stay symbols; C, the
levels and `reduce` are written into the graph, which has no loop over bins or windows.

*Whole maps.* For maxima, the cells of a level's row bins are gathered side by side and reduced, then those of its column
bins: a rectangle's maximum can be taken one axis at a time. For means, the bins are matrices of zeros and ones.

*Windows.* Looking at every cell of every window would read the map thousands of times, so tables are made of it first. For
maxima, table (a, b) holds for each cell the maximum of the block of 2**a x 2**b cells that starts there, made from the table
before it; a bin's maximum is that of four blocks, one in each of its corners, which may overlap. For means, a cell of the
table holds the sum of all cells above and to the left of it; a bin's sum is the difference of four of them.

Maxima have the same bits as every other implementation's, and NaN in a bin gives NaN. Means are within rounding: on whole maps
of float32 sums (float64 for float64); on windows of float64 sums over the *whole map*, so that a cell 10**9 times as large as
those of a bin costs that bin digits, wherever it lies. NaN and infinities are counted apart: only their own bins have them.

Limits. Windows' bins of maxima may have 4095 cells a side; a larger one makes the runtime raise an index error. Windows are not
checked when the graph runs: one outside its map gives an index error or other cells. The tables of maxima take the memory of
the maps once for every block size up to that of the largest bin, 16 times for maps of 43 x 65 cells and level 6; levels that
divide another need none. bfloat16 exports, but ONNX Runtime's CPU kernels lack it.

Two things look odd and have reasons. A quotient of sizes is rounded up as ``(s + n - 1) // n``, since ONNX divides towards zero,
where ``-(-s // n)`` comes out too small. NaN is marked apart before an axis is reduced, since ONNX Runtime's ReduceMax passes
over it; its Max of two tensors does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce as fold

import torch
from torch import Tensor
from torch.nn.functional import pad

_DOUBLINGS = 12  # tables along an axis at most: blocks of up to 2**11 cells, bins of up to 2**12 - 1


def pyramid_pool(features: Tensor, levels: Sequence[int], reduce: str = "max") -> Tensor:
    """Pool whole maps: [N, C, H, W] -> [N, M, C]; see `sppnet.pyramid_pool`."""
    return {"max": _map_maxima, "mean": _map_means}[reduce](features, levels)


def region_pyramid_pool(features: Tensor, windows: Tensor, levels: Sequence[int], reduce: str = "max") -> Tensor:
    """Pool windows: [N, C, H, W] and [R, 5] int64 -> [R, M, C]; see `sppnet.region_pyramid_pool`."""
    return {"max": _window_maxima, "mean": _window_means}[reduce](features, windows, levels)


# Whole maps


def _map_maxima(features: Tensor, levels: Sequence[int]) -> Tensor:
    channels = features.shape[1]
    marked = torch.cat([features, torch.isnan(features).to(features.dtype)], dim=1)  # [N, 2C, H, W]
    grids = {}
    for n in _finest(levels):
        grid = marked
        for axis in (2, 3):
            side = features.shape[axis]
            first, stop = _edges(0, side, (n,), features)
            cells = first[:, None] + torch.arange(_longest_bin(side, n), device=features.device)
            cells = torch.minimum(cells, stop[:, None] - 1)  # [n, K]: shorter bins repeat their last cell
            grid = grid.index_select(axis, cells.flatten()).unflatten(axis, (n, -1)).amax(axis + 1)
        grid = torch.where(grid[:, channels:] > 0, torch.nan, grid[:, :channels])
        grids[n] = grid.permute(0, 2, 3, 1)  # [N, n, n, C]
    return _pyramid(grids, levels)


def _map_means(features: Tensor, levels: Sequence[int]) -> Tensor:
    _, channels, height, width = features.shape
    wide = features.dtype if features.dtype == torch.float64 else torch.float32
    spans = [_edges(0, side, levels, features) for side in features.shape[2:]]
    cells = [torch.arange(side, device=features.device) for side in features.shape[2:]]
    rows, columns = (
        ((start[:, None] <= cell) & (cell < stop[:, None])).to(wide)
        for (start, stop), cell in zip(spans, cells, strict=True)
    )  # [K, H], [K, W]; K is the sum of the levels
    finite, above, below = _without_infinities(features.to(wide))
    row, column = _crossings(levels, features.device)

    def totals(cells: Tensor) -> Tensor:
        across = cells.reshape(-1, width) @ columns.T  # [N * C * H, K]
        down = across.reshape(-1, height, len(columns)).transpose(1, 2).reshape(-1, height) @ rows.T  # [N * C * K, K]
        return down.reshape(-1, channels, len(columns) * len(rows))[..., column * len(rows) + row]  # [N, C, M]

    (top, bottom), (left, right) = spans
    sizes = (bottom - top)[row] * (right - left)[column]  # [M]
    means = totals(finite) / sizes + _infinities(totals(above.to(wide)), totals(below.to(wide)))
    return means.to(features.dtype).transpose(1, 2)


# Windows


def _window_maxima(features: Tensor, windows: Tensor, levels: Sequence[int]) -> Tensor:
    _, channels, height, width = features.shape
    finest = _finest(levels)
    cells = features.permute(0, 2, 3, 1).reshape(-1, channels)  # [N * H * W, C]
    tall = _doublings(cells, height, width, min(finest))  # [A * N * H * W, C]
    blocks = _doublings(tall, width, 1, min(finest))  # [B * A * N * H * W, C]

    maps, x0, y0, x1, y1 = windows[:, :, None].unbind(1)  # [R, 1] each
    (top, bottom), (left, right) = _edges(y0, y1, finest, windows), _edges(x0, x1, finest, windows)  # [R, K] each
    power = torch.tensor([max(side, 1).bit_length() - 1 for side in range(2**_DOUBLINGS)], device=windows.device)
    a, b = power[bottom - top], power[right - left]  # the largest with 2**a <= side
    row, column = _crossings(finest, windows.device)
    corners = []
    for y in (top, bottom - 2**a):
        for x in (left, right - 2**b):
            rows, columns = a * cells.shape[0] + (maps * height + y) * width, b * tall.shape[0] + x  # [R, K] each
            at = rows.index_select(1, row) + columns.index_select(1, column)  # [R, M]
            corners.append(blocks.index_select(0, at.flatten()))
    pooled = fold(torch.maximum, corners).unflatten(0, (-1, len(row)))  # [R, M, C], of the finest levels
    parts = pooled.split([n * n for n in finest], dim=1)
    return _pyramid({n: part.unflatten(1, (n, n)) for n, part in zip(finest, parts, strict=True)}, levels)


def _doublings(cells: Tensor, side: int, jump: int, level: int) -> Tensor:
    """[P, C] -> [A * P, C]: for each a, the maximum of each cell and the 2**a - 1 that follow along an axis of the map.

    `side` is the axis' length, `jump` how far apart in [P] its cells lie. A is as large as the level's bins need it: the
    tables after that have no rows. Blocks that reach beyond the map are cut off; no bin asks for them.
    """
    count = cells.shape[0]
    follow = torch.arange(side - 1, -1, -1, device=cells.device)[:, None].expand(side, jump)
    follow = follow.expand(count // (side * jump), side, jump).reshape(-1)  # [P]
    powers = 2 ** torch.arange(1, _DOUBLINGS, device=cells.device)
    sizes = (powers <= _longest_bin(side, level)).long() * count
    tables = [cells]
    for a in range(_DOUBLINGS - 1):
        size = sizes[a].item()
        torch._check(size >= 0)
        here = torch.arange(size, device=cells.device)
        there = here + jump * follow.index_select(0, here).clamp(max=2**a)
        tables.append(torch.maximum(tables[-1].index_select(0, here), tables[-1].index_select(0, there)))
    return torch.cat(tables)


def _window_means(features: Tensor, windows: Tensor, levels: Sequence[int]) -> Tensor:
    height, width = features.shape[2:]
    finite, above, below = _without_infinities(features.permute(0, 2, 3, 1).double())  # [N, H, W, C]
    maps, x0, y0, x1, y1 = windows[:, :, None].unbind(1)  # [R, 1] each
    (top, bottom), (left, right) = _edges(y0, y1, levels, windows), _edges(x0, x1, levels, windows)  # [R, K] each
    row, column = _crossings(levels, windows.device)

    def totals(cells: Tensor) -> Tensor:
        sums = pad(cells, (0, 0, 1, 0, 1, 0)).cumsum(1).cumsum(2).flatten(0, 2)  # [N * (H + 1) * (W + 1), C]

        def until(y: Tensor, x: Tensor) -> Tensor:
            line = ((maps * (height + 1) + y) * (width + 1)).index_select(1, row)
            return sums.index_select(0, (line + x.index_select(1, column)).flatten())  # [R * M, C]

        return (until(bottom, right) - until(bottom, left)) - (until(top, right) - until(top, left))

    sizes = ((bottom - top).index_select(1, row) * (right - left).index_select(1, column)).flatten()
    means = (totals(finite) / sizes[:, None]).to(features.dtype)
    infinities = _infinities(totals(above.float()), totals(below.float()))  # float32 counts exactly up to 2**24
    return (means + infinities.to(features.dtype)).unflatten(0, (-1, len(row)))


# Both


def _longest_bin(side: int, level: int) -> int:
    """Cells that the longest bin may have, of any window of a map of this side."""
    return side if level == 1 else (side + level - 1) // level + 1


def _edges(start: Tensor | int, stop: Tensor | int, levels: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """First cell, and one past the last, of the bins of all levels along an axis: [K], or [R, K] from [R, 1]."""
    n = torch.tensor([n for n in levels for _ in range(n)], device=like.device)
    i = torch.tensor([i for n in levels for i in range(n)], device=like.device)
    side = stop - start
    first = start + torch.div(i * side, n, rounding_mode="trunc")
    return first, start + torch.div((i + 1) * side + n - 1, n, rounding_mode="trunc")


def _crossings(levels: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The M bins of a pyramid: which of its K row bins and which of its K column bins cross there."""
    before = [sum(levels[:at]) for at in range(len(levels))]
    row = [first + i for first, n in zip(before, levels, strict=True) for i in range(n) for _ in range(n)]
    column = [first + j for first, n in zip(before, levels, strict=True) for _ in range(n) for j in range(n)]
    return torch.tensor(row, device=device), torch.tensor(column, device=device)


def _finest(levels: Sequence[int]) -> list[int]:
    """The levels that divide no other."""
    return [n for n in dict.fromkeys(levels) if not any(m > n and m % n == 0 for m in levels)]


def _pyramid(grids: dict[int, Tensor], levels: Sequence[int]) -> Tensor:
    """Maxima of the finest levels, [R, n, n, C] each -> [R, M, C]: other bins are unions of a finer level's."""
    grids = dict(grids)
    for n in sorted(set(levels) - set(grids), reverse=True):
        k = min(m for m in grids if m % n == 0) // n
        rows = fold(torch.maximum, [grids[n * k][:, i::k] for i in range(k)])
        grids[n] = fold(torch.maximum, [rows[:, :, j::k] for j in range(k)])
    return torch.cat([grids[n].flatten(1, 2) for n in levels], dim=1)


def _without_infinities(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features with 0 for what is not finite; where +infinity is; where -infinity is. NaN is both."""
    above, below = ~(features < torch.inf), ~(features > -torch.inf)
    return torch.where(above | below, 0, features), above, below


def _infinities(above: Tensor, below: Tensor) -> Tensor:
    """What to add to means whose bins hold so many infinities."""
    return torch.where(above > 0, torch.inf, 0.0) + torch.where(below > 0, -torch.inf, 0.0)
