"""Selective search: boxes around regions that grow by merging alike neighbors (OpenCV's, in its fast form).

It runs on the image at a working size, where it is several times faster and finds nearly as much; the boxes are scaled
back. A long image is searched in parts, too, so that what is small beside its length is not lost (`search_image`, which edge
boxes use as well). image [H, W, 3] -> boxes [R, 4] float32, pixels of that image, half-open.

Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013; SPP-net, arXiv:1406.4729, section 4.1,
uses its fast mode.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from sppnet.data.images import checked_size

WIDEST_ASPECT = 2.2  # OpenCV's selective search turns the image by 45 degrees, and fails beyond 1 + sqrt(2)
_TILE_ASPECT = 2.0
_MOST_TILES = 8  # bounds the time that the longest image takes


@dataclass(frozen=True)
class SelectiveSearch:
    """Settings of `selective_search`."""

    working_size: int = 350  # px, longest side searched, never scaled up; 500 finds a little more, in twice the time
    smallest_side: int = 8  # px at the working size; smaller boxes are single segments, hardly ever objects
    coarseness: int = 150  # smallest segment (px) and merging constant of the finest of the three segmentations
    coarseness_step: int = 150  # added for the second, and again for the third
    smoothing: float = 0.8  # standard deviation (px) of the blur before segmenting
    near_duplicate_iou: float = 0.95  # of two boxes overlapping more than this, the larger stays


def selective_search(image: np.ndarray, settings: SelectiveSearch = SelectiveSearch()) -> np.ndarray:
    """Propose boxes that follow the regions of an image.

    Works on every size. An image longer than 2.2 times its breadth is searched as a whole, squeezed to an aspect of
    2.2, and in at most 8 half-overlapping tiles along its length. The result is the same in every run, process and thread.

    Args:
        image: [H, W, 3] uint8 RGB. Not modified.
        settings: see ``SelectiveSearch``.

    Returns:
        [R, 4] float32 xyxy in pixels of ``image``, half-open, by falling area; the first is the whole image, so R is
        at least 1. About 700 for a photo at the standard settings.

    Raises:
        ValueError: not [H, W, 3] uint8 with at least one pixel.

    Example:
        >>> selective_search(np.zeros((40, 60, 3), dtype=np.uint8))
        array([[ 0.,  0., 60., 40.]], dtype=float32)
    """
    checked_size(image, "selective_search")
    boxes = search_image(image, lambda view: _search(view, settings))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -area))  # OpenCV draws its own at random
    return drop_near_duplicates(boxes[order], settings.near_duplicate_iou)


def drop_near_duplicates(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Keep each box unless it overlaps one kept before it by more than ``iou``.

    Args:
        boxes: [R, 4] float32, the ones to prefer first. Not modified.
        iou: in (0, 1].

    Returns:
        [Q, 4], Q <= R, in the order given.

    Example:
        >>> drop_near_duplicates(np.array([[0, 0, 100, 100], [0, 0, 99, 100], [0, 0, 50, 50]], np.float32), iou=0.95)
        array([[  0.,   0., 100., 100.],
               [  0.,   0.,  50.,  50.]], dtype=float32)
    """
    boxes = np.asarray(boxes, np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    by_area = np.argsort(areas)  # only boxes of about the same area can overlap so much
    first = np.searchsorted(areas[by_area], areas * np.float32(0.999 * iou))
    stop = np.searchsorted(areas[by_area], areas / np.float32(0.999 * iou), side="right")
    kept = np.ones(len(boxes), bool)
    for index in range(len(boxes)):
        if kept[index]:
            near = by_area[first[index] : stop[index]]
            near = near[near > index]
            low, high = np.maximum(boxes[near, :2], boxes[index, :2]), np.minimum(boxes[near, 2:], boxes[index, 2:])
            common = np.maximum(high - low, 0).prod(1)
            kept[near[common / (areas[index] + areas[near] - common) > iou]] = False
    return boxes[kept]


def search_image(image: np.ndarray, search: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The box of the whole image, then what a search finds in each of the image's views.

    Args:
        image: [H, W, 3] with pixels. Not modified.
        search: of a view [h, w, 3], a part of ``image`` that is not to be written to: boxes [R, 4] in pixels of the view.

    Returns:
        [R, 4] float32 xyxy in pixels of ``image``, half-open, each cut off at the edges of its view; those without area
        are left out.

    Example:
        >>> search_image(np.zeros((40, 60, 3), np.uint8), lambda view: np.array([[-1.0, 2, 5, 9], [7, 7, 7, 9]]))
        array([[ 0.,  0., 60., 40.],
               [ 0.,  2.,  5.,  9.]], dtype=float32)
    """
    height, width = image.shape[:2]
    found = [np.array([[0, 0, width, height]], dtype=np.float32)]
    for y0, x0, y1, x1 in search_views((height, width)):
        boxes = search(image[y0:y1, x0:x1]) + np.array([x0, y0, x0, y0])
        boxes = np.clip(boxes, [x0, y0, x0, y0], [x1, y1, x1, y1]).astype(np.float32)
        found.append(boxes[(boxes[:, :2] < boxes[:, 2:]).all(axis=1)])
    return np.concatenate(found)


def search_views(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Parts (y0, x0, y1, x1) of an image of ``size`` (height, width) to search: the whole; of a long one, half-overlapping
    tiles along its length as well, at most 8, which cover it.

    Example:
        >>> search_views((100, 220)), search_views((100, 300))
        ([(0, 0, 100, 220)], [(0, 0, 100, 300), (0, 0, 100, 200), (0, 100, 100, 300)])
    """
    height, width = size
    long, short = max(size), min(size)
    views = [(0, 0, height, width)]
    if long <= WIDEST_ASPECT * short:
        return views
    length = max(_TILE_ASPECT * short, 2 * long / (_MOST_TILES + 1))  # half-overlapping, so (n + 1) / 2 lengths cover
    count = min(_MOST_TILES, math.ceil(2 * (long - length) / length) + 1)
    for start in np.linspace(0, long - length, count):
        begin, end = math.floor(start), min(long, math.ceil(start + length))
        views.append((begin, 0, end, width) if height > width else (0, begin, height, end))
    return views


def at_working_size(view: np.ndarray, size: int, widest_aspect: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """A view, squeezed to an aspect, then scaled down evenly until its longest side is ``size``, never up; and the factors [4]
    that scale boxes back."""
    before = (view.shape[0], view.shape[1])
    sides = [int(min(side, widest_aspect * min(before))) for side in before]
    scale = min(1.0, size / max(sides))
    height, width = (max(1, round(side * scale)) for side in sides)
    view = np.ascontiguousarray(view)
    if (height, width) != before:
        view = cv2.resize(view, (width, height), interpolation=cv2.INTER_AREA)
    return view, np.array([before[1] / width, before[0] / height] * 2)


def _search(view: np.ndarray, settings: SelectiveSearch) -> np.ndarray:
    part, factors = at_working_size(view[..., ::-1], settings.working_size, WIDEST_ASPECT)  # OpenCV wants BGR
    if min(part.shape[:2]) < settings.smallest_side:
        return np.empty((0, 4))  # no box could be large enough
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(part)
    search.switchToSelectiveSearchFast(settings.coarseness, settings.coarseness_step, settings.smoothing)
    found = np.asarray(search.process(), dtype=np.float64).reshape(-1, 4)  # x, y, width, height
    found = found[found[:, 2:].min(axis=1) >= settings.smallest_side]
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1) * factors
