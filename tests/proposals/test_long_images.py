"""Parts of long images: together they cover the image, and each has a shape that can be searched."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sppnet.proposals.long_images import WIDEST_ASPECT, search_image, search_views


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


def test_what_is_found_in_a_view_is_told_in_pixels_of_the_image() -> None:
    image = np.zeros((10, 40, 3), np.uint8)
    image[4, 35] = 9

    def spot(view: np.ndarray) -> np.ndarray:
        y, x = np.nonzero(view[:, :, 0])
        return np.stack([x, y, x + 1, y + 1], axis=1).astype(float)

    whole, *found = search_image(image, spot).tolist()
    assert whole == [0, 0, 40, 10]
    assert len(found) > 1  # in the whole, and in a tile or two
    assert all(box == [35, 4, 36, 5] for box in found)


def test_boxes_end_where_their_view_does() -> None:
    views = search_views((10, 40))
    found = search_image(np.zeros((10, 40, 3), np.uint8), lambda view: np.array([[-5.0, -5, 99, 99], [3, 3, 3, 9]]))
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 40, 10], *([x0, y0, x1, y1] for y0, x0, y1, x1 in views)]
