"""Run a classifier over labelled images, one class each, and count: top-1, top-5, each class's accuracy, confusions.

Images go through one by one, each at its own size, looked at as `sppnet.classification.views` says. A file that cannot
be read is named and left out of the figures; the rest is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sppnet.classification.views import Views, view_scores, views_for
from sppnet.data.images import ImageError, read_image
from sppnet.errors import UserError
from sppnet.metrics.classification import class_accuracies, label_ranks, wilson_interval
from sppnet.models.sppnet import SPPNet

Report = Callable[[str, int, int], None]  # stage, done, total
DECIMALS = 4  # of accuracies: of a million images, the last digit is a hundred
TOP = 5


class Labelled(Protocol):
    """Images with one class each, such as a folder of class folders."""

    @property
    def paths(self) -> Sequence[Path]: ...  # N files
    @property
    def labels(self) -> np.ndarray: ...  # [N] int64, 0..K-1
    @property
    def names(self) -> Sequence[str]: ...  # K class names


class Mistake(NamedTuple):
    """An image that was taken for something else."""

    path: Path
    truth: str
    answer: str
    score: float  # of the answer


@dataclass(frozen=True, eq=False)
class ClassifierEvaluation:
    """What a classifier answered on N images, and how often that was right. Classes are the model's, in its order."""

    names: tuple[str, ...]  # K
    paths: tuple[Path, ...]  # N, those that could be read
    labels: np.ndarray  # [N] int64, 0..K-1
    probabilities: np.ndarray  # [N, K] float32
    views: Views
    broken: tuple[tuple[Path, str], ...] = ()  # what could not be read, and why; not among the N
    seconds_per_image: float = math.nan  # reading it included

    @cached_property
    def ranks(self) -> np.ndarray:
        """[N] int64: the place of the true class in the model's ranking, from 0."""
        return label_ranks(self.probabilities, self.labels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """[K, K] int64: row true, column answered."""
        from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]  # slow to import

        matrix: np.ndarray = confusion_matrix(self.labels, self.probabilities.argmax(1), labels=range(len(self.names)))
        return matrix

    @property
    def top1(self) -> float:
        """The share of images whose best class is the true one."""
        return float((self.ranks < 1).mean())

    @property
    def top5(self) -> float | None:
        """The share of images whose true class is among the best five; None with five classes or fewer."""
        return float((self.ranks < TOP).mean()) if len(self.names) > TOP else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of ``top1``, for other images of the same kind (Wilson)."""
        return wilson_interval(int((self.ranks < 1).sum()), len(self.ranks))

    @property
    def mean_class(self) -> float:
        """The mean of the classes' accuracies, over the classes that have images."""
        return float(np.nanmean(class_accuracies(self.confusion)))

    def mistakes(self, most: int = 20) -> list[Mistake]:
        """The images that were answered wrong, the surest answer first.

        Args:
            most: at most so many, at least 0.
        """
        answers = self.probabilities.argmax(1)
        wrong = np.flatnonzero(answers != self.labels)
        scores = self.probabilities[wrong, answers[wrong]]
        return [
            Mistake(
                self.paths[i], self.names[self.labels[i]], self.names[answers[i]], float(self.probabilities[i].max())
            )
            for i in wrong[np.argsort(-scores, kind="stable")][:most]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; what cannot be measured is None.

        Returns:
            ``{"top1", "top1_interval": [lower, upper], "top5", "mean_class", "images", "broken": [{"path", "error"}],
            "seconds_per_image", "classes": {name: {"accuracy", "images", "taken_for": {name: count}}}}``; ``taken_for``
            lists wrong answers, the commonest first.
        """
        accuracies, images = class_accuracies(self.confusion), self.confusion.sum(1)
        classes = {}
        for k, name in enumerate(self.names):
            order = [j for j in np.argsort(-self.confusion[k], kind="stable") if j != k and self.confusion[k, j]]
            taken_for = {self.names[j]: int(self.confusion[k, j]) for j in order}
            classes[name] = {"accuracy": _number(accuracies[k]), "images": int(images[k]), "taken_for": taken_for}
        return {
            "top1": _number(self.top1),
            "top1_interval": [_number(end) for end in self.interval],
            "top5": None if self.top5 is None else _number(self.top5),
            "mean_class": _number(self.mean_class),
            "images": len(self.paths),
            "broken": [{"path": str(path), "error": error} for path, error in self.broken],
            "seconds_per_image": _number(self.seconds_per_image),
            "classes": classes,
        }

    def table(self) -> str:
        """A table for people: a line for each class that has images, worst first, and the mean in the last."""
        accuracies, images = class_accuracies(self.confusion), self.confusion.sum(1)
        present = [k for k in np.argsort(accuracies, kind="stable") if images[k]]
        width = max(len("class"), len("mean"), *(len(self.names[k]) for k in present))
        lines = [f"{'class':{width}}  images  accuracy  most often taken for"]
        for k in present:
            wrong = np.where(np.arange(len(self.names)) == k, 0, self.confusion[k])
            other = f"{self.names[wrong.argmax()]} ({wrong.max()})" if wrong.any() else "-"
            lines.append(f"{self.names[k]:{width}}  {images[k]:6}  {accuracies[k]:8.3f}  {other}")
        lines.append(f"{'mean':{width}}  {images.sum():6}  {self.mean_class:8.3f}")
        return "\n".join(lines)


def evaluate_classifier(
    model: SPPNet, images: Labelled, *, views: Views | str = "single", report: Report | None = None
) -> ClassifierEvaluation:
    """Classify every image and compare with its label.

    Args:
        model: any model that knows all classes of the data, found by name; it may know more. Its answer is its best
            class, also where it is a multi-label one.
        images: what the model was not trained on: paths [N], labels [N] from 0, names [K].
        views: how each image is looked at; see `sppnet.classification.views.classify_views`.
        report: told of the progress: stage, done, total.

    Returns:
        `ClassifierEvaluation`, with the probabilities of every image.

    Raises:
        UserError: no images, none that can be read, or a class that the model does not know. Single files that cannot be
            read are no error: the result names them.

    Example:
        >>> from types import SimpleNamespace
        >>> from PIL import Image
        >>> from skimage.data import chelsea
        >>> Image.fromarray(chelsea()).save("chelsea.png")
        >>> data = SimpleNamespace(paths=[Path("chelsea.png")], labels=np.array([0]), names=("cat",))
        >>> evaluate_classifier(sppnet.load("voc"), data).top1
        1.0
    """
    labels = _labels_of_model(model, images)
    views = views_for(model, views)
    rows: list[np.ndarray] = []
    kept: list[int] = []
    broken: list[tuple[Path, str]] = []
    started = time.perf_counter()
    for place, path in enumerate(images.paths):
        try:
            pixels = read_image(path)
        except ImageError as error:
            broken.append((path, str(error)))
        else:
            rows.append(view_scores(pixels, model, views).mean(0).numpy())
            kept.append(place)
        if report:
            report("classification", place + 1, len(images.paths))
    if not rows:
        raise UserError(f"none of the {len(broken)} images can be read; the first: {broken[0][1]}")
    return ClassifierEvaluation(
        model.class_names,
        tuple(images.paths[place] for place in kept),
        labels[kept],
        np.stack(rows),
        views,
        tuple(broken),
        (time.perf_counter() - started) / len(images.paths),
    )


def _labels_of_model(model: SPPNet, images: Labelled) -> np.ndarray:
    """The labels, counted in the model's classes."""
    names = model.class_names
    if not len(images.paths):
        raise UserError("the data holds no images: nothing to evaluate on")
    if len(images.labels) != len(images.paths):
        raise ValueError(f"expected one label for each of the {len(images.paths)} images, got {len(images.labels)}")
    used = sorted(set(np.asarray(images.labels).tolist()))
    if used[0] < 0 or used[-1] >= len(images.names):
        raise ValueError(f"labels: expected 0..{len(images.names) - 1}, one for each name, got {used[0]}..{used[-1]}")
    unknown = [images.names[label] for label in used if images.names[label] not in names]
    if unknown:
        raise UserError(
            f"the model does not know {len(unknown)} of the {len(used)} classes of the data, such as "
            f"{', '.join(map(repr, unknown[:3]))}; it knows {len(names)}: {', '.join(map(repr, names[:3]))}"
            f"{' ...' if len(names) > 3 else ''}. Classes are matched by name: rename the folders, or give another model"
        )
    place = [names.index(name) if name in names else -1 for name in images.names]
    return np.array(place, np.int64)[np.asarray(images.labels)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), DECIMALS)
