"""Linear SVMs, each class against the rest: what is minimized, and the choice between two solvers of it.

features x [N, D] and targets y [N, K] of +1, -1, or 0 (left out) -> weights [K, D] and biases [K] that minimize, class by class,

    (|w|^2 + (b / B)^2) / 2  +  sum of c_i loss(1 - y_i (w x_i + b)),   loss(z) = max(0, z) or max(0, z)^2,

with c_i = cost, times ``positive_weight`` where y_i = +1. B, the input that the bias stands on, makes a large bias cheap. With
the square and B = 1 this is what scikit-learn's ``LinearSVC`` minimizes.

*Many rows*: the dual, one row after another, compiled (`sppnet.linear.dual`). *Few rows of long vectors*, as the pyramids of whole
images: Newton's method (here) on coefficients a of the rows, w = a X. It sees features through their products K = X X^T + B^2
alone, [N, N], and solves all classes together. With scores f = K a, each column's objective is
a^T K a / 2 + sum of c_i max(0, 1 - y_i f_i)^2. Both stop when the gap to the dual, which bounds the error, is small.

Source: Chapelle, "Training a support vector machine in the primal", Neural Computation 2007; arXiv:1406.4729, section 3.2.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sppnet.linear import dual

Loss = Literal["hinge", "squared_hinge"]
FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

GRAM_TOLERANCE = 1e-4  # of `solve_gram`: single precision reaches 1e-5
MAX_STEPS = 60  # of Newton's method; some ten are usual
MAX_PRODUCTS = 60  # with K, for one of them
INNER_TOLERANCE = 0.05  # of a step's linear system: the next step takes care of the rest
SHARES = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.01], np.float32)  # of a step, where the whole would not help


class LinearSVMs(NamedTuple):
    """K linear SVMs over the same features."""

    weights: FloatArray  # [K, D]
    biases: FloatArray  # [K]

    def decision_scores(self, features: np.ndarray) -> FloatArray:
        """Features [N, D] -> [N, K] float32, above 0 for yes."""
        scores: FloatArray = np.asarray(features, np.float32) @ self.weights.T + self.biases
        return scores


def label_targets(labels: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.int8]:
    """Targets [N, K] of rows that have one class each: +1 in the column of the label, -1 elsewhere.

    Example:
        >>> label_targets([1, 0], 3).tolist()
        [[-1, 1, -1], [1, -1, -1]]
    """
    given = np.asarray(labels, np.int64)
    if given.size and not 0 <= given.min() <= given.max() < num_classes:
        raise ValueError(f"expected labels from 0 to {num_classes - 1}, got {given.min()} to {given.max()}")
    return (2 * np.eye(num_classes, dtype=np.int8) - 1)[given]


def solve_svms(
    features: np.ndarray,
    targets: npt.ArrayLike,
    cost: float = 1.0,
    *,
    positive_weight: float = 1.0,
    bias_input: float = 1.0,
    loss: Loss = "squared_hinge",
    tolerance: float = 1e-3,
) -> LinearSVMs:
    """Find the SVM of each class.

    The same numbers give the same result, bit for bit, on one machine with one thread count. The dual solver holds no lock: call
    it from as many threads as there are processors.

    Args:
        features: [N, D] float32; ``cost`` is meant for their usual length.
        targets: [N, K] of +1, -1, or 0 for rows that a class leaves out.
        cost, positive_weight, bias_input, loss: see the module.
        tolerance: how far above its smallest value, as a share of it, each objective may be; not below 1e-4.

    Raises:
        ValueError: features of another kind, or targets of another shape or value.

    Warns:
        UserWarning: the tolerance was not reached.

    Example:
        >>> features = np.array([[2, 0], [-2, 0]], np.float32)
        >>> svms = solve_svms(features, [[1], [-1]], cost=100, loss="hinge", tolerance=1e-4)
        >>> svms.weights.round(2).tolist(), svms.decision_scores(features).round(2).tolist()
        ([[0.5, 0.0]], [[1.0], [-1.0]])
    """
    if features.ndim != 2 or features.dtype != np.float32:
        raise ValueError(f"expected features [N, D] float32, got {features.dtype} of shape {list(features.shape)}")
    if tolerance < 1e-4:
        raise ValueError(f"expected a tolerance of 1e-4 or more, got {tolerance}")
    signs, costs = _signs_and_costs(targets, len(features), cost, positive_weight)
    if loss == "squared_hinge" and len(features) <= features.shape[1]:
        coefficients, gaps = _newton(features @ features.T + np.float32(bias_input**2), signs, costs, tolerance)
        weights, biases = coefficients.T @ features, bias_input**2 * coefficients.sum(0)
        limit = f"{MAX_STEPS} steps"
    else:
        solved = []
        for y, c in zip(signs.T, costs.T, strict=True):
            rows = features if c.all() else features[c > 0]
            solved.append(dual.solve_dual(rows, y[c > 0], c[c > 0], bias_input, loss, tolerance))
        weights, biases, gaps = (np.array(part) for part in zip(*solved, strict=True))
        limit = f"{dual.MAX_ROUNDS} rounds"
    _warn(gaps, tolerance, limit, cost)
    return LinearSVMs(np.ascontiguousarray(weights, np.float32), biases.astype(np.float32))


def solve_gram(gram: FloatArray, targets: npt.ArrayLike, cost: float = 1.0) -> tuple[FloatArray, FloatArray]:
    """Find the SVMs of all classes, with the squared hinge and B = 1, from the products of the features alone.

    Args:
        gram: [N, N], the features' products X X^T, or a sum of such.
        targets, cost: as of `solve_svms`.

    Returns:
        coefficients [N, K] and biases [K]: the weights are ``coefficients.T @ X``, and the decision scores of rows with
        products G [T, N] to these ``G @ coefficients + biases``.

    Example:
        >>> rows = np.array([[1, 0], [0, 1]], np.float32)
        >>> coefficients, biases = solve_gram(rows @ rows.T, label_targets([0, 1], 2), cost=1e4)
        >>> (rows @ rows.T @ coefficients + biases).round(2).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    signs, costs = _signs_and_costs(targets, len(gram), cost)
    coefficients, gaps = _newton(gram.astype(np.float32) + 1, signs, costs, GRAM_TOLERANCE)
    _warn(gaps, GRAM_TOLERANCE, f"{MAX_STEPS} steps", cost)
    return coefficients, coefficients.sum(0)


