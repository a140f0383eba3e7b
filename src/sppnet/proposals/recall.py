"""How many of the true objects do the proposals find? What they miss, no detector behind them can find.

An object is found at an IoU threshold if at least one box of its image overlaps it by that much.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sppnet.data.annotations import DetectionData
from sppnet.errors import UserError
from sppnet.metrics import overlaps

SIZES = {"small": (0.0, 64.0), "medium": (64.0, 160.0), "large": (160.0, float("inf"))}  # root of the area, px
IOUS = (0.5, 0.7)


def recall_report(data: DetectionData, proposals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Measure the share of objects that proposals find, over all objects and by object size.

    Objects marked difficult do not count. Size is the root of the box's area: small below 64 px, medium below 160 px.

    Args:
        data: the annotated images.
        proposals: boxes [R, 4] by image id, pixels of the image. Images without an entry are left out and counted.

    Returns:
        Ready for JSON: ``images``, ``images_left_out``, ``boxes_per_image`` (mean), ``ious``, and ``sizes``: for "all",
        "small", "medium", "large" the number of ``objects``, the ``recall`` at each threshold (in the order of
        ``ious``) and ``mean_best_iou``; None where there are no objects.

    Raises:
        UserError: proposals for none of the images.

    Example:
        >>> recall_report(DetectionData(class_names=("cat",), images=(), split="val"), {})
        Traceback (most recent call last):
        sppnet.errors.UserError: no proposals for any of the 0 images of split 'val'; compute them first
    """
    images = [image for image in data.images if image.image_id in proposals]
    if not images:
        raise UserError(f"no proposals for any of the {len(data)} images of split {data.split!r}; compute them first")
    boxes = [proposals[image.image_id] for image in images]
    objects = [image.gt_boxes[~image.difficult] for image in images]
    best = np.concatenate([overlaps(*pair).max(axis=1, initial=0.0) for pair in zip(objects, boxes, strict=True)])
    sides = np.sqrt(np.concatenate([(found[:, 2:] - found[:, :2]).prod(axis=1) for found in objects]))
    masks = {"all": np.ones(len(best), dtype=bool)}
    masks |= {name: (sides >= low) & (sides < high) for name, (low, high) in SIZES.items()}
    return {
        "images": len(images),
        "images_left_out": len(data) - len(images),
        "boxes_per_image": sum(map(len, boxes)) / len(images),
        "ious": list(IOUS),
        "sizes": {name: _summary(best[mask]) for name, mask in masks.items()},
    }


def format_recall(report: Mapping[str, Any]) -> str:
    """Lay a report of ``recall_report`` out as a table of plain text, one line for each object size.

    Example:
        >>> print(format_recall({"images": 1, "images_left_out": 0, "boxes_per_image": 9.0, "ious": [0.5],
        ...       "sizes": {"all": {"objects": 2, "recall": [0.5], "mean_best_iou": 0.6}}}))
        1 image, 9 boxes per image
        objects   number   IoU .50   mean best IoU
        all            2      .500            .600
    """
    count, left_out = report["images"], report["images_left_out"]
    head = f"{count} image{'' if count == 1 else 's'}, {report['boxes_per_image']:.0f} boxes per image"
    lines = [head + (f" ({left_out} without proposals left out)" if left_out else "")]
    columns = "".join(f"{'IoU ' + _share(iou, 2):>10}" for iou in report["ious"])
    lines.append(f"{'objects':<8}{'number':>8}{columns}{'mean best IoU':>16}")
    for name, row in report["sizes"].items():
        recalls = "".join(f"{_share(recall, 3):>10}" for recall in row["recall"])
        lines.append(f"{name:<8}{row['objects']:>8}{recalls}{_share(row['mean_best_iou'], 3):>16}")
    return "\n".join(lines)


def _summary(best: np.ndarray) -> dict[str, Any]:
    return {
        "objects": len(best),
        "recall": [float((best >= iou).mean()) if len(best) else None for iou in IOUS],
        "mean_best_iou": float(best.mean()) if len(best) else None,
    }


def _share(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}".removeprefix("0")
