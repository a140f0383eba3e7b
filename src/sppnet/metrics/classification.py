"""How often the right class comes first: ranks, per-class accuracy, and how sure one can be of a share.

Labels count from 0 here, as the columns of the scores do. Images with several classes: `sppnet.metrics.voc`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def label_ranks(scores: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The rank of each image's true class, from 0; the top-k accuracy is the mean of ``ranks < k``.

    Classes are ranked by falling score; of equal scores the first class comes first, as in `Classification.label`.
    (scikit-learn's ``top_k_accuracy_score`` counts ties the other way, and refuses two columns.)

    Args:
        scores: [N, K], larger is more confident; not NaN.
        labels: [N] integers in 0..K-1; N may be 0.

    Returns:
        [N] int64 in 0..K-1; 0 where the answer is right.

    Raises:
        ValueError: shapes that do not agree, or a label outside 0..K-1.

    Example:
        >>> label_ranks([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]], [2, 1]).tolist()
        [1, 1]
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores [N, K] and labels [N], got {list(scores.shape)} and {list(labels.shape)}")
    count = scores.shape[1]
    if len(labels) and not (labels.min() >= 0 and labels.max() < count):
        raise ValueError(f"labels: expected classes 0..{count - 1}, got {labels.min()}..{labels.max()}")
    true = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(count) < labels[:, None]
    ranks: npt.NDArray[np.int64] = ((scores > true) | ((scores == true) & earlier)).sum(1)
    return ranks


def class_accuracies(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The share of each class's images that were answered right: [K] in 0..1, NaN for a class without images.

    Their mean (``numpy.nanmean``) is what is usual on Caltech-101, whose classes hold from 31 to 800 images.

    Args:
        confusion: [K, K] counts, row true, column answered: ``sklearn.metrics.confusion_matrix(..., labels=range(K))``.

    Example:
        >>> class_accuracies(np.array([[1, 1, 0], [0, 3, 0], [0, 0, 0]])).tolist()
        [0.5, 1.0, nan]
    """
    images = confusion.sum(1)
    return np.divide(confusion.diagonal(), images, out=np.full(len(images), np.nan), where=images > 0)


def wilson_interval(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Between which values a share lies that was measured as ``right`` of ``count``, by Wilson's score interval.

    Example:
        >>> tuple(round(end, 4) for end in wilson_interval(81, 100))
        (0.7222, 0.8749)
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # slow to import

    interval = binomtest(right, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
