"""Average precision of detections as PASCAL VOC scores it: the 11-point rule of VOC 2007, and the area rule since 2010.

The last step of the evaluation: boxes, scores and labels of every image against its ground truth. Boxes are half-open
(`sppnet.boxes`), so a side is x1 - x0; the devkit's inclusive pixels with their "+ 1" are the same lengths.

The devkit's rule, class by class: detections of all images go by falling score; each looks at the object of highest IoU
in its own image, whether taken or not. Below the threshold it is a false positive. If that object is *difficult*, the
detection is left out, neither right nor wrong. If the object is already taken, it is a false positive; otherwise it is a
true positive and takes the object. Difficult objects do not count as objects to be found.

Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.2; VOCevaldet.m and VOCap.m
of the development kits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sppnet.metrics import ImageArrays, JudgedImage, check_labels, checked_images, known_mean, overlaps, rounded, shown

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1  # what became of a detection


@dataclass(frozen=True, eq=False)
class ClassResult:
    """One class of a `VocResult`: its two average precisions and the curve they come from.

    ``scores``, ``precision`` and ``recall`` are [D] float64, one point for each detection that counts (those on difficult
    objects are left out), by falling score. A class without objects has average precision NaN and no recall.
    """

    name: str
    ap07: float
    ap_area: float
    n_objects: int  # difficult ones not counted
    n_detections: int  # all, those on difficult objects too
    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True, eq=False)
class VocResult:
    """What `evaluate_voc` measured, class by class.

    Attributes:
        classes: one `ClassResult` for each class, in the model's order.
        iou: the intersection over union from which on an object counts as found.
    """

    classes: tuple[ClassResult, ...]
    iou: float

    @property
    def map07(self) -> float:
        """Mean of the 11-point average precisions over the classes that have objects; NaN if none has."""
        return known_mean([result.ap07 for result in self.classes])

    @property
    def map_area(self) -> float:
        """Mean of the area average precisions over the classes that have objects; NaN if none has."""
        return known_mean([result.ap_area for result in self.classes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; what cannot be measured is None."""
        classes = {
            of.name: {"voc07": rounded(of.ap07), "area": rounded(of.ap_area), "objects": of.n_objects}
            for of in self.classes
        }
        means = {"voc07": rounded(self.map07), "area": rounded(self.map_area)}
        return {"map": means, "iou": self.iou, "classes": classes}

    def table(self) -> str:
        """A table for people: a line for each class, the mean in the last; "-" where a class has no objects.

        Example:
            >>> truth = ([[0, 0, 9, 9]], [1], [False])
            >>> print(evaluate_voc([([[0, 0, 9, 9]], [0.8], [1])], [truth], ("cat", "dog")).table())
            class  objects  detections  11-point AP  area AP
            cat          1           1        1.000    1.000
            dog          0           0            -        -
            mean         1           1        1.000    1.000
        """
        rows = [(of.name, of.n_objects, of.n_detections, of.ap07, of.ap_area) for of in self.classes]
        rows.append(("mean", sum(row[1] for row in rows), sum(row[2] for row in rows), self.map07, self.map_area))
        width = max(len("class"), *(len(row[0]) for row in rows))
        lines = [f"{'class':{width}}  objects  detections  11-point AP  area AP"]
        for name, objects, detections, ap07, ap_area in rows:
            lines.append(f"{name:{width}}  {objects:7}  {detections:10}  {shown(ap07):>11}  {shown(ap_area):>7}")
        return "\n".join(lines)


