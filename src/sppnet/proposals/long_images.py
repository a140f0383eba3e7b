"""A long image is searched in parts, so that a search for proposals does not lose what is small beside its length.

image [H, W, 3] -> views (y0, x0, y1, x1), each searched by itself -> boxes [R, 4] float32, pixels of the image. The searches
are those of `sppnet.proposals.selective_search` and `sppnet.proposals.edge_boxes`.
"""

import math
from collections.abc import Callable

import numpy as np

WIDEST_ASPECT = 2.2  # OpenCV's selective search turns the image by 45 degrees, and fails beyond 1 + sqrt(2)
_TILE_ASPECT = 2.0
_MOST_TILES = 8  # bounds the time that the longest image takes


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
    """Parts of an image to search: the whole; of a long one, half-overlapping tiles along its length as well.

    Args:
        size: (height, width) in pixels, each at least 1.

    Returns:
        (y0, x0, y1, x1) of each in pixels, half-open; the whole image first, then at most 8 tiles, which cover it.

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
