"""What a detector gets wrong, class by class: localisation, another class, background, and objects missed.

A class's first N detections are looked at, N the number of its objects: a perfect detector would have all of them right. Each is

    correct       a true positive by the rule of `sppnet.metrics.voc`
    localisation  on an object of the class, but by an IoU from .1 to .5; or on one that a more confident detection has
    other class   touching, by .1 or more, an object of another class, and none of its own
    background    touching no object

and an object is missed if no detection at all, of however low a score, is right about it. What each kind costs is said by the
average precision that would be reached without it: of false positives, if they were not there; of missed objects, if nobody
asked for them. Detections on difficult objects are left out, as the devkit does. Source: Hoiem, Chodpathumwan, Dai, "Diagnosing
error in object detectors", ECCV 2012, without its groups of similar classes; used so for R-CNN, arXiv:1311.2524, section 3.4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppnet.metrics import ImageArrays, JudgedImage, checked_images, known_mean, overlaps, rounded
from sppnet.metrics.voc import IGNORED, TRUE_POSITIVE, average_precision, match_image

KINDS = ("localisation", "other class", "background", "missed")
TOUCHING = 0.1  # IoU from which on a detection has to do with an object
_CORRECT, _LOCALISATION, _OTHER, _BACKGROUND = range(4)


@dataclass(frozen=True, eq=False)
class ClassErrors:
    """One class of `DetectionErrors`.

    ``correct``, ``localisation``, ``other_class`` and ``background`` count its most confident detections, as many as it has objects; fewer
    where it has fewer detections.
    """

    name: str
    n_objects: int  # difficult ones not counted
    correct: int
    localisation: int
    other_class: int
    background: int
    missed: int  # of the objects
    confused_with: dict[str, int]  # how often which class's object was taken for this one, most often first
    ap: float  # area; NaN without objects
    ap_without: dict[str, float]  # for each of KINDS

    def shares(self) -> list[str]:
        """How many of the detections looked at are correct, poorly localised, of another class, background: in per cent."""
        counts = (self.correct, self.localisation, self.other_class, self.background)
        return [_share(count, sum(counts)) for count in counts]


@dataclass(frozen=True, eq=False)
class DetectionErrors:
    """What `detection_errors` found, class by class."""

    classes: tuple[ClassErrors, ...]
    iou: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; what cannot be measured is None."""
        return {
            "iou": self.iou,
            "total": _entry(self.total()),
            "classes": {errors.name: _entry(errors) for errors in self.classes},
        }

    def total(self) -> ClassErrors:
        """All classes together: counts are sums, average precisions means."""
        known = [errors for errors in self.classes if errors.n_objects]
        fields = ("n_objects", "correct", "localisation", "other_class", "background", "missed")
        counts = {field: sum(getattr(errors, field) for errors in self.classes) for field in fields}
        without = {kind: known_mean([errors.ap_without[kind] for errors in known]) for kind in KINDS}
        ap = known_mean([errors.ap for errors in known])
        return ClassErrors(name="all", confused_with={}, ap=ap, ap_without=without, **counts)

    def sentence(self) -> str:
        """All classes in one line.

        Example:
            >>> detection_errors([([[0, 0, 9, 9]], [0.8], [1])], [([[0, 0, 9, 9]], [1], [False])], ("cat",)).sentence()
            'most confident detections, as many as objects: 100% correct, 0% poorly localised, 0% another class, 0% background; objects missed: 0%'
        """
        total = self.total()
        kinds = ("correct", "poorly localised", "another class", "background")
        found = ", ".join(f"{share} {kind}" for share, kind in zip(total.shares(), kinds, strict=True))
        missed = _share(total.missed, total.n_objects)
        return f"most confident detections, as many as objects: {found}; objects missed: {missed}"

    def table(self) -> str:
        """A table for people: of each class's most confident detections, and of its objects, how many are what, in per cent.

        Example:
            >>> truth = ([[0, 0, 9, 9], [20, 0, 29, 9]], [1, 2], [False, False])
            >>> found = ([[0, 0, 9, 5], [20, 0, 24, 9], [20, 0, 29, 9]], [0.8, 0.7, 0.6], [1, 2, 2])
            >>> print(detection_errors([found], [truth], ("cat", "dog")).table())
            class  objects  correct  localisation  other class  background  missed  costs most
            cat          1     100%            0%           0%          0%      0%  -
            dog          1       0%          100%           0%          0%      0%  localisation
            all          2      50%           50%           0%          0%      0%  localisation
        """
        rows = [*self.classes, self.total()]
        width = max(5, *(len(row.name) for row in rows))
        lines = [f"{'class':{width}}  objects  correct  localisation  other class  background  missed  costs most"]
        for row in rows:
            correct, localised, other, background = row.shares()
            shares = f"{correct:>7}  {localised:>12}  {other:>11}  {background:>10}"
            missed = f"{_share(row.missed, row.n_objects):>6}"
            lines.append(f"{row.name:{width}}  {row.n_objects:7}  {shares}  {missed}  {_costliest(row)}")
        return "\n".join(lines)