def average_precision(recall: npt.ArrayLike, precision: npt.ArrayLike, rule: Literal["voc07", "area"]) -> float:
    """One number for a precision-recall curve.

    With p(t) the largest precision at any recall >= t (0 where the curve does not get that far):
    ``"voc07"`` is the mean of p(t) over t = 0, .1, .2, .. 1; ``"area"`` is the integral of p over t from 0 to 1.

    Args:
        recall: [D] in 0..1, never falling along the curve; D may be 0.
        precision: [D] in 0..1.
        rule: "voc07" or "area".

    Returns:
        The average precision, in 0..1.

    Raises:
        ValueError: arrays that are not one-dimensional and of one length, a falling recall, or another rule.

    A recall of exactly 3/10 reaches the point .3 here. Code that counts up in steps of .1 asks for
    .30000000000000004 and misses it.

    Source: VOCevaldet.m of VOC 2007 and VOCap.m of VOC 2010.

    Example:
        >>> average_precision([0.5, 0.5, 1.0], [1.0, 0.5, 2 / 3], "area")
        0.8333333333333333
    """
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    if recall.ndim != 1 or recall.shape != precision.shape:
        shapes = f"{list(recall.shape)} and {list(precision.shape)}"
        raise ValueError(f"expected recall and precision of one length [D], got {shapes}")
    if np.any(np.diff(recall) < 0):
        raise ValueError("recall: expected values that never fall along the curve; sort detections by falling score")
    if rule not in ("voc07", "area"):
        raise ValueError(f'rule: expected "voc07" or "area", got {rule!r}')
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the largest precision from each point on
    if rule == "area":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    reached = np.searchsorted(recall, np.arange(11) / 10, side="left")  # first point with recall >= t
    return float(np.append(envelope, 0.0)[reached].sum() / 11)


def evaluate_voc(
    detections: Sequence[ImageArrays], ground_truth: Sequence[ImageArrays], class_names: Sequence[str], iou: float = 0.5
) -> VocResult:
    """Average precision of every class over a set of images.

    Args:
        detections: for each image (boxes [D, 4] half-open xyxy, scores [D] finite, labels [D] 1..K), in any order.
        ground_truth: for each image, in the same order, (gt_boxes [G, 4], gt_labels [G], difficult [G]).
        class_names: K of them; label k is ``class_names[k - 1]``.
        iou: the least intersection over union that counts as found.

    Returns:
        A `VocResult`. Detections of equal score count in the order of the images, then in the order given.

    Raises:
        ValueError: numbers of images that differ, a label outside 1..K, or arrays that do not agree.

    Example:
        >>> truth = ([[0, 0, 10, 10]], [1], [False])
        >>> result = evaluate_voc([([[0, 0, 10, 9]], [0.7], [1]), ([], [], [])], [truth, truth], ("cat",))
        >>> round(result.map07, 3), result.map_area  # found one of two: precision 1 at recall 0, .1, .2, .3, .4, .5
        (0.545, 0.5)
    """
    num_classes = len(class_names)
    images = checked_images(detections, ground_truth, num_classes)
    scores = np.concatenate([np.empty(0), *(image.scores for image in images)])
    labels = np.concatenate([np.empty(0, np.int64), *(image.labels for image in images)])
    outcomes = np.concatenate([np.empty(0, np.int8), *(match_image(image, iou) for image in images)])
    wanted = np.concatenate([np.empty(0, np.int64), *(image.gt_labels[~image.difficult] for image in images)])
    n_objects = np.bincount(wanted, minlength=num_classes + 1).tolist()
    classes = []
    for label, name in enumerate(class_names, start=1):
        mine = labels == label
        classes.append(_class_result(name, scores[mine], outcomes[mine], n_objects[label]))
    return VocResult(tuple(classes), float(iou))


