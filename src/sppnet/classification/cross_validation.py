"""How well linear SVMs do on images that they did not learn from: repeated cross-validation, and what its mean is worth.

labels [N] -> folds [N], repeated -> products of features [N, N] -> accuracies [J], J = folds x repeats -> mean, interval.

The accuracies of folds have no simple variance, as their training images overlap. With J accuracies of variance v, each of
n images after learning from m, that of the mean is taken as (1/J + n/m) v, with Student's t of J - 1 degrees of freedom.
Source: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

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


def fold_margins(
    gram: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    fold: npt.ArrayLike,
    classes: int,
    *,
    cost: float = COST,
    progress: Callable[[], None] | None = None,
) -> npt.NDArray[np.float32]:
    """What SVMs say of the images of each fold that learned from all other folds.

    Args:
        gram: [N, N] the features' products, as `sppnet.classification.svm.solve_gram` takes them.
        labels: [N] int64, 0..classes-1.
        fold: [N], the fold of each image: `stratified_folds`.
        classes: K.
        cost: C of the SVMs.
        progress: called after each fold.

    Returns:
        [N, K] float32. Of a class that the other folds hold no image of, -inf: it is never answered. One class that they hold
        alone is always: 1.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 4, 0)
        >>> fold_margins(rows @ rows.T, np.repeat([0, 1], 4), [0, 1] * 4, 2).argmax(1).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    folds = np.asarray(fold)
    margins = np.full((len(labels), classes), -np.inf, np.float32)
    for each in np.unique(folds):
        inner, outer = np.flatnonzero(folds != each), np.flatnonzero(folds == each)
        present = np.unique(labels[inner])
        if len(present) > 1:
            targets = label_targets(labels[inner], classes)[:, present]
            coefficients, biases = solve_gram(gram[np.ix_(inner, inner)], targets, cost)
            margins[np.ix_(outer, present)] = gram[np.ix_(outer, inner)] @ coefficients + biases
        else:
            margins[np.ix_(outer, present)] = 1
        if progress:
            progress()
    return margins


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
        gram, labels, cost: as of `fold_margins`.
        assignments: [repeats, N], the fold of each image in each repetition: `stratified_folds`.
        progress: called with folds done, and all.

    Returns:
        [J], repetition after repetition.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 4, 0)
        >>> fold_accuracies(rows @ rows.T, np.repeat([0, 1], 4), [[0, 1] * 4]).tolist()
        [1.0, 1.0]
    """
    turns = [np.asarray(fold) for fold in np.asarray(assignments)]
    done, total = count(1), sum(len(np.unique(fold)) for fold in turns)

    def tell() -> None:
        if progress:
            progress(next(done), total)

    accuracies: list[float] = []
    for fold in turns:
        margins = fold_margins(gram, labels, fold, int(labels.max()) + 1, cost=cost, progress=tell)
        right = margins.argmax(1) == labels
        accuracies += [float(right[fold == each].mean()) for each in np.unique(fold)]
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
