"""How often the right class comes first: top-k and per-class accuracy, confusions, and how sure one can be of them.

The last step of evaluating a classifier whose images have one class each: scores [N, K] and labels [N] in, numbers out.
Labels count from 0 here, as the columns of the scores do. Images with several classes: `sppnet.metrics.voc`.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def label_ranks(scores: npt.ArrayLike, labels: npt.ArrayLike) -> IntArray:
    """At which place of the ranking, from 0, the true class of each image comes.

    Classes are ranked by falling score; of equal scores the first class comes first, as in `Classification.label`.

    Args:
        scores: [N, K], larger is surer; not NaN.
        labels: [N] integers in 0..K-1; N may be 0.

    Returns:
        [N] int64 in 0..K-1; 0 where the answer is right.

    Raises:
        ValueError: shapes that do not agree, a label outside 0..K-1, or a score that is NaN.

    Example:
        >>> label_ranks([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]], [2, 1]).tolist()
        [1, 1]
    """
    scores, labels = np.asarray(scores, np.float64), _label_array("labels", labels)
    if scores.ndim != 2 or len(scores) != len(labels):
        raise ValueError(f"expected scores [N, K] and labels [N], got {list(scores.shape)} and {list(labels.shape)}")
    count = scores.shape[1]
    _check_range("labels", labels, count)
    if np.isnan(scores).any():
        raise ValueError(f"scores: image {int(np.isnan(scores).any(1).argmax())} has a score that is not a number")
    true = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(count) < labels[:, None]
    ranks: IntArray = ((scores > true) | ((scores == true) & earlier)).sum(1)
    return ranks


def top_k_accuracy(scores: npt.ArrayLike, labels: npt.ArrayLike, k: int = 1) -> float:
    """The share of images whose true class is among the k best: mean of [rank < k], see `label_ranks`.

    Args:
        scores: [N, K], larger is surer.
        labels: [N] in 0..K-1, at least one.
        k: how many answers an image may have, at least 1.

    Returns:
        The accuracy, in 0..1.

    Raises:
        ValueError: as `label_ranks`; no images; k below 1.

    Example:
        >>> scores = [[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]
        >>> top_k_accuracy(scores, [2, 0]), top_k_accuracy(scores, [2, 0], k=2)
        (0.5, 1.0)
    """
    ranks = label_ranks(scores, labels)
    if k < 1 or not len(ranks):
        raise ValueError(f"expected k of at least 1 and at least one image, got k = {k} and {len(ranks)} images")
    return float((ranks < k).mean())


def confusion_matrix(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> IntArray:
    """How many images of each class were taken for each class.

    Args:
        labels: [N] the true classes, in 0..classes-1; N may be 0.
        predicted: [N] the answers, in 0..classes-1.
        classes: K, how many classes there are, at least 1.

    Returns:
        [K, K] int64: row true, column answered; the right answers are on the diagonal.

    Raises:
        ValueError: arrays of different lengths, or a class outside 0..classes-1.

    Example:
        >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
        [[1, 1], [0, 1]]
    """
    labels, predicted = _label_array("labels", labels), _label_array("predicted", predicted)
    if len(labels) != len(predicted):
        raise ValueError(f"expected one answer for each label, got {len(predicted)} for {len(labels)}")
    _check_range("labels", labels, classes)
    _check_range("predicted", predicted, classes)
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_accuracies(confusion: npt.ArrayLike) -> FloatArray:
    """The share of each class's images that were answered right: diagonal / sum of the row.

    Args:
        confusion: [K, K] as `confusion_matrix` gives it.

    Returns:
        [K] float64 in 0..1; NaN for a class without images.

    Raises:
        ValueError: not a square matrix.

    Example:
        >>> class_accuracies([[1, 1, 0], [0, 3, 0], [0, 0, 0]]).tolist()
        [0.5, 1.0, nan]
    """
    confusion = np.asarray(confusion, np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion: expected [K, K], got shape {list(confusion.shape)}")
    images = confusion.sum(1)
    result = np.full(len(images), np.nan)
    np.divide(confusion.diagonal(), images, out=result, where=images > 0)
    return result


def mean_class_accuracy(confusion: npt.ArrayLike) -> float:
    """The mean of `class_accuracies` over the classes that have images: what rare classes count in as much as others.

    It is what is usual on Caltech-101, whose classes hold from 31 to 800 images.

    Args:
        confusion: [K, K] as `confusion_matrix` gives it.

    Returns:
        The accuracy in 0..1; NaN if no class has images.

    Example:
        >>> mean_class_accuracy([[1, 1, 0], [0, 3, 0], [0, 0, 0]])
        0.75
    """
    accuracies = class_accuracies(confusion)
    measured = accuracies[~np.isnan(accuracies)]
    return float(measured.mean()) if len(measured) else float("nan")


def wilson_interval(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Between which values a share lies that was measured as ``right`` of ``count``.

    With p = right / count and z the normal quantile, the ends are
    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``. Never outside 0..1, and of sensible width for
    few images and for shares near 0 and 1.

    Args:
        right: 0..count.
        count: n, at least 1.
        confidence: above 0 and below 1.

    Returns:
        (lower, upper), around right / count.

    Raises:
        ValueError: numbers out of range.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.

    Example:
        >>> tuple(round(end, 4) for end in wilson_interval(81, 100))
        (0.7222, 0.8749)
    """
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"expected 0 <= right <= count and at least 1 of them, got {right} of {count}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected above 0 and below 1, got {confidence}")
    share, z = right / count, NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = share + z * z / (2 * count)
    spread = z * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    whole = 1 + z * z / count
    return max(0.0, min(share, (middle - spread) / whole)), min(1.0, max(share, (middle + spread) / whole))


def _label_array(name: str, labels: npt.ArrayLike) -> IntArray:
    array = np.asarray(labels)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name}: expected whole numbers [N], got {array.dtype} of shape {list(array.shape)}")
    return array.astype(np.int64)


def _check_range(name: str, labels: IntArray, classes: int) -> None:
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"{name}: expected classes 0..{classes - 1}, got {wrong}")
