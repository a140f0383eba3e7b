"""Parts of long images: together they cover the image, and each has a shape that can be searched."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sppnet.proposals.long_images import WIDEST_ASPECT, search_views


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_views_start_with_the_whole_and_the_others_cover_it(height: int, width: int) -> None:
    whole, *tiles = search_views((height, width))
    assert whole == (0, 0, height, width)
    assert len(tiles) <= 8
    assert bool(tiles) == (max(height, width) > WIDEST_ASPECT * min(height, width))
    covered = np.zeros(max(height, width), bool)
    for y0, x0, y1, x1 in tiles:
        assert 0 <= y0 < y1 <= height
        assert 0 <= x0 < x1 <= width
        start, stop, other = (y0, y1, x1 - x0) if height > width else (x0, x1, y1 - y0)
        assert other == min(height, width)  # tiles lie side by side along the length
        covered[start:stop] = True
    assert covered.all() or not tiles
