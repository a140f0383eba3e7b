"""The paper's other rule for bins, of section 2.3: a pooling layer's window and stride, computed from the map's side.

side a, bins n -> window ceil(a / n), stride floor(a / n). It describes the networks that the paper trained on maps of 13 x 13
cells. On maps of other sides it can leave cells out, or give another number of bins; `sppnet.ops.bins` has the rule that this
library pools by, which never does. This one is here to be compared with it: no other part of the library uses it.
"""

from __future__ import annotations


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

    With ``r = side % bins``, that is: the adaptive bins of `sppnet.ops.bins.bin_edges` if r is 0 or 1 (and the side at least
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
        raise ValueError(
            f"a window of {window} cells with stride {stride} gives {given} bins over {side} cells, not {bins}: {adaptive}"
        )
    return [(i * stride, i * stride + window) for i in range(bins)]


def unread_cells(side: int, bins: int) -> list[int]:
    """The cells along one side that no bin of `sliding_window_bins` reads; arguments and errors are the same.

    They are the last ones: windows are at least as long as the stride, so none is skipped between two.

    Example:
        >>> unread_cells(13, 6), unread_cells(10, 4), unread_cells(11, 3)
        ([], [9], [10])
    """
    return list(range(sliding_window_bins(side, bins)[-1][1], side))
