"""The dual of a linear SVM, climbed one row at a time by compiled code: features and signs of one class -> weights, bias.

As liblinear does, the original's solver, but on dense rows in single precision, in as many threads as call it, until the gap to
the dual, which bounds the error, is small; measured about ten times as fast.
Source: Hsieh et al., "A dual coordinate descent method for large-scale linear SVM", ICML 2008.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from sppnet.ops._numba import compiled

MAX_ROUNDS = 10_000  # over the rows; some ten are usual
_SEED = 0  # of the order in which rows are visited: no part of the problem, so nobody's to choose
_LOOK_AFTER = 50  # rounds


def solve_dual(
    features: np.ndarray, signs: np.ndarray, costs: np.ndarray, bias_input: float, loss: str, tolerance: float
) -> tuple[np.ndarray, float, float]:
    """Find one SVM; `sppnet.linear.svm.solve_svms` says what is minimized.

    Args:
        features: [n, D] float32.
        signs: [n] of +1 and -1.
        costs: [n], above 0.
        bias_input, loss, tolerance: as of `solve_svms`.

    Returns:
        Weights [D] float32, bias, and the gap that is left; above the tolerance where `MAX_ROUNDS` were too few.
    """
    x, y, costs = np.ascontiguousarray(features), signs.astype(np.float64), costs.astype(np.float64)
    if loss == "squared_hinge":
        upper, diagonal = np.full(len(y), np.finfo(np.float64).max), 0.5 / costs
    else:
        upper, diagonal = costs, np.zeros(len(y))
    weights, bias, gap = _ascend(x, y, upper, diagonal, float(bias_input), float(tolerance), MAX_ROUNDS)
    return weights, float(bias), float(gap)


# Sums in any order, so that they vectorize; nothing else of "fast math": infinities must stay what they are.
@partial(compiled, fastmath={"reassoc", "contract"})
def _ascend(x, y, upper, diagonal, bias_input, tolerance, max_rounds):  # type: ignore[no-untyped-def]
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

    np.random.seed(_SEED)  # noqa: NPY002 -- compiled: a generator of this thread's own
    order, active = np.arange(count), count
    highest, lowest = np.inf, -np.inf  # gradients beyond these: not worth a visit
    spread = 0.1  # of the gradients, below which all rows are looked at, as they are now and then anyway
    gap, unlooked = 1.0, 0
    for round_ in range(1, max_rounds + 1):
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
        if active > 0 and high - low > spread and unlooked < _LOOK_AFTER and round_ < max_rounds:
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
