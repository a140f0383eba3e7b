"""Run a classifier over labelled images, one class each, and count: top-1, top-5, each class's accuracy, confusions.

Images go through one by one, each at its own size, looked at as `sppnet.classification.views` says. A file that cannot
be read is named and left out of the figures; the rest is done.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sppnet.classification.features import PooledFeatures
from sppnet.classification.views import Views, view_scores, views_for
from sppnet.data.images import image_or_error, read_ahead
from sppnet.data.labelled import LabelledImages
from sppnet.errors import ImageError, SettingsError
from sppnet.metrics import rounded
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress

TOP = 5


class Mistake(NamedTuple):
    """An image that was taken for something else."""

    path: Path
    truth: str
    answer: str
    score: float  # of the answer


@dataclass(frozen=True, eq=False)
class ClassifierEvaluation:
    """What a classifier answered on N images, and how often that was right. Classes are the model's, in its order."""

    class_names: tuple[str, ...]  # K
    paths: tuple[Path, ...]  # N, those that could be read
    labels: np.ndarray  # [N] int64, 0..K-1
    probabilities: np.ndarray  # [N, K] float32
    views: Views
    broken: tuple[tuple[Path, str], ...] = ()  # what could not be read, and why; not among the N
    seconds_per_image: float = math.nan  # reading it included

    @cached_property
    def ranks(self) -> np.ndarray:
        """[N] int64: the rank of the true class among the model's answers, from 0."""
        return label_ranks(self.probabilities, self.labels)

    @cached_property
    def confusion(self) -> np.ndarray:
        """[K, K] int64: row true, column answered."""
        from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]  # slow to import

        return confusion_matrix(self.labels, self.probabilities.argmax(1), labels=range(len(self.class_names)))

    @property
    def top1(self) -> float:
        """The share of images whose best class is the true one."""
        return float((self.ranks < 1).mean())

    @property
    def top5(self) -> float | None:
        """The share of images whose true class is among the best five; None with five classes or fewer."""
        return float((self.ranks < TOP).mean()) if len(self.class_names) > TOP else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of ``top1``, for other images of the same kind (Wilson)."""
        return wilson_interval(int((self.ranks < 1).sum()), len(self.ranks))

    @property
    def mean_class(self) -> float:
        """The mean of the classes' accuracies, over the classes that have images."""
        return float(np.nanmean(class_accuracies(self.confusion)))

    @property
    def loss(self) -> float:
        """The mean of minus the logarithm of the true classes' probabilities."""
        true = self.probabilities[np.arange(len(self.labels)), self.labels].astype(np.float64)
        return float(-np.log(true.clip(np.finfo(np.float32).tiny)).mean())

    def mistakes(self, count: int = 20) -> list[Mistake]:
        """The images that were answered wrong, at most ``count``, the most confident answer first."""
        answers, scores, names = self.probabilities.argmax(1), self.probabilities.max(1), self.class_names
        wrong = np.flatnonzero(answers != self.labels)
        chosen = wrong[np.argsort(-scores[wrong], kind="stable")][:count]
        return [Mistake(self.paths[i], names[self.labels[i]], names[answers[i]], float(scores[i])) for i in chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; what cannot be measured is None.

        Returns:
            ``{"top1", "top1_interval": [lower, upper], "top5", "mean_class", "images", "broken": [{"path", "error"}],
            "seconds_per_image", "classes": {name: {"accuracy", "images", "taken_for": {name: count}}}}``; ``taken_for``
            lists wrong answers, the most frequent first.
        """
        accuracies, images = class_accuracies(self.confusion), self.confusion.sum(1)
        classes = {}
        for k, name in enumerate(self.class_names):
            order = [j for j in np.argsort(-self.confusion[k], kind="stable") if j != k and self.confusion[k, j]]
            taken_for = {self.class_names[j]: int(self.confusion[k, j]) for j in order}
            classes[name] = {"accuracy": rounded(accuracies[k]), "images": int(images[k]), "taken_for": taken_for}
        return {
            "top1": rounded(self.top1),
            "top1_interval": [rounded(end) for end in self.interval],
            "top5": None if self.top5 is None else rounded(self.top5),
            "mean_class": rounded(self.mean_class),
            "images": len(self.paths),
            "broken": [{"path": str(path), "error": error} for path, error in self.broken],
            "seconds_per_image": rounded(self.seconds_per_image),
            "classes": classes,
        }

    def table(self) -> str:
        """A table for people: a line for each class that has images, worst first, and the mean in the last."""
        accuracies, images = class_accuracies(self.confusion), self.confusion.sum(1)
        present = [k for k in np.argsort(accuracies, kind="stable") if images[k]]
        width = max(len("class"), *(len(self.class_names[k]) for k in present))
        lines = [f"{'class':{width}}  images  accuracy  most often taken for"]
        for k in present:
            wrong = np.where(np.arange(len(self.class_names)) == k, 0, self.confusion[k])
            other = f"{self.class_names[wrong.argmax()]} ({wrong.max()})" if wrong.any() else "-"
            lines.append(f"{self.class_names[k]:{width}}  {images[k]:6}  {accuracies[k]:8.3f}  {other}")
        lines.append(f"{'mean':{width}}  {images.sum():6}  {self.mean_class:8.3f}")
        return "\n".join(lines)


def evaluate_classifier(
    model: SPPNet, images: LabelledImages, *, views: Views | str = "single", progress: Progress = no_progress
) -> ClassifierEvaluation:
    """Classify every image and compare with its label.

    Args:
        model: any model that knows all classes of the data, found by name; it may know more. Its answer is its best
            class, also where it is a multi-label one.
        images: what the model was not trained on.
        views: how each image is looked at; see `sppnet.classify`.
        progress: told of "classification".

    Returns:
        `ClassifierEvaluation`, with the probabilities of every image.

    Raises:
        SettingsError: no images, or a class that the model does not know.
        ImageError: none of the images can be read. Single files that cannot be read are no error: the result names them.

    Example:
        >>> from PIL import Image
        >>> from skimage.data import chelsea
        >>> Image.fromarray(chelsea()).save("chelsea.png")
        >>> data = sppnet.LabelledImages((Path("chelsea.png"),), np.array([0]), ("cat",))
        >>> evaluate_classifier(sppnet.load("voc"), data).top1
        1.0
    """
    labels, views = _labels_of_model(model, images), views_for(model, views)
    rows: dict[int, np.ndarray] = {}  # by index
    broken: list[tuple[Path, str]] = []
    started = time.perf_counter()
    for index, image in enumerate(read_ahead(images.paths, image_or_error)):
        if isinstance(image, ImageError):
            broken.append((images.paths[index], str(image)))
        else:
            rows[index] = view_scores(image, model, views).mean(0).numpy()
        progress("classification", index + 1, len(images))
    if not rows:
        raise ImageError(f"none of the {len(broken)} images can be read; the first: {broken[0][1]}")
    seconds = (time.perf_counter() - started) / len(images)
    paths, scores = tuple(images.paths[index] for index in rows), np.stack([*rows.values()])
    return ClassifierEvaluation(model.class_names, paths, labels[[*rows]], scores, views, tuple(broken), seconds)


def evaluate_features(model: SPPNet, images: LabelledImages, features: PooledFeatures) -> ClassifierEvaluation:
    """`evaluate_classifier` where the images' pooled features are computed already: only the head is asked."""
    with model.inference(bfloat16=False):
        pooled = (features.read(index)[None].float().to(model.device) for index in range(len(features)))
        logits = torch.cat([model.image_logits(each) for each in pooled])
        probabilities = model.image_classifier.probabilities(logits).cpu().numpy()
    labels, views = _labels_of_model(model, images), views_for(model, "single")
    return ClassifierEvaluation(model.class_names, images.paths, labels, probabilities, views)


def _labels_of_model(model: SPPNet, images: LabelledImages) -> np.ndarray:
    """The labels, counted in the model's classes."""
    known = model.class_names
    if not len(images):
        raise SettingsError("the data holds no images: nothing to evaluate on")
    used = [name for name, count in zip(images.class_names, images.counts(), strict=True) if count]
    unknown = [name for name in used if name not in known]
    if unknown:
        found = f"{len(unknown)} of the {len(used)} classes of the data, such as {', '.join(map(repr, unknown[:3]))}"
        others = ", ".join(map(repr, known[:3])) + (" ..." if len(known) > 3 else "")
        remedy = "Classes are matched by name: rename the folders, or give another model"
        raise SettingsError(f"the model does not know {found}; it knows {len(known)}: {others}. {remedy}")
    label_of = [known.index(name) if name in known else -1 for name in images.class_names]
    return np.array(label_of, np.int64)[images.labels]


# How often the right class comes first. Labels count from 0 here, as the columns of the scores do.


def label_ranks(scores: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The rank of each image's true class, from 0; the top-k accuracy is the mean of ``ranks < k``.

    Classes are ranked by falling score; of equal scores the first class comes first, as in `Classification.label`.
    (scikit-learn's ``top_k_accuracy_score`` counts ties the other way, and refuses two columns.)

    Args:
        scores: [N, K], larger is more confident; not NaN.
        labels: [N] integers in 0..K-1; N may be 0.

    Returns:
        [N] int64 in 0..K-1; 0 where the answer is right.

    Example:
        >>> label_ranks([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]], [2, 1]).tolist()
        [1, 1]
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.int64)
    true = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
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
