"""Ranks, per-class accuracies and intervals, by hand and as laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sppnet.classification.evaluate import class_accuracies, label_ranks, wilson_interval

SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.4, 0.4, 0.2], [0.2, 0.3, 0.5]])
LABELS = np.array([0, 1, 1, 0])

score_arrays = st.tuples(st.integers(1, 20), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(
        # few distinct values, so that ties are common
        hnp.arrays(np.float64, shape, elements=st.integers(0, 3).map(float)),
        hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)),
    )
)


def test_a_worked_example() -> None:
    """Image 0 is right; 1 has its class second; 2 has it tied for first, behind the class before it; 3 has it last."""
    assert label_ranks(SCORES, LABELS).tolist() == [0, 1, 1, 2]
    accuracies = class_accuracies(np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]]))
    assert accuracies[:2].tolist() == [0.5, 0.0]
    assert np.isnan(accuracies[2])


@given(score_arrays)
def test_the_rank_is_the_index_in_a_stable_sort(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    order = np.argsort(-scores, axis=1, kind="stable")
    assert label_ranks(scores, labels).tolist() == [row.tolist().index(k) for row, k in zip(order, labels, strict=True)]


def test_no_images_have_no_ranks() -> None:
    assert label_ranks(np.empty((0, 3)), []).shape == (0,)


@pytest.mark.parametrize(
    ("right", "count", "lower", "upper"),
    [(81, 100, 0.7222, 0.8749), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_intervals_by_the_formula(right: int, count: int, lower: float, upper: float) -> None:
    assert wilson_interval(right, count) == pytest.approx((lower, upper), abs=5e-5)
