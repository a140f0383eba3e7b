"""The grid: evenly spread, edge to edge, about as many boxes for every image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.proposals.compute import Grid, grid_boxes


def test_a_worked_grid() -> None:
    """A 4 x 8 image, squares of side 4 (root of the area: sqrt(32); share: sqrt(1/2)), half a side apart."""
    boxes = grid_boxes((4, 8), Grid(smallest=0.5**0.5, largest=0.71, aspects=(1.0,), step=0.5))
    assert boxes == pytest.approx(np.array([[0, 0, 8, 4], [0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]]), abs=1e-5)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (480, 640), (3000, 4000), (200, 600), (64, 64)])
def test_about_two_thousand_whatever_the_size(size: tuple[int, int]) -> None:
    assert 1700 < len(grid_boxes(size)) < 2300


@pytest.mark.parametrize("size", [(20000, 20), (10, 30000), (3, 500)])
def test_long_images_have_a_bounded_number(size: tuple[int, int]) -> None:
    assert 100 < len(grid_boxes(size)) < 6000


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_boxes_lie_in_the_image_and_are_unique(size: tuple[int, int]) -> None:
    height, width = size
    boxes = grid_boxes(size)
    assert boxes.dtype == np.float32
    assert boxes[0].tolist() == [0, 0, width, height]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 0.99 * min(4, *size)).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_every_place_is_near_a_box_of_every_kind() -> None:
    """With steps of a third of a side, an object of a box's own size and shape is overlapped by at least (5/6)^2/(2-(5/6)^2)."""
    boxes = grid_boxes((300, 400), Grid(smallest=0.2, largest=0.2, aspects=(1.0,)))[1:]
    side = boxes[0, 2] - boxes[0, 0]
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(0, 1, (200, 2)) * (400 - side, 300 - side):
        overlap = (side - np.abs(boxes[:, :2] - (x, y))).clip(min=0).prod(axis=1)
        assert (overlap / (2 * side**2 - overlap)).max() >= (5 / 6) ** 2 / (2 - (5 / 6) ** 2) - 1e-4


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        grid_boxes((0, 5))
