"""Top-k, confusions and intervals, by hand and as laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sppnet.metrics.classification import (
    class_accuracies,
    confusion_matrix,
    label_ranks,
    mean_class_accuracy,
    top_k_accuracy,
    wilson_interval,
)

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
    # image 0 is right; 1 has its class second; 2 has it tied for first, behind the class before it; 3 has it last
    assert label_ranks(SCORES, LABELS).tolist() == [0, 1, 1, 2]
    assert [top_k_accuracy(SCORES, LABELS, k) for k in (1, 2, 3, 4)] == [0.25, 0.75, 1.0, 1.0]
    confusion = confusion_matrix(LABELS, SCORES.argmax(1), 3)
    assert confusion.tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]
    assert class_accuracies(confusion)[:2].tolist() == [0.5, 0.0]
    assert np.isnan(class_accuracies(confusion)[2])
    assert mean_class_accuracy(confusion) == 0.25  # the class without images does not count


@given(score_arrays)
def test_the_rank_is_the_place_in_a_stable_sort(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    order = np.argsort(-scores, axis=1, kind="stable")
    assert label_ranks(scores, labels).tolist() == [row.tolist().index(k) for row, k in zip(order, labels, strict=True)]


@given(score_arrays)
def test_the_confusion_matrix_tells_the_accuracy(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    classes = scores.shape[1]
    confusion = confusion_matrix(labels, scores.argmax(1), classes)
    assert confusion.sum() == len(labels)
    assert confusion.sum(1).tolist() == np.bincount(labels, minlength=classes).tolist()
    assert confusion.trace() / len(labels) == top_k_accuracy(scores, labels)
    accuracies, weights = class_accuracies(confusion), confusion.sum(1)
    there = weights > 0
    assert np.average(accuracies[there], weights=weights[there]) == pytest.approx(top_k_accuracy(scores, labels))


@given(score_arrays)
def test_more_answers_are_never_worse(case: tuple[np.ndarray, np.ndarray]) -> None:
    accuracies = [top_k_accuracy(*case, k) for k in range(1, case[0].shape[1] + 1)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] == 1


def test_no_images_have_no_ranks_and_no_accuracy() -> None:
    assert label_ranks(np.empty((0, 3)), []).shape == (0,)
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]
    assert np.isnan(mean_class_accuracy([[0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="at least one image"):
        top_k_accuracy(np.empty((0, 3)), [])


@pytest.mark.parametrize(
    ("right", "count", "lower", "upper"),
    [(81, 100, 0.7222, 0.8749), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_intervals_by_the_formula(right: int, count: int, lower: float, upper: float) -> None:
    assert wilson_interval(right, count) == pytest.approx((lower, upper), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_an_interval_holds_its_share_and_narrows_with_more_images(case: tuple[int, int]) -> None:
    right, count = case
    lower, upper = wilson_interval(right, count)
    assert 0 <= lower <= right / count <= upper <= 1
    wider = wilson_interval(right, count, 0.99)
    assert wider[0] <= lower < upper <= wider[1]
    more = wilson_interval(10 * right, 10 * count)
    assert more[1] - more[0] < upper - lower
    assert wilson_interval(count - right, count) == pytest.approx((1 - upper, 1 - lower))


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for truth in (0.03, 0.5, 0.9):
        ends = [wilson_interval(int(right), 200) for right in rng.binomial(200, truth, 4000)]
        held = np.mean([lower <= truth <= upper for lower, upper in ends])
        assert 0.93 < held < 0.98


def test_what_cannot_be_used_is_said() -> None:
    with pytest.raises(ValueError, match=r"scores \[N, K\] and labels \[N\], got \[4, 3\] and \[3\]"):
        label_ranks(SCORES, LABELS[:3])
    with pytest.raises(ValueError, match=r"labels: expected classes 0\.\.2, got 3"):
        label_ranks(SCORES, [0, 1, 3, 0])
    with pytest.raises(ValueError, match=r"predicted: expected classes 0\.\.1, got -1"):
        confusion_matrix([0], [-1], 2)
    with pytest.raises(ValueError, match="labels: expected whole numbers"):
        confusion_matrix([0.5], [1], 2)
    with pytest.raises(ValueError, match="one answer for each label, got 2 for 1"):
        confusion_matrix([0], [1, 1], 2)
    with pytest.raises(ValueError, match="image 1 has a score that is not a number"):
        label_ranks([[0.5, 0.5], [np.nan, 1]], [0, 1])
    with pytest.raises(ValueError, match="k of at least 1"):
        top_k_accuracy(SCORES, LABELS, 0)
    with pytest.raises(ValueError, match=r"expected \[K, K\], got shape \[2, 3\]"):
        class_accuracies(np.ones((2, 3)))
    for right, count in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=f"got {right} of {count}"):
            wilson_interval(right, count)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, 1.0)
