"""Two ways to find one linear SVM: a compiled one, side by side for all classes, and liblinear's.

Both take the features [n, D] and signs [n] of one class against the rest, and minimise

    (|w|^2 + (b / B)^2) / 2  +  sum of c_i loss(1 - y_i (w x_i + b)),   loss(z) = max(0, z) or max(0, z)^2,

with c_i = cost, times ``positive_weight`` where y_i = +1. B, the input that the bias stands on, makes a large bias cheap.

*compiled* climbs the dual one coordinate at a time, as liblinear does, on dense rows in single precision, in as many threads
as there are classes and processors, until the gap to the dual, which bounds the error, is small. *liblinear* is the original.
Source: Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np

Loss = Literal["hinge", "squared_hinge"]
MOST_ROUNDS = 10_000  # over the rows; some ten are usual
_SEED = 0  # of the order in which rows are visited: no part of the problem, so nobody's to choose
_LOOK_AFTER = 50  # rounds
_COMPILING = threading.Lock()


def solve_compiled(
    features: np.ndarray,
    signs: np.ndarray,
    *,
    cost: float,
    positive_weight: float,
    bias_input: float,
    loss: Loss,
    tolerance: float = 1e-3,
) -> tuple[np.ndarray, float]:
    """Find the SVM whose objective is within ``tolerance``, as a share of it, of the smallest.

    The same numbers give the same result, bit for bit, on one machine. Holds no lock: call it from as many threads as
    there are processors.

    Args:
        features: [n, D] float32, rows one after another in memory.
        signs: [n], +1 or -1.
        cost: of a unit of loss.
        positive_weight: times the cost where the sign is +1.
        bias_input: B above.
        loss: "hinge" or "squared_hinge".
        tolerance: not below 1e-4, which is what single precision surely reaches.

    Returns:
        Weights [D] float32, bias.

    Raises:
        ValueError: features of another kind, signs of another length or value, too small a tolerance.

    Example:
        >>> features, signs = np.array([[2, 0], [-2, 0]], np.float32), np.array([1, -1])
        >>> weights, bias = solve_compiled(
        ...     features, signs, cost=100, positive_weight=1, bias_input=1, loss="hinge", tolerance=1e-4
        ... )
        >>> weights.round(2).tolist(), round(bias, 2)
        ([0.5, 0.0], 0.0)
    """
    _check(features, signs)
    if tolerance < 1e-4:
        raise ValueError(f"expected a tolerance of 1e-4 or more, got {tolerance}")
    costs = np.where(signs > 0, cost * positive_weight, cost).astype(np.float64)
    squared = loss == "squared_hinge"
    weights, bias, gap = _compiled()(
        np.ascontiguousarray(features),
        signs.astype(np.float64),
        np.full(len(signs), np.finfo(np.float64).max) if squared else costs,
        0.5 / costs if squared else np.zeros(len(signs)),
        float(bias_input),
        float(tolerance),
        MOST_ROUNDS,
        _SEED,
    )
    if gap > tolerance:
        warnings.warn(
            f"an SVM may still be {gap:.1%} above its optimum after {MOST_ROUNDS} rounds; give a smaller cost than {cost:g}",
            stacklevel=2,
        )
    return weights, float(bias)


def solve_liblinear(
    features: np.ndarray, signs: np.ndarray, *, cost: float, positive_weight: float, bias_input: float, loss: Loss
) -> tuple[np.ndarray, float]:
    """Find the SVM with liblinear, the solver of the paper's authors; arguments and result as of `solve_compiled`.

    Raises:
        ValueError: as `solve_compiled`, and signs that are all the same, which liblinear does not take.
    """
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    _check(features, signs)
    if len(np.unique(signs)) < 2:
        raise ValueError("liblinear needs examples of both signs: use the compiled solver, or add some")
    svm = LinearSVC(
        C=cost,
        class_weight={1: positive_weight},
        intercept_scaling=bias_input,
        loss=loss,
        dual=True,
        max_iter=MOST_ROUNDS,
        random_state=_SEED,
    )
    svm.fit(features, np.where(signs > 0, 1, -1))
    return svm.coef_[0].astype(np.float32), float(svm.intercept_[0])


def _check(features: np.ndarray, signs: np.ndarray) -> None:
    if features.ndim != 2 or features.dtype != np.float32:
        raise ValueError(f"expected features [n, D] float32, got {features.dtype} of shape {features.shape}")
    if signs.shape != features.shape[:1] or not np.isin(signs, (-1, 1)).all():
        raise ValueError(f"expected signs [{len(features)}] of +1 and -1, got shape {signs.shape}")


def _compiled() -> Callable[..., Any]:
    with _COMPILING:  # so that threads that start together do not compile it each
        return _compile()


@lru_cache
def _compile() -> Callable[..., Any]:
    import numba

    vector = "float64[::1]"
    signature = f"Tuple((float32[::1], float64, float64))(float32[:, ::1], {vector}, {vector}, {vector}, float64, float64, int64, int64)"
    # sums in any order, so that they vectorise; nothing else of "fast math": infinities must stay what they are
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(_ascend)
    except RuntimeError:  # no folder to keep it in: every process compiles it
        return numba.njit(signature, **options)(_ascend)


def _ascend(x, y, upper, diagonal, bias_input, tolerance, most_rounds, seed):  # type: ignore[no-untyped-def]
    """Weights, bias, and the relative gap to the dual that was reached.

    The dual is sum(a) - |sum a y x|^2 / 2 - sum(diagonal a^2) / 2 with 0 <= a <= upper: for the hinge the diagonal is 0, for
    its square there is no upper. Rows whose a stays at a bound are left out for a while ("shrinking"), then checked.
    """
    count, width = x.shape
    weights, bias = np.zeros(width, np.float32), 0.0  # bias: its weight, to be multiplied by its input
    a = np.zeros(count)
    curvature = np.empty(count)
    for i in range(count):
        square = np.float32(0)
        for j in range(width):
            square += x[i, j] * x[i, j]
        curvature[i] = square + bias_input * bias_input + diagonal[i]

    np.random.seed(seed)  # noqa: NPY002 -- compiled: a generator of this thread's own
    order, active = np.arange(count), count
    highest, lowest = np.inf, -np.inf  # gradients beyond these: not worth a visit
    spread = 0.1  # of the gradients, below which all rows are looked at, as they are now and then anyway
    gap, unlooked = 1.0, 0
    for round_ in range(1, most_rounds + 1):
        for k in range(active):
            other = k + np.random.randint(active - k)  # noqa: NPY002
            order[k], order[other] = order[other], order[k]
        high, low = -np.inf, np.inf
        k = 0
        while k < active:
            i = order[k]
            dot = np.float32(0)
            for j in range(width):
                dot += weights[j] * x[i, j]
            gradient = y[i] * (dot + bias * bias_input) - 1 + diagonal[i] * a[i]
            shrink = (a[i] == 0 and gradient > highest) or (a[i] == upper[i] and gradient < lowest)
            if shrink:
                active -= 1
                order[k], order[active] = order[active], order[k]
                continue
            projected = gradient
            if (a[i] == 0 and gradient > 0) or (a[i] == upper[i] and gradient < 0):
                projected = 0.0
            high, low = max(high, projected), min(low, projected)
            if projected != 0:
                moved = min(max(a[i] - gradient / curvature[i], 0.0), upper[i])
                step = (moved - a[i]) * y[i]
                a[i] = moved
                step32 = np.float32(step)
                for j in range(width):
                    weights[j] += step32 * x[i, j]
                bias += step * bias_input
            k += 1
        unlooked += 1
        if active > 0 and high - low > spread and unlooked < _LOOK_AFTER and round_ < most_rounds:
            highest = high if high > 0 else np.inf
            lowest = low if low < 0 else -np.inf
            continue

        exact = np.zeros(width)  # the sums of many small steps in single precision have drifted
        for i in range(count):
            if a[i] > 0:
                factor = a[i] * y[i]
                for j in range(width):
                    exact[j] += factor * x[i, j]
        weights[:] = exact
        bias = (a * y).sum() * bias_input
        loss, dual = 0.0, 0.0
        for i in range(count):
            dot = np.float32(0)
            for j in range(width):
                dot += weights[j] * x[i, j]
            short = 1 - y[i] * (dot + bias * bias_input)
            if short > 0:
                loss += short * short / (2 * diagonal[i]) if diagonal[i] > 0 else upper[i] * short
            dual += a[i] - diagonal[i] * a[i] * a[i] / 2
        length = bias * bias
        for j in range(width):
            length += exact[j] * exact[j]
        primal = length / 2 + loss
        gap = (primal - (dual - length / 2)) / primal if primal > 0 else 0.0
        if gap <= tolerance:
            break
        active, highest, lowest, spread, unlooked = count, np.inf, -np.inf, spread / 2, 0
    return weights, bias * bias_input, gap
