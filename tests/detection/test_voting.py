"""Box voting: where neighbours of the same class, weighted by their scores, say that a box belongs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.detection.voting import vote

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14], [40, 40, 60, 60], [0, 0, 30, 30]])


def of_one_class(*scores: float) -> torch.Tensor:
    return torch.tensor([[1 - score, score] for score in scores])


def voted(scores: torch.Tensor, iou: float = 0.5, kind: str = "probability") -> list[list[float]]:
    return vote(BOXES[:1], torch.tensor([1]), scores, BOXES[:, None], iou, kind).tolist()  # type: ignore[arg-type]


def test_the_mean_by_score_of_what_overlaps_enough() -> None:
    # Overlaps with the first: 1, 10 / 14, 0 and 1 / 9. By hand: (.6 * 10 + .2 * 14) / .8 = 11.
    assert voted(of_one_class(0.6, 0.2, 0.9, 0.9)) == [pytest.approx([0, 0, 10, 11])]
    assert voted(of_one_class(0.6, 0.2, 0.9, 0.9), iou=0.8) == [[0, 0, 10, 10]]  # only itself


def test_margins_count_by_what_they_have_above_the_background() -> None:
    margins = torch.tensor([[0.0, 0.5], [0, -0.5], [0, 3], [0, 3]])  # weights 1.5 and .5
    assert voted(margins, kind="decision") == [pytest.approx([0, 0, 10, 11])]
    assert voted(torch.tensor([[0.0, -1.1], [0, -1.2], [0, -3], [0, -3]]), kind="decision") == [[0, 0, 10, 10]]


def test_other_classes_have_no_vote() -> None:
    scores = torch.tensor([[0.0, 0.6, 0.4], [0, 0, 1.0], [0, 0, 0], [0, 0, 0]])
    boxes = torch.stack([BOXES, BOXES + 2], dim=1)
    moved = vote(torch.stack([BOXES[0], BOXES[1] + 2]), torch.tensor([1, 2]), scores, boxes, 0.5, "probability")
    assert moved[0].tolist() == [0, 0, 10, 10]
    assert moved[1].tolist() == pytest.approx([2, 2, 12, (0.4 * 12 + 16) / 1.4])


def test_nothing_to_move() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert vote(torch.zeros(0, 4), none, of_one_class(0.1), BOXES[:1, None], 0.5, "probability").shape == (0, 4)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=12))
def test_a_box_stays_within_those_that_vote(found: list[tuple[float, float, float]]) -> None:
    boxes = torch.tensor([[x, y, x + 30, y + 30] for x, y, _ in found])
    scores = of_one_class(*(score for *_, score in found))
    moved = vote(boxes[:1], torch.tensor([1]), scores, boxes[:, None], 0.5, "probability")[0]
    assert (moved >= boxes.amin(0) - 1e-3).all()
    assert (moved <= boxes.amax(0) + 1e-3).all()
