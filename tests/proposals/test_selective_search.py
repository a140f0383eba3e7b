"""Selective search: finds what stands out, at any size, and the same every time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.data.annotations import DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import read_image, resize_image
from sppnet.proposals.compute import propose
from sppnet.proposals.recall import recall_report
from sppnet.proposals.selective_search import (
    WIDEST_ASPECT,
    SelectiveSearch,
    drop_near_duplicates,
    search_image,
    search_views,
    selective_search,
)


def scene(height: int, width: int) -> np.ndarray:
    """Smooth coloured blobs: regions to merge, as in a photo."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (max(2, height // 25), max(2, width // 25), 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    width, height = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(min=0)
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one, other)]
    return float(width * height / (sum(areas) - width * height))


def assert_valid(boxes: np.ndarray, size: tuple[int, int]) -> None:
    height, width = size
    assert boxes.dtype == np.float32
    assert boxes.flags.c_contiguous
    assert boxes[0].tolist() == [0, 0, width, height]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_square_on_a_plain_ground_is_found(scale: int) -> None:
    """A worked picture: one white square, and the box around it is among the proposals, in pixels of the image given."""
    image = np.full((150 * scale, 200 * scale, 3), 40, dtype=np.uint8)
    square = np.array([60, 30, 140, 110], dtype=np.float32) * scale
    x0, y0, x1, y1 = square.astype(int)
    image[y0:y1, x0:x1] = (230, 60, 60)
    boxes = selective_search(image)
    assert_valid(boxes, (150 * scale, 200 * scale))
    assert max(iou(square, box) for box in boxes) > 0.9


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (3, 500),
        (16, 33),
        (20000, 20),
        (200, 600),
        (221, 100),
        (241, 100),
    ],
    ids=str,
)
def test_every_size_gives_boxes(size: tuple[int, int]) -> None:
    assert_valid(selective_search(scene(*size), SelectiveSearch(working_size=120)), size)


def test_long_images_are_searched_in_tiles_as_finely_as_others() -> None:
    """A small square near the far end of a long image: lost in a squeezed whole, found in its tile."""
    image = np.full((200, 1600, 3), 40, dtype=np.uint8)
    image[120:160, 1500:1540] = (230, 60, 60)
    boxes = selective_search(image)
    assert max(iou(np.array([1500, 120, 1540, 160], dtype=np.float32), box) for box in boxes) > 0.8


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


def test_the_same_boxes_in_the_same_order_every_time() -> None:
    image = scene(150, 210)
    expected = selective_search(image)
    assert len(expected) > 20
    assert (selective_search(image) == expected).all()
    with ThreadPoolExecutor(2) as executor:
        for boxes in executor.map(selective_search, [image] * 4):
            assert np.array_equal(boxes, expected)


def test_order_duplicates_and_input() -> None:
    image = scene(150, 210)
    image.flags.writeable = False
    boxes = selective_search(image)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    assert (np.diff(areas) <= 0).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= SelectiveSearch().smallest_side).all()
    assert all(iou(one, other) <= 0.951 for index, one in enumerate(boxes) for other in boxes[:index])
    assert np.array_equal(selective_search(image[:, ::-1][:, ::-1]), boxes)  # also from a view in reverse


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2), max_size=30), st.floats(0.3, 1))
@settings(max_examples=50)
def test_drop_near_duplicates_by_its_definition(found: list[tuple[int, int, int, int]], threshold: float) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in found], dtype=np.float32).reshape(-1, 4)
    kept: list[np.ndarray] = []
    overlaps = []
    for box in boxes:
        overlaps += [iou(box, other) for other in kept]
        if all(iou(box, other) <= threshold for other in kept):
            kept.append(box)
    if all(abs(overlap - threshold) > 1e-5 for overlap in overlaps):  # on the edge, rounding decides
        assert np.array_equal(drop_near_duplicates(boxes, threshold), np.array(kept, dtype=np.float32).reshape(-1, 4))


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        selective_search(image)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_recall_on_real_photos(shared_data: Path) -> None:
    data = read_voc(shared_data / "VOCdevkit", "val")
    data = DetectionData(data.class_names, data.images[::33][:30], data.split)
    images = {image.image_id: read_image(image.path) for image in data.images}
    recall = {
        method: recall_report(data, {key: propose(image, method) for key, image in images.items()})["sizes"]["all"][
            "recall"
        ]
        for method in ("selective-search", "selective-search+grid")
    }
    assert recall["selective-search"][0] > 0.85
    assert recall["selective-search+grid"][0] > 0.92
    assert recall["selective-search+grid"][1] > recall["selective-search"][1]


@pytest.mark.slow
def test_a_large_real_photo(shared_data: Path) -> None:
    path = sorted((shared_data / "VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[0]
    image = resize_image(read_image(path), (4000, 3000))
    boxes = selective_search(image)
    assert_valid(boxes, (4000, 3000))
    assert len(boxes) > 100
