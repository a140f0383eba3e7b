"""Newton's method for linear SVMs that are written by coefficients: the inside of `sppnet.classification.svm.solve_gram`.

products K [N, N] and signs y [N, K'] -> coefficients a [N, K'], all columns at once. With weights X^T a, and the bias as one
more feature that is 1 everywhere, the scores are f = K a, and each column's objective is

    a^T K a / 2  +  C sum of max(0, 1 - y_i f_i)^2.

A step solves a linear system by conjugate gradients; how far the objective may still be from its smallest value is bounded
by that of the dual. Source: Chapelle, "Training a support vector machine in the primal", Neural Computation 2007.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

MOST_STEPS = 60  # some ten are usual
_MOST_INNER = 60  # products for one of them
_INNER_TOLERANCE = 0.05  # of its linear system: the next step takes care of the rest
_SHARES = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.01])  # of a step, where the whole would not help


def minimise(
    products: FloatArray, signs: FloatArray, cost: float, tolerance: float
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Find the coefficients of each column.

    Args:
        products: [N, N] float32, the bias's 1 added.
        signs: [N, K] float32 of +1, -1, or 0 for what a column leaves out.
        cost: C above.
        tolerance: how far above its smallest value, as a share of it, each column's objective may be.

    Returns:
        coefficients [N, K], and the gap [K] that is left of each; above the tolerance where `MOST_STEPS` were too few.

    Example:
        >>> products, signs = np.eye(2, dtype=np.float32) + 1, np.array([[1], [-1]], np.float32)
        >>> coefficients, gaps = minimise(products, signs, cost=1e4, tolerance=1e-4)
        >>> (products @ coefficients).round(2).ravel().tolist()
        [1.0, -1.0]
    """
    coefficients = np.zeros_like(signs)
    scores = np.zeros_like(signs)  # products @ coefficients
    left = np.arange(signs.shape[1])  # columns that are not done
    gaps = np.full(len(left), np.inf)
    for _ in range(MOST_STEPS):
        y, now, f = signs[:, left], coefficients[:, left], scores[:, left]
        now, f = _step(y, now, f, *_newton_direction(products, y, now, f, cost), cost)
        coefficients[:, left], scores[:, left] = now, f
        gaps[left] = _gap(products, y, now, f, cost)
        left = left[gaps[left] > tolerance]
        if not len(left):
            break
    return coefficients, gaps


def _newton_direction(
    products: FloatArray, signs: FloatArray, now: FloatArray, f: FloatArray, cost: float
) -> tuple[FloatArray, FloatArray]:
    """By how much coefficients and scores should change: (1 + 2C K D) d = -gradient, D being 1 where the loss is felt.

    Conjugate gradients for the weights, all columns at once. Weights are written by their coefficients, so that their
    products go through K, once an iteration; each iteration lowers the objective's quadratic model.
    """
    active = np.float32(2 * cost) * ((signs * f < 1) & (signs != 0))
    residual = active * (signs - f) - now  # the negative gradient
    scores = products @ residual
    direction, direction_scores = residual, scores
    change, change_scores = np.zeros_like(now), np.zeros_like(now)
    square = _columns(residual, scores)
    goal = _INNER_TOLERANCE**2 * square
    for _ in range(_MOST_INNER):
        going = square > goal
        if not going.any():
            break
        image = direction + active * direction_scores
        curvature = _columns(image, direction_scores)
        going &= curvature > 0
        length = np.where(going, square / np.where(going, curvature, 1), 0).astype(np.float32)
        change, change_scores = change + length * direction, change_scores + length * direction_scores
        residual = residual - length * image
        scores = products @ residual
        before, square = square, _columns(residual, scores)
        turn = np.where(going, square / np.where(going, before, 1), 0).astype(np.float32)
        direction, direction_scores = residual + turn * direction, scores + turn * direction_scores
    return change, change_scores


def _step(
    signs: FloatArray, now: FloatArray, f: FloatArray, change: FloatArray, f_change: FloatArray, cost: float
) -> tuple[FloatArray, FloatArray]:
    """As much of the change as helps each class most; its scores change in proportion."""
    shares = _SHARES.astype(np.float32)
    objectives = [_objective(signs, now + share * change, f + share * f_change, cost) for share in shares]
    best = shares[np.argmin(objectives, 0)]
    return now + best * change, f + best * f_change


def _objective(signs: FloatArray, coefficients: FloatArray, f: FloatArray, cost: float) -> npt.NDArray[np.float64]:
    short = np.maximum(0, 1 - signs * f) * (signs != 0)
    return _columns(coefficients, f) / 2 + cost * _columns(short, short)


def _gap(
    products: FloatArray, signs: FloatArray, coefficients: FloatArray, f: FloatArray, cost: float
) -> npt.NDArray[np.float64]:
    """How far the objective is from the dual's, as a share of it. Any a >= 0 bounds the smallest objective from below:
    sum(a) - |sum a y x|^2 / 2 - sum(a^2) / 4C. At the optimum a is what each image loses, and, but for what the products do
    not see, the coefficients: the former is exact, the latter less shaken by rounding where C is large."""
    primal = _objective(signs, coefficients, f, cost)
    bound = np.zeros_like(primal)
    for a in (2 * cost * np.maximum(0, 1 - signs * f), np.maximum(0, coefficients * signs)):
        dual = (a * signs).astype(np.float32)
        linear, square = _columns(dual, signs), _columns(dual, products @ dual) + _columns(dual, dual) / (2 * cost)
        bound = np.maximum(bound, linear**2 / (2 * np.maximum(square, 1e-30)))  # the best of all multiples of a
    return (primal - bound) / np.maximum(primal, 1e-30)


def _columns(first: FloatArray, second: FloatArray) -> npt.NDArray[np.float64]:
    """The product of each column with its like, in double precision."""
    result: npt.NDArray[np.float64] = np.einsum("nk,nk->k", first, second, dtype=np.float64)
    return result
