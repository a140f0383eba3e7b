"""A plain grid: boxes of several sizes and shapes, evenly spread. No look at the pixels, so it costs nothing.

size (height, width) -> boxes [R, 4] float32. Alone it finds less than selective search; added to it, it finds the small
and the weakly outlined objects that regions miss.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Settings of `grid_boxes`. A box's size is the root of its area, as a share of the root of the image's area."""

    smallest: float = 0.15  # 65 px in a photo of 500 x 375; smaller sizes would double the number of boxes each
    largest: float = 1.05
    growth: float = math.sqrt(2)  # from one size to the next: neighbours overlap by an IoU of one half
    aspects: tuple[float, ...] = (0.5, 1.0, 2.0)  # width / height
    step: float = 1 / 3  # from one box to the next, as a share of its width and height
    smallest_side: float = 4.0  # px; shorter boxes are left out, unless the image itself is as short

    def __post_init__(self) -> None:
        positive = (self.smallest, self.step, self.smallest_side, *self.aspects)
        if min(positive) <= 0 or self.growth <= 1 or not self.aspects:
            raise ValueError(f"Grid: sizes, aspects and step must be above 0, growth above 1; got {self}")


def grid_boxes(size: tuple[int, int], settings: Grid = Grid()) -> np.ndarray:
    """Lay boxes of several sizes and aspects evenly over an image of a size.

    A box that would be wider or higher than the image gets the image's width or height. In each direction boxes of one
    kind begin at the edge, end at the other edge, and lie at most ``step`` times their side apart.

    Args:
        size: (height, width) of the image in pixels, each at least 1.
        settings: see ``Grid``.

    Returns:
        [R, 4] float32 xyxy, each box once; the first is the whole image. About 1900 for a photo, whatever its size.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> grid_boxes((375, 500)).shape
        (1887, 4)
        >>> grid_boxes((1, 1))
        array([[0., 0., 1., 1.]], dtype=float32)
    """
    height, width = size
    if min(size) < 1:
        raise ValueError(f"grid_boxes: height and width must be at least 1, got {size}")
    scale = math.sqrt(height * width)
    steps = math.floor(math.log(settings.largest / settings.smallest) / math.log(settings.growth) + 1e-9)
    found = [np.array([[0, 0, width, height]], dtype=np.float32)]
    for share in (settings.smallest * settings.growth**k for k in range(steps + 1)):
        for aspect in settings.aspects:
            box_width = min(float(width), share * scale * math.sqrt(aspect))
            box_height = min(float(height), share * scale / math.sqrt(aspect))
            if min(box_width, box_height) >= min(settings.smallest_side, height, width):
                x0 = _starts(width, box_width, settings.step)
                y0 = _starts(height, box_height, settings.step)
                corners = np.stack(np.meshgrid(x0, y0), axis=-1).reshape(-1, 2)
                boxes = np.concatenate([corners, corners + (box_width, box_height)], axis=1)
                found.append(np.minimum(boxes, [width, height, width, height]).astype(np.float32))
    boxes = np.concatenate(found)
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def _starts(length: int, side: float, step: float) -> np.ndarray:
    return np.linspace(0, length - side, math.ceil((length - side) / (side * step) - 1e-9) + 1)
