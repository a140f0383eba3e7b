"""Which boxes stay, and where: threshold, suppression, and votes of neighbors of the same class, weighted by their scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sppnet.detection.suppression import DetectSettings, select, vote
from sppnet.errors import SettingsError
from sppnet.results import Detections

NAMES = ("cat", "dog")
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])  # the first two overlap by .9


def chosen(scores: list[list[float]], boxes: Tensor = BOXES, **settings: Any) -> Detections:
    per_class = boxes[:, None].repeat(1, len(NAMES), 1)
    return select(torch.tensor(scores), per_class, NAMES, DetectSettings(**{"vote_iou": 0, **settings}), "probability")


def test_scores_below_the_threshold_are_left_out() -> None:
    found = chosen([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.1, 0.0, 0.9]])
    assert list(zip(found.class_names, found.labels.tolist(), strict=True)) == [("dog", 2), ("cat", 1)]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])  # by falling score; one at the threshold stays
    assert found.boxes.tolist() == [[50, 50, 60, 60], [0, 0, 10, 10]]


def test_the_better_of_two_overlapping_boxes_of_a_class_stays() -> None:
    found = chosen([[0.4, 0.6, 0], [0.3, 0.7, 0], [1, 0, 0]])
    assert found.boxes.tolist() == [[0, 0, 10, 9]]
    assert len(chosen([[0.4, 0.6, 0], [0.3, 0.7, 0], [1, 0, 0]], nms_iou=0.95)) == 2


def test_overlapping_boxes_of_different_classes_both_stay() -> None:
    found = chosen([[0.4, 0.6, 0], [0.3, 0, 0.7], [1, 0, 0]])
    assert found.class_names == ("dog", "cat")


def test_one_box_may_be_two_classes() -> None:
    assert chosen([[0.1, 0.5, 0.4], [1, 0, 0], [1, 0, 0]]).class_names == ("cat", "dog")


def test_at_most_so_many_the_best() -> None:
    found = chosen([[0.5, 0.5, 0], [1, 0, 0], [0.4, 0, 0.6]], max_detections=1)
    assert found.class_names == ("dog",)


def test_a_kept_box_goes_where_its_neighbors_vote_for() -> None:
    found = chosen([[0.25, 0.75, 0], [0.75, 0.25, 0], [1, 0, 0]], vote_iou=0.5)  # also those below the threshold vote
    assert found.boxes.tolist() == [[0, 0, 10, 9.75]]
    assert found.scores.tolist() == [0.75]


def test_at_most_so_many_of_each_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    scores = torch.tensor([[0.0, 0.9, 0], [0, 0.8, 0], [0, 0, 0.7]])
    found = select(scores, boxes[:, None].repeat(1, 2, 1), NAMES, DetectSettings(), "probability", max_per_class=1)
    assert found.class_names == ("cat", "dog")


def test_settings_out_of_range() -> None:
    with pytest.raises(SettingsError, match="nms_iou must be between 0 and 1: got 2"):
        DetectSettings(nms_iou=2)
    with pytest.raises(SettingsError, match="score_threshold must be between 0 and 1, as scores are probabilities"):
        chosen([[0, 1, 0]] * 3, score_threshold=-1)


def test_nothing_found() -> None:
    found = chosen([[1, 0, 0]] * 3)
    assert len(found) == 0
    assert found.to_dict() == {"boxes": [], "scores": [], "score_kind": "probability", "labels": [], "class_names": []}


def test_slivers_are_dropped() -> None:
    found = chosen([[0.0, 1, 0]] * 2, torch.tensor([[0.0, 0, 0.5, 100], [0, 0, 1, 100]]))
    assert found.boxes.tolist() == [[0, 0, 1, 100]]


# Votes


VOTERS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14], [40, 40, 60, 60], [0, 0, 30, 30]])


def of_one_class(*scores: float) -> torch.Tensor:
    return torch.tensor([[1 - score, score] for score in scores])


def voted(scores: torch.Tensor, iou: float = 0.5, kind: str = "probability") -> list[list[float]]:
    return vote(VOTERS[:1], torch.tensor([1]), scores, VOTERS[:, None], iou, kind).tolist()  # type: ignore[arg-type]


def test_the_mean_by_score_of_what_overlaps_enough() -> None:
    # Overlaps with the first: 1, 10 / 14, 0 and 1 / 9. By hand: (.6 * 10 + .2 * 14) / .8 = 11.
    assert voted(of_one_class(0.6, 0.2, 0.9, 0.9)) == [pytest.approx([0, 0, 10, 11])]
    assert voted(of_one_class(0.6, 0.2, 0.9, 0.9), iou=0.8) == [[0, 0, 10, 10]]  # only itself


def test_decision_scores_count_by_what_they_have_above_the_background() -> None:
    scores = torch.tensor([[0.0, 0.5], [0, -0.5], [0, 3], [0, 3]])  # weights 1.5 and .5
    assert voted(scores, kind="decision") == [pytest.approx([0, 0, 10, 11])]
    assert voted(torch.tensor([[0.0, -1.1], [0, -1.2], [0, -3], [0, -3]]), kind="decision") == [[0, 0, 10, 10]]


def test_other_classes_have_no_vote() -> None:
    scores = torch.tensor([[0.0, 0.6, 0.4], [0, 0, 1.0], [0, 0, 0], [0, 0, 0]])
    boxes = torch.stack([VOTERS, VOTERS + 2], dim=1)
    moved = vote(torch.stack([VOTERS[0], VOTERS[1] + 2]), torch.tensor([1, 2]), scores, boxes, 0.5, "probability")
    assert moved[0].tolist() == [0, 0, 10, 10]
    assert moved[1].tolist() == pytest.approx([2, 2, 12, (0.4 * 12 + 16) / 1.4])


def test_nothing_to_move() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert vote(torch.zeros(0, 4), none, of_one_class(0.1), VOTERS[:1, None], 0.5, "probability").shape == (0, 4)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=12))
def test_a_box_stays_within_those_that_vote(found: list[tuple[float, float, float]]) -> None:
    boxes = torch.tensor([[x, y, x + 30, y + 30] for x, y, _ in found])
    scores = of_one_class(*(score for *_, score in found))
    moved = vote(boxes[:1], torch.tensor([1]), scores, boxes[:, None], 0.5, "probability")[0]
    assert (moved >= boxes.amin(0) - 1e-3).all()
    assert (moved <= boxes.amax(0) + 1e-3).all()
