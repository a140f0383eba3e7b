"""Linear SVMs: worked by hand, against scikit-learn's, and by the law that makes a minimum one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.linear.svm import LinearSVMs, Loss, label_targets, solve_gram, solve_svms


def clusters(seed: int, classes: int, each: int, width: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of length 1 and labels: a center for each class, and positive noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    rows = rng.random((classes, width))[labels] + noise * rng.random((len(labels), width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def objective(
    svms: LinearSVMs,
    rows: np.ndarray,
    targets: np.ndarray,
    cost: float,
    positive_weight: float = 1.0,
    bias_input: float = 1.0,
    loss: Loss = "squared_hinge",
) -> np.ndarray:
    short = np.maximum(0, 1 - targets * svms.decision_scores(rows).astype(np.float64))
    costs = np.where(targets > 0, cost * positive_weight, cost) * (targets != 0)
    losses = short if loss == "hinge" else short**2
    return ((svms.weights**2).sum(1) + (svms.biases / bias_input) ** 2) / 2 + (costs * losses).sum(0)


def test_a_picture_worked_by_hand() -> None:
    """Two positives at x = 2, two negatives at x = -2: the widest street between them runs along x = 0.

        y                      w = (1/2, 0), b = 0:
        1   -        +         scores +1 at the positives,
        0   - . . . .+ . x     -1 at the negatives,
           -2   0    2         0 in the middle
    """  # fmt: skip
    rows = np.array([[2, 0], [2, 1], [-2, 0], [-2, 1]], np.float32)
    svms = solve_svms(rows, [[1], [1], [-1], [-1]], cost=100, bias_input=10, loss="hinge", tolerance=1e-4)
    np.testing.assert_allclose(svms.weights, [[0.5, 0]], atol=0.01)
    np.testing.assert_allclose(svms.biases, [0], atol=0.01)


@pytest.mark.parametrize("width", [1, 4])  # the dual; Newton
def test_two_points_by_hand(width: int) -> None:
    """x = +1 and -1: by symmetry b = 0, and w minimizes w^2 / 2 + 2 C (1 - w)^2, so that w = 4 C / (1 + 4 C)."""
    rows = np.zeros((2, width), np.float32)
    rows[:, 0] = 1, -1
    svms = solve_svms(rows, [[1], [-1]], cost=0.75, tolerance=1e-4)
    np.testing.assert_allclose(svms.weights[:, 0], [0.75], atol=1e-3)
    np.testing.assert_allclose(svms.biases, [0], atol=1e-3)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 60),
    width=st.integers(1, 60),
    share=st.floats(0.05, 0.95),
    loss=st.sampled_from(["hinge", "squared_hinge"]),
    cost=st.sampled_from([0.01, 0.1]),
)
@settings(max_examples=30)
def test_no_small_change_lowers_the_objective_and_scikit_learn_finds_no_less(
    seed: int, count: int, width: int, share: float, loss: Loss, cost: float
) -> None:
    """The function is convex, so this makes it the minimum. Both solvers: the square goes by the shape, Newton or dual."""
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(seed)
    targets = np.where(rng.random((count, 2)) < share, 1, -1)
    targets[0], targets[1] = 1, -1
    rows = (rng.standard_normal((count, width)) + 0.4 * targets[:, :1]).astype(np.float32)
    svms = solve_svms(rows, targets, cost, positive_weight=2, bias_input=10, loss=loss)
    found = objective(svms, rows, targets, cost, 2, 10, loss)
    for _ in range(10):
        step = 0.01 * rng.standard_normal((2, width + 1)).astype(np.float32)
        moved = LinearSVMs(svms.weights + step[:, 1:], svms.biases + step[:, 0])
        assert (objective(moved, rows, targets, cost, 2, 10, loss) >= found * (1 - 2e-3)).all()
    exact = solve_svms(rows, targets, cost, positive_weight=2, bias_input=10, loss=loss, tolerance=1e-4)
    best = objective(exact, rows, targets, cost, 2, 10, loss)
    assert (found <= best * 1.0011).all(), "the gap to the dual bounds the error"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own limit of steps, stricter than 1 %
        theirs = LinearSVC(
            C=cost, class_weight={1: 2}, intercept_scaling=10, loss=loss, dual=True, max_iter=3000, random_state=0
        ).fit(rows, targets[:, 0])
    reached = LinearSVMs(theirs.coef_.astype(np.float32), theirs.intercept_.astype(np.float32))
    assert found[0] <= 1.002 * objective(reached, rows, targets[:, :1], cost, 2, 10, loss)[0]


@pytest.mark.parametrize("cost", [0.1, 10, 100])
@pytest.mark.parametrize("width", [5, 300])
def test_whole_images_as_scikit_learn(cost: float, width: int) -> None:
    from sklearn.svm import LinearSVC

    rows, labels = clusters(0, classes=4, each=12, width=width)
    targets = label_targets(labels, 4)
    ours = solve_svms(rows, targets, cost)
    for column in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = LinearSVC(C=cost, max_iter=10_000, random_state=0).fit(rows, targets[:, column])
        scores = ours.decision_scores(rows)[:, column]
        np.testing.assert_allclose(scores, theirs.decision_function(rows), atol=0.05)


def test_products_are_all_that_is_needed() -> None:
    """Features turned by a rotation, or written in more numbers, give the same scores; products of parts add up."""
    rows, labels = clusters(1, classes=4, each=10, width=20)
    targets = label_targets(labels, 4)
    coefficients, biases = solve_gram(rows[:, :8] @ rows[:, :8].T + rows[:, 8:] @ rows[:, 8:].T, targets)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 20)))[0].T.astype(np.float32)
    svms = solve_svms(rows @ turn, targets, tolerance=1e-4)
    np.testing.assert_allclose(rows @ rows.T @ coefficients + biases, svms.decision_scores(rows @ turn), atol=5e-3)


@pytest.mark.parametrize("width", [5, 60])
def test_rows_that_are_left_out_change_nothing(width: int) -> None:
    rows, labels = clusters(2, classes=3, each=10, width=width)
    targets = label_targets(labels, 3)
    without = solve_svms(rows[5:], targets[5:], tolerance=1e-4)
    targets[:5] = 0
    np.testing.assert_allclose(solve_svms(rows, targets, tolerance=1e-4).weights, without.weights, atol=5e-3)


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_an_svm_of_one_sign_needs_no_weights(loss: Loss) -> None:
    rows = np.ones((3, 2), np.float32)
    svms = solve_svms(rows, -np.ones((3, 1)), bias_input=10, loss=loss, tolerance=1e-4)
    np.testing.assert_allclose(svms.decision_scores(rows), -np.ones((3, 1)), atol=0.01)


@pytest.mark.parametrize("width", [10, 600])
def test_the_same_bits_again(width: int) -> None:
    rows, labels = clusters(4, classes=5, each=8, width=width)
    first, again = (solve_svms(rows, label_targets(labels, 5)) for _ in range(2))
    np.testing.assert_array_equal(first.weights, again.weights)


def test_what_cannot_be_used_is_said() -> None:
    rows, targets = np.eye(3, dtype=np.float32), label_targets([0, 1, 0], 2)
    with pytest.raises(ValueError, match=r"expected features \[N, D\] float32, got float64 of shape \[3, 3\]"):
        solve_svms(rows.astype(float), targets)
    with pytest.raises(ValueError, match=r"expected targets \[3, K\] of \+1, -1 and 0, got shape \[2, 2\]"):
        solve_svms(rows, targets[:2])
    with pytest.raises(ValueError, match="expected a cost above 0, got 0"):
        solve_svms(rows, targets, 0)
    with pytest.raises(ValueError, match="tolerance of 1e-4 or more, got 0"):
        solve_svms(rows, targets, tolerance=0)
    with pytest.raises(ValueError, match="labels from 0 to 1, got 0 to 2"):
        label_targets([0, 2], 2)


def test_a_solution_that_was_not_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppnet.linear.svm.MAX_STEPS", 1)
    monkeypatch.setattr("sppnet.linear.dual.MAX_ROUNDS", 2)
    rows, labels = clusters(7, classes=3, each=10, width=40, noise=5)
    with pytest.warns(UserWarning, match="above its optimum after 1 steps; give a smaller cost than 100"):
        solve_gram(rows @ rows.T, label_targets(labels, 3), 100)
    with pytest.warns(UserWarning, match="above its optimum after 2 rounds; give a smaller cost than 1000"):
        solve_svms(rows, label_targets(labels, 3), 1000, loss="hinge")
