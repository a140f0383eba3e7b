"""Costs chosen on rows that were not learned from, probabilities as sure as they are right, intervals worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.linear import selection
from sppnet.linear.selection import (
    COSTS,
    SCALES,
    choose_cost,
    fold_accuracies,
    fold_scores,
    mean_interval,
    probability_scale,
    stratified_folds,
    train_calibrated_svms,
)
from sppnet.linear.svm import label_targets, solve_svms

# Folds


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 7),
    folds=st.integers(2, 7),
    seed=st.integers(0, 9),
)
@settings(max_examples=30)
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


def test_scores_and_accuracies_are_those_of_svms_trained_on_the_other_folds() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 12)
    rows = (np.eye(3)[labels] + rng.normal(0, 0.6, (36, 3))).astype(np.float32)
    fold = stratified_folds(labels, 3, rng)
    calls: list[None] = []
    found = fold_scores(rows @ rows.T, label_targets(labels, 3), fold, cost=3, progress=lambda: calls.append(None))
    assert len(calls) == 3
    right = []
    for each in range(3):
        svms = solve_svms(rows[fold != each], label_targets(labels[fold != each], 3), cost=3, tolerance=1e-4)
        scores = svms.decision_scores(rows[fold == each])
        np.testing.assert_allclose(found[fold == each], scores, atol=0.03)
        right.append((scores.argmax(1) == labels[fold == each]).mean())
    accuracies = fold_accuracies(rows @ rows.T, labels, [fold, fold], cost=3)
    assert accuracies == pytest.approx(right * 2, abs=1e-9)
    assert 0.4 < accuracies.mean() < 1


def test_classes_that_the_other_folds_do_not_hold_are_never_answered() -> None:
    """Fold 0 is asked about by who has seen classes 0 and 1 alone; fold 1 by who has seen 0 and 2. Of class 3 there is none."""
    rows, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 2])
    scores = fold_scores(rows @ rows.T, label_targets(labels, 4), [0, 1, 1, 0])
    asked = {0: [True, True, False, False], 1: [True, False, True, False]}
    assert np.isfinite(scores).tolist() == [asked[0], asked[1], asked[1], asked[0]]
    alone = fold_scores(rows[:3] @ rows[:3].T, label_targets(labels[:3], 4), [0, 0, 1])
    assert alone[2].tolist() == [1.0, -np.inf, -np.inf, -np.inf]


# Intervals


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


# Calibration


def drawn(scale: float, count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels drawn from the softmax of ``scale`` times them: what the right scale is, is known."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, classes))
    return scores, (scale * scores + rng.gumbel(size=scores.shape)).argmax(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_a_scale_by_hand() -> None:
    """Scores +1 and -1, nine of ten right and one row that is anyone's guess: 9.5 of 11, so that 2a = ln(9.5 / 1.5)."""
    scores = np.tile([1.0, -1.0], (10, 1))
    assert probability_scale(scores, [0] * 9 + [1]) == pytest.approx(np.log(9.5 / 1.5) / 2, rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 12.0])
@pytest.mark.parametrize("classes", [2, 20])
def test_the_scale_that_the_labels_were_drawn_with_is_found(scale: float, classes: int) -> None:
    assert probability_scale(*drawn(scale, 20_000, classes)) == pytest.approx(scale, rel=0.06)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 40),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.3, 1.0, 5.0]),
)
@settings(max_examples=30)
def test_no_other_scale_makes_the_labels_likelier(seed: int, count: int, classes: int, scale: float) -> None:
    scores, labels = drawn(scale, count, classes, seed)

    def loss(at: float) -> float:
        logarithms = np.log(softmax(at * scores))
        return float(-logarithms[np.arange(count), labels].sum() - logarithms.mean(1).mean())

    found = probability_scale(scores, labels)
    assert SCALES[0] <= found <= SCALES[1]
    for other in (found * 0.9, found * 1.1, *SCALES):
        assert not SCALES[0] <= other <= SCALES[1] or loss(other) >= loss(found) - 1e-6


def test_the_fewer_rows_are_all_right_the_more_careful_it_is() -> None:
    scales = [probability_scale(np.tile([1.0, -1.0], (count, 1)), np.zeros(count, int)) for count in (0, 1, 3, 30, 300)]
    assert scales == sorted(scales)
    assert scales[0] == SCALES[0]
    assert scales[-1] < SCALES[1]


def test_a_class_that_is_never_answered_makes_no_difference() -> None:
    scores, labels = drawn(2.0, 50, 3)
    with_one = np.concatenate([scores, np.full((50, 1), -np.inf)], 1)
    assert probability_scale(with_one, labels) == pytest.approx(probability_scale(scores, labels))


# Choosing, and the SVMs that come of it


