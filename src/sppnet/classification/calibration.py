"""From margins to probabilities that are as sure as they are right: one number by which margins become logits.

margins [N, K] of images that were not learned from, and their labels [N] -> the scale a with which softmax(a x margins) makes
the labels likeliest. It changes no answer, only how sure it is; a model that errs often gets a small one. One number, and not
one or two for each class as in Platt's way, as a class may have a handful of images. Source: Guo, Pleiss, Sun, Weinberger, "On
calibration of modern neural networks", arXiv:1706.04599, section 4.2 (temperature scaling; a is 1 / T).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SCALES = (0.1, 100.0)  # between which it is looked for
_HALVINGS = 50  # of that interval: far more digits than the images tell


def probability_scale(margins: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The scale with which the softmax of the margins makes the labels likeliest.

    One image more is counted, whose class is anyone's guess: so images that are all right do not make it boundless, and the
    fewer there are, the more careful it is.

    Args:
        margins: [N, K] of images that were not learned from; N may be 0. -inf: a class that is never answered.
        labels: [N] in 0..K-1, none of a class that is -inf.

    Returns:
        Within `SCALES`.

    Raises:
        ValueError: other shapes, or a label whose margin is no number.

    Example:
        >>> margins = np.array([[1.0, -1.0]] * 9 + [[-1.0, 1.0]])
        >>> 0.5 < probability_scale(margins, np.zeros(10, int)) < probability_scale(margins[:9], np.zeros(9, int))
        True
    """
    given, truth = np.asarray(margins, np.float64), np.asarray(labels, np.int64)
    if given.ndim != 2 or truth.shape != given.shape[:1]:
        raise ValueError(
            f"expected margins [N, K] and labels [N], got shapes {list(given.shape)} and {list(truth.shape)}"
        )
    if not len(given):
        return SCALES[0]
    own = given[np.arange(len(given)), truth]
    if not np.isfinite(own).all():
        raise ValueError("expected margins that are numbers for the images' own classes")
    answered = np.isfinite(given)
    finite = np.where(answered, given, 0)
    guessed = finite.sum(1) / answered.sum(1)
    wanted = own.sum() + guessed.mean()
    shares = np.where(answered, 1.0, 0.0)

    def slope(scale: float) -> float:
        """Of the loss, which is convex: what the softmax expects of the margins, minus what they should be."""
        powers = shares * np.exp(scale * (finite - given.max(1, keepdims=True)))
        expected = (powers * finite).sum(1) / powers.sum(1)
        return float(expected.sum() + expected.mean() - wanted)

    low, high = np.log(SCALES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def log_loss(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The mean of minus the logarithm of the probability that softmax gives the labels.

    Args:
        logits: [N, K], N at least 1.
        labels: [N] in 0..K-1.

    Example:
        >>> round(log_loss([[0.0, 0.0]], [1]), 4)  # ln 2
        0.6931
    """
    given = np.asarray(logits, np.float64)
    given = given - given.max(1, keepdims=True)
    own = given[np.arange(len(given)), np.asarray(labels, np.int64)]
    return float((np.log(np.exp(given).sum(1)) - own).mean())