def evaluate_voc_images(
    scores: npt.ArrayLike, ground_truth: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], class_names: Sequence[str]
) -> VocResult:
    """Average precision of ranking whole images by class: is there one of these in the photo?

    The devkit's classification task: an image counts for a class if it shows one that is not difficult, is left out if
    it shows only difficult ones, and counts against it otherwise.

    Args:
        scores: [N, K], larger is more confident.
        ground_truth: for each of N images gt_labels [G] (1..K) and difficult [G].
        class_names: K of them.

    Returns:
        A `VocResult` with ``iou`` 0: anywhere in the image will do.

    Raises:
        ValueError: numbers of images or classes that do not agree, scores that are not finite, or a label outside 1..K.

    Source: VOCevalcls.m of VOC 2007.

    Example:
        >>> evaluate_voc_images([[0.9], [0.8], [0.1]], [([1], [False]), ([], []), ([1], [False])], ["cat"]).map_area
        0.8333333333333333
    """
    scores = np.asarray(scores, np.float64)
    scores = scores.reshape(0, len(class_names)) if scores.size == 0 == len(ground_truth) else scores
    if scores.shape != (len(ground_truth), len(class_names)):
        n, k = len(ground_truth), len(class_names)
        expected = f"[{n}, {k}], as there are {n} images and {k} class names"
        raise ValueError(f"scores: expected {expected}, got {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers, got NaN or infinity")
    outcomes = np.full(scores.shape, FALSE_POSITIVE, np.int8)
    for row, (labels, difficult) in zip(outcomes, ground_truth, strict=True):
        labels, difficult = np.asarray(labels, np.int64), np.asarray(difficult, np.bool_)
        check_labels("gt_labels", labels, len(class_names))
        row[labels[difficult] - 1] = IGNORED
        row[labels[~difficult] - 1] = TRUE_POSITIVE
    present = (outcomes == TRUE_POSITIVE).sum(0)
    classes = (_class_result(name, scores[:, k], outcomes[:, k], int(present[k])) for k, name in enumerate(class_names))
    return VocResult(tuple(classes), 0.0)


def match_image(image: JudgedImage, iou: float) -> np.ndarray:
    """Judge the detections of one image by the devkit's rule; all classes at once, each by itself.

    Args:
        image: of `sppnet.metrics.checked_image`; there may be no detections, and no objects.
        iou: the least intersection over union that counts as found, above 0 and at most 1; reaching it is enough.

    Returns:
        [D] int8 in the order of the detections: TRUE_POSITIVE (1), FALSE_POSITIVE (0) or IGNORED (-1).
        Of equal scores the one given first comes first; of objects with equal IoU the first is looked at.

    Raises:
        ValueError: an ``iou`` out of range.

    Example:
        >>> from sppnet.metrics import checked_image
        >>> truth = ([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 1], [False, True])
        >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [90, 90, 99, 99]]
        >>> match_image(checked_image((boxes, [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1]), truth), iou=0.5).tolist()
        [1, 0, -1, 0]
    """
    outcomes = np.full(len(image.boxes), FALSE_POSITIVE, np.int8)
    if not 0 < iou <= 1:
        raise ValueError(f"iou: expected above 0 and at most 1, got {iou}")
    if len(image.boxes) == 0 or len(image.gt_boxes) == 0:
        return outcomes
    ious = overlaps(image.boxes, image.gt_boxes)  # [D, G]
    ious[image.labels[:, None] != image.gt_labels] = -1.0  # objects of other classes are not looked at
    best = ious.argmax(axis=1)  # [D] the object each detection looks at
    on_object = ious[np.arange(len(best)), best] >= iou
    outcomes[on_object & image.difficult[best]] = IGNORED
    takers = np.flatnonzero(on_object & ~image.difficult[best])
    takers = takers[np.argsort(-image.scores[takers], kind="stable")]
    _, first = np.unique(best[takers], return_index=True)  # the most confident detection of each object takes it
    outcomes[takers[first]] = TRUE_POSITIVE
    return outcomes


def _class_result(name: str, scores: np.ndarray, outcomes: np.ndarray, n_objects: int) -> ClassResult:
    """From the judged detections of one class to its curve and its average precisions."""
    counted = np.flatnonzero(outcomes != IGNORED)
    counted = counted[np.argsort(-scores[counted], kind="stable")]
    right = np.cumsum(outcomes[counted] == TRUE_POSITIVE)
    precision = right / np.arange(1, len(counted) + 1)
    recall = right / n_objects if n_objects else np.full(len(counted), np.nan)
    ap07 = average_precision(recall, precision, "voc07") if n_objects else math.nan
    ap_area = average_precision(recall, precision, "area") if n_objects else math.nan
    return ClassResult(name, ap07, ap_area, n_objects, len(scores), scores[counted], precision, recall)
