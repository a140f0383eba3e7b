"""How good predictions are: arrays in, numbers out; nothing here knows of models or data sets.

Here is what the metrics share: checked arrays of every image, overlaps of boxes, and how figures are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Of one image: boxes, scores, labels; or gt_boxes, gt_labels, difficult.
ImageArrays = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]


class JudgedImage(NamedTuple):
    """The detections and the ground truth of one image, as arrays that agree."""

    boxes: np.ndarray  # [D, 4] float64, half-open xyxy; exact for the integer boxes of data sets
    scores: np.ndarray  # [D] float64, finite
    labels: np.ndarray  # [D] int64, 1..K
    gt_boxes: np.ndarray  # [G, 4] float64
    gt_labels: np.ndarray  # [G] int64, 1..K
    difficult: np.ndarray  # [G] bool


def checked_image(found: ImageArrays, truth: ImageArrays, num_classes: int | None = None) -> JudgedImage:
    """One image's arrays, converted.

    Args:
        found: boxes [D, 4], scores [D], labels [D].
        truth: gt_boxes [G, 4], gt_labels [G], difficult [G].
        num_classes: K, to which labels are checked; None: not at all.

    Raises:
        ValueError: lengths that do not agree, boxes of another shape, scores that are not finite, or a label outside 1..K.

    Example:
        >>> checked_image(([[0, 0, 9, 9]], [0.5], [1]), ([], [], [])).boxes
        array([[0., 0., 9., 9.]])
    """
    boxes, scores, labels = _box_array("boxes", found[0]), np.asarray(found[1], float), np.asarray(found[2], np.int64)
    gt_boxes, gt_labels = _box_array("gt_boxes", truth[0]), np.asarray(truth[1], np.int64)
    difficult = np.asarray(truth[2], bool)
    if not len(boxes) == scores.size == labels.size:
        there = f"{len(boxes)} boxes, {scores.size} scores and {labels.size} labels"
        raise ValueError(f"expected as many scores and labels as boxes, got {there}")
    if not len(gt_boxes) == gt_labels.size == difficult.size:
        there = f"{len(gt_boxes)} gt_boxes, {gt_labels.size} gt_labels and {difficult.size} difficult"
        raise ValueError(f"expected as many gt_labels and difficult marks as gt_boxes, got {there}")
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers, got NaN or infinity")
    if num_classes is not None:
        check_labels("labels", labels, num_classes)
        check_labels("gt_labels", gt_labels, num_classes)
    return JudgedImage(boxes, scores.ravel(), labels.ravel(), gt_boxes, gt_labels.ravel(), difficult.ravel())


def checked_images(
    detections: Sequence[ImageArrays], ground_truth: Sequence[ImageArrays], num_classes: int
) -> list[JudgedImage]:
    """`checked_image` of every image; a ValueError where there are not as many detections as ground truths."""
    if len(detections) != len(ground_truth):
        counts = f"{len(detections)} and {len(ground_truth)}"
        raise ValueError(f"expected detections and ground truth of the same images, got {counts}")
    return [checked_image(*pair, num_classes) for pair in zip(detections, ground_truth, strict=True)]


def check_labels(field: str, labels: np.ndarray, num_classes: int) -> None:
    """A ValueError where a label is not in 1..num_classes; ``field`` is what the message calls them."""
    wrong = labels[(labels < 1) | (labels > num_classes)]
    if wrong.size:
        raise ValueError(f"{field}: expected 1..{num_classes}, as there are {num_classes} class names, got {wrong[0]}")


def overlaps(boxes1: npt.ArrayLike, boxes2: npt.ArrayLike) -> np.ndarray:
    """Intersection over union of every pair of boxes [A, 4] and [B, 4]: [A, B] float64; 0 where either has no area.

    Example:
        >>> overlaps([[0, 0, 2, 2]], [[1, 0, 3, 2], [5, 5, 6, 6]]).round(4)
        array([[0.3333, 0.    ]])
    """
    first, second = np.asarray(boxes1, float).reshape(-1, 1, 4), np.asarray(boxes2, float).reshape(1, -1, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])  # [A, B, 2]
    shared = np.clip(sides, 0, None).prod(axis=2)
    whole = (first[..., 2:] - first[..., :2]).prod(axis=2) + (second[..., 2:] - second[..., :2]).prod(axis=2) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def rounded(value: float) -> float | None:
    """Four decimals, for JSON; None for NaN, which that does not have.

    Example:
        >>> rounded(1 / 3), rounded(math.nan)
        (0.3333, None)
    """
    return None if math.isnan(value) else round(float(value), 4)


def shown(value: float) -> str:
    """Three decimals for people; "-" for NaN, what could not be measured."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def known_mean(values: Sequence[float]) -> float:
    """The mean of those that could be measured; NaN where there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _box_array(field: str, boxes: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(boxes, np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{field}: expected shape [R, 4] (x0, y0, x1, y1), got {list(array.shape)}")
    return array
