"""Which cost, and how sure: cross-validated linear SVMs, their decision scores as probabilities, and what a mean is worth.

features [N, D], targets [N, K] -> products [N, N] -> for each cost, decision scores [N, K] of rows that were not learned from ->
the best cost, and the scale a by which decision scores become logits -> SVMs of all rows, times a.

*Calibration.* The scale makes the labels of held-out rows likeliest under softmax(a s) or, where a row may have several classes,
sigmoid(a s). It changes no answer, only how sure it is. One number, and not one or two for each class as in Platt's way, as a
class may have a handful of rows. Source: Guo, Pleiss, Sun, Weinberger, arXiv:1706.04599, section 4.2 (a is 1 / temperature).

*Intervals.* Accuracies of folds have no simple variance, as their training rows overlap. With J of variance v, each of n rows after
learning from m, that of the mean is taken as (1/J + n/m) v, with Student's t of J - 1 degrees of freedom. Source: Nadeau and
Bengio, "Inference for the generalization error", Machine Learning 52, 2003.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from sppnet.linear.svm import FloatArray, LinearSVMs, label_targets, solve_gram
from sppnet.progress import Progress, no_progress

Targets = npt.NDArray[np.int8]  # [N, K] of +1, -1, or 0 (left out)
Labels = npt.NDArray[np.int64]
FoldDone = Callable[[], None]

COSTS = (0.3, 1.0, 3.0, 10.0)  # tried: of vectors of length 1, SVMs hardly change beyond these
COST = 1.0  # where nothing can be tried
SCALES = (0.1, 100.0)  # between which the scale is looked for
FOLDS = 5
MAX_CHOOSING = 5000  # rows that cost and scale are chosen on; of more, so many are drawn
BLOCK_BYTES = 2**26  # of rows in single precision that are in work at once
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SVMChoice:
    """What cross-validation chose."""

    cost: float
    scale: float  # by which decision scores become logits
    accuracies: dict[float, float]  # of each cost: the share of held-out rows, or of their labels, answered right
    rows: int  # that it was chosen on

    def to_dict(self) -> dict[str, Any]:
        """For a model's record, ready for ``json.dumps``."""
        shares = {f"{cost:g}": round(accuracy, 4) for cost, accuracy in self.accuracies.items()}
        return {"cost": self.cost, "scale": round(self.scale, 4), "cross_validated": shares, "images": self.rows}