def _signs_and_costs(
    targets: npt.ArrayLike, count: int, cost: float, positive_weight: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    signs = np.asarray(targets)
    if signs.ndim != 2 or len(signs) != count or not np.isin(signs, (-1, 0, 1)).all():
        raise ValueError(f"expected targets [{count}, K] of +1, -1 and 0, got shape {list(signs.shape)}")
    if not cost > 0:
        raise ValueError(f"expected a cost above 0, got {cost}")
    costs = np.where(signs > 0, cost * positive_weight, cost) * (signs != 0)
    return signs.astype(np.float32), costs.astype(np.float32)


def _warn(gaps: Doubles, tolerance: float, limit: str, cost: float) -> None:
    if gaps.size and gaps.max() > tolerance:
        told = f"an SVM may still be {gaps.max():.1%} above its optimum after {limit}"
        warnings.warn(f"{told}; give a smaller cost than {cost:g}", stacklevel=3)


# Newton's method, all columns at once


def _newton(products: FloatArray, signs: FloatArray, costs: FloatArray, tolerance: float) -> tuple[FloatArray, Doubles]:
    """Products K [N, N], the bias's B^2 added, signs and costs [N, K] -> coefficients [N, K], and the gap that is left of each."""
    coefficients, scores = np.zeros_like(signs), np.zeros_like(signs)  # scores: products @ coefficients
    left = np.arange(signs.shape[1])  # columns that are not done
    gaps = np.full(len(left), np.inf)
    for _ in range(MAX_STEPS):
        y, c, a, f = signs[:, left], costs[:, left], coefficients[:, left], scores[:, left]
        change, f_change = _newton_direction(products, y, c, a, f)
        tried = [_objective(y, c, a + share * change, f + share * f_change) for share in SHARES]
        best = SHARES[np.argmin(tried, 0)]  # as much of the step as helps each class most
        a, f = a + best * change, f + best * f_change  # scores change in proportion
        coefficients[:, left], scores[:, left] = a, f
        gaps[left] = _gap(products, y, c, a, f)
        left = left[gaps[left] > tolerance]
        if not len(left):
            break
    return coefficients, gaps


def _newton_direction(
    products: FloatArray, y: FloatArray, c: FloatArray, a: FloatArray, f: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """By how much coefficients and scores should change: (1 + 2 c K D) d = -gradient, D being 1 where the loss is felt.

    Conjugate gradients for the weights: their products go through K, once an iteration, and each lowers the quadratic model.
    """
    active = 2 * c * (y * f < 1)
    residual = active * (y - f) - a  # the negative gradient
    scores = products @ residual
    direction, direction_scores = residual, scores
    change, change_scores = np.zeros_like(a), np.zeros_like(a)
    square = _columns(residual, scores)
    goal = INNER_TOLERANCE**2 * square
    for _ in range(MAX_PRODUCTS):
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


def _objective(y: FloatArray, c: FloatArray, a: FloatArray, f: FloatArray) -> Doubles:
    short = np.maximum(0, 1 - y * f)
    return _columns(a, f) / 2 + _columns(c * short, short)


def _gap(products: FloatArray, y: FloatArray, c: FloatArray, a: FloatArray, f: FloatArray) -> Doubles:
    """How far the objective is from the dual's, as a share of it.

    Any d >= 0 bounds the smallest objective from below: sum(d) - |sum d y x|^2 / 2 - sum(d^2 / 4c). At the optimum d is what each
    row loses, and, but for what the products do not see, the coefficients: the former is exact, the latter less shaken by
    rounding where the cost is large.
    """
    primal = _objective(y, c, a, f)
    bound = np.zeros_like(primal)
    for d in (2 * c * np.maximum(0, 1 - y * f), np.maximum(0, a * y)):
        signed = d * y
        linear = _columns(signed, y)
        square = _columns(signed, products @ signed) + _columns(signed, signed / np.maximum(2 * c, 1e-30))
        bound = np.maximum(bound, linear**2 / (2 * np.maximum(square, 1e-30)))  # the best of all multiples of d
    return (primal - bound) / np.maximum(primal, 1e-30)


def _columns(first: FloatArray, second: FloatArray) -> Doubles:
    """The product of each column with its like, in double precision."""
    result: Doubles = np.einsum("nk,nk->k", first, second, dtype=np.float64)
    return result
