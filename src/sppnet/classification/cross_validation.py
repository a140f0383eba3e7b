"""How well linear SVMs do on images that they did not learn from: repeated cross-validation, and what its mean is worth.

labels [N] -> folds [N], repeated -> products of features [N, N] -> accuracies [J], J = folds x repeats -> mean, interval.

The accuracies of folds have no simple variance, as their training images overlap. With J accuracies of variance v, each of
n images after learning from m, that of the mean is taken as (1/J + n/m) v, with Student's t of J - 1 degrees of freedom.
Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sppnet.classification.svm import label_targets, solve_gram

CONFIDENCE = 0.95
COST = 1.0  # of the SVMs: usual for vectors of length 1


def stratified_folds(labels: npt.ArrayLike, folds: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Deal images into folds at random: all folds get as many, and each its share of every class, up to one image.

    Args:
        labels: [N] int64, the class of each image.
        folds: how many, at least 2.
        rng: draws the order of the images within each class.

    Returns:
        [N] int64, the fold of each image, 0..folds-1.

    Raises:
        ValueError: fewer than 2 folds, or fewer images than folds.

    Example:
        >>> fold = stratified_folds([0, 0, 0, 0, 1, 1], 2, np.random.default_rng(0))
        >>> np.bincount(fold).tolist(), sorted(fold[4:].tolist())
        ([3, 3], [0, 1])
    """
    given = np.asarray(labels)
    if folds < 2 or len(given) < folds:
        raise ValueError(f"expected at least 2 folds, and an image for each: got {folds} folds of {len(given)} images")
    order = rng.permutation(len(given))
    order = order[np.argsort(given[order], kind="stable")]  # class after class, in random order within
    fold = np.empty(len(given), np.int64)
    fold[order] = np.arange(len(given)) % folds
    return fold


def fold_accuracies(
    gram: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    assignments: npt.ArrayLike,
    *,
    cost: float = COST,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Of each fold, the share of images that SVMs answer right which learned from all other folds.

    Args:
        gram: [N, N] the features' products, as `sppnet.classification.svm.solve_gram` takes them.
        labels: [N] int64, 0..K-1.
        assignments: [repeats, N], the fold of each image in each repetition: `stratified_folds`.
        cost: C of the SVMs.
        progress: called with folds done, and all.

    Returns:
        [J], repetition after repetition.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 4, 0)
        >>> fold_accuracies(rows @ rows.T, np.repeat([0, 1], 4), [[0, 1] * 4]).tolist()
        [1.0, 1.0]
    """
    accuracies: list[float] = []
    turns = [fold == each for fold in np.asarray(assignments) for each in np.unique(fold)]
    for asked in turns:
        inner, outer = np.flatnonzero(~asked), np.flatnonzero(asked)
        present = np.unique(labels[inner])  # a class with nothing to learn from is never answered
        targets = label_targets(labels[inner], int(labels.max()) + 1)[:, present]
        coefficients, biases = solve_gram(gram[np.ix_(inner, inner)], targets, cost)
        answers = present[(gram[np.ix_(outer, inner)] @ coefficients + biases).argmax(1)]
        accuracies.append(float((answers == labels[outer]).mean()))
        if progress:
            progress(len(accuracies), len(turns))
    return np.array(accuracies)


def mean_interval(values: npt.ArrayLike, folds: int, *, pairs: int = 1) -> tuple[float, float]:
    """Between which values the mean lies that accuracies, or their differences, of cross-validation measure.

    Args:
        values: [J], one for each fold of each repetition, J at least 2.
        folds: in one repetition.
        pairs: of how many intervals this is one that are all to hold together (Bonferroni's correction).

    Returns:
        The ends of the 95 % interval, around the mean.

    Raises:
        ValueError: fewer than 2 values or folds, or no pair.

    Source: see the module.

    Example:
        >>> [round(end, 3) for end in mean_interval([0.80, 0.84, 0.82, 0.78, 0.81], folds=5)]
        [0.768, 0.852]
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # takes a while to import

    given = np.asarray(values, np.float64)
    if given.ndim != 1 or len(given) < 2 or folds < 2 or pairs < 1:
        raise ValueError(
            f"expected at least 2 values, 2 folds and 1 pair: got {list(given.shape)} values, {folds} and {pairs}"
        )
    deviation = float(np.sqrt((1 / len(given) + 1 / (folds - 1)) * given.var(ddof=1)))
    reach = float(t.ppf(1 - (1 - CONFIDENCE) / 2 / pairs, len(given) - 1)) * deviation
    return float(given.mean()) - reach, float(given.mean()) + reach
