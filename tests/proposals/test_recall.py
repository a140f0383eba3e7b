"""Recall of proposals, against a case worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.errors import UserError
from sppnet.proposals.recall import format_recall, recall_report


def image(image_id: str, boxes: list[list[float]], difficult: list[bool]) -> AnnotatedImage:
    gt_boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), dtype=np.int64)
    return AnnotatedImage(image_id, Path(image_id), (400, 400), gt_boxes, labels, np.array(difficult, dtype=bool))


DATA = DetectionData(
    class_names=("cat",),
    images=(
        image("a", [[0, 0, 10, 10], [0, 0, 100, 100], [0, 0, 200, 200]], [False, False, True]),
        image("b", [[100, 100, 164, 164]], [False]),
        image("c", [], []),
    ),
    split="val",
)
PROPOSALS = {
    "a": np.array([[0, 0, 10, 6], [0, 0, 100, 100], [0, 0, 300, 300]], dtype=np.float32),
    "b": np.empty((0, 4), dtype=np.float32),
    "c": np.zeros((6, 4), dtype=np.float32),
}


def test_a_case_worked_by_hand() -> None:
    """Small (10 px): IoU 60/100 = .6. Medium: 100 px, exact, and 64 px without any box. The difficult one is left out."""
    report = recall_report(DATA, PROPOSALS)
    assert report["images"] == 3
    assert report["images_left_out"] == 0
    assert report["boxes_per_image"] == 3
    sizes = report["sizes"]
    assert sizes["all"]["objects"] == 3
    assert sizes["all"]["recall"] == pytest.approx([2 / 3, 1 / 3])
    assert sizes["all"]["mean_best_iou"] == pytest.approx(1.6 / 3)
    assert sizes["small"] == {"objects": 1, "recall": [1.0, 0.0], "mean_best_iou": pytest.approx(0.6)}
    assert sizes["medium"] == {"objects": 2, "recall": [0.5, 0.5], "mean_best_iou": pytest.approx(0.5)}
    assert sizes["large"] == {"objects": 0, "recall": [None, None], "mean_best_iou": None}
    assert json.loads(json.dumps(report)) == report


def test_the_table() -> None:
    assert format_recall(recall_report(DATA, PROPOSALS)).splitlines() == [
        "3 images, 3 boxes per image",
        "objects   number   IoU .50   IoU .70   mean best IoU",
        "all            3      .667      .333            .533",
        "small          1     1.000      .000            .600",
        "medium         2      .500      .500            .500",
        "large          0         -         -               -",
    ]


def test_images_without_proposals_are_left_out_and_counted() -> None:
    report = recall_report(DATA, {"a": PROPOSALS["a"]})
    assert (report["images"], report["images_left_out"]) == (1, 2)
    assert report["sizes"]["all"]["recall"] == [1.0, 0.5]
    assert format_recall(report).startswith("1 image, 3 boxes per image (2 without proposals left out)\n")
    with pytest.raises(UserError, match="no proposals for any of the 3 images"):
        recall_report(DATA, {})
