"""One SVM a class: against LinearSVC, against the dual, and on cases worked by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.classification.svm import (
    ImageSVMs,
    choose_cost,
    label_targets,
    object_targets,
    solve_gram,
    train_image_svms,
)
from sppnet.classification.vectors import unit_length


def clusters(seed: int, classes: int, each: int, width: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of length 1 and labels: a centre for each class, and positive noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    rows = rng.random((classes, width))[labels] + noise * rng.random((len(labels), width))
    return unit_length(rows.astype(np.float32)), labels


def objective(svms: ImageSVMs, rows: np.ndarray, targets: np.ndarray, cost: float) -> np.ndarray:
    short = np.maximum(0, 1 - targets * svms.margins(rows)) * (targets != 0)
    return ((svms.weights**2).sum(1) + svms.biases**2) / 2 + cost * (short**2).sum(0)


def test_two_points_by_hand() -> None:
    """x = +1 and -1: by symmetry b = 0, and w minimises w^2 / 2 + 2 C (1 - w)^2, so that w = 4 C / (1 + 4 C)."""
    for solver in ("gram", "liblinear"):
        svms = train_image_svms([[1.0], [-1.0]], [[1], [-1]], cost=0.75, solver=solver)
        np.testing.assert_allclose(svms.weights, [[0.75]], atol=1e-3)
        np.testing.assert_allclose(svms.biases, [0], atol=1e-3)


@pytest.mark.parametrize("cost", [0.1, 1, 10, 100])
@pytest.mark.parametrize("width", [5, 300])
def test_both_solvers_find_the_same(cost: float, width: int) -> None:
    rows, labels = clusters(0, classes=6, each=12, width=width)
    targets = label_targets(labels, 6)
    targets[::7, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # liblinear's, of steps that ran out
        gram, liblinear = (train_image_svms(rows, targets, cost, solver=solver) for solver in ("gram", "liblinear"))
    assert (objective(gram, rows, targets, cost) <= 1.001 * objective(liblinear, rows, targets, cost)).all()
    np.testing.assert_allclose(gram.margins(rows), liblinear.margins(rows), atol=0.05)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(4, 30),
    width=st.integers(1, 40),
    classes=st.integers(1, 4),
    cost=st.sampled_from([0.01, 0.3, 1, 30]),
)
@settings(max_examples=25)
def test_no_small_change_lowers_the_objective(seed: int, count: int, width: int, classes: int, cost: float) -> None:
    """The law that makes it a minimum, for any data: the function is convex."""
    rng = np.random.default_rng(seed)
    rows = unit_length(rng.normal(size=(count, width)).astype(np.float32))
    targets = rng.choice([-1, 0, 1], (count, classes))
    targets[0], targets[1] = 1, -1
    svms = train_image_svms(rows, targets, cost, solver="gram")
    found = objective(svms, rows, targets, cost)
    for _ in range(20):
        moved = ImageSVMs(
            svms.weights + 0.03 * rng.normal(size=svms.weights.shape).astype(np.float32),
            svms.biases + 0.03 * rng.normal(size=classes).astype(np.float32),
        )
        assert (objective(moved, rows, targets, cost) >= found * (1 - 2e-4) - 1e-6).all()


def test_products_are_all_that_is_needed() -> None:
    """Features turned by a rotation, or written in more numbers, give the same margins; products of parts add up."""
    rows, labels = clusters(1, classes=4, each=10, width=20)
    targets = label_targets(labels, 4)
    coefficients, biases = solve_gram(rows[:, :8] @ rows[:, :8].T + rows[:, 8:] @ rows[:, 8:].T, targets)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 20)))[0].T.astype(np.float32)
    svms = train_image_svms(rows @ turn, targets, solver="gram")
    np.testing.assert_allclose(rows @ rows.T @ coefficients + biases, svms.margins(rows @ turn), atol=5e-3)


def test_images_that_are_left_out_change_nothing() -> None:
    rows, labels = clusters(2, classes=3, each=10, width=30)
    targets = label_targets(labels, 3)
    without = train_image_svms(rows[5:], targets[5:], solver="gram")
    targets[:5] = 0
    np.testing.assert_allclose(train_image_svms(rows, targets, solver="gram").weights, without.weights, atol=2e-3)


def test_unseen_images_are_told_apart() -> None:
    rows, labels = clusters(3, classes=8, each=20, width=60)
    svms = train_image_svms(rows[::2], label_targets(labels[::2], 8))
    assert (svms.margins(rows[1::2]).argmax(1) == labels[1::2]).mean() > 0.9


def test_the_same_bits_again() -> None:
    rows, labels = clusters(4, classes=5, each=8, width=600)
    first, again = (train_image_svms(rows, label_targets(labels, 5)) for _ in range(2))
    np.testing.assert_array_equal(first.weights, again.weights)


def test_targets_of_objects_count_as_the_devkit_does() -> None:
    truth = [([1], [False]), ([1], [True]), ([2, 1], [True, False]), ([], []), ([2, 2], [True, False])]
    assert object_targets(truth, 2).tolist() == [[1, -1], [0, -1], [1, 0], [-1, -1], [-1, 1]]


def test_arrays_of_a_model_file() -> None:
    rows, labels = clusters(5, classes=3, each=4, width=7)
    svms = train_image_svms(rows, label_targets(labels, 3))
    again = ImageSVMs.of_arrays(svms.arrays())
    np.testing.assert_array_equal(again.margins(rows), svms.margins(rows))
    assert {name: (each.shape, each.dtype.name) for name, each in svms.arrays().items()} == {
        "weights": ((3, 7), "float32"),
        "biases": ((3,), "float32"),
    }


def test_the_cost_is_chosen_on_what_is_held_out() -> None:
    rows, labels = clusters(6, classes=4, each=12, width=50)
    order = np.random.default_rng(0).permutation(len(rows))
    train, held_out = order[:32], order[32:]
    asked: list[tuple[int, ...]] = []
    answers = iter([0.3, 0.7, 0.7])

    def measure(margins: np.ndarray) -> float:
        asked.append(margins.shape)
        return next(answers)

    gram = rows @ rows.T
    cost, measured = choose_cost(gram, label_targets(labels, 4), train, held_out, measure, (10, 0.1, 1))
    assert (cost, measured) == (1, [0.3, 0.7, 0.7])  # in order of the costs; the smaller of equals
    assert asked == [(16, 4)] * 3
    gram[np.ix_(held_out, held_out)] = np.nan  # and it learns from the others alone
    choose_cost(gram, label_targets(labels, 4), train, held_out, lambda margins: float(np.isfinite(margins).all()))


def test_what_cannot_be_used_is_said() -> None:
    rows, targets = np.eye(3, dtype=np.float32), label_targets([0, 1, 0], 2)
    with pytest.raises(ValueError, match=r"expected targets \[3, K\] of \+1, -1 and 0, got shape \[2, 2\]"):
        train_image_svms(rows, targets[:2])
    with pytest.raises(ValueError, match="class 1 lacks positives or negatives"):
        train_image_svms(rows, label_targets([0, 0, 0], 2) * [[-1, 1]] * [[1, 1], [-1, 1], [1, 1]])
    with pytest.raises(ValueError, match="all finite"):
        train_image_svms(rows * np.nan, targets)
    with pytest.raises(ValueError, match="cost: expected above 0, got 0"):
        train_image_svms(rows, targets, 0)
    with pytest.raises(ValueError, match="solver must be"):
        train_image_svms(rows, targets, solver="smo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected gram \[N, N\], got shape \[3, 2\]"):
        solve_gram(rows[:, :2], targets)
    with pytest.raises(ValueError, match="tolerance of 1e-5 or more"):
        solve_gram(rows, targets, tolerance=1e-9)
    with pytest.raises(ValueError, match=r"expected features \[N, 3\], got shape \[1, 2\]"):
        train_image_svms(rows, targets).margins([[1, 2]])
    with pytest.raises(ValueError, match="labels from 0 to 1, got 0 to 2"):
        label_targets([0, 2], 2)
    with pytest.raises(ValueError, match="gt_labels from 1 to 2"):
        object_targets([([3], [False])], 2)
    with pytest.raises(ValueError, match="at least one"):
        choose_cost(rows, targets, [0, 1], [2], lambda margins: 0, ())


def test_a_solution_that_was_not_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppnet.classification.newton.MOST_STEPS", 1)
    rows, labels = clusters(7, classes=3, each=10, width=40, noise=5)
    with pytest.warns(UserWarning, match="above its optimum after 1 steps; give a smaller cost than 100"):
        solve_gram(rows @ rows.T, label_targets(labels, 3), 100)
