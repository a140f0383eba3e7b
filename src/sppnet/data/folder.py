"""Anyone's folder of class folders into labelled images: listed, held out, drawn per class.

First step of classification: ``photos/cat/1.jpg`` says that 1.jpg is a cat. Nothing is opened here, so reading a folder
takes moments; ``check`` opens every file. Labels count from 0 (there is no background class, as detection has).
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppnet.data.folder_survey import HELD_OUT, TRAIN, FolderSurvey, some, split_parts, split_problems, survey_folder
from sppnet.errors import UserError


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Image files, each of one class.

    Example:
        >>> images = LabelledImages((Path("a.jpg"), Path("b.jpg"), Path("c.jpg")), np.array([1, 0, 1]), ("cat", "dog"))
        >>> len(images), images.counts().tolist(), images.subset([2, 0]).paths[0].name
        (3, [1, 2], 'c.jpg')
    """

    paths: tuple[Path, ...]
    labels: np.ndarray  # [N] int64, 0..K-1: label 0 is names[0]
    names: tuple[str, ...]  # the K class names

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.paths),) or self.labels.dtype != np.int64:
            raise ValueError(
                f"LabelledImages: expected labels [{len(self.paths)}] int64, one for each path, "
                f"got {list(self.labels.shape)} {self.labels.dtype}"
            )
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.names)):
            raise ValueError(
                f"LabelledImages: expected labels from 0 to {len(self.names) - 1}, "
                f"got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def counts(self) -> np.ndarray:
        """Count the images of each class: [K] int64."""
        return np.bincount(self.labels, minlength=len(self.names)).astype(np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray) -> LabelledImages:
        """Take some of the images, in the order given; names and labels stay as they are.

        Args:
            indices: whole numbers from 0 to N-1, none to all of them.

        Raises:
            ValueError: not whole numbers, or out of range.
        """
        chosen = np.asarray(indices)
        if not chosen.size:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(f"subset: expected a list of whole numbers, got {list(chosen.shape)} {chosen.dtype}")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise ValueError(f"subset: indices must be from 0 to {len(self) - 1}, got {chosen.min()} to {chosen.max()}")
        return LabelledImages(tuple(self.paths[i] for i in chosen), self.labels[chosen], self.names)


def read_folder(root: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> LabelledImages:
    """Read a folder of class folders: ``photos/cat/1.jpg``, ``photos/cat/more/2.PNG``, ``photos/dog/3.jpg``.

    Every visible folder in ``root`` is a class. Images are found in it at any depth, by the usual endings in any case;
    links are followed. Hidden files and folders and other files are passed over (``check`` counts them). A class folder
    without images is refused rather than left out: it is a slip far more often than a wish, and a class that silently
    vanished would shift the labels.

    Args:
        root: the folder that holds the class folders.
        classes: the class names in the order of their labels, such as those of a trained model. A class without a
            folder then has no images here. None: the folders' names, sorted without regard to case.

    Returns:
        The images, by class and then by path; names in Unicode's composed form (NFC), whatever the disk uses.

    Raises:
        ValueError: a name that stands twice in ``classes``.
        UserError: no such folder; no class folder; one class only (unless ``classes`` is given); images that lie
            directly in ``root``; class folders without images; folders that ``classes`` does not name; two folders of
            one name or a name that is not text; a folder that cannot be listed. The message names them.

    Example:
        >>> for name in ("cat/1.jpg", "Dog/2.jpg", "Dog/puppies/3.PNG"):
        ...     Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("photos", name).touch()
        >>> images = read_folder("photos")
        >>> images.names, images.labels.tolist(), images.paths[2].name
        (('cat', 'Dog'), [0, 1, 1], '3.PNG')
    """
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"read_folder: expected classes to be different names, got {list(classes)}")
    survey = survey_folder(root)
    for problem in survey.problems(classes):
        raise UserError(str(problem))
    return _labelled(survey, survey.names if classes is None else tuple(classes))


def split_folder(root: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages | None]:
    """Read a folder that may already be split: ``photos/train/cat/1.jpg`` beside ``photos/val/cat/2.jpg``.

    The held-out part is the first of val, valid, validation, test that is there (any case); so where there are both val
    and test, test stays untouched; other folders beside "train" are passed over. Without a folder "train", or where
    "train" is a class among others, the whole is the training part.

    Args:
        root: the folder that holds train and the held-out part, or the class folders themselves.

    Returns:
        (train, held_out), with the same names; held_out is None where there is no such folder (see ``split_off``).

    Raises:
        UserError: as ``read_folder``; or the two parts do not have the same classes. The message names those.

    Example:
        >>> for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg"):
        ...     Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("photos", name).touch()
        >>> train, held_out = split_folder("photos")
        >>> len(train), len(held_out)
        (2, 2)
    """
    parts = split_parts(root)
    if TRAIN not in parts:
        return read_folder(root), None
    train = survey_folder(parts[TRAIN])
    held_out = next((survey_folder(parts[name]) for name in HELD_OUT if name in parts), None)
    for problem in split_problems(Path(root), train, held_out):
        raise UserError(str(problem))
    return _labelled(train, train.names), None if held_out is None else _labelled(held_out, train.names)


def split_off(images: LabelledImages, share: float = 0.2, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Hold out a share of every class, drawn at random.

    Of a class of n images, ``share * n`` are held out, rounded, but at least 1 and at most n - 1; a lone image stays in
    the training part. What is drawn from a class depends on nothing but the seed, the class name and its images, so
    that adding a class leaves the others as they were.

    Args:
        images: what to split.
        share: of each class, between 0 and 1.
        seed: 0 or more; the same seed gives the same parts.

    Returns:
        (train, held_out): together every image once, both in the order of ``images``.

    Raises:
        ValueError: a share that is not between 0 and 1, or a negative seed.

    Example:
        >>> photos = LabelledImages(tuple(Path(f"{i}.jpg") for i in range(12)), np.repeat([0, 1], [10, 2]), ("a", "b"))
        >>> [part.counts().tolist() for part in split_off(photos, 0.2, seed=0)]
        [[8, 1], [2, 1]]
    """
    if not 0 < share < 1:
        raise ValueError(f"split_off: share must be between 0 and 1, got {share}")
    kept, held_out = [], []
    for order in _shuffled_classes(images, seed):
        count = min(max(math.floor(share * len(order) + 0.5), 1), len(order) - 1)
        held_out.append(order[:count])
        kept.append(order[count:])
    return images.subset(_in_order(kept)), images.subset(_in_order(held_out))


def per_class(
    images: LabelledImages, count: int, *, seed: int, at_most: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Draw the same number of images from every class: Caltech-101's protocol, 30 to train and at most 50 to test.

    Args:
        images: what to draw from.
        count: images of each class to choose, at least 1.
        seed: 0 or more; the same seed gives the same parts. Repeated splits take one seed each.
        at_most: of what is left, at most so many of each class; None keeps all.

    Returns:
        (chosen, rest), both in the order of ``images``. A class of exactly ``count`` images has none in the rest.

    Raises:
        UserError: classes with fewer than ``count`` images. The message names them.
        ValueError: a count or ``at_most`` below 1, or a negative seed.

    Source: He, Zhang, Ren, Sun, arXiv:1406.4729, section 3.3 (Caltech-101: 30 a class to train, up to 50 to test,
    10 random splits).

    Example:
        >>> photos = LabelledImages(tuple(Path(f"{i}.jpg") for i in range(12)), np.repeat([0, 1], [9, 3]), ("a", "b"))
        >>> [part.counts().tolist() for part in per_class(photos, 2, seed=0, at_most=5)]
        [[2, 2], [5, 1]]
    """
    if count < 1 or (at_most is not None and at_most < 1):
        raise ValueError(f"per_class: count and at_most must be at least 1, got {count} and {at_most}")
    few = [f"{name} ({n})" for name, n in zip(images.names, images.counts(), strict=True) if n < count]
    if few:
        raise UserError(f"expected at least {count} images of every class; fewer in: {some(few)}")
    chosen, rest = [], []
    for order in _shuffled_classes(images, seed):
        chosen.append(order[:count])
        rest.append(order[count:] if at_most is None else order[count : count + at_most])
    return images.subset(_in_order(chosen)), images.subset(_in_order(rest))


def merge(first: LabelledImages, *others: LabelledImages) -> LabelledImages:
    """Put parts of one set together again, for instance to draw other splits from the whole.

    Args:
        first, others: parts with the same names.

    Returns:
        All their images, part after part.

    Raises:
        ValueError: parts with different names.

    Example:
        >>> photos = LabelledImages((Path("a.jpg"), Path("b.jpg")), np.array([0, 1]), ("cat", "dog"))
        >>> len(merge(photos.subset([0]), photos.subset([1])))
        2
    """
    for part in others:
        if part.names != first.names:
            raise ValueError(f"merge: expected parts with the same names, got {first.names} and {part.names}")
    parts = (first, *others)
    return LabelledImages(
        tuple(path for part in parts for path in part.paths),
        np.concatenate([part.labels for part in parts]),
        first.names,
    )


def _labelled(survey: FolderSurvey, names: tuple[str, ...]) -> LabelledImages:
    label_of = {unicodedata.normalize("NFC", name): label for label, name in enumerate(names)}
    by_label = sorted((label_of[name], listing.images) for name, _, listing in survey.classes)
    labels = [label for label, paths in by_label for _ in paths]
    paths = tuple(path for _, paths in by_label for path in paths)
    return LabelledImages(paths, np.array(labels, dtype=np.int64), names)


def _shuffled_classes(images: LabelledImages, seed: int) -> Iterator[np.ndarray]:
    """Indices of each class that has images, in an order that depends on the seed, its name and its number only."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    by_class = np.split(np.argsort(images.labels, kind="stable"), np.cumsum(images.counts())[:-1])
    for name, indices in zip(images.names, by_class, strict=True):
        if len(indices):
            rng = np.random.default_rng([seed, *name.encode("utf-8", "surrogatepass")])
            yield rng.permutation(indices)


def _in_order(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
