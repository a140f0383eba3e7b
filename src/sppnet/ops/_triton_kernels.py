"""The Triton kernels of `sppnet.ops._triton`, which says how they work together, and nothing else."""

from __future__ import annotations

import triton
import triton.language as tl

# Cells are read in tiles of 4 x 4, a common size of bins: 16 independent loads hide most of the memory's latency.
_SIDE = tl.constexpr(4)
_TILE = tl.constexpr(16)
_NO_CELL = tl.constexpr(2**31 - 1)


# What kernels share


@triton.jit
def _mirror(bits, MAGNITUDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Order-preserving map between floats' bits and integers; its own inverse."""
    return tl.where(bits < 0, bits ^ MAGNITUDE, bits)


@triton.jit
def _key(bits, MAGNITUDE: tl.constexpr, INFINITY: tl.constexpr, NAN: tl.constexpr, ONE_ZERO: tl.constexpr):  # type: ignore[no-untyped-def]
    """Floats' bits as ordered integers, all NaNs as one above all numbers; with ONE_ZERO, -0.0 and 0.0 as one."""
    key = tl.where((bits & MAGNITUDE) > INFINITY, NAN, _mirror(bits, MAGNITUDE))
    if ONE_ZERO:
        key = tl.where(key == -1, 0, key)
    return key


@triton.jit
def _widen(values):  # type: ignore[no-untyped-def]
    """To the dtype of sums. int16 holds the bits of bfloat16, which the interpreter would not convert right."""
    if values.dtype == tl.int16:
        return (values.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif values.dtype == tl.float64:
        return values
    else:
        return values.to(tl.float32)


@triton.jit
def _narrow(values, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """From the dtype of sums, to the nearest, of two to the even; int16 takes the bits of bfloat16."""
    if dtype == tl.int16:
        bits = values.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(values == values, rounded, 0x7FC0).to(tl.int16)
    else:
        return values.to(dtype)


@triton.jit
def _divide(values, count):  # type: ignore[no-untyped-def]
    """Rounded as IEEE 754 asks; a plain `/` is approximate in float32."""
    divisor = tl.zeros_like(values) + count.to(values.dtype)
    if values.dtype == tl.float64:
        return values / divisor
    else:
        return tl.div_rn(values, divisor)


@triton.jit
def _window(windows_ptr, r):  # type: ignore[no-untyped-def]
    """Map (int64, for it is multiplied up to an address), and x0, y0, x1, y1 (int32, for they are divided)."""
    row = windows_ptr + r * 5
    x0 = tl.load(row + 1).to(tl.int32)
    y0 = tl.load(row + 2).to(tl.int32)
    x1 = tl.load(row + 3).to(tl.int32)
    y1 = tl.load(row + 4).to(tl.int32)
    return tl.load(row), x0, y0, x1, y1


@triton.jit
def _edges(i, level, side):  # type: ignore[no-untyped-def]
    """Of bin i, its first cell and one past its last."""
    return i * side // level, ((i + 1) * side + level - 1) // level


@triton.jit
def _tile(y, x, bottom, right, columns, channels, c, exists):  # type: ignore[no-untyped-def]
    """Of the cells from (y, x) on: rows and columns, which are inside the bin, and where they lie in memory."""
    ys = y + tl.arange(0, _TILE) // _SIDE
    xs = x + tl.arange(0, _TILE) % _SIDE
    inside = ((ys < bottom) & (xs < right))[:, None] & exists[None, :]
    return ys, xs, inside, ((ys.to(tl.int64) * columns + xs) * channels)[:, None] + c[None, :]


# Forward


@triton.jit
def _key_kernel(  # type: ignore[no-untyped-def]
    bits_ptr, keys_ptr, size, MAGNITUDE: tl.constexpr, INFINITY: tl.constexpr, NAN: tl.constexpr,
    ONE_ZERO: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The keys of a whole map."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(bits_ptr + at, mask=at < size, other=0)
    tl.store(keys_ptr + at, _key(bits, MAGNITUDE, INFINITY, NAN, ONE_ZERO), mask=at < size)


@triton.jit(do_not_specialize=["level", "start", "parent", "parent_start", "bins", "height", "width"])
def _max_kernel(  # type: ignore[no-untyped-def]
    keys_ptr, windows_ptr, pooled_ptr, level, start, parent, parent_start, bins, height, width, channels,
    MAGNITUDE: tl.constexpr, NESTED: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """One row of bins of one level of one window. Program ids: window and row, block of channels.

    keys [N, H, W, C], windows [R, 5] -> pooled [R, M, C], floats' bits, from bin `start` on. NESTED reads, in place of
    the map, the finer level `parent` of the same window.
    """
    r = (tl.program_id(0) // level).to(tl.int64)
    i = tl.program_id(0) % level
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    row = pooled_ptr + r * bins * channels
    if NESTED:  # a map of parent x parent cells, and the window all of it
        source = row + parent_start.to(tl.int64) * channels
        columns, down, across = parent, parent, parent
    else:
        n, x0, y0, x1, y1 = _window(windows_ptr, r)
        source = keys_ptr + ((n * height + y0) * width + x0) * channels
        columns, down, across = width, y1 - y0, x1 - x0
    top, bottom = _edges(i, level, down)
    for j in range(level):
        left, right = _edges(j, level, across)
        best = tl.full((_TILE, BLOCK_C), -MAGNITUDE - 1, keys_ptr.dtype.element_ty)  # below every key
        for y in range(top, bottom, _SIDE):
            for x in range(left, right, _SIDE):
                _, _, inside, offsets = _tile(y, x, bottom, right, columns, channels, c, exists)
                if NESTED:  # -1 mirrors to the lowest key
                    keys = _mirror(tl.load(source + offsets, mask=inside, other=-1), MAGNITUDE)
                else:
                    keys = tl.load(source + offsets, mask=inside, other=-MAGNITUDE - 1)
                best = tl.maximum(best, keys)
        m = (start + i * level + j).to(tl.int64)
        pooled = _mirror(tl.max(best, axis=0), MAGNITUDE)
        tl.store(row + m * channels + c, pooled.to(pooled_ptr.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["level", "start", "bins", "height", "width"])
def _mean_kernel(  # type: ignore[no-untyped-def]
    cells_ptr, windows_ptr, pooled_ptr, level, start, bins, height, width, channels,
    BLOCK_C: tl.constexpr
):  # fmt: skip
    """One row of bins of one level of one window. Program ids: window and row, block of channels.

    cells [N, H, W, C], windows [R, 5] -> pooled [R, M, C], from bin `start` on.
    """
    r = (tl.program_id(0) // level).to(tl.int64)
    i = tl.program_id(0) % level
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    n, x0, y0, x1, y1 = _window(windows_ptr, r)
    source = cells_ptr + ((n * height + y0) * width + x0) * channels
    top, bottom = _edges(i, level, y1 - y0)
    for j in range(level):
        left, right = _edges(j, level, x1 - x0)
        total = _widen(tl.zeros((_TILE, BLOCK_C), cells_ptr.dtype.element_ty))
        for y in range(top, bottom, _SIDE):
            for x in range(left, right, _SIDE):
                _, _, inside, offsets = _tile(y, x, bottom, right, width, channels, c, exists)
                total += _widen(tl.load(source + offsets, mask=inside, other=0))
        mean = _divide(tl.sum(total, axis=0), (bottom - top) * (right - left))
        m = (start + i * level + j).to(tl.int64)
        tl.store(pooled_ptr + (r * bins + m) * channels + c, _narrow(mean, pooled_ptr.dtype.element_ty), mask=exists)


# Backward. Windows are sorted by map, and `order` holds the row in `pooled` and in the gradient of each.


@triton.jit(do_not_specialize=["first", "level", "start", "parent", "parent_start", "bins", "height", "width"])
def _winner_kernel(  # type: ignore[no-untyped-def]
    keys_ptr, pooled_ptr, windows_ptr, order_ptr, winners_ptr, first, level, start, parent, parent_start, bins, height,
    width, channels, MAGNITUDE: tl.constexpr, INFINITY: tl.constexpr, NAN: tl.constexpr, NESTED: tl.constexpr,
    BLOCK_C: tl.constexpr
):  # fmt: skip
    """The first largest cells of one row of bins of one window. Program ids: window and row, block of channels.

    keys [N, H, W, C], in which -0.0 and 0.0 are one, pooled [R, M, C], floats' bits -> winners [windows from `first` on,
    M, C], y * W + x. NESTED chooses among the winners of the finer level `parent`.
    """
    p = (tl.program_id(0) // level).to(tl.int64)
    i = tl.program_id(0) % level
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    pooled_row = pooled_ptr + tl.load(order_ptr + first + p) * bins * channels
    winners_row = winners_ptr + p * bins * channels
    n, x0, y0, x1, y1 = _window(windows_ptr, first + p)
    source = keys_ptr + ((n * height + y0) * width + x0) * channels
    if NESTED:
        columns, down, across = parent, parent, parent
    else:
        columns, down, across = width, y1 - y0, x1 - x0
    top, bottom = _edges(i, level, down)
    for j in range(level):
        m = (start + i * level + j).to(tl.int64)
        maximum = tl.load(pooled_row + m * channels + c, mask=exists, other=0)
        best = _key(maximum, MAGNITUDE, INFINITY, NAN, True)
        left, right = _edges(j, level, across)
        winner = tl.full((_TILE, BLOCK_C), _NO_CELL, tl.int32)
        for y in range(top, bottom, _SIDE):
            for x in range(left, right, _SIDE):
                ys, xs, inside, offsets = _tile(y, x, bottom, right, columns, channels, c, exists)
                if NESTED:
                    finer = parent_start.to(tl.int64) * channels + offsets
                    bits = tl.load(pooled_row + finer, mask=inside, other=0)
                    keys = _key(bits, MAGNITUDE, INFINITY, NAN, True)
                    index = tl.load(winners_row + finer, mask=inside, other=_NO_CELL)
                else:
                    keys = tl.load(source + offsets, mask=inside, other=0)
                    index = ((y0 + ys) * width + x0 + xs)[:, None]
                winner = tl.minimum(winner, tl.where(inside & (keys == best[None, :]), index, _NO_CELL))
        tl.store(winners_row + m * channels + c, tl.min(winner, axis=0), mask=exists)


@triton.jit(do_not_specialize=["first", "last", "level", "start", "bins", "maps", "height", "width"])
def _gather_kernel(  # type: ignore[no-untyped-def]
    gradient_ptr, winners_ptr, windows_ptr, order_ptr, starts_ptr, sums_ptr, first, last, level, start, bins, maps,
    height, width, channels, MEAN: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """What one level sends to one tile of cells. Program ids: map and tile, block of channels, share of the windows.

    gradient [R, M, C], winners [windows from `first` to `last`, M, C] (not read for a MEAN), starts [N + 1], where the
    windows of each map begin -> added to sums [S, N, H, W, C].
    """
    tiles_down = (height + _SIDE - 1) // _SIDE
    tiles_across = (width + _SIDE - 1) // _SIDE
    n = tl.program_id(0) // (tiles_down * tiles_across)
    tile = tl.program_id(0) % (tiles_down * tiles_across)
    top = tile // tiles_across * _SIDE
    left = tile % tiles_across * _SIDE
    ys = top + tl.arange(0, _TILE) // _SIDE
    xs = left + tl.arange(0, _TILE) % _SIDE
    index = ys * width + xs
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    inside = ((ys < height) & (xs < width))[:, None] & exists[None, :]
    share = tl.program_id(2)
    sums = sums_ptr + (share.to(tl.int64) * maps + n) * height * width * channels
    at = sums + (index.to(tl.int64) * channels)[:, None] + c[None, :]
    total = tl.load(at, mask=inside, other=0)

    begin = tl.maximum(tl.load(starts_ptr + n), first)
    end = tl.minimum(tl.load(starts_ptr + n + 1), last)
    run = (end - begin + tl.num_programs(2) - 1) // tl.num_programs(2)
    begin += share * run
    end = tl.minimum(end, begin + run)
    for p in range(begin, end):
        _, x0, y0, x1, y1 = _window(windows_ptr, p)
        # The part of the tile that lies in the window, in cells of the window.
        part_top = tl.maximum(top, y0) - y0
        part_bottom = tl.minimum(top + _SIDE, y1) - y0
        part_left = tl.maximum(left, x0) - x0
        part_right = tl.minimum(left + _SIDE, x1) - x0
        if (part_top < part_bottom) & (part_left < part_right):
            down, across = y1 - y0, x1 - x0
            gradient_row = gradient_ptr + tl.load(order_ptr + p) * bins * channels
            winners_row = winners_ptr + (p - first) * bins * channels
            # Bin i covers cell t where i * side < (t + 1) * level and (i + 1) * side > t * level.
            first_j = part_left * level // across
            past_j = (part_right * level + across - 1) // across
            for i in range(part_top * level // down, (part_bottom * level + down - 1) // down):
                for j in range(first_j, past_j):
                    m = (start + i * level + j).to(tl.int64)
                    sent = _widen(tl.load(gradient_row + m * channels + c, mask=exists, other=0))
                    if MEAN:
                        bin_top, bin_bottom = _edges(i, level, down)
                        bin_left, bin_right = _edges(j, level, across)
                        sent = _divide(sent, (bin_bottom - bin_top) * (bin_right - bin_left))
                        in_rows = (ys >= y0 + bin_top) & (ys < y0 + bin_bottom)
                        takes = (in_rows & (xs >= x0 + bin_left) & (xs < x0 + bin_right))[:, None]
                    else:
                        winner = tl.load(winners_row + m * channels + c, mask=exists, other=_NO_CELL)
                        takes = winner[None, :] == index[:, None]
                    total += tl.where(takes, sent[None, :], 0.0)
    tl.store(at, total, mask=inside)
