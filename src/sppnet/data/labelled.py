"""Image files, each of one class, and how a share of every class is drawn for validation.

Labels count from 0 (there is no background class, as detection has). Nothing is opened before it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppnet.data.images import read_image


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Image files, each of one class: a data set as PyTorch's ``DataLoader`` takes it.

    ``images[i]`` reads one: ([H, W, 3] uint8, label). Sizes differ, so give the loader a ``collate_fn``, such as ``list``.

    Example:
        >>> images = LabelledImages((Path("a.jpg"), Path("b.jpg"), Path("c.jpg")), np.array([1, 0, 1]), ("cat", "dog"))
        >>> len(images), images.counts().tolist(), images.subset([2, 0]).paths[0].name
        (3, [1, 2], 'c.jpg')
    """

    paths: tuple[Path, ...]
    labels: np.ndarray  # [N] int64, 0..K-1: label 0 is class_names[0]
    class_names: tuple[str, ...]  # K of them

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.paths),) or self.labels.dtype != np.int64:
            found = f"{list(self.labels.shape)} {self.labels.dtype}"
            raise ValueError(f"LabelledImages: expected labels [{len(self.paths)}] int64, one a path, got {found}")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            last, found = len(self.class_names) - 1, f"{self.labels.min()} to {self.labels.max()}"
            raise ValueError(f"LabelledImages: expected labels from 0 to {last}, got {found}")

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Read one image, with its label; an `ImageError` where that cannot be done."""
        return read_image(self.paths[index]), int(self.labels[index])

    def counts(self) -> np.ndarray:
        """Count the images of each class: [K] int64."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray) -> LabelledImages:
        """Take some of the images, in the order given; labels keep their meaning.

        Args:
            indices: whole numbers from 0 to N-1, none to all of them.

        Raises:
            ValueError: not whole numbers, or out of range.
        """
        chosen = np.asarray(indices) if len(indices) else np.zeros(0, np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(f"subset: expected a list of whole numbers, got {list(chosen.shape)} {chosen.dtype}")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise ValueError(f"subset: indices must be from 0 to {len(self) - 1}, got {chosen.min()} to {chosen.max()}")
        return LabelledImages(tuple(self.paths[i] for i in chosen), self.labels[chosen], self.class_names)


def split_off(images: LabelledImages, share: float = 0.2, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split a share of every class off for validation, drawn at random.

    Of a class of n images, ``share * n`` are split off, rounded, but at least 1 and at most n - 1; a lone image stays in
    the training part. What is drawn from a class depends on nothing but the seed, the class name and its images, so
    that adding a class leaves the others as they were.

    Args:
        images: what to split.
        share: of each class, between 0 and 1.
        seed: 0 or more; the same seed gives the same parts.

    Returns:
        (train, validation): together every image once, both in the order of ``images``.

    Raises:
        ValueError: a share that is not between 0 and 1, or a negative seed.

    Example:
        >>> photos = LabelledImages(tuple(Path(f"{i}.jpg") for i in range(12)), np.repeat([0, 1], [10, 2]), ("a", "b"))
        >>> [part.counts().tolist() for part in split_off(photos, 0.2, seed=0)]
        [[8, 1], [2, 1]]
    """
    if not 0 < share < 1:
        raise ValueError(f"split_off: share must be between 0 and 1, got {share}")
    drawn = np.zeros(len(images), bool)
    for order in shuffled_classes(images, seed):
        drawn[order[: min(max(math.floor(share * len(order) + 0.5), 1), len(order) - 1)]] = True
    return images.subset(np.flatnonzero(~drawn)), images.subset(np.flatnonzero(drawn))


def shuffled_classes(images: LabelledImages, seed: int) -> Iterator[np.ndarray]:
    """Indices of each class that has images, in an order that depends on the seed, its name and its number only."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    by_class = np.split(np.argsort(images.labels, kind="stable"), np.cumsum(images.counts())[:-1])
    for name, indices in zip(images.class_names, by_class, strict=True):
        if len(indices):
            rng = np.random.default_rng([seed, *name.encode("utf-8", "surrogatepass")])
            yield rng.permutation(indices)
