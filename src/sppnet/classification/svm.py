"""One linear SVM a class, each against the rest: the classifier on top of `sppnet.classification.features`.

features [N, D] and targets [N, K] of +1, -1, or 0 (left out) -> weights [K, D], biases [K] -> margins [N, K]. Each SVM
minimises what scikit-learn's ``LinearSVC`` does by default,

    (|w|^2 + b^2) / 2  +  C sum of max(0, 1 - y_i (w x_i + b))^2.

Two solvers find it. *liblinear* is that of ``LinearSVC``: one class after another, in time that grows with D. *gram* sees the
features only through their products X X^T, [N, N], and solves all classes together by matrix products
(`sppnet.classification.newton`) until the gap to the dual, which bounds the error, is small: the faster one where D is
larger than N, as with pyramids of many bins. Products add up over layers, levels and scales.
Source: arXiv:1406.4729, sections 3.2 and 3.3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sppnet.classification import newton
from sppnet.classification.newton import FloatArray

Solver = Literal["auto", "gram", "liblinear"]
COSTS = (0.1, 1.0, 10.0)  # of vectors of length 1: tried by `choose_cost`, if no others are given


@dataclass(frozen=True, eq=False)
class ImageSVMs:
    """K linear SVMs over the same features.

    Example:
        >>> svms = ImageSVMs(np.array([[1, 0], [0, 1]], np.float32), np.array([0, -0.5], np.float32))
        >>> svms.margins(np.array([[0.2, 1.0]], np.float32)).tolist()
        [[0.20000000298023224, 0.5]]
    """

    weights: FloatArray  # [K, D]
    biases: FloatArray  # [K]

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.biases.shape != self.weights.shape[:1]:
            raise ValueError(
                f"expected weights [K, D] and biases [K], got shapes {list(self.weights.shape)} and "
                f"{list(self.biases.shape)}"
            )

    def margins(self, features: npt.ArrayLike) -> FloatArray:
        """How surely each image shows each class.

        Args:
            features: [N, D], as those of the training.

        Returns:
            [N, K] float32, above 0 for yes. The class of an image that has one is the column of the largest.

        Raises:
            ValueError: features of another length.
        """
        rows = np.asarray(features, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.weights.shape[1]:
            raise ValueError(f"expected features [N, {self.weights.shape[1]}], got shape {list(rows.shape)}")
        result: FloatArray = rows @ self.weights.T + self.biases
        return result

    def arrays(self) -> dict[str, FloatArray]:
        """For a .safetensors file; `of_arrays` takes it."""
        return {"weights": np.ascontiguousarray(self.weights), "biases": np.ascontiguousarray(self.biases)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ImageSVMs:
        """What `arrays` gave."""
        return cls(arrays["weights"].astype(np.float32), arrays["biases"].astype(np.float32))


def label_targets(labels: npt.ArrayLike, classes: int) -> npt.NDArray[np.int8]:
    """Targets of images that have one class each.

    Args:
        labels: [N] integers in 0..classes-1.
        classes: K.

    Returns:
        [N, K] int8: +1 in the column of the label, -1 elsewhere.

    Raises:
        ValueError: labels of another kind or range.

    Example:
        >>> label_targets([1, 0], 3).tolist()
        [[-1, 1, -1], [1, -1, -1]]
    """
    given = np.asarray(labels)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise ValueError(f"expected labels [N] of whole numbers, got {list(given.shape)} {given.dtype}")
    if given.size and not (given.min() >= 0 and given.max() < classes):
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {given.min()} to {given.max()}")
    targets = np.full((len(given), classes), -1, np.int8)
    targets[np.arange(len(given)), given.astype(np.int64)] = 1
    return targets


def object_targets(ground_truth: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], classes: int) -> npt.NDArray[np.int8]:
    """Targets of images that hold any number of objects, some of them difficult.

    Args:
        ground_truth: for each of N images gt_labels [G], 1..classes, and difficult [G].
        classes: K.

    Returns:
        [N, K] int8: +1 where there is an object that is not difficult, 0 (left out) where there are only difficult ones,
        -1 where there is none: how `sppnet.metrics.voc.evaluate_voc_images` counts.

    Raises:
        ValueError: a label outside 1..classes.

    Example:
        >>> object_targets([([1, 2, 2], [False, True, False]), ([2], [True])], 2).tolist()
        [[1, 1], [-1, 0]]
    """
    targets = np.full((len(ground_truth), classes), -1, np.int8)
    for row, (labels, difficult) in zip(targets, ground_truth, strict=True):
        columns, hard = np.asarray(labels, np.int64) - 1, np.asarray(difficult, np.bool_)
        if columns.size and not (columns.min() >= 0 and columns.max() < classes):
            raise ValueError(f"expected gt_labels from 1 to {classes}, got {(columns + 1).tolist()}")
        row[columns[hard]] = 0
        row[columns[~hard]] = 1
    return targets


def train_image_svms(
    features: npt.ArrayLike, targets: npt.ArrayLike, cost: float = 1.0, *, solver: Solver = "auto"
) -> ImageSVMs:
    """Train one SVM for each class.

    Args:
        features: [N, D], best of length 1 each: ``cost`` is meant for it.
        targets: [N, K] of +1, -1, or 0 for images that this class's training leaves out; both signs in every column.
        cost: C above.
        solver: ``"gram"``, ``"liblinear"``, or the former where D is larger than 512. Both find the same SVMs, up to
            their tolerances; the same input gives the same result, bit for bit, on one machine with one thread count.

    Returns:
        `ImageSVMs`.

    Raises:
        ValueError: shapes that do not agree, features that are not finite, targets of other values or one sign only, a
            cost that is not above 0, or no such solver.

    Source: arXiv:1406.4729, section 3.2.

    Example:
        >>> svms = train_image_svms([[1, 0], [0, 1], [0.6, 0.8]], label_targets([0, 1, 1], 2), cost=10)
        >>> svms.margins([[1, 0], [0, 1]]).argmax(1).tolist()
        [0, 1]
    """
    rows = np.ascontiguousarray(features, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"expected features [N, D], all finite, got shape {list(rows.shape)}")
    signs = _checked_targets(targets, len(rows), cost)
    if solver not in ("auto", "gram", "liblinear"):
        raise ValueError(f"solver must be 'auto', 'gram' or 'liblinear': got {solver!r}")
    if solver == "liblinear" or (solver == "auto" and rows.shape[1] <= 512):
        return _by_liblinear(rows, signs, cost)
    coefficients, biases = solve_gram(rows @ rows.T, signs, cost)
    return ImageSVMs(np.ascontiguousarray(coefficients.T @ rows), biases)


def solve_gram(
    gram: npt.ArrayLike, targets: npt.ArrayLike, cost: float = 1.0, *, tolerance: float = 1e-4
) -> tuple[FloatArray, FloatArray]:
    """Find the SVMs of all classes from the products of the features alone.

    Args:
        gram: [N, N], the features' products X X^T, or a sum of such.
        targets, cost: as of `train_image_svms`.
        tolerance: how far above its smallest value, as a share of it, each SVM's objective may be; not below 1e-5,
            which single precision reaches.

    Returns:
        coefficients [N, K] float32 and biases [K] float32: the weights are ``coefficients.T @ X``, and the margins of
        images with products G [T, N] to the training images ``G @ coefficients + biases``.

    Raises:
        ValueError: as `train_image_svms`; a gram of another shape, or a smaller tolerance.

    Warns:
        UserWarning: the tolerance was not reached.

    Example:
        >>> rows = np.array([[1, 0], [0, 1]], np.float32)
        >>> coefficients, biases = solve_gram(rows @ rows.T, label_targets([0, 1], 2), cost=1e4)
        >>> (rows @ rows.T @ coefficients + biases).round(2).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    products = np.asarray(gram, np.float32)
    if products.ndim != 2 or products.shape[0] != products.shape[1]:
        raise ValueError(f"expected gram [N, N], got shape {list(products.shape)}")
    if tolerance < 1e-5:
        raise ValueError(f"expected a tolerance of 1e-5 or more, got {tolerance}")
    signs = _checked_targets(targets, len(products), cost).astype(np.float32)
    # The bias is one more feature, which is 1 everywhere.
    coefficients, gaps = newton.minimise(products + 1, signs, cost, tolerance)
    if gaps.size and gaps.max() > tolerance:
        warnings.warn(
            f"an SVM may still be {gaps.max():.1%} above its optimum after {newton.MOST_STEPS} steps; "
            f"give a smaller cost than {cost:g}",
            stacklevel=2,
        )
    return coefficients, coefficients.sum(0)


