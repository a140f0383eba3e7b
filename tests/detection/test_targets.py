"""Which proposals a detector learns from: worked by hand, then the edges, then the draw."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.boxes import decode_boxes
from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.targets import Candidates, draw, find_candidates, flip, image_at
from sppnet.models.heads import DELTA_SCALE

A, B = [0, 0, 40, 40], [100, 0, 140, 40]  # an object of class 2; a difficult one of class 1


def annotated(boxes: list[list[int]], labels: list[int], difficult: list[bool]) -> AnnotatedImage:
    return AnnotatedImage(
        image_id="1",
        path=Path("1.jpg"),
        size=(100, 200),
        gt_boxes=np.array(boxes, np.float32).reshape(-1, 4),
        gt_labels=np.array(labels, np.int64),
        difficult=np.array(difficult, bool),
    )


def candidates_of(image: AnnotatedImage, *proposals: list[int]) -> Candidates:
    return find_candidates(image, np.array(proposals, np.float32).reshape(-1, 4), 3)


def test_a_worked_example() -> None:
    found = candidates_of(
        annotated([A, B], [2, 1], [False, True]),
        [0, 0, 40, 30],  # IoU .75 with A: foreground
        [20, 0, 60, 40],  # 800 / 2400 = 1/3 with A: background
        [0, 0, 40, 20],  # exactly .5: foreground
        [180, 80, 200, 100],  # on nothing: left out
        [100, 0, 140, 36],  # .9 with the difficult B: neither
        [120, 0, 160, 40],  # 1/3 with B: background
        [30, 30, 70, 70],  # 100 / 3100 with A: left out
    )
    assert found.boxes.tolist() == [A, [0, 0, 40, 30], [0, 0, 40, 20], [20, 0, 60, 40], [120, 0, 160, 40]]
    assert found.labels.tolist() == [2, 2, 2, 0, 0]
    assert found.num_foreground == 3
    assert found.image_labels.tolist() == [1, 1, 0]  # a difficult object is in the photo all the same


def test_deltas_lead_to_the_object() -> None:
    found = candidates_of(annotated([A], [2], [False]), [0, 0, 40, 30], [20, 0, 60, 40])
    # [0, 0, 40, 30] -> A: the centre moves 5 of 30 px down, the height grows by 40 / 30
    expected = [0, 5 / 30 / 0.1, 0, math.log(40 / 30) / 0.2]
    assert found.deltas.tolist() == [[0, 0, 0, 0], pytest.approx(expected), [0, 0, 0, 0]]
    moved = decode_boxes(found.boxes[:2], found.deltas[:2] * torch.tensor(DELTA_SCALE))
    torch.testing.assert_close(moved, torch.tensor([A, A], dtype=torch.float32))


def test_a_window_takes_the_object_that_it_overlaps_most() -> None:
    found = candidates_of(annotated([A, [0, 0, 40, 60]], [2, 3], [False, False]), [0, 0, 40, 55], [0, 0, 40, 42])
    assert found.labels.tolist() == [2, 3, 3, 2]


def test_an_image_without_objects_is_all_background() -> None:
    found = candidates_of(annotated([], [], []), [0, 0, 40, 30], [20, 0, 60, 40])
    assert found.labels.tolist() == [0, 0]
    assert found.num_foreground == 0
    assert found.image_labels.tolist() == [0, 0, 0]


def test_only_difficult_objects_leave_nothing_to_find_but_background() -> None:
    found = candidates_of(annotated([B], [1], [True]), B, [120, 0, 160, 40], [0, 0, 10, 10])
    assert found.boxes.tolist() == [[120, 0, 160, 40]]
    assert found.labels.tolist() == [0]


def test_an_object_that_fills_the_image_leaves_the_small_boxes_as_background() -> None:
    found = candidates_of(annotated([[0, 0, 200, 100]], [1], [False]), [0, 0, 200, 90], [0, 0, 10, 10])
    assert found.labels.tolist() == [1, 1, 0]  # .005 is below .1, but there is no other background


def test_without_proposals_the_objects_themselves_are_left() -> None:
    found = candidates_of(annotated([A], [2], [False]))
    assert found.boxes.tolist() == [A]
    assert found.labels.tolist() == [2]


def pool_of(foreground: int, background: int) -> Candidates:
    count = foreground + background
    labels = torch.tensor([1] * foreground + [0] * background)
    numbered = torch.arange(count)[:, None].repeat(1, 4).float()
    return Candidates(numbered, labels, torch.zeros(count, 4), foreground, torch.ones(1))


def drawn(pool: Candidates, count: int, share: float = 0.25, seed: int = 0) -> list[int]:
    return draw(pool, count, share, np.random.default_rng(seed)).boxes[:, 0].int().tolist()


@pytest.mark.parametrize(
    ("foreground", "background", "expected"),
    [
        (100, 100, (16, 48)),  # plenty of both: a quarter
        (5, 100, (5, 59)),  # little foreground: background fills up
        (0, 100, (0, 64)),
        (100, 10, (16, 10)),  # little background: fewer windows rather than more foreground
        (3, 0, (3, 0)),
    ],
)
def test_shares_of_a_draw(foreground: int, background: int, expected: tuple[int, int]) -> None:
    found = draw(pool_of(foreground, background), 64, 0.25, np.random.default_rng(0))
    assert (int((found.labels > 0).sum()), int((found.labels == 0).sum())) == expected
    assert found.num_foreground == expected[0]
    assert len(set(found.boxes[:, 0].tolist())) == len(found.labels)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40), st.floats(0, 1), st.integers(0, 9))
def test_a_draw_is_within_bounds_without_repeats_and_repeatable(
    foreground: int, background: int, count: int, share: float, seed: int
) -> None:
    pool = pool_of(foreground, background)
    chosen = drawn(pool, count, share, seed)
    assert chosen == drawn(pool, count, share, seed)
    assert len(set(chosen)) == len(chosen) <= count
    assert set(chosen) <= set(range(foreground + background))


def test_draws_differ_from_seed_to_seed() -> None:
    assert drawn(pool_of(50, 50), 16, seed=0) != drawn(pool_of(50, 50), 16, seed=1)


def test_in_a_flipped_image_windows_and_what_they_should_answer_are_flipped() -> None:
    found = candidates_of(annotated([A], [2], [False]), [0, 0, 40, 30], [10, 0, 40, 40])
    flipped = flip(found, 200)
    assert flipped.boxes[0].tolist() == [160, 0, 200, 40]
    moved = decode_boxes(flipped.boxes, flipped.deltas * torch.tensor(DELTA_SCALE))
    torch.testing.assert_close(moved, torch.tensor([[160.0, 0, 200, 40]] * 3))
    assert torch.equal(flipped.labels, found.labels)


@given(st.integers(1, 20), st.integers(0, 9))
def test_every_image_comes_once_before_any_comes_again(count: int, seed: int) -> None:
    shown = [image_at(position, count, seed) for position in range(3 * count)]
    assert all(sorted(shown[start : start + count]) == list(range(count)) for start in range(0, 3 * count, count))


def test_every_epoch_has_its_own_order() -> None:
    assert [image_at(position, 20, 0) for position in range(20)] != [
        image_at(position, 20, 0) for position in range(20, 40)
    ]
