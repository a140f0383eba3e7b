"""The compiled loops of `sppnet.ops._numba`, and nothing else.

The first call with a new dtype compiles, some seconds, and keeps the result on disk: beside this file, or in the user's cache
folder where that is read-only, or nowhere where that is read-only too. Every task of a parallel loop is a window, or a map
in gradients, and one part of the channels: ``first`` up to ``last``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _compiled(parallel: bool) -> Callable[[Callable[..., None]], Any]:
    def compile_it(function: Callable[..., None]) -> Any:
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(function, cache=True, **options)
        except RuntimeError:  # no folder to keep it in: every process compiles it
            return numba.njit(function, **options)

    return compile_it


@_compiled(parallel=False)
def _copy(target, source):  # type: ignore[no-untyped-def]
    for c in range(target.shape[0]):
        target[c] = source[c]


@_compiled(parallel=False)
def _fill(target, value):  # type: ignore[no-untyped-def]
    for c in range(target.shape[0]):
        target[c] = value


@_compiled(parallel=False)
def _add(total, part):  # type: ignore[no-untyped-def]
    for c in range(total.shape[0]):
        total[c] += part[c]


@_compiled(parallel=False)
def _larger(best, cell):  # type: ignore[no-untyped-def]
    for c in range(best.shape[0]):
        best[c] = cell[c] if cell[c] > best[c] else best[c]


@_compiled(parallel=False)
def _larger_cell(best, winner, cell, index):  # type: ignore[no-untyped-def]
    for c in range(best.shape[0]):
        better = cell[c] > best[c]
        best[c] = cell[c] if better else best[c]
        winner[c] = index if better else winner[c]


@_compiled(parallel=False)
def _larger_bin(best, winner, finer, its_winner):  # type: ignore[no-untyped-def]
    for c in range(best.shape[0]):
        better = (finer[c] > best[c]) | ((finer[c] == best[c]) & (its_winner[c] < winner[c]))
        best[c] = finer[c] if better else best[c]
        winner[c] = its_winner[c] if better else winner[c]


@_compiled(parallel=True)
def order(bits, infinity, nan, ordered):  # type: ignore[no-untyped-def]
    """Floats' bits [cells, C] as integers of the same order: sign and magnitude become two's complement."""
    for i in numba.prange(bits.shape[0]):
        for c in range(bits.shape[1]):
            magnitude = bits[i, c] & np.iinfo(bits.dtype).max
            ordered[i, c] = nan if magnitude > infinity else magnitude if bits[i, c] >= 0 else -magnitude


@_compiled(parallel=True)
def max(features, windows, plan, parts, pooled, winners):  # type: ignore[no-untyped-def]
    """Ordered integers [N, H, W, C] -> floats' bits [R, M, C]; into winners, where it has room, the cell of each."""
    width, channels, keep = features.shape[2], features.shape[3], winners.shape[0] > 0
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
                    if finer > 0:
                        ratio = finer // level
                        corner = finer_start + i * ratio * finer + j * ratio
                        _copy(best, pooled[r, corner, first:last])
                        if keep:
                            winner = winners[r, start + i * level + j, first:last]
                            _copy(winner, winners[r, corner, first:last])
                        for a in range(ratio):
                            for m in range(corner + a * finer, corner + a * finer + ratio):
                                if keep:
                                    _larger_bin(best, winner, pooled[r, m, first:last], winners[r, m, first:last])
                                else:
                                    _larger(best, pooled[r, m, first:last])
                        continue
                    y0, y1 = top + i * down // level, top - (-(i + 1) * down // level)
                    x0, x1 = left + j * across // level, left - (-(j + 1) * across // level)
                    _copy(best, features[n, y0, x0, first:last])
                    if keep:
                        winner = winners[r, start + i * level + j, first:last]
                        _fill(winner, y0 * width + x0)
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            if keep:
                                _larger_cell(best, winner, features[n, y, x, first:last], y * width + x)
                            else:
                                _larger(best, features[n, y, x, first:last])
        sign = np.iinfo(features.dtype).min
        for m in range(pooled.shape[1]):
            best = pooled[r, m, first:last]
            for c in range(best.shape[0]):
                best[c] = best[c] if best[c] >= 0 else -best[c] | sign


@_compiled(parallel=False)
def _add_to_winners(cells, winners, gradient, first, count):  # type: ignore[no-untyped-def]
    for m in range(gradient.shape[0]):
        for c in range(count):
            cells[winners[m, first + c], c] += gradient[m, first + c]


@_compiled(parallel=True)
def max_gradient(gradient, windows, winners, parts, result):  # type: ignore[no-untyped-def]
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


@_compiled(parallel=True)
def mean(features, windows, levels, parts, pooled):  # type: ignore[no-untyped-def]
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


@_compiled(parallel=True)
def mean_gradient(gradient, windows, levels, parts, result):  # type: ignore[no-untyped-def]
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