def choose_cost(
    gram: npt.ArrayLike,
    targets: npt.ArrayLike,
    train: npt.ArrayLike,
    held_out: npt.ArrayLike,
    measure: Callable[[FloatArray], float],
    costs: Sequence[float] = COSTS,
) -> tuple[float, list[float]]:
    """Choose C on images that are held out of the training data; never give it those that results are reported on.

    Args:
        gram: [N, N], as of `solve_gram`, of all images of the training data.
        targets: [N, K].
        train, held_out: which of the N learn, and which are looked at.
        measure: how good margins [T, K] of the held-out images are, in their order; larger is better.
        costs: to choose from.

    Returns:
        The cost with the best measure, the smallest of equals; and the measure of each.

    Raises:
        ValueError: no costs, or as `solve_gram`.

    Example:
        >>> rows = np.array([[1, 0], [0, 1], [0.9, 0.1], [0.1, 0.9]], np.float32)
        >>> labels = np.array([0, 1, 0, 1])
        >>> accuracy = lambda margins: float((margins.argmax(1) == labels[2:]).mean())
        >>> choose_cost(rows @ rows.T, label_targets(labels, 2), [0, 1], [2, 3], accuracy, (1, 10))
        (1, [1.0, 1.0])
    """
    if not len(costs):
        raise ValueError("costs: expected at least one")
    products, signs = np.asarray(gram, np.float32), np.asarray(targets)
    learn, look = np.asarray(train, np.int64), np.asarray(held_out, np.int64)
    inner, outer = products[np.ix_(learn, learn)], products[np.ix_(look, learn)]
    measured = []
    for cost in sorted(costs):
        coefficients, biases = solve_gram(inner, signs[learn], cost)
        measured.append(float(measure(outer @ coefficients + biases)))
    return sorted(costs)[int(np.argmax(measured))], measured


