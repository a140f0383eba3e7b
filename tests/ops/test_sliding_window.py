"""The paper's rule of section 2.3: where it gives the adaptive bins, where it leaves cells out, where it gives another number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sliding_window import unread_cells
from sppnet.ops.bins import bin_edges, sliding_window_bins, window_and_stride

PAPER_LEVELS = (1, 2, 3, 4, 6)


def test_figure_4() -> None:
    """A 13 x 13 map: window and stride of levels 3, 2 and 1."""
    assert [window_and_stride(13, n) for n in (3, 2, 1)] == [(5, 4), (7, 6), (13, 13)]
    assert sliding_window_bins(13, 3) == [(0, 5), (4, 9), (8, 13)]


def test_the_papers_smaller_map_does_not_get_its_six_bins() -> None:
    """10 x 10 cells, of images of 180 pixels: nine bins a side, of which the first six end after 7 cells."""
    with pytest.raises(
        ValueError, match="window of 2 cells with stride 1 gives 9 bins over 10 cells, not 6: use bin_edges"
    ):
        sliding_window_bins(10, 6)
    assert sliding_window_bins(10, 4)[-1] == (6, 9)
    assert unread_cells(10, 4) == [9]


def test_overfeats_map() -> None:
    """18 x 18 cells: 17 of them read by four bins; the other levels are exact."""
    assert unread_cells(18, 4) == [17]
    assert all(sliding_window_bins(18, n) == bin_edges(18, n) for n in (6, 3, 2, 1))


def test_every_level_of_the_paper_agrees_on_these_maps_only() -> None:
    def agrees(side: int, bins: int) -> bool:
        try:
            return sliding_window_bins(side, bins) == bin_edges(side, bins)
        except ValueError:
            return False

    assert [side for side in range(4, 41) if all(agrees(side, n) for n in PAPER_LEVELS)] == [12, 13, 24, 25, 36, 37]


@given(st.integers(1, 400), st.integers(1, 40))
def test_the_remainder_decides(side: int, bins: int) -> None:
    remainder, stride = side % bins, side // bins
    if stride and remainder <= 1:
        assert sliding_window_bins(side, bins) == bin_edges(side, bins)
        assert unread_cells(side, bins) == []
    elif stride > remainder - 1:
        assert len(sliding_window_bins(side, bins)) == bins
        assert len(unread_cells(side, bins)) == remainder - 1
    else:
        with pytest.raises(ValueError, match=rf"use bin_edges .* always {bins}"):
            sliding_window_bins(side, bins)


@given(st.integers(1, 60), st.integers(1, 12))
def test_the_bins_are_those_of_a_pooling_layer(side: int, bins: int) -> None:
    window, stride = window_and_stride(side, bins)
    if not stride:
        return
    cells = torch.arange(float(side))[None]
    last = torch.nn.functional.max_pool1d(cells, window, stride)[0]  # each bin's last cell
    first = -torch.nn.functional.max_pool1d(-cells, window, stride)[0]
    layer = [(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]
    if len(layer) == bins:
        assert sliding_window_bins(side, bins) == layer
    else:
        with pytest.raises(ValueError, match=f"gives {len(layer)} bins over {side} cells, not {bins}"):
            sliding_window_bins(side, bins)


def test_more_bins_than_cells() -> None:
    with pytest.raises(ValueError, match=r"stride 0 never leaves the first of 5 cells: use bin_edges .* always 6"):
        sliding_window_bins(5, 6)


@pytest.mark.parametrize(("side", "bins"), [(0, 1), (1, 0), (-3, 2)])
def test_nothing_to_divide(side: int, bins: int) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1: got side {side}, bins {bins}"):
        sliding_window_bins(side, bins)
