"""Where bins and windows begin and end, in cells, half-open. Integer arithmetic only: floats get some edges wrong.

Bin i of n over a side of s cells covers ``i*s // n`` up to, not including, ``ceil((i+1)*s / n)``. No bin is empty, even
for s < n; neighbors share at most one cell. Source: arXiv:1406.4729, appendix A.

Windows of feature maps are [R, 5] int64: map, x0, y0, x1, y1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bin_edges(side: int, bins: int) -> list[tuple[int, int]]:
    """First cell and one past the last cell of each bin along one side.

    Args:
        side: length in cells, at least 1.
        bins: number of bins, at least 1.

    Raises:
        ValueError: either is below 1.

    Example:
        >>> bin_edges(10, 4)
        [(0, 3), (2, 5), (5, 8), (7, 10)]
        >>> bin_edges(2, 3)
        [(0, 1), (0, 2), (1, 2)]
    """
    if side < 1 or bins < 1:
        raise ValueError(f"side and bins must be at least 1: got side {side}, bins {bins}")
    return [(i * side // bins, -(-(i + 1) * side // bins)) for i in range(bins)]


def bin_count(levels: Sequence[int]) -> int:
    """M, the number of bins of a whole pyramid: the sum of n * n.

    Example:
        >>> bin_count((6, 3, 2, 1))
        50
    """
    return sum(level * level for level in levels)


def nesting(levels: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The levels from fine to coarse, each with where its bins start in the output, and the same two of the finer level
    whose bins make up its own (or zeros): of several, the coarsest has the fewest bins to read.

    Example:
        >>> nesting((6, 4, 3))
        [(6, 0, 0, 0), (4, 36, 0, 0), (3, 52, 6, 0)]
    """
    starts = [bin_count(levels[:k]) for k in range(len(levels))]
    plan: list[tuple[int, int, int, int]] = []
    for level, start in sorted(zip(levels, starts, strict=True), reverse=True):
        finer = [(n, its_start) for n, its_start, _, _ in plan if n % level == 0]
        plan.append((level, start, *min(finer, default=(0, 0))))
    return plan


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """The levels as a tuple of ints, or a ValueError that shows what is wrong with them.

    Example:
        >>> check_levels([3, 2, 1])
        (3, 2, 1)
    """
    try:
        given = tuple(levels)
        checked = tuple(map(int, given))
    except (TypeError, ValueError, OverflowError):  # no sequence; or not a number, NaN, infinity
        given = checked = ()
    if not checked or checked != given or min(checked) < 1 or any(isinstance(n, bool) for n in given):
        expected = "one or more whole numbers of at least 1, such as (6, 3, 2, 1)"
        raise ValueError(f"levels must be {expected}: got {levels!r}")
    return checked


def whole_windows(features: Tensor) -> Tensor:
    """One window per map, the whole of it: [N, 5].

    Example:
        >>> whole_windows(torch.zeros(2, 8, 3, 5))
        tensor([[0, 0, 0, 5, 3],
                [1, 0, 0, 5, 3]])
    """
    count, _, height, width = features.shape
    windows = torch.tensor([[0, 0, 0, width, height]], device=features.device).repeat(count, 1)
    windows[:, 0] = torch.arange(count, device=features.device)
    return windows


def check_windows(windows: Tensor, features: Tensor) -> None:
    """A ValueError that shows the first window that is empty or not inside its map.

    Example:
        >>> check_windows(torch.tensor([[0, 2, 0, 9, 3]]), torch.zeros(1, 8, 3, 5))
        Traceback (most recent call last):
        ValueError: window 0 is empty or outside the maps: got (map, x0, y0, x1, y1) = (0, 2, 0, 9, 3) for 1 maps of 3 x 5 cells
    """
    count, _, height, width = features.shape
    n, x0, y0, x1, y1 = windows.unbind(1)
    inside = (n >= 0) & (n < count) & (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    if not inside.all():
        r = int((~inside).nonzero()[0])
        found = f"(map, x0, y0, x1, y1) = {tuple(windows[r].tolist())} for {count} maps of {height} x {width} cells"
        raise ValueError(f"window {r} is empty or outside the maps: got {found}")


# The paper's other rule, of section 2.3: side a, bins n -> window ceil(a / n), stride floor(a / n). It describes the networks that the
# paper trained on maps of 13 x 13 cells. On maps of other sides it can leave cells out, or give another number of bins; the rule
# above, which this library pools by, never does. This one is here to be compared with it.


def window_and_stride(side: int, bins: int) -> tuple[int, int]:
    """Window ``ceil(side / bins)`` and stride ``floor(side / bins)``, in cells. The stride is 0 if there are more bins than cells.

    Args:
        side: length of the map in cells, at least 1; the paper's a.
        bins: bins wanted, at least 1; the paper's n.

    Raises:
        ValueError: either is below 1.

    Source: arXiv:1406.4729, section 2.3; Figure 4 has the three of its 13 x 13 map.

    Example:
        >>> [window_and_stride(13, bins) for bins in (3, 2, 1)]
        [(5, 4), (7, 6), (13, 13)]
    """
    if side < 1 or bins < 1:
        raise ValueError(f"side and bins must be at least 1: got side {side}, bins {bins}")
    return -(-side // bins), side // bins


def sliding_window_bins(side: int, bins: int) -> list[tuple[int, int]]:
    """First cell and one past the last cell of each bin along one side, by the sliding window's rule.

    The window starts at cell 0 and moves on by the stride as long as it lies inside the map, as a pooling layer without
    padding does: ``(side - window) // stride + 1`` bins come out.

    With ``r = side % bins``, that is: the adaptive bins of `bin_edges` if r is 0 or 1 (and the side at least
    as long as there are bins); otherwise the last r - 1 cells are in no bin, or, if that is room for another stride, in more
    bins than were wanted.

    Args:
        side: length of the map in cells, at least 1; the paper's a.
        bins: bins wanted, at least 1; the paper's n.

    Returns:
        The bins, half-open. They may end before the map does: see `unread_cells`.

    Raises:
        ValueError: side or bins below 1, or another number of bins comes out: the message says how many.

    Source: arXiv:1406.4729, section 2.3.

    Example:
        >>> sliding_window_bins(13, 3)
        [(0, 5), (4, 9), (8, 13)]
        >>> sliding_window_bins(10, 4)
        [(0, 3), (2, 5), (4, 7), (6, 9)]
        >>> sliding_window_bins(10, 6)
        Traceback (most recent call last):
        ValueError: a window of 2 cells with stride 1 gives 9 bins over 10 cells, not 6: use bin_edges of sppnet.ops.bins, whose adaptive bins are always 6
    """
    window, stride = window_and_stride(side, bins)
    adaptive = f"use bin_edges of sppnet.ops.bins, whose adaptive bins are always {bins}"
    if not stride:
        raise ValueError(f"a window of 1 cell with stride 0 never leaves the first of {side} cells: {adaptive}")
    given = (side - window) // stride + 1
    if given != bins:
        found = f"a window of {window} cells with stride {stride} gives {given} bins"
        raise ValueError(f"{found} over {side} cells, not {bins}: {adaptive}")
    return [(i * stride, i * stride + window) for i in range(bins)]