def clusters(each: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length 1 of five classes, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), each)
    rows = rng.random((5, 40))[labels] + noise * rng.normal(size=(len(labels), 40))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def test_the_most_accurate_cost_is_taken_and_the_same_one_again() -> None:
    rows, labels = clusters(20, noise=0.5)
    gram, targets = rows @ rows.T, label_targets(labels, 5)
    choice = choose_cost(gram, targets)
    assert choice.accuracies.keys() == set(COSTS)
    assert choice.accuracies[choice.cost] == max(choice.accuracies.values())
    assert choice == choose_cost(gram, targets)
    assert choice != choose_cost(gram, targets, seed=1)
    assert choice.to_dict()["cross_validated"].keys() == {"0.3", "1", "3", "10"}


@pytest.mark.parametrize("noise", [0.2, 0.8])
def test_probabilities_are_as_sure_as_they_are_right(noise: float) -> None:
    """On rows that nothing was learned from or chosen on. Decision scores themselves as logits would be far too unsure."""
    rows, labels = clusters(340, noise)
    train = np.arange(len(labels)) % 17 < 2
    svms, choice = train_calibrated_svms(rows[train], label_targets(labels[train], 5), multi_label=False)
    logits = svms.decision_scores(rows[~train])
    right = float((logits.argmax(1) == labels[~train]).mean())
    assert float(softmax(logits).max(1).mean()) == pytest.approx(right, abs=0.06)
    assert float(softmax(logits / choice.scale).max(1).mean()) < right - 0.1


def test_several_classes_a_row_are_as_sure_as_they_are_right() -> None:
    """Of four classes any may be in a row, each with a direction of its own; some answers are left out."""
    rng = np.random.default_rng(0)
    present = rng.random((700, 4)) < 0.3
    rows = (4 * present @ np.eye(4, 30) + rng.normal(size=(700, 30))).astype(np.float16)
    targets = np.where(present, 1, -1)
    targets[rng.random(targets.shape) < 0.1] = 0
    svms, choice = train_calibrated_svms(rows[:200], targets[:200], multi_label=True)
    scores = svms.decision_scores(rows[200:])
    sure = 1 / (1 + np.exp(-scores))
    right = (scores > 0) == present[200:]
    assert right.mean() > 0.9
    assert np.maximum(sure, 1 - sure).mean() == pytest.approx(right.mean(), abs=0.03)
    assert choice.accuracies[choice.cost] == pytest.approx(right.mean(), abs=0.03)


def test_the_length_of_features_does_not_matter_and_nor_do_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = clusters(10, noise=0.5)
    targets = label_targets(labels, 5)
    svms, choice = train_calibrated_svms(rows, targets, multi_label=False)
    monkeypatch.setattr(selection, "BLOCK_BYTES", 7 * 40 * 4)
    longer, again = train_calibrated_svms(8 * rows, targets, multi_label=False)
    assert again.cost == choice.cost
    np.testing.assert_allclose(longer.decision_scores(8 * rows), svms.decision_scores(rows), atol=0.02 * choice.scale)


def test_progress_is_told_to_its_end_and_of_many_rows_some_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = clusters(10, noise=0.5)
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(selection, "MAX_CHOOSING", 20)
    _, choice = train_calibrated_svms(
        rows, label_targets(labels, 5), multi_label=False, progress=lambda *words: told.append(words)
    )
    steps = 5 * len(COSTS) + 1
    assert told == [("SVMs", done, steps) for done in range(1, steps + 1)]
    assert choice.rows == 17, "a third of 50"


def test_a_lone_row_of_its_class_counts_for_nothing_in_choosing() -> None:
    rows, labels = clusters(10, noise=0.3)
    alone = np.concatenate([rows, rows[:1]])
    choice = choose_cost(alone @ alone.T, label_targets(np.append(labels, 5), 6))
    assert max(choice.accuracies.values()) == 1.0
    assert choice.scale > 1


def test_two_rows_of_two_classes() -> None:
    choice = choose_cost(np.eye(2, dtype=np.float32), label_targets([0, 1], 2))
    assert (choice.cost, choice.scale, choice.accuracies, choice.rows) == (1.0, 1.0, {}, 0)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_class_of_one_answer_alone_always_gives_it(multi_label: bool) -> None:
    rows, labels = clusters(10, noise=0.3)
    targets = label_targets(labels, 6)  # of the last class there is no row
    if multi_label:
        targets = np.concatenate([targets, np.ones((50, 1), np.int8)], 1)  # and of another, every row
    svms, choice = train_calibrated_svms(rows, targets, multi_label=multi_label)
    assert not svms.weights[5:].any()
    assert svms.biases[5:].tolist() == pytest.approx([-choice.scale, choice.scale][: targets.shape[1] - 5])


def test_what_cannot_be_learned_is_said() -> None:
    rows, labels = clusters(3, noise=0.3)
    with pytest.raises(ValueError, match="infinities or NaN"):
        train_calibrated_svms(rows * np.float32(np.nan), label_targets(labels, 5), multi_label=False)
    with pytest.raises(ValueError, match=r"got shapes \[15, 40\] and \[14, 5\]"):
        train_calibrated_svms(rows, label_targets(labels[1:], 5), multi_label=False)