def _by_liblinear(rows: FloatArray, signs: npt.NDArray[np.int8], cost: float) -> ImageSVMs:
    from sklearn.svm import LinearSVC  # type: ignore[import-untyped]

    weights = np.zeros((signs.shape[1], rows.shape[1]), np.float32)
    biases = np.zeros(signs.shape[1], np.float32)
    for column in range(signs.shape[1]):
        used = signs[:, column] != 0
        svm = LinearSVC(C=cost, max_iter=10_000, random_state=0).fit(rows[used], signs[used, column])
        weights[column], biases[column] = svm.coef_[0], svm.intercept_[0]
    return ImageSVMs(weights, biases)


def _checked_targets(targets: npt.ArrayLike, count: int, cost: float) -> npt.NDArray[np.int8]:
    signs = np.asarray(targets)
    if signs.ndim != 2 or len(signs) != count or not np.isin(signs, (-1, 0, 1)).all():
        raise ValueError(f"expected targets [{count}, K] of +1, -1 and 0, got shape {list(signs.shape)}")
    lacking = [column for column in range(signs.shape[1]) if not {-1, 1} <= set(signs[:, column].tolist())]
    if lacking:
        raise ValueError(f"targets: class {lacking[0]} lacks positives or negatives; leave it out, or add images")
    if not cost > 0:
        raise ValueError(f"cost: expected above 0, got {cost}")
    return signs.astype(np.int8)
