"""Average precision of detections as COCO scores it: over IoU .50 to .95, at .50 and .75, and by object size.

The same detections and ground truth as ``sppnet.metrics.voc`` takes; the counting is done by torchmetrics with
faster-coco-eval, which are imported on use. COCO's rule differs from VOC's: 101 points of recall, ten thresholds, each
detection takes the best object that is still free, and the 100 best detections of an image count.

A *difficult* object is given as COCO's crowd: it need not be found, and detections on it are left out. A crowd may
swallow several, and overlaps by the share of the detection that lies in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppnet.errors import UserError
from sppnet.metrics import ImageArrays, checked_images, rounded, shown

_SIZES = ("small", "medium", "large")
_PARTS = {"ap": "map", "ap50": "map_50", "ap75": "map_75"} | {size: f"map_{size}" for size in _SIZES}


@dataclass(frozen=True)
class CocoResult:
    """What ``evaluate_coco`` measured; NaN where there are no objects.

    Attributes:
        ap: mean over the IoU thresholds .50, .55, .. .95, and over the classes that have objects.
        ap50: at IoU .50.
        ap75: at IoU .75.
        small: as ``ap``, of objects of less than 32 x 32 pixels.
        medium: of those up to 96 x 96.
        large: of larger ones.
        classes: ``ap`` of each class by name, in the order given.
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    classes: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; what cannot be measured is None."""
        return {
            "coco": {name: rounded(getattr(self, name)) for name in _PARTS},
            "classes": {name: rounded(ap) for name, ap in self.classes.items()},
        }

    def table(self) -> str:
        """A table for people; "-" where there are no objects.

        Example:
            >>> print(CocoResult(0.5, 1.0, 0.25, math.nan, 0.5, math.nan, {"cat": 0.5}).table())
            AP     AP50   AP75   small  medium large
            0.500  1.000  0.250  -      0.500  -
        """
        values = (shown(getattr(self, name)) for name in _PARTS)
        rows = ("".join(f"{cell:<7}" for cell in row).rstrip() for row in (("AP", "AP50", "AP75", *_SIZES), values))
        return "\n".join(rows)


def evaluate_coco(
    detections: Sequence[ImageArrays], ground_truth: Sequence[ImageArrays], class_names: Sequence[str]
) -> CocoResult:
    """COCO's average precision over a set of images.

    Args:
        detections: for each image (boxes [D, 4] half-open xyxy, scores [D] finite, labels [D] 1..K); D may be 0.
        ground_truth: for each image, in the same order, (gt_boxes [G, 4], gt_labels [G], difficult [G]). The size of an
            object is that of its box (COCO's own files give the area of its outline, which is smaller).
        class_names: K of them; label k is ``class_names[k - 1]``.

    Returns:
        A `CocoResult`.

    Raises:
        UserError: torchmetrics or faster-coco-eval is not installed.
        ValueError: numbers of images that differ, a label outside 1..K, or arrays that do not agree.

    Source: Lin et al., arXiv:1405.0312; "Detection evaluation" at cocodataset.org.

    Example:
        >>> truth = ([[0, 0, 100, 100]], [1], [False])
        >>> result = evaluate_coco([([[0, 0, 100, 82]], [0.9], [1])], [truth], ("cat",))
        >>> round(result.ap, 3), result.ap75  # IoU .82: found at .50, .55, .. .80
        (0.7, 1.0)
    """
    images = checked_images(detections, ground_truth, len(class_names))
    if not any(len(image.gt_labels) for image in images):
        return CocoResult(**dict.fromkeys(_PARTS, math.nan), classes=dict.fromkeys(class_names, math.nan))
    from torch import from_numpy  # torchmetrics brings it in anyway

    metric = _metric()
    for image in images:
        boxes, scores, gt_boxes = (a.astype(np.float32) for a in (image.boxes, image.scores, image.gt_boxes))
        found = {"boxes": boxes, "scores": scores, "labels": image.labels}
        truth = {"boxes": gt_boxes, "labels": image.gt_labels, "iscrowd": image.difficult.astype(np.int64)}
        tensors = [{name: from_numpy(values) for name, values in arrays.items()} for arrays in (found, truth)]
        metric.update(tensors[:1], tensors[1:])
    measured = metric.compute()
    labels, aps = (measured[key].reshape(-1).tolist() for key in ("classes", "map_per_class"))
    by_label = dict(zip(labels, aps, strict=True))
    return CocoResult(
        **{name: _number(float(measured[key])) for name, key in _PARTS.items()},
        classes={name: _number(by_label.get(label, -1.0)) for label, name in enumerate(class_names, start=1)},
    )


def _metric() -> Any:
    try:
        import faster_coco_eval  # type: ignore[import-untyped]  # noqa: F401
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        needs = f"COCO's average precision needs torchmetrics and faster-coco-eval ({error})"
        raise UserError(f"{needs}; install them: pip install torchmetrics faster-coco-eval") from error
    metric = MeanAveragePrecision(class_metrics=True, backend="faster_coco_eval")
    metric.warn_on_many_detections = False
    return metric


def _number(value: float) -> float:
    """COCO says -1 where there is nothing to measure."""
    return math.nan if value < 0 else value
