"""Where bins begin and end: hand-drawn cases, then the laws."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.ops.bins import bin_count, bin_edges, check_levels

sides, grids = st.integers(1, 300), st.integers(1, 20)


@pytest.mark.parametrize(
    ("side", "bins", "edges"),
    [
        (13, 3, [(0, 5), (4, 9), (8, 13)]),  # figure 4 of the paper: windows of 5, stride 4
        (13, 2, [(0, 7), (6, 13)]),
        (13, 1, [(0, 13)]),
        (10, 6, [(0, 2), (1, 4), (3, 5), (5, 7), (6, 9), (8, 10)]),  # the paper's own 180 px input
        (2, 3, [(0, 1), (0, 2), (1, 2)]),  # fewer cells than bins
        (25, 5, [(0, 5), (5, 10), (10, 15), (15, 20), (20, 25)]),  # float32 puts the third's end at 16
    ],
)
def test_hand_drawn(side: int, bins: int, edges: list[tuple[int, int]]) -> None:
    assert bin_edges(side, bins) == edges


@given(sides, grids)
def test_no_bin_is_empty_and_all_cells_are_covered(side: int, bins: int) -> None:
    edges = bin_edges(side, bins)
    assert all(0 <= start < stop <= side for start, stop in edges)
    assert edges[0][0] == 0
    assert edges[-1][1] == side
    assert all(right[0] <= left[1] <= right[0] + 1 for left, right in pairwise(edges))


@given(sides, grids, st.integers(1, 6))
def test_levels_nest(side: int, bins: int, ratio: int) -> None:
    """A bin of a level is the union of the bins of any level that it divides."""
    coarse, fine = bin_edges(side, bins), bin_edges(side, bins * ratio)
    for i, edge in enumerate(coarse):
        assert edge == (fine[i * ratio][0], fine[(i + 1) * ratio - 1][1])


def test_counts() -> None:
    assert bin_count((6, 3, 2, 1)) == 50
    assert bin_count((4, 3, 2, 1)) == 30


@pytest.mark.parametrize(
    "levels", [(), (0,), (3, -1), (1.5,), 3, (True,), None, (None,), ("a",), "321", (float("nan"),)]
)
def test_wrong_levels_are_shown(levels: object) -> None:
    with pytest.raises(ValueError, match="levels must be one or more whole numbers") as error:
        check_levels(levels)  # type: ignore[arg-type]
    assert repr(levels) in str(error.value)


@pytest.mark.parametrize(("side", "bins"), [(0, 1), (1, 0)])
def test_no_cells_or_no_bins(side: int, bins: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bin_edges(side, bins)