def train_calibrated_svms(
    features: np.ndarray, targets: npt.ArrayLike, *, multi_label: bool, seed: int = 0, progress: Progress = no_progress
) -> tuple[LinearSVMs, SVMChoice]:
    """Train linear SVMs whose decision scores are logits: cost and scale are chosen by cross-validation on the same rows.

    Args:
        features: [N, D] of any floating-point type; a memory map will do. Their mean length does not matter.
        targets: [N, K] of +1, -1, or 0 (left out). A class without positives answers no to everything, one without negatives
            yes.
        multi_label: whether a row may have several classes (sigmoid) or has one (softmax).
        seed: of the folds.
        progress: the stage is "SVMs".

    Returns:
        For features as they came; and what was chosen. The same rows and seed give the same, bit for bit, on one machine with one
        thread count.

    Raises:
        ValueError: features that are not finite, or targets of another shape or value.

    Source: arXiv:1406.4729, sections 3.2 and 3.3; probabilities are this project's addition.
    """
    signs = np.asarray(targets, np.int8)
    if features.ndim != 2 or signs.ndim != 2 or len(features) != len(signs):
        shapes = f"{list(features.shape)} and {list(signs.shape)}"
        raise ValueError(f"expected features [N, D] and targets [N, K], got shapes {shapes}")
    gram = _products(features)
    if not np.isfinite(gram).all():
        raise ValueError("features hold infinities or NaN")
    shrink = 1 / max(float(np.sqrt(np.diagonal(gram).astype(np.float64)).mean()), 1e-12) ** 2  # to a mean length of 1
    gram *= np.float32(shrink)
    drawn, parts = np.arange(len(signs)), -(-len(signs) // MAX_CHOOSING)
    if parts > 1:  # of each class its share
        drawn = np.flatnonzero(stratified_folds(_strata(signs), parts, np.random.default_rng([seed, 0])) == 0)
    done, total = count(1), len(COSTS) * min(FOLDS, len(drawn)) + 1

    def fold_done() -> None:
        progress("SVMs", next(done), total)

    of_drawn = gram if parts == 1 else gram[np.ix_(drawn, drawn)]
    choice = choose_cost(of_drawn, signs[drawn], multi_label=multi_label, seed=seed, progress=fold_done)
    yes, no = (signs > 0).any(0), (signs < 0).any(0)
    both = np.flatnonzero(yes & no)
    weights = np.zeros((signs.shape[1], features.shape[1]), np.float32)
    biases = np.where(yes, 1, -1).astype(np.float32)  # the decision score of an SVM that saw one answer alone
    coefficients, biases[both] = solve_gram(gram, signs[:, both], choice.cost)
    for part, rows in _blocks(features):
        weights[both] += coefficients[part].T @ rows
    progress("SVMs", total, total)
    return LinearSVMs(weights * np.float32(shrink * choice.scale), biases * np.float32(choice.scale)), choice


def choose_cost(
    gram: FloatArray, targets: Targets, *, multi_label: bool = False, seed: int = 0, progress: FoldDone = lambda: None
) -> SVMChoice:
    """Choose the cost, and the scale of the decision scores, by cross-validation.

    The best cost is that of the highest accuracy; of as good ones, that of the largest likelihood.

    Args:
        gram: [N, N] products of vectors of a mean length of 1.
        targets: [N, K]. Lone rows of their class count for nothing.
        multi_label, seed: as of `train_calibrated_svms`.
        progress: called after each fold of each cost.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 10, 0)
        >>> choice = choose_cost(rows @ rows.T, label_targets(np.repeat([0, 1], 10), 2))
        >>> choice.accuracies[choice.cost], choice.scale > 1
        (1.0, True)
    """
    from scipy.special import log_softmax  # type: ignore[import-untyped]

    fold = stratified_folds(_strata(targets), min(FOLDS, len(targets)), np.random.default_rng([seed, 1]))
    tried: list[tuple[float, float, float, float]] = []  # accuracy, log likelihood, minus the cost, scale
    for cost in COSTS:
        scores, labels = _answers(fold_scores(gram, targets, fold, cost, progress=progress), targets, multi_label)
        if len(labels):
            scale = probability_scale(scores, labels)
            accuracy = float((scores.argmax(1) == labels).mean())
            likelihood = float(log_softmax(scale * scores, axis=1)[np.arange(len(labels)), labels].mean())
            tried.append((accuracy, likelihood, -cost, scale))
    if not tried:  # no class has two rows: nothing can be said of rows that were not learned from
        return SVMChoice(COST, 1.0, {}, 0)
    _, _, cost, scale = max(tried)
    return SVMChoice(-cost, scale, {-cost: accuracy for accuracy, _, cost, _ in tried}, len(targets))


def stratified_folds(labels: npt.ArrayLike, folds: int, rng: np.random.Generator) -> Labels:
    """Deal rows into folds at random: all folds get as many, and each its share of every class, up to one row.

    Unlike scikit-learn's ``StratifiedKFold`` it takes classes with fewer rows than folds.

    Args:
        labels: [N] int64, the class of each row.
        folds: how many, at least 2.
        rng: draws the order of the rows within each class.

    Returns:
        [N] int64, the fold of each row, 0..folds-1.

    Example:
        >>> fold = stratified_folds([0, 0, 0, 0, 1, 1], 2, np.random.default_rng(0))
        >>> np.bincount(fold).tolist(), sorted(fold[4:].tolist())
        ([3, 3], [0, 1])
    """
    given = np.asarray(labels)
    order = rng.permutation(len(given))
    order = order[np.argsort(given[order], kind="stable")]  # class after class, in random order within
    fold = np.empty(len(given), np.int64)
    fold[order] = np.arange(len(given)) % folds
    return fold


def fold_scores(
    gram: FloatArray, targets: Targets, fold: npt.ArrayLike, cost: float = COST, *, progress: FoldDone = lambda: None
) -> FloatArray:
    """What SVMs say of the rows of each fold that learned from all other folds.

    Args:
        gram: [N, N] the features' products, as `sppnet.linear.svm.solve_gram` takes them.
        targets: [N, K].
        fold: [N], the fold of each row: `stratified_folds`.
        cost: of the SVMs.
        progress: called after each fold.

    Returns:
        [N, K] float32. Of a class that the other folds hold no positive of, -inf: it is never answered. Of one without
        negatives there, 1: it always is.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 4, 0)
        >>> fold_scores(rows @ rows.T, label_targets(np.repeat([0, 1], 4), 2), [0, 1] * 4).argmax(1).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    folds = np.asarray(fold)
    scores = np.full(targets.shape, -np.inf, np.float32)
    for each in np.unique(folds):
        inner, outer = np.flatnonzero(folds != each), np.flatnonzero(folds == each)
        yes, no = (targets[inner] > 0).any(0), (targets[inner] < 0).any(0)
        scores[np.ix_(outer, yes & ~no)] = 1
        if (yes & no).any():
            coefficients, biases = solve_gram(gram[np.ix_(inner, inner)], targets[np.ix_(inner, yes & no)], cost)
            scores[np.ix_(outer, yes & no)] = gram[np.ix_(outer, inner)] @ coefficients + biases
        progress()
    return scores


def fold_accuracies(
    gram: FloatArray, labels: Labels, folds: npt.ArrayLike, *, cost: float = COST, progress: FoldDone = lambda: None
) -> npt.NDArray[np.float64]:
    """Of each fold, the share of rows that SVMs answer right which learned from all other folds.

    Args:
        gram, cost, progress: as of `fold_scores`.
        labels: [N] int64, the one class of each row.
        folds: [repeats, N], the fold of each row in each repetition: `stratified_folds`.

    Returns:
        [J], repetition after repetition.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 4, 0)
        >>> fold_accuracies(rows @ rows.T, np.repeat([0, 1], 4), [[0, 1] * 4]).tolist()
        [1.0, 1.0]
    """
    targets = label_targets(labels, int(labels.max()) + 1)
    accuracies: list[float] = []
    for fold in np.asarray(folds):
        right = fold_scores(gram, targets, fold, cost, progress=progress).argmax(1) == labels
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

    Source: see the module.

    Example:
        >>> [round(end, 3) for end in mean_interval([0.80, 0.84, 0.82, 0.78, 0.81], folds=5)]
        [0.768, 0.852]
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # takes a while to import

    given = np.asarray(values, np.float64)
    deviation = float(np.sqrt((1 / len(given) + 1 / (folds - 1)) * given.var(ddof=1)))
    reach = float(t.ppf(1 - (1 - CONFIDENCE) / 2 / pairs, len(given) - 1)) * deviation
    return float(given.mean()) - reach, float(given.mean()) + reach


def probability_scale(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The scale with which the softmax of the decision scores makes the labels likeliest.

    One row more is counted, whose class is anyone's guess: so rows that are all right do not make it boundless, and the fewer
    there are, the more careful it is.

    Args:
        scores: [N, K] of rows that were not learned from; N may be 0. -inf: a class that is never answered.
        labels: [N] in 0..K-1, none of a class that is -inf.

    Returns:
        Within `SCALES`.

    Example:
        >>> scores = np.array([[1.0, -1.0]] * 9 + [[-1.0, 1.0]])
        >>> 0.5 < probability_scale(scores, np.zeros(10, int)) < probability_scale(scores[:9], np.zeros(9, int))
        True
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
    from scipy.special import log_softmax

    given, truth = np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    if not len(given):
        return SCALES[0]
    answered, every = np.isfinite(given), np.arange(len(given))

    def loss(log_scale: float) -> float:
        logs = log_softmax(np.exp(log_scale) * given, axis=1)
        guessed = np.where(answered, logs, 0).sum(1) / answered.sum(1)
        return float(-logs[every, truth].sum() - guessed.mean())

    found = minimize_scalar(loss, bounds=np.log(SCALES), method="bounded", options={"xatol": 1e-9})
    return float(np.clip(np.exp(found.x), *SCALES))


def _answers(scores: FloatArray, targets: Targets, multi_label: bool) -> tuple[npt.NDArray[np.float64], Labels]:
    """Scores [M, L] of which the softmax is wanted, and labels [M]: a row's classes; or yes and no to each class of each row."""
    if multi_label:
        known = np.isfinite(scores) & (targets != 0)
        half = scores[known].astype(np.float64) / 2  # sigmoid(s) is the softmax of s/2 and -s/2
        return np.stack([half, -half], 1), (targets[known] < 0).astype(np.int64)
    labels = targets.argmax(1)
    known = np.isfinite(scores[np.arange(len(scores)), labels])
    return scores[known].astype(np.float64), labels[known]


def _strata(targets: Targets) -> Labels:
    """[N]: rows of the same classes share a number."""
    return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)


def _blocks(features: np.ndarray, before: int | None = None) -> Iterator[tuple[slice, FloatArray]]:
    """Some rows at a time in single precision, and which they are; those before an index alone, where one is given."""
    size = max(1, BLOCK_BYTES // (4 * max(1, features.shape[1])))
    for start in range(0, len(features) if before is None else before, size):
        part = slice(start, min(start + size, len(features)))
        yield part, np.asarray(features[part], np.float32)


def _products(features: np.ndarray) -> FloatArray:
    """Of each row with each, [N, N]."""
    gram = np.empty((len(features),) * 2, np.float32)
    for own, rows in _blocks(features):
        gram[own, own] = rows @ rows.T
        for other, others in _blocks(features, before=own.start):
            gram[own, other] = rows @ others.T
            gram[other, own] = gram[own, other].T
    return gram
