"""Region pyramid pooling on the CPU: channels last, one pass over a window's cells, parallel over windows.

features [N, C, H, W], windows [R, 5] -> pooled [R, M, C], bit-equal to the definition for maxima. Three ideas make it fast:

*Levels nest.* A level that divides another is the maximum over the other's bins, so the cells are read once for the finest.

*Numbers of any width compare as integers.* A float's sign and magnitude, read as an integer, keep the floats' order: one
vectorized integer maximum serves every dtype, and half precision maps are never widened. NaN becomes the largest number.

*The gradient does not search.* Where a gradient will be wanted, `forward` also keeps the cell that won each bin. `backward`
then adds up, channel by channel and window by window in one fixed order: no two threads write to one cell, and the sums come
out the same whatever the number of threads.

Means do not nest (bins share cells), so every level reads the cells. They are added up in float32, float64 for float64.

The first call with a new dtype compiles, some seconds, and keeps the result on disk: beside this file, or in the user's cache
folder where that is read-only, or nowhere where that is read-only too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from sppnet.ops._operator import INTEGERS, NO_WINNERS, channels_last, infinity_and_nan
from sppnet.ops.bins import bin_count, nesting

LARGE_PAGE = 2 << 20  # bytes, on the processors that have them
MADV_HUGEPAGE = 14  # of Linux; Python's mmap knows it too, but only for memory of its own
BLOCK = 8  # channels whose gradients lie side by side: those of a window's cells fit into the first cache
LEAST_CHANNELS = 32  # of a part: a cache line of half precision, so that no two threads write to one
WINDOW_CHUNK = 512  # of half precision, whose sums are float32: bounds what is held in both
ONE_THREAD = 2**16  # numbers of the largest array, of which a second thread would take longer to begin than to work

_one_at_a_time = threading.Lock()  # numba's own pool of threads, where there is no OpenMP, ends the process otherwise
_in_a_fork = False


def forward(
    features: Tensor, windows: Tensor, levels: Sequence[int], reduce: str, *, keep_winners: bool = False
) -> tuple[Tensor, Tensor]:
    """Pooled windows [R, M, C]; and for maxima, where asked for, the cell y * W + x of each [R, M, C] int32, else none."""
    cells = channels_last(features)  # [N, H, W, C]
    shape = len(windows), bin_count(levels), features.shape[1]
    parts = _parts(len(windows), features.shape[1])
    rows = windows.contiguous().numpy()
    if reduce == "mean":
        pooled = _empty(shape, features.dtype)
        is_half = pooled.itemsize == 2
        wide, chunk = (cells.float(), WINDOW_CHUNK) if is_half else (cells, max(1, len(windows)))
        for start in range(0, len(windows), chunk):
            part = slice(start, start + chunk)
            means = torch.empty_like(pooled[part], dtype=wide.dtype) if is_half else pooled
            _run(_mean, wide.numpy(), rows[part], np.array(levels), parts, means.numpy())
            if is_half:
                pooled[part] = means
        return pooled, torch.empty(NO_WINNERS, dtype=torch.int32)
    integer = INTEGERS[features.dtype]
    bits = cells.view(integer).flatten(0, 2)  # [N * H * W, C]
    ordered = torch.empty_like(bits)
    _run(_order, bits.numpy(), *infinity_and_nan(features.dtype), ordered.numpy())
    pooled = _empty(shape, integer)
    winners = _empty(shape if keep_winners else NO_WINNERS, torch.int32)
    of_maps, plan = ordered.view(cells.shape).numpy(), np.array(nesting(levels))
    _run(_max, of_maps, rows, plan, parts, pooled.numpy(), winners.numpy())
    return pooled.view(features.dtype), winners


def backward(
    gradient: Tensor, shape: Sequence[int], windows: Tensor, winners: Tensor, levels: Sequence[int], reduce: str
) -> Tensor:
    """The gradient of features of ``shape`` [N, C, H, W], from that of the pooled windows [R, M, C] and their winners."""
    maps, channels, height, width = shape
    dtype = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
    if reduce == "mean":
        result = torch.zeros(maps, height, width, channels, dtype=dtype)
        parts = _parts(maps, channels)
    else:  # see BLOCK
        result = torch.zeros(maps, -(-channels // BLOCK), height * width, BLOCK, dtype=dtype)
        parts = min(result.shape[1], 4 * torch.get_num_threads())
    chunk = max(1, len(windows)) if gradient.dtype == dtype else WINDOW_CHUNK
    for start in range(0, len(windows), chunk):
        part = slice(start, start + chunk)
        given, rows = gradient[part].to(dtype).contiguous().numpy(), windows[part].contiguous().numpy()
        if reduce == "mean":
            _run(_mean_gradient, given, rows, np.array(levels), parts, result.numpy())
        else:
            cells = winners[part].numpy().view(np.uint32)  # unsigned: an index that cannot count from the end
            _run(_max_gradient, given, rows, cells, parts, result.numpy())
    if reduce == "max":
        result = result.transpose(2, 3).flatten(1, 2)[:, :channels].unflatten(2, (height, width))  # [N, C, H, W]
        return result.to(gradient.dtype, memory_format=torch.channels_last)
    return result.to(gradient.dtype).permute(0, 3, 1, 2)


def _empty(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Memory for results, in large pages where Linux has them: page by page it costs more time than pooling."""
    memory = torch.empty(shape, dtype=dtype)
    if memory.nbytes >= LARGE_PAGE and sys.platform == "linux":
        first = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (memory.data_ptr() + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        # An advice: that it is not taken, by a kernel without large pages, does no harm.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_HUGEPAGE)
    return memory


def _parts(tasks: int, channels: int) -> int:
    """Into how many parts the channels are cut, so that there is work for every thread."""
    wanted = -(-4 * torch.get_num_threads() // max(1, tasks))
    return max(1, min(wanted, channels // LEAST_CHANNELS))


def _run(kernel: _Kernel, *arguments: Any) -> None:
    """Run a kernel on as many threads as PyTorch uses, or on this one alone where that is right or as quick."""
    threads = torch.get_num_threads()
    if threads == 1 or _in_a_fork or max(a.size for a in arguments if isinstance(a, np.ndarray)) < ONE_THREAD:
        kernel.one_thread(*arguments)
        return
    with _one_at_a_time:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        kernel.all_threads(*arguments)
    if torch.get_num_threads() != threads:  # where both use OpenMP, numba's first call sets PyTorch's to all cores
        torch.set_num_threads(threads)


def _after_fork() -> None:
    """A forked child has none of its parent's threads: OpenMP would wait for them forever, numba ends the process."""
    global _in_a_fork
    _in_a_fork = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# The compiled loops. Every task of a parallel one is a window, or a map in gradients, and one part of the channels: ``first``
# up to ``last``.


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """A loop, compiled when it is first called; other threads can work meanwhile."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder to keep it in: every process compiles it
        return numba.njit(function, **options)


class _Kernel:
    """A loop compiled twice, each time when first called: for one thread, and for all."""

    def __init__(self, function: Any) -> None:
        self.one_thread = compiled(function)
        # Under a name of its own: numba's files on disk do not tell one set of options from another.
        named = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_on_all_threads")
        named.__qualname__ = named.__name__
        self.all_threads = compiled(named, parallel=True)


@compiled
def _fill(target, value):  # type: ignore[no-untyped-def]
    for c in range(target.shape[0]):
        target[c] = value


@compiled
def _add(total, part):  # type: ignore[no-untyped-def]
    for c in range(total.shape[0]):
        total[c] += part[c]


@compiled
def _larger(best, cell):  # type: ignore[no-untyped-def]
    for c in range(best.shape[0]):
        best[c] = cell[c] if cell[c] > best[c] else best[c]


@compiled
def _larger_cell(best, winner, cell, index):  # type: ignore[no-untyped-def]
    for c in range(best.shape[0]):
        better = cell[c] > best[c]
        best[c] = cell[c] if better else best[c]
        winner[c] = index if better else winner[c]


@compiled
def _larger_bin(best, winner, finer, its_winner):  # type: ignore[no-untyped-def]
    for c in range(best.shape[0]):
        better = (finer[c] > best[c]) | ((finer[c] == best[c]) & (its_winner[c] < winner[c]))
        best[c] = finer[c] if better else best[c]
        winner[c] = its_winner[c] if better else winner[c]


@_Kernel
def _order(bits, infinity, nan, ordered):  # type: ignore[no-untyped-def]
    """Floats' bits [cells, C] as integers of the same order: sign and magnitude become two's complement."""
    for i in numba.prange(bits.shape[0]):
        for c in range(bits.shape[1]):
            magnitude = bits[i, c] & np.iinfo(bits.dtype).max
            ordered[i, c] = nan if magnitude > infinity else magnitude if bits[i, c] >= 0 else -magnitude


@_Kernel
def _max(features, windows, plan, parts, pooled, winners):  # type: ignore[no-untyped-def]
    """Ordered integers [N, H, W, C] -> floats' bits [R, M, C]; into winners, where it has room, the cell of each."""
    width, channels, keep = features.shape[2], features.shape[3], winners.shape[0] > 0
    lowest = np.iinfo(features.dtype).min  # below every cell; its one bit is the sign of floats
    for task in numba.prange(windows.shape[0] * parts):
        r, part = task // parts, task % parts
        first, last = channels * part // parts, channels * (part + 1) // parts
        n, left, top = windows[r, 0], windows[r, 1], windows[r, 2]
        across, down = windows[r, 3] - left, windows[r, 4] - top
        for k in range(plan.shape[0]):
            level, start, finer, finer_start = plan[k, 0], plan[k, 1], plan[k, 2], plan[k, 3]
            for i in range(level):
                for j in range(level):
                    best = pooled[r, start + i * level + j, first:last]
                    _fill(best, lowest)
                    if keep:
                        winner = winners[r, start + i * level + j, first:last]
                    if finer > 0:
                        ratio = finer // level
                        corner = finer_start + i * ratio * finer + j * ratio
                        for a in range(ratio):
                            for m in range(corner + a * finer, corner + a * finer + ratio):
                                if keep:
                                    _larger_bin(best, winner, pooled[r, m, first:last], winners[r, m, first:last])
                                else:
                                    _larger(best, pooled[r, m, first:last])
                        continue
                    y0, y1 = top + i * down // level, top - (-(i + 1) * down // level)
                    x0, x1 = left + j * across // level, left - (-(j + 1) * across // level)
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            if keep:
                                _larger_cell(best, winner, features[n, y, x, first:last], y * width + x)
                            else:
                                _larger(best, features[n, y, x, first:last])
        for m in range(pooled.shape[1]):
            best = pooled[r, m, first:last]
            for c in range(best.shape[0]):
                best[c] = best[c] if best[c] >= 0 else -best[c] | lowest


@compiled
def _add_to_winners(cells, winners, gradient, first, count):  # type: ignore[no-untyped-def]
    for m in range(gradient.shape[0]):
        for c in range(count):
            cells[winners[m, first + c], c] += gradient[m, first + c]


@_Kernel
def _max_gradient(gradient, windows, winners, parts, result):  # type: ignore[no-untyped-def]
    """gradient [R, M, C] is added to the winning cells of result [N, blocks of channels, cells, channels of a block]."""
    blocks, size = result.shape[1], result.shape[3]
    for task in numba.prange(result.shape[0] * parts):
        n, part = task // parts, task % parts
        for r in range(windows.shape[0]):
            if windows[r, 0] == n:
                for block in range(blocks * part // parts, blocks * (part + 1) // parts):
                    first = block * size
                    count = min(size, gradient.shape[2] - first)
                    _add_to_winners(result[n, block], winners[r], gradient[r], first, count)


@_Kernel
def _mean(features, windows, levels, parts, pooled):  # type: ignore[no-untyped-def]
    """features [N, H, W, C] -> pooled [R, M, C]; a bin's rows are added up one by one, then their sums."""
    channels = features.shape[3]
    for task in numba.prange(windows.shape[0] * parts):
        r, part = task // parts, task % parts
        first, last = channels * part // parts, channels * (part + 1) // parts
        n, left, top = windows[r, 0], windows[r, 1], windows[r, 2]
        across, down = windows[r, 3] - left, windows[r, 4] - top
        row = np.empty(last - first, features.dtype)
        m = 0
        for level in levels:
            for i in range(level):
                y0, y1 = top + i * down // level, top - (-(i + 1) * down // level)
                for j in range(level):
                    x0, x1 = left + j * across // level, left - (-(j + 1) * across // level)
                    total = pooled[r, m, first:last]
                    _fill(total, 0)
                    for y in range(y0, y1):
                        _fill(row, 0)
                        for x in range(x0, x1):
                            _add(row, features[n, y, x, first:last])
                        _add(total, row)
                    cells = (y1 - y0) * (x1 - x0)
                    for c in range(total.shape[0]):
                        total[c] /= cells
                    m += 1


@_Kernel
def _mean_gradient(gradient, windows, levels, parts, result):  # type: ignore[no-untyped-def]
    """gradient [R, M, C], divided by the number of cells, is added to every cell of its bin in result [N, H, W, C]."""
    channels = result.shape[3]
    for task in numba.prange(result.shape[0] * parts):
        n, part = task // parts, task % parts
        first, last = channels * part // parts, channels * (part + 1) // parts
        share = np.empty(last - first, gradient.dtype)
        for r in range(windows.shape[0]):
            if windows[r, 0] != n:
                continue
            left, top = windows[r, 1], windows[r, 2]
            across, down = windows[r, 3] - left, windows[r, 4] - top
            m = 0
            for level in levels:
                for i in range(level):
                    y0, y1 = top + i * down // level, top - (-(i + 1) * down // level)
                    for j in range(level):
                        x0, x1 = left + j * across // level, left - (-(j + 1) * across // level)
                        cells = (y1 - y0) * (x1 - x0)
                        for c in range(first, last):
                            share[c - first] = gradient[r, m, c] / cells
                        for y in range(y0, y1):
                            for x in range(x0, x1):
                                _add(result[n, y, x, first:last], share)
                        m += 1
