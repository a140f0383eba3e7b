"""Region pyramid pooling on the CPU: channels last, one pass over a window's cells, parallel over windows.

features [N, C, H, W], windows [R, 5] -> pooled [R, M, C], bit-equal to the definition for maxima. Three ideas make it fast:

*Levels nest.* A level that divides another is the maximum over the other's bins, so the cells are read once for the finest.

*Numbers of any width compare as integers.* A float's sign and magnitude, read as an integer, keep the floats' order: one
vectorised integer maximum serves every dtype, and half precision maps are never widened. NaN becomes the largest number.

*The gradient does not search.* Where a gradient will be wanted, `forward` also keeps the cell that won each bin. `backward`
then adds up, channel by channel and window by window in one fixed order: no two threads write to one cell, and the sums come
out the same whatever the number of threads.

Means do not nest (bins share cells), so every level reads the cells. They are added up in float32, float64 for float64.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from sppnet.ops import _numba_kernels as kernels
from sppnet.ops.bins import bin_count

_INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_INFINITY_AND_NAN = {  # their bits: whatever is larger than infinity in magnitude is NaN, of which one stands for all
    torch.float16: (0x7C00, 0x7E00),
    torch.bfloat16: (0x7F80, 0x7FC0),
    torch.float32: (0x7F800000, 0x7FC00000),
    torch.float64: (0x7FF0000000000000, 0x7FF8000000000000),
}
NO_WINNERS = (0, 0, 0)
PAGE = mmap.PAGESIZE
LARGE_PAGE = 2 << 20  # bytes, on the processors that have them
MADV_HUGEPAGE = 14  # of Linux; Python's mmap knows it too, but only for memory of its own
BLOCK = 8  # channels whose gradients lie side by side: those of a window's cells fit into the first cache
LEAST_CHANNELS = 32  # of a part: a cache line of half precision, so that no two threads write to one
WINDOW_CHUNK = 512  # of half precision, whose sums are float32: bounds what is held in both

_one_at_a_time = threading.Lock()  # numba's own pool of threads, where there is no OpenMP, ends the process otherwise


def supports(features: Tensor) -> bool:
    """Whether this implementation takes the map: on the CPU, and of a dtype it knows."""
    return features.device.type == "cpu" and features.dtype in _INTEGERS


def forward(
    features: Tensor, windows: Tensor, levels: Sequence[int], reduce: str, *, keep_winners: bool = False
) -> tuple[Tensor, Tensor]:
    """Pooled windows [R, M, C]; and for maxima, where asked for, the cell y * W + x of each [R, M, C] int32, else none."""
    cells = _channels_last(features)  # [N, H, W, C]
    shape = len(windows), bin_count(levels), features.shape[1]
    parts = _parts(len(windows), features.shape[1])
    rows = windows.contiguous().numpy()
    if reduce == "mean":
        sides = np.array(levels)
        if features.dtype in (torch.float32, torch.float64):
            pooled = _empty(shape, features.dtype)
            _call(kernels.mean, cells.numpy(), rows, sides, parts, pooled.numpy())
            return pooled, torch.empty(NO_WINNERS, dtype=torch.int32)
        wide = cells.float()
        pooled = _empty(shape, features.dtype)
        for start in range(0, len(windows), WINDOW_CHUNK):
            part = slice(start, start + WINDOW_CHUNK)
            sums = torch.empty_like(pooled[part], dtype=torch.float32)
            _call(kernels.mean, wide.numpy(), rows[part], sides, parts, sums.numpy())
            pooled[part] = sums
        return pooled, torch.empty(NO_WINNERS, dtype=torch.int32)
    integer = _INTEGERS[features.dtype]
    ordered = torch.empty_like(cells, dtype=integer)
    _call(
        kernels.order,
        cells.view(integer).flatten(0, 2).numpy(),
        *_INFINITY_AND_NAN[features.dtype],
        ordered.flatten(0, 2).numpy(),
    )
    pooled = _empty(shape, integer)
    winners = _empty(shape if keep_winners else NO_WINNERS, torch.int32)
    _call(kernels.max, ordered.numpy(), rows, _plan(levels), parts, pooled.numpy(), winners.numpy())
    return pooled.view(features.dtype), winners


def backward(
    gradient: Tensor, shape: Sequence[int], windows: Tensor, winners: Tensor, levels: Sequence[int], reduce: str
) -> Tensor:
    """The gradient of features of ``shape`` [N, C, H, W], from that of the pooled windows [R, M, C] and their winners."""
    maps, channels, height, width = shape
    dtype = gradient.dtype if gradient.dtype == torch.float64 else torch.float32
    if reduce == "mean":
        result = torch.zeros(maps, height, width, channels, dtype=dtype)
    else:  # see BLOCK
        result = torch.zeros(maps, -(-channels // BLOCK), height * width, BLOCK, dtype=dtype)
    at_once = len(windows) if gradient.dtype == dtype else WINDOW_CHUNK
    for start in range(0, len(windows), max(1, at_once)):
        part = slice(start, start + at_once)
        given, rows = gradient[part].to(dtype).contiguous().numpy(), windows[part].contiguous().numpy()
        if reduce == "mean":
            _call(kernels.mean_gradient, given, rows, np.array(levels), _parts(maps, channels), result.numpy())
        else:
            cells = winners[part].numpy().view(np.uint32)  # unsigned: an index that cannot count from the end
            blocks = result.shape[1]
            _call(kernels.max_gradient, given, rows, cells, min(blocks, 4 * torch.get_num_threads()), result.numpy())
    if reduce == "max":
        result = result.transpose(2, 3).flatten(1, 2)[:, :channels].unflatten(2, (height, width))  # [N, C, H, W]
        return result.to(gradient.dtype, memory_format=torch.channels_last)
    return result.to(gradient.dtype).permute(0, 3, 1, 2)


def _empty(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Memory for results, in large pages where Linux has them: page by page it costs more time than pooling."""
    memory = torch.empty(shape, dtype=dtype)
    if memory.nbytes >= LARGE_PAGE and sys.platform == "linux":
        first = -(-memory.data_ptr() // PAGE) * PAGE
        last = (memory.data_ptr() + memory.nbytes) // PAGE * PAGE
        # An advice: that it is not taken, by a kernel without large pages, does no harm.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_HUGEPAGE)
    return memory


def _channels_last(features: Tensor) -> Tensor:
    return features.detach().permute(0, 2, 3, 1).contiguous()  # no copy where it is channels last


def _parts(tasks: int, channels: int) -> int:
    """Into how many parts the channels are cut, so that there is work for every thread."""
    wanted = -(-4 * torch.get_num_threads() // max(1, tasks))
    return max(1, min(wanted, channels // LEAST_CHANNELS))


def _plan(levels: Sequence[int]) -> np.ndarray:
    """Levels from fine to coarse: [levels, 4] with the bins per side, where they start in the output, and the same two of
    the finer level that each is derived from (or -1)."""
    starts = np.cumsum([0, *(n * n for n in levels)])[:-1].tolist()
    plan: list[tuple[int, int, int, int]] = []
    for level, start in sorted(zip(levels, starts, strict=True), reverse=True):
        nested = [(n, its_start) for n, its_start, _, _ in plan if n % level == 0]
        plan.append((level, start, *min(nested, default=(-1, -1))))  # the coarsest has the fewest bins to read
    return np.array(plan, dtype=np.int64)


def _call(kernel: Any, *arguments: Any) -> None:
    """Run a kernel on as many threads as PyTorch uses."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    with _one_at_a_time:
        kernel(*arguments)
    if torch.get_num_threads() != threads:  # where both use OpenMP, numba's first call sets PyTorch's to all cores
        torch.set_num_threads(threads)
