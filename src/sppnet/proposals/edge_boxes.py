"""Edge boxes: boxes that whole contours lie in, and few cross (OpenCV's search, on edges that need no model file).

Edges come from the image's own gradients at a working size: the strongest of the three colors, smoothed, thinned to
their ridges. A box's score is the strength of the contours inside, less those that leave it. image [H, W, 3] -> boxes
[R, 4] float32, pixels of that image, half-open.

Source: Zitnick and Dollár, "Edge Boxes: Locating Object Proposals from Edges", ECCV 2014, whose edges come from a trained
random forest instead.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sppnet.data.images import checked_size
from sppnet.proposals.selective_search import at_working_size, search_image

_FULL_STRENGTH = 0.98  # share of pixels whose gradient is weaker than what counts as an edge of full strength
_FAINT = 1e-3  # of a gray step from black to white: below, an image is taken to be of one color


@dataclass(frozen=True)
class EdgeBoxes:
    """Settings of `edge_boxes`."""

    working_size: int = 350  # px, longest side searched; never scaled up
    smoothing: float = 2.0  # standard deviation (px) of the blur before gradients are taken; less is slower, not better
    max_boxes: int = 2000  # of each view, the best
    smallest_area: int = 200  # px at the working size; a seventh of that of 64 px in a photo of 500
    step: float = 0.65  # IoU of neighbouring boxes in the search; more is finer and slower
    nms_iou: float = 0.7  # of two boxes overlapping more, the better stays; suits a detector's IoU of .5 to .7
    widest_aspect: float = 3.0  # of the boxes


def edge_boxes(image: np.ndarray, settings: EdgeBoxes = EdgeBoxes()) -> np.ndarray:
    """Propose boxes that enclose contours of an image.

    Works on every size. An image longer than 2.2 times its breadth is searched as a whole, and in at most 8
    half-overlapping tiles along its length. The result is the same in every run, process and thread.

    Args:
        image: [H, W, 3] uint8 RGB. Not modified.
        settings: see ``EdgeBoxes``.

    Returns:
        [R, 4] float32 xyxy in pixels of ``image``, half-open; the first is the whole image, the rest of each view go by
        falling score. About 2000 for a photo at the standard settings.

    Raises:
        ValueError: not [H, W, 3] uint8 with at least one pixel.

    Example:
        >>> edge_boxes(np.zeros((40, 60, 3), dtype=np.uint8))
        array([[ 0.,  0., 60., 40.]], dtype=float32)
    """
    checked_size(image, "edge_boxes")
    return search_image(image, lambda view: _search(view, settings))


def edge_map(image: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the edges of an image: how strong, and which way they face.

    Args:
        image: [H, W, 3] uint8.
        smoothing: standard deviation of the blur, in pixels.

    Returns:
        (strength [H, W] float32 in 0..1, 0 beside the ridges; direction [H, W] float32 in [0, pi), along the gradient).

    Example:
        >>> step = np.zeros((9, 20, 3), np.uint8); step[:, 10:] = 255
        >>> strength, direction = edge_map(step, smoothing=1.0)
        >>> np.flatnonzero(strength[4]), direction[4, 10]
        (array([ 9, 10]), np.float32(0.0))
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), smoothing)
    dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3, scale=0.25) for order in ((1, 0), (0, 1)))
    lengths = np.hypot(dx, dy)
    strongest = lengths.argmax(axis=2)[..., None]  # of the three colors
    strength, dx, dy = (np.take_along_axis(values, strongest, axis=2)[..., 0] for values in (lengths, dx, dy))
    direction = np.mod(np.arctan2(dy, dx), np.pi).astype(np.float32)
    direction[direction >= np.float32(np.pi)] = 0  # rounding
    full = np.quantile(strength, _FULL_STRENGTH)
    if strength.max() < _FAINT:
        return np.zeros_like(strength), direction
    strength = np.minimum(1, strength / max(full, _FAINT))
    along_x, along_y = np.cos(direction), np.sin(direction)
    y, x = np.mgrid[: strength.shape[0], : strength.shape[1]].astype(np.float32)
    ahead, behind = (
        cv2.remap(strength, x + sign * along_x, y + sign * along_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for sign in (1, -1)
    )
    ridge = strength >= np.maximum(ahead, behind) - 1e-6  # a step between two pixels makes both of them as strong
    return np.where(ridge, strength, 0).astype(np.float32), direction


def _search(view: np.ndarray, settings: EdgeBoxes) -> np.ndarray:
    part, factors = at_working_size(view, settings.working_size)
    if part.shape[0] * part.shape[1] < settings.smallest_area:
        return np.empty((0, 4))  # no box could be large enough
    strength, direction = edge_map(part, settings.smoothing)
    search = cv2.ximgproc.createEdgeBoxes(alpha=settings.step, beta=settings.nms_iou, minBoxArea=settings.smallest_area)
    search.setMaxBoxes(settings.max_boxes)
    search.setMaxAspectRatio(settings.widest_aspect)
    found = np.asarray(search.getBoundingBoxes(strength, direction)[0], dtype=np.float64).reshape(-1, 4)
    # OpenCV counts the first edge pixel from 1 and gives the way to the last one: both edges run through pixels' centres
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1) - 0.5
    return boxes * factors
