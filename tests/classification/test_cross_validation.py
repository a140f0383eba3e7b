"""Folds that are fair to every class, accuracies of images not learned from, and intervals worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.classification.cross_validation import fold_accuracies, fold_margins, mean_interval, stratified_folds
from sppnet.classification.svm import label_targets, train_image_svms


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 7),
    folds=st.integers(2, 7),
    seed=st.integers(0, 9),
)
def test_folds_are_even_and_so_is_every_class(counts: list[int], folds: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    fold = stratified_folds(labels, folds, np.random.default_rng(seed))
    sizes = np.bincount(fold, minlength=folds)
    assert len(sizes) == folds
    assert np.ptp(sizes) <= 1
    for label in range(len(counts)):
        assert np.ptp(np.bincount(fold[labels == label], minlength=folds)) <= 1


def test_folds_are_drawn_at_random_and_again_by_the_same_seed() -> None:
    labels = np.repeat([0, 1], 20)
    first, again, other = (stratified_folds(labels, 4, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:20] != first[20:]).any()


@pytest.mark.parametrize(("images", "folds"), [(10, 1), (3, 4)])
def test_folds_that_cannot_be(images: int, folds: int) -> None:
    with pytest.raises(ValueError, match=f"got {folds} folds of {images} images"):
        stratified_folds(np.zeros(images, np.int64), folds, np.random.default_rng(0))


def test_margins_are_those_of_svms_trained_on_the_other_folds() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 8)
    rows = (np.eye(3)[labels] + rng.normal(0, 0.6, (24, 3))).astype(np.float32)
    fold = stratified_folds(labels, 3, rng)
    calls: list[None] = []
    found = fold_margins(rows @ rows.T, labels, fold, 3, cost=3, progress=lambda: calls.append(None))
    assert len(calls) == 3
    for each in range(3):
        svms = train_image_svms(rows[fold != each], label_targets(labels[fold != each], 3), cost=3)
        np.testing.assert_allclose(found[fold == each], svms.margins(rows[fold == each]), atol=0.03)


def test_margins_of_classes_that_other_folds_do_not_hold() -> None:
    """Of class 2 there is one image; where it is asked about, nobody knows the class. Fold 1 has learned from class 0 alone."""
    rows, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 2])
    margins = fold_margins(rows @ rows.T, labels, [0, 1, 1, 0], 4)
    assert np.isneginf(margins[[0, 3], 0]).sum() == 0
    assert np.isneginf(margins[[0, 3], 2]).all()
    assert np.isfinite(margins[1:3, [0, 2]]).all()
    assert np.isneginf(margins[1:3, 1]).all()
    assert np.isneginf(margins[:, 3]).all()
    alone = fold_margins(rows[:3] @ rows[:3].T, labels[:3], [0, 0, 1], 3)
    assert alone[2].tolist() == [1.0, -np.inf, -np.inf]


def test_accuracies_are_those_of_svms_trained_on_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 12)
    rows = (np.eye(3)[labels] + rng.normal(0, 0.6, (36, 3))).astype(np.float32)
    folds = [stratified_folds(labels, 3, rng) for _ in range(2)]
    expected = []
    for fold in folds:
        for each in range(3):
            svms = train_image_svms(rows[fold != each], label_targets(labels[fold != each], 3))
            expected.append((svms.margins(rows[fold == each]).argmax(1) == labels[fold == each]).mean())
    calls: list[tuple[int, int]] = []
    found = fold_accuracies(rows @ rows.T, labels, folds, progress=lambda *call: calls.append(call))
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.4 < found.mean() < 1
    assert calls == [(done, 6) for done in range(1, 7)]


def test_a_class_that_is_not_among_those_learned_from_is_never_answered() -> None:
    rows = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2]]
    found = fold_accuracies(rows @ rows.T, np.array([0, 0, 1, 1, 2]), [[0, 1, 0, 1, 0]])
    assert found.tolist() == [2 / 3, 1.0]


def test_an_interval_worked_by_hand() -> None:
    """Mean .81, variance .0005; 1/5 + 1/4 of it is .015 squared; Student's t of 4 degrees, 97.5 %: 2.776."""
    low, high = mean_interval([0.80, 0.84, 0.82, 0.78, 0.81], folds=5)
    assert (low + high) / 2 == pytest.approx(0.81)
    assert (high - low) / 2 == pytest.approx(2.7764 * 0.015, rel=1e-4)


def test_an_interval_for_several_pairs_is_wider() -> None:
    """Of 15 values, t of 14 degrees: 2.1448 for one, and for one of 6 that of 99.583 %: 3.0688."""
    values = np.random.default_rng(0).normal(0.8, 0.05, 15)
    one, six = (np.ptp(mean_interval(values, 5, pairs=pairs)) / 2 for pairs in (1, 6))
    assert one / math.sqrt((1 / 15 + 1 / 4) * values.var(ddof=1)) == pytest.approx(2.1448, rel=1e-4)
    assert six / one == pytest.approx(3.0688 / 2.1448, rel=1e-3)


def test_repeating_does_not_make_an_interval_as_narrow_as_new_images_would() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.05, 5)
    once, often = mean_interval(values, 5), mean_interval(np.tile(values, 200), 5)
    assert np.ptp(often) > 1.96 * 2 * math.sqrt(1 / 4) * values.std(ddof=0) * 0.999
    assert np.ptp(often) < np.ptp(once)


@pytest.mark.parametrize(("values", "folds", "pairs"), [([0.5], 5, 1), ([0.5, 0.6], 1, 1), ([0.5, 0.6], 5, 0)])
def test_an_interval_that_cannot_be(values: list[float], folds: int, pairs: int) -> None:
    with pytest.raises(ValueError, match="at least 2 values"):
        mean_interval(values, folds, pairs=pairs)
