"""Pooled maps as vectors for a linear classifier: pooled [N, M, C] -> [N, D], of length 1.

Source: arXiv:1406.4729, section 3.2, "the representations are l2-normalized"; the power, and the normalisation of each level,
are this project's additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sppnet.ops.bins import bin_count


def take_levels(pooled: np.ndarray, levels: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
    """Some levels of pooled maps.

    Args:
        pooled: [N, M, C] by ``levels``.
        levels: of the pyramid it was pooled by.
        wanted: of these, in any order.

    Returns:
        [N, M', C]: a view where that is possible.

    Raises:
        ValueError: a level that is not there, or another M than that of ``levels``.

    Example:
        >>> take_levels(np.arange(14).reshape(1, 14, 1), (3, 2, 1), (2, 1)).ravel()
        array([ 9, 10, 11, 12, 13])
    """
    if pooled.ndim != 3 or pooled.shape[1] != bin_count(levels) or not set(wanted) <= set(levels):
        raise ValueError(
            f"expected [N, {bin_count(levels)}, C] and some of the levels {tuple(levels)}, "
            f"got {list(pooled.shape)} and {tuple(wanted)}"
        )
    ends = np.cumsum([level * level for level in levels]).tolist()
    bins = {level: slice(end - level * level, end) for level, end in zip(levels, ends, strict=True)}
    slices = [bins[level] for level in wanted]
    if all(before.stop == after.start for before, after in pairwise(slices)):
        return pooled[:, slices[0].start : slices[-1].stop]
    return np.concatenate([pooled[:, each] for each in slices], 1)


def to_vectors(pooled: np.ndarray, levels: Sequence[int], power: float = 1.0, normalise: str = "whole") -> np.ndarray:
    """Pooled maps as the vectors of `sppnet.classification.features.image_features`.

    Args:
        pooled: [N, M, C] by ``levels``. Not modified.
        power, normalise: see there.

    Returns:
        [N, M x C] float32. A vector of zeros stays one.

    Raises:
        ValueError: another M than that of the levels, a power that is not above 0, or no such normalisation.

    Example:
        >>> to_vectors(np.array([[[3.0, 4.0]]]), (1,))
        array([[0.6, 0.8]], dtype=float32)
    """
    if pooled.ndim != 3 or pooled.shape[1] != bin_count(levels):
        raise ValueError(f"expected pooled maps [N, {bin_count(levels)}, C], got shape {list(pooled.shape)}")
    if not power > 0 or normalise not in ("whole", "level", "none"):
        raise ValueError(
            f"expected a power above 0 and normalise 'whole', 'level' or 'none', got {power} and {normalise!r}"
        )
    values = pooled.astype(np.float32)
    if power != 1:
        values = np.sign(values) * np.abs(values) ** np.float32(power)
    if normalise == "level":
        end = 0
        for level in levels:
            start, end = end, end + level * level
            flat = values[:, start:end].reshape(len(values), -1)
            values[:, start:end] = unit_length(flat).reshape(len(values), level * level, -1)
    flat = values.reshape(len(values), -1)
    return flat if normalise == "none" else unit_length(flat)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] divided by their lengths; one of zeros stays as it is.

    Example:
        >>> unit_length(np.array([[0.0, 2.0], [0.0, 0.0]], np.float32)).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(vectors.dtype)
