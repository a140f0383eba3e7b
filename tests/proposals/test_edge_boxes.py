"""Edge boxes: they close around outlines, in pixels of the image, the same every time, at any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sppnet.metrics import overlaps
from sppnet.proposals.edge_boxes import EdgeBoxes, edge_boxes, edge_map


def photo(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Patches of color."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (size[0] // 12 + 1, size[1] // 12 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(cells.repeat(12, axis=0).repeat(12, axis=1)[: size[0], : size[1]])


@pytest.mark.parametrize("size", [(200, 300), (700, 1000)])
def test_a_square_is_enclosed(size: tuple[int, int]) -> None:
    """Also where the search runs on a smaller image; the search leaves about 4 px of the working size around it."""
    image = np.full((*size, 3), 90, dtype=np.uint8)
    height, width = size
    square = (width // 3, height // 4, width // 3 + height // 3, height // 4 + height // 3)
    image[square[1] : square[3], square[0] : square[2]] = (200, 30, 30)
    boxes = edge_boxes(image)
    found = overlaps([square], boxes)[0]
    assert found.max() > 0.75
    assert found.argmax() == 1  # the best-scored box, right after the whole image
    slack = (boxes[1] - square) * (-1, -1, 1, 1)
    assert (slack > 0).all()
    assert np.ptp(slack) < 12  # as much on one side as on the other, but for the search's own step
    assert boxes[0].tolist() == [0, 0, width, height]


def test_the_strongest_color_counts() -> None:
    """Red beside green of the same gray is an edge all the same."""
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    image[:, :20, 0] = image[:, 20:, 1] = 150
    strength, direction = edge_map(image, 1.0)
    assert set(np.nonzero(strength)[1].tolist()) == {19, 20}
    assert strength.max() == 1
    assert np.allclose(np.sin(direction[strength > 0]), 0, atol=1e-3)


def test_directions_lie_along_the_gradient() -> None:
    y, x = np.mgrid[:60, :60]
    image = np.where((x + y < 60)[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)
    strength, direction = (values[8:-8, 8:-8] for values in edge_map(image, 1.0))
    assert (strength > 0.5).sum() > 40
    assert np.allclose(direction[strength > 0.5], np.pi / 4, atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 3), (14, 14), (30, 40), (900, 40), (10, 3000)])
def test_every_size_works(size: tuple[int, int]) -> None:
    boxes = edge_boxes(photo(size))
    height, width = size
    assert boxes.dtype == np.float32
    assert boxes[0].tolist() == [0, 0, width, height]
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_a_long_image_is_searched_in_parts() -> None:
    image = np.full((60, 3000, 3), 90, dtype=np.uint8)
    image[15:45, 2000:2030] = 220
    assert overlaps([[2000, 15, 2030, 45]], edge_boxes(image)).max() > 0.75


def test_the_same_every_time_and_in_every_thread() -> None:
    image = photo((150, 200))
    before = image.copy()
    expected = edge_boxes(image)
    assert len(expected) > 100
    with ThreadPoolExecutor(4) as pool:
        for boxes in pool.map(edge_boxes, [image] * 6):
            assert np.array_equal(boxes, expected)
    assert np.array_equal(image, before)


def test_settings() -> None:
    image = photo((150, 200))
    assert len(edge_boxes(image, EdgeBoxes(max_boxes=50))) == 51
    assert len(edge_boxes(image, EdgeBoxes(nms_iou=0.4))) < len(edge_boxes(image, EdgeBoxes(nms_iou=0.9)))
    for bad in (image[..., 0], image.astype(np.float32), image[:0]):
        with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
            edge_boxes(bad)
