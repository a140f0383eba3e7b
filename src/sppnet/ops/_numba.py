"""Region pyramid pooling on the CPU, compiled: channels last, parallel over windows, no gradient.

features [N, C, H, W], windows [R, 5] -> [R, M, C], bit-equal to the definition. Two ideas make it fast. Levels nest: a
level that divides another is the maximum over the other's bins, so the cells are read once for the finest. And floating
point numbers, read as integers whose negatives are mirrored, keep their order: every dtype becomes an integer maximum,
which vectorises, and half precision needs no wider copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from sppnet.ops.bins import bin_count

# floating dtype -> integer dtype of its width, bits of everything but the sign, bits of its NaN
_ORDERED = {
    torch.float16: (torch.int16, 0x7FFF, 0x7E00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7FC0),
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7FC00000),
    torch.float64: (torch.int64, 0x7FFFFFFFFFFFFFFF, 0x7FF8000000000000),
}


def supports(features: Tensor) -> bool:
    """Whether this implementation takes the map: on the CPU, of a known dtype, and no gradient asked of it."""
    wants_gradient = features.requires_grad and torch.is_grad_enabled()
    return features.device.type == "cpu" and features.dtype in _ORDERED and not wants_gradient


def _mirror(bits: Tensor, magnitude: int) -> Tensor:
    """Order-preserving map between floats' bits and integers; its own inverse."""
    width = 8 * bits.element_size() - 1
    return bits ^ ((bits >> width) & magnitude)


def _plan(levels: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Levels from fine to coarse, where each starts in the output, and the finer level (or -1) it is derived from."""
    starts = np.cumsum([0, *(n * n for n in levels)])[:-1].tolist()
    order = sorted(range(len(levels)), key=lambda k: -levels[k])
    sizes: list[int] = []
    offsets: list[int] = []
    parents: list[int] = []
    parent_offsets: list[int] = []
    for k in order:
        nested = [(n, start) for n, start in zip(sizes, offsets, strict=True) if n % levels[k] == 0]
        parent, parent_offset = min(nested, default=(-1, -1))  # the coarsest that nests has the fewest bins to read
        sizes.append(levels[k])
        offsets.append(starts[k])
        parents.append(parent)
        parent_offsets.append(parent_offset)
    return sizes, offsets, parents, parent_offsets


@numba.njit(parallel=True, cache=True, nogil=True)
def _pool(features, windows, sizes, offsets, parents, parent_offsets, pooled):  # type: ignore[no-untyped-def]
    channels = features.shape[3]
    for r in numba.prange(windows.shape[0]):
        n, x0, y0, x1, y1 = windows[r, 0], windows[r, 1], windows[r, 2], windows[r, 3], windows[r, 4]
        height, width = y1 - y0, x1 - x0
        for k in range(sizes.shape[0]):
            level, parent = sizes[k], parents[k]
            ratio = parent // level
            for i in range(level):
                for j in range(level):
                    best = pooled[r, offsets[k] + i * level + j]
                    if parent < 0:
                        top, bottom = y0 + i * height // level, y0 - (-(i + 1) * height // level)
                        left, right = x0 + j * width // level, x0 - (-(j + 1) * width // level)
                        best[:] = features[n, top, left]
                        for y in range(top, bottom):
                            for x in range(left, right):
                                cell = features[n, y, x]
                                for c in range(channels):
                                    best[c] = cell[c] if cell[c] > best[c] else best[c]
                    else:
                        for a in range(i * ratio, (i + 1) * ratio):
                            for b in range(j * ratio, (j + 1) * ratio):
                                finer = pooled[r, parent_offsets[k] + a * parent + b]
                                if a == i * ratio and b == j * ratio:
                                    best[:] = finer
                                else:
                                    for c in range(channels):
                                        best[c] = finer[c] if finer[c] > best[c] else best[c]


def region_pyramid_pool(features: Tensor, windows: Tensor, levels: Sequence[int]) -> Tensor:
    integer, magnitude, nan = _ORDERED[features.dtype]
    cells = features.detach().permute(0, 2, 3, 1).contiguous()  # [N, H, W, C]; no copy where it is channels last
    ordered = _mirror(cells.view(integer), magnitude)
    ordered = torch.where(cells.isnan(), nan, ordered)  # a NaN, of either sign, above all numbers
    pooled = torch.empty(len(windows), bin_count(levels), features.shape[1], dtype=integer)
    plan = [np.array(column, dtype=np.int64) for column in _plan(levels)]
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    _pool(ordered.numpy(), windows.contiguous().numpy(), *plan, pooled.numpy())
    if (
        torch.get_num_threads() != threads
    ):  # where both use OpenMP, numba's first call sets PyTorch's number to all cores
        torch.set_num_threads(threads)
    return _mirror(pooled, magnitude).view(features.dtype)
