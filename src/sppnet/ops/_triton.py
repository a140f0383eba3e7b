"""Region pyramid pooling on CUDA, in Triton: maximum or mean, forward and backward, the same bits on every run.

features [N, C, H, W], windows [R, 5] -> [R, M, C], read channels last.

Forward: a program is one warp that pools one row of bins of one window for one block of channels; its lanes are
neighbouring channels, so every load and store is a run of memory. As in `_numba`, floats are compared as integers of the
same order, which is exact for every dtype and settles NaN once per map, and a level that divides another is pooled from
the other's bins. Overlapping bins have no such sum, so every level of a mean reads the cells.

Backward: adding to the cells from all windows at once would need atomics, whose order, and so whose rounding, changes from
run to run. Instead a first kernel notes the cell that won each bin (the smallest index among those equal to the maximum;
coarser levels again from finer bins), and in a second one each program owns 4 x 4 cells of a block of channels and walks
the windows of its map in order, collecting what the bins over its cells send to them. Large maps have enough tiles to fill
a device. For small ones the windows are dealt to several programs in fixed runs, whose sums are then added. How many
depends on shapes alone, so a gradient repeats bit for bit. Sums are kept in float32, of float64 in float64. The notes,
4 bytes a bin and channel, are kept for as many windows at a time as fit into 256 MiB.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sppnet.ops._operator import INTEGERS, channels_last, infinity_and_nan
from sppnet.ops._triton_kernels import _SIDE, _gather_kernel, _key_kernel, _max_kernel, _mean_kernel, _winner_kernel
from sppnet.ops.bins import bin_count, nesting

_WINNERS = 2**26  # entries of the notes on winners at a time
_PROGRAMS = 8192  # enough for the largest devices of today: some 150 multiprocessors with 32 to 64 warps each
# No kernel multiplies and adds in one, but Triton warns where the choice is left to it.
_ONE_WARP = {"num_warps": 1, "enable_fp_fusion": False}


def forward(features: Tensor, windows: Tensor, levels: tuple[int, ...], reduce: str) -> Tensor:
    """Pool each window of the maps.

    Args:
        features: [N, C, H, W] of 16, 32 or 64 bit floats, in any memory layout; channels last is fastest. H * W below 2**31.
        windows: [R, 5] int64 on the same device: map, x0, y0, x1, y1 in cells; each inside its map, none empty.
        levels: bins per side of each grid, each at least 1.
        reduce: ``"max"`` or ``"mean"``.

    Returns:
        [R, M, C]. "max": the bits of the definition; of -0.0 and 0.0 in one bin, 0.0. "mean": the sum of a bin's
        cells in float32 (float64 for float64), divided by their number, rounded to the dtype of ``features``.
    """
    channels, height, width = features.shape[1:]
    pooled = features.new_empty(len(windows), bin_count(levels), channels)
    if not len(windows):
        return pooled
    shape = pooled.shape[1], height, width, channels
    windows = windows.contiguous()
    magnitude = torch.iinfo(INTEGERS[features.dtype]).max
    block = _block(channels, 64 if features.dtype == torch.float64 else 128)  # a tile of 16 cells fits into registers
    with torch.cuda.device_of(features):
        cells = _keys(features, one_zero=False) if reduce == "max" else _readable(channels_last(features))
        for level, start, parent, parent_start in nesting(levels):
            grid = len(windows) * level, triton.cdiv(channels, block)
            if reduce == "max":
                of_level = level, start, parent, parent_start, *shape
                settings = {"MAGNITUDE": magnitude, "NESTED": parent > 0, "BLOCK_C": block, **_ONE_WARP}
                _max_kernel[grid](cells, windows, _bits(pooled), *of_level, **settings)
            else:
                target = _readable(pooled)
                _mean_kernel[grid](cells, windows, target, level, start, *shape, BLOCK_C=block, **_ONE_WARP)
    return pooled


def backward(
    gradient: Tensor, features: Tensor, windows: Tensor, pooled: Tensor, levels: tuple[int, ...], reduce: str
) -> Tensor:
    """The gradient of the maps, from that of the pooled windows. The same bits on every run.

    Args:
        gradient: [R, M, C], as `pooled`.
        features, windows, levels, reduce: as given to `forward`.
        pooled: [R, M, C], what `forward` gave. Not read for "mean".

    Returns:
        [N, C, H, W] in the dtype of ``features``, channels last. "max": each bin's gradient goes to its first largest
        cell in row order; NaN counts as largest, -0.0 and 0.0 as equal. "mean": it is shared out evenly. Both add up
        over bins and windows in float32 (float64 for float64), and are rounded once.
    """
    result = torch.empty_like(features, memory_format=torch.channels_last)
    if not len(windows):
        return result.zero_()
    maps, channels, height, width = features.shape
    shape = gradient.shape[1], height, width, channels
    block = _block(channels, 64)
    tiles = maps * triton.cdiv(height, _SIDE.value) * triton.cdiv(width, _SIDE.value)
    grid = tiles, triton.cdiv(channels, block), _shares(tiles * triton.cdiv(channels, block), len(windows))
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    with torch.cuda.device_of(features):
        order = windows[:, 0].argsort(stable=True)
        windows = windows[order]
        starts = torch.searchsorted(windows[:, 0].contiguous(), torch.arange(maps + 1, device=windows.device))
        gradient = _readable(gradient.contiguous())
        sums = features.new_zeros(grid[2], maps, height, width, channels, dtype=wide)
        plan = nesting(levels)

        def gather(winners: Tensor, first: int, last: int) -> None:
            for level, start, *_ in plan:
                arguments = gradient, winners, windows, order, starts, sums, first, last, level, start, shape[0], maps
                _gather_kernel[grid](*arguments, *shape[1:], MEAN=reduce == "mean", BLOCK_C=block, **_ONE_WARP)

        if reduce == "mean":
            gather(order, 0, len(windows))
        else:
            numbers = _magnitude_infinity_nan(features.dtype)
            keys, bits = _keys(features, one_zero=True), _bits(pooled.contiguous())
            step = max(1, _WINNERS // (shape[0] * channels))
            winners = torch.empty(min(step, len(windows)), shape[0], channels, dtype=torch.int32, device=keys.device)
            for first in range(0, len(windows), step):
                last = min(first + step, len(windows))
                for level, *of_level in plan:
                    arguments = keys, bits, windows, order, winners, first, level, *of_level, *shape
                    rows = (last - first) * level, grid[1]
                    _winner_kernel[rows](*arguments, *numbers, NESTED=of_level[1] > 0, BLOCK_C=block, **_ONE_WARP)
                gather(winners, first, last)
        return result.copy_(sums.sum(0).permute(0, 3, 1, 2))


def _block(channels: int, most: int) -> int:
    """Channels of one program: a power of two."""
    return min(triton.next_power_of_2(channels), most)


def _shares(programs: int, windows: int) -> int:
    """Among how many programs the windows over one tile are dealt, 32 or more to each."""
    return max(1, min(triton.cdiv(_PROGRAMS, programs), windows // 32))


def _magnitude_infinity_nan(dtype: torch.dtype) -> tuple[int, int, int]:
    """As integers: all bits but the sign, and two numbers' bits."""
    return torch.iinfo(INTEGERS[dtype]).max, *infinity_and_nan(dtype)


def _bits(values: Tensor) -> Tensor:
    return values.detach().view(INTEGERS[values.dtype])


def _readable(values: Tensor) -> Tensor:
    """As kernels take numbers: bfloat16 as its bits."""
    return _bits(values) if values.dtype == torch.bfloat16 else values.detach()


def _keys(features: Tensor, one_zero: bool) -> Tensor:
    """Ordered integers [N, H, W, C] of a map."""
    cells = _bits(channels_last(features))
    keys = torch.empty_like(cells)
    numbers = _magnitude_infinity_nan(features.dtype)
    grid = (triton.cdiv(cells.numel(), 1024),)
    _key_kernel[grid](cells, keys, cells.numel(), *numbers, ONE_ZERO=one_zero, BLOCK=1024, enable_fp_fusion=False)
    return keys