def detection_errors(
    detections: Sequence[ImageArrays], ground_truth: Sequence[ImageArrays], class_names: Sequence[str], iou: float = 0.5
) -> DetectionErrors:
    """Sort what a detector got wrong over a set of images.

    Args:
        detections: for each image (boxes [D, 4], scores [D], labels [D]), as `sppnet.metrics.voc.evaluate_voc` takes them.
        ground_truth: for each image, in the same order, (gt_boxes [G, 4], gt_labels [G], difficult [G]).
        class_names: K of them; label k is ``class_names[k - 1]``.
        iou: the least intersection over union that counts as found.

    Raises:
        ValueError: numbers of images that differ, or arrays that do not agree.

    Example:
        >>> truth = ([[0, 0, 10, 10], [50, 0, 60, 10]], [1, 2], [False, False])
        >>> found = ([[0, 0, 10, 4]], [0.9], [1]), ([[50, 0, 60, 10]], [0.8], [1])
        >>> errors = detection_errors([found[0], found[1]], [truth, truth], ("cat", "dog")).classes[0]
        >>> errors.localisation, errors.confused_with
        (1, {'dog': 1})
    """
    images = checked_images(detections, ground_truth, len(class_names))
    judged = [(np.empty(0), *[np.empty(0, np.int64)] * 3), *(_judge(image, iou) for image in images)]
    scores, labels, kinds, others = (np.concatenate(parts) for parts in zip(*judged, strict=True))
    wanted = np.concatenate([np.empty(0, np.int64), *(image.gt_labels[~image.difficult] for image in images)])
    n_objects = np.bincount(wanted, minlength=len(class_names) + 1).tolist()
    classes = []
    for label, name in enumerate(class_names, start=1):
        mine = np.flatnonzero((labels == label) & (kinds >= 0))
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        classes.append(_class_errors(name, kinds[mine], others[mine], n_objects[label], class_names))
    return DetectionErrors(tuple(classes), float(iou))


def _judge(image: JudgedImage, iou: float) -> tuple[np.ndarray, ...]:
    """Of one image's detections: scores, labels, kinds (-1: not counted), the class that each was confused with."""
    outcomes = match_image(image, iou)
    kinds, others = np.full(len(image.labels), _BACKGROUND), np.zeros(len(image.labels), np.int64)
    if len(image.labels) and len(image.gt_labels):
        ious = overlaps(image.boxes, image.gt_boxes)
        same = image.labels[:, None] == image.gt_labels
        of_others = np.where(same, 0, ious)
        confused = of_others.max(1) >= TOUCHING
        kinds[confused], others[confused] = _OTHER, image.gt_labels[of_others.argmax(1)][confused]
        kinds[np.where(same, ious, 0).max(1) >= TOUCHING] = _LOCALISATION
    kinds[outcomes == TRUE_POSITIVE] = _CORRECT
    kinds[outcomes == IGNORED] = -1
    return image.scores, image.labels, kinds, others


def _class_errors(
    name: str, kinds: np.ndarray, others: np.ndarray, n_objects: int, class_names: Sequence[str]
) -> ClassErrors:
    """From one class's detections by falling score."""
    first = kinds[:n_objects]
    correct, localisation, other, background = np.bincount(first, minlength=4).tolist()
    taken = np.bincount(others[:n_objects][first == _OTHER], minlength=len(class_names) + 1)
    missed = n_objects - int((kinds == _CORRECT).sum())
    without = {kind: _ap(kinds[kinds != code], n_objects) for code, kind in enumerate(KINDS[:3], start=_LOCALISATION)}
    without["missed"] = _ap(kinds, (n_objects - missed) or n_objects)
    confused = {class_names[k - 1]: int(taken[k]) for k in np.argsort(-taken, kind="stable") if taken[k]}
    counts = correct, localisation, other, background, missed
    return ClassErrors(name, n_objects, *counts, confused, _ap(kinds, n_objects), without)


def _ap(kinds: np.ndarray, n_objects: int) -> float:
    if not n_objects:
        return math.nan
    right = np.cumsum(kinds == _CORRECT)
    return average_precision(right / n_objects, right / np.arange(1, len(kinds) + 1), "area")


def _costliest(row: ClassErrors) -> str:
    """The kind without which the average precision would be highest; "-" where none costs anything."""
    gains = {kind: value - row.ap for kind, value in row.ap_without.items() if value > row.ap}
    return max(gains, key=lambda kind: gains[kind]) if gains else "-"


def _entry(errors: ClassErrors) -> dict[str, Any]:
    counts = ("correct", "localisation", "other_class", "background", "missed", "confused_with")
    return {
        "objects": errors.n_objects,
        **{field: getattr(errors, field) for field in counts},
        "ap": rounded(errors.ap),
        "ap_without": {kind: rounded(value) for kind, value in errors.ap_without.items()},
    }


def _share(count: int, of: int) -> str:
    return f"{count / of:.0%}" if of else "-"
