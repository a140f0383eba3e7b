"""Boxes to windows, never empty, and what rounding to cells loses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.models.geometry import Geometry, boxes_to_windows, window_residuals


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((0, 0, 160, 160), (0, 0, 10, 10)),  # the whole image, the whole map
        ((16, 32, 48, 64), (1, 2, 3, 4)),  # centres at 24, 40 and 40, 56
        ((8, 8, 9, 9), (0, 0, 1, 1)),  # just the centre of cell 0
        ((9, 9, 23, 23), (0, 0, 1, 1)),  # between two centres: the nearest cell (16 is as near to both: the even one)
        ((-50, -50, -40, -40), (0, 0, 1, 1)),  # outside: the nearest cell
        ((500, 0, 600, 160), (9, 0, 10, 10)),
    ],
)
def test_hand_drawn_windows(box: tuple[int, ...], window: tuple[int, ...]) -> None:
    boxes = torch.tensor([box], dtype=torch.float32)
    assert tuple(boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0))[0].tolist()) == window


coordinates = st.floats(-1e4, 1e4, allow_nan=False)


@given(
    st.tuples(coordinates, coordinates, coordinates, coordinates),
    st.integers(1, 64),
    st.floats(0, 40),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.floats(0.01, 20), st.floats(0.01, 20)),
)
def test_no_window_is_empty_or_outside(
    box: tuple[float, ...], stride: int, offset: float, size: tuple[int, int], scale: tuple[float, float]
) -> None:
    windows = boxes_to_windows(torch.tensor([box]), Geometry(stride, offset), size, scale)
    x0, y0, x1, y1 = windows[0].tolist()
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]


def test_windows_are_on_the_device_of_the_boxes() -> None:
    boxes = torch.empty(3, 4, device="meta")
    assert boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0)).device.type == "meta"


@pytest.mark.parametrize(("shape", "map_size"), [((3, 5), (10, 10)), ((4,), (10, 10)), ((2, 4), (0, 10))])
def test_boxes_and_maps_of_another_shape(shape: tuple[int, ...], map_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected boxes \[R, 4\] and a map of at least one cell: got boxes \["):
        boxes_to_windows(torch.zeros(shape), Geometry(16, 8.0), map_size, (1.0, 1.0))


def test_scale_is_vertical_then_horizontal() -> None:
    box = torch.tensor([[0.0, 0, 80, 80]])
    assert boxes_to_windows(box, Geometry(16, 8.0), (10, 10), (1.0, 2.0)).tolist() == [[0, 0, 10, 5]]


def test_residuals_say_what_rounding_to_cells_lost() -> None:
    """Cells of 16 px: the window of a box from 4 to 60 covers the cells from 0 to 64, 4 px more on either side."""
    geometry, boxes = Geometry(16, 8.0), torch.tensor([[4.0, 4, 60, 60], [0, 0, 64, 64]])
    windows = boxes_to_windows(boxes, geometry, (10, 10), (1.0, 1.0))
    lost = 4 / 56
    expected = torch.tensor([[-lost, -lost, lost, lost], [0, 0, 0, 0]])
    torch.testing.assert_close(window_residuals(boxes, windows, geometry, (1.0, 1.0)), expected)
    twice = window_residuals(boxes / 2, windows, geometry, (2.0, 2.0))  # the same box, seen at twice the size
    torch.testing.assert_close(twice, expected)


def test_residuals_of_boxes_far_outside_are_bounded() -> None:
    geometry, boxes = Geometry(32, 0.5), torch.tensor([[-900.0, -900, -890, -890], [5, 5, 5.1, 5.1]])
    windows = boxes_to_windows(boxes, geometry, (4, 4), (1.0, 1.0))
    assert window_residuals(boxes, windows, geometry, (1.0, 1.0)).abs().max() <= 1
