"""Selective search: boxes around regions that grow by merging alike neighbours (OpenCV's, in its fast form).

It runs on the image at a working size, where it is several times faster and finds nearly as much; the boxes are scaled
back. image [H, W, 3] -> boxes [R, 4] float32, pixels of that image, half-open.

Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013; SPP-net, arXiv:1406.4729, section 4.1,
uses its fast mode.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torchvision.ops import nms

from sppnet.data.images import checked_size
from sppnet.proposals.long_images import WIDEST_ASPECT, search_image


@dataclass(frozen=True)
class SelectiveSearch:
    """Settings of ``selective_search``.

    Example:
        >>> SelectiveSearch(working_size=250).working_size
        250
    """

    working_size: int = (
        350  # px, longest side searched; 500 finds a little more in over twice the time; never scaled up
    )
    smallest_side: int = 8  # px at the working size; smaller boxes are single segments, hardly ever objects
    coarseness: int = 150  # smallest segment (px) and merging constant of the finest of the three segmentations
    coarseness_step: int = 150  # added for the second, and again for the third
    smoothing: float = 0.8  # standard deviation (px) of the blur before segmenting
    near_duplicate_iou: float = 0.95  # of two boxes overlapping more than this, the larger stays

    def __post_init__(self) -> None:
        sizes = (self.working_size, self.smallest_side, self.coarseness)
        if min(sizes) < 1 or self.coarseness_step < 0 or self.smoothing < 0 or not 0 < self.near_duplicate_iou <= 1:
            raise ValueError(f"SelectiveSearch: sizes must be at least 1, the near-duplicate IoU in (0, 1]; got {self}")


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
    found = search_image(image, lambda view: _search(view, settings))
    return drop_near_duplicates(_by_falling_area(found), settings.near_duplicate_iou)


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
    order = torch.arange(len(boxes), 0, -1, dtype=torch.float32)  # earlier boxes score higher; exact up to 2**24
    return boxes[nms(torch.from_numpy(boxes), order, iou).numpy()]


def _working_size(size: tuple[int, int], working_size: int) -> tuple[int, int]:
    """Squeeze to the widest aspect first, then scale down evenly; never up."""
    sides = [min(side, int(WIDEST_ASPECT * min(size))) for side in size]
    scale = min(1.0, working_size / max(sides))
    height, width = (max(1, round(side * scale)) for side in sides)
    return height, width


def _search(view: np.ndarray, settings: SelectiveSearch) -> np.ndarray:
    size = (view.shape[0], view.shape[1])
    height, width = _working_size(size, settings.working_size)
    if min(height, width) < settings.smallest_side:
        return np.empty((0, 4))  # no box could be large enough
    part = np.ascontiguousarray(view[..., ::-1])  # OpenCV wants BGR
    if (height, width) != size:
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)

    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(part)
    search.switchToSelectiveSearchFast(settings.coarseness, settings.coarseness_step, settings.smoothing)
    found = np.asarray(search.process(), dtype=np.float64).reshape(-1, 4)  # x, y, width, height

    found = found[found[:, 2:].min(axis=1) >= settings.smallest_side]
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
    return boxes * np.array([size[1] / width, size[0] / height] * 2)


def _by_falling_area(boxes: np.ndarray) -> np.ndarray:
    """One order for one set of boxes: OpenCV draws its own at random."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return boxes[np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -area))]
