"""COCO's average precision, against cases worked by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from sppnet.errors import UserError
from sppnet.metrics.coco import CocoResult, evaluate_coco

SQUARE = [0.0, 0.0, 100.0, 100.0]
TRUTH = ([SQUARE], [1], [False])
NOTHING: tuple[list[list[float]], list[float], list[int]] = ([], [], [])


def test_a_case_worked_by_hand() -> None:
    """Two cats; the first found at IoU 1, then a false one, then the second at IoU .64.

    At thresholds .50, .55, .60 both count: precision 1 up to recall .5 (51 of the 101 points: 0, .01, .. .50), then 2/3
    (50 points). At the seven others one counts: 51 of 101 points.
    """
    detections = ([SQUARE, [300, 300, 350, 350], [200, 0, 300, 64]], [0.9, 0.8, 0.7], [1, 1, 1])
    truth = ([SQUARE, [200, 0, 300, 100]], [1, 1], [False, False])
    result = evaluate_coco([detections], [truth], class_names=("cat",))
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result.ap50 == pytest.approx(both)
    assert result.ap75 == pytest.approx(one)
    assert result.ap == pytest.approx((3 * both + 7 * one) / 10)
    assert result.classes == {"cat": pytest.approx(result.ap)}
    assert result.large == pytest.approx((3 * 1 + 7 * one) / 10)  # the false one is not of that size, and left out
    assert math.isnan(result.medium)


@pytest.mark.parametrize(("side", "size"), [(31, "small"), (33, "medium"), (95, "medium"), (97, "large")])
def test_objects_by_size(side: float, size: str) -> None:
    box = [[0, 0, side, side]]
    result = evaluate_coco([(box, [0.5], [1])], [(box, [1], [False])], class_names=("cat",))
    for name in ("small", "medium", "large"):
        value = getattr(result, name)
        assert value == 1 if name == size else math.isnan(value)


def test_classes_without_objects_do_not_count() -> None:
    result = evaluate_coco([([SQUARE, SQUARE], [0.9, 0.8], [1, 2])], [TRUTH], class_names=("cat", "dog", "cow"))
    assert result.ap == 1
    assert result.classes["cat"] == 1
    assert math.isnan(result.classes["dog"])
    assert math.isnan(result.classes["cow"])


def test_difficult_objects_neither_help_nor_harm() -> None:
    """On the second square lie two detections, both left out: a crowd may swallow several."""
    other = [200.0, 0, 300, 100]
    detections = ([other, other, SQUARE], [0.9, 0.8, 0.7], [1, 1, 1])
    truth = ([SQUARE, other], [1, 1], [False, True])
    assert evaluate_coco([detections], [truth], class_names=("cat",)).ap == pytest.approx(1)
    harmed = evaluate_coco([detections], [TRUTH], class_names=("cat",))
    assert harmed.ap == pytest.approx(1 / 3, abs=1e-6)
    missed = evaluate_coco([NOTHING], [truth], class_names=("cat",))
    assert missed.ap == 0


def test_images_do_not_mix() -> None:
    result = evaluate_coco([(([SQUARE]), [0.9], [1]), NOTHING], [TRUTH, TRUTH], class_names=("cat",))
    assert result.ap == pytest.approx(51 / 101)


def test_no_objects_no_number() -> None:
    result = evaluate_coco([([SQUARE], [0.9], [1])], [([], [], [])], class_names=("cat",))
    assert math.isnan(result.ap)
    assert result.to_dict() == {
        "coco": dict.fromkeys(("ap", "ap50", "ap75", "small", "medium", "large")),
        "classes": {"cat": None},
    }
    assert evaluate_coco([], [], class_names=()).classes == {}


def test_many_detections_are_no_trouble() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(200, 300, (150, 2))
    boxes = np.concatenate([[SQUARE], np.concatenate([corners, corners + 50], axis=1)])
    result = evaluate_coco([(boxes, np.linspace(1, 0.1, 151), np.ones(151))], [TRUTH], class_names=("cat",))
    assert isinstance(result, CocoResult)
    assert result.ap == 1


def test_mistakes_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the same images, got 1 and 2"):
        evaluate_coco([NOTHING], [TRUTH, TRUTH], class_names=("cat",))
    with pytest.raises(ValueError, match=r"^labels: expected 1\.\.1"):
        evaluate_coco([([SQUARE], [0.5], [2])], [TRUTH], class_names=("cat",))
    with pytest.raises(ValueError, match=r"^gt_labels: expected 1\.\.1"):
        evaluate_coco([NOTHING], [([SQUARE], [2], [False])], class_names=("cat",))
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="pip install torchmetrics faster-coco-eval"):
        evaluate_coco([NOTHING], [TRUTH], class_names=("cat",))
