"""Parts of a long image, so that a search for proposals does not lose what is small beside its length.

image of (height, width) -> views (y0, x0, y1, x1), each to be searched by itself, as `sppnet.proposals.selective_search` and
`sppnet.proposals.edge_boxes` do.
"""

import math

import numpy as np

WIDEST_ASPECT = 2.2  # OpenCV's selective search turns the image by 45 degrees, and fails beyond 1 + sqrt(2)
_TILE_ASPECT = 2.0
_MOST_TILES = 8  # bounds the time that the longest image takes


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
