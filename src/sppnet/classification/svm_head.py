"""The head of a classifier as the paper learns it: linear SVMs on the pooled pyramid; their margins are made probabilities.

pooled [N, M, C] -> vectors of length 1 [N, D] -> products [N, N] -> of cross-validation margins [N, K] for each cost -> the best
cost, and a scale -> logits [N, K] = scale x margins, by ``image_logits`` of a model whose architecture says ``classifier="svm"``.

Held-out images choose nothing here: C (`sppnet.classification.cross_validation`) and the scale
(`sppnet.classification.calibration`) are chosen on those that are learned from, and the SVMs then learn from all of these.
Source: arXiv:1406.4729, sections 3.2 and 3.3; probabilities are this project's addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sppnet.classification.calibration import log_loss, probability_scale
from sppnet.classification.cross_validation import COST, fold_margins, stratified_folds
from sppnet.classification.kept import KeptFeatures, Vectors
from sppnet.classification.newton import FloatArray
from sppnet.classification.readable import Report
from sppnet.classification.svm import label_targets, solve_gram
from sppnet.classification.vectors import to_vectors
from sppnet.data.labelled import LabelledImages
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet

COSTS = (0.3, 1.0, 3.0, 10.0)  # tried: of vectors of length 1, SVMs hardly change beyond these
FOLDS = 5
MOST_CHOOSING = 5000  # images that cost and scale are chosen on; of more, so many are drawn
MOST_IMAGES = 20_000  # to learn from: their products take 1.6 GB, and twice that while the SVMs are solved
AT_ONCE = 1024  # images whose vectors are in single precision: 73 MB for 14 bins of 1280 channels
DECIMALS = 4  # of figures


@dataclass(frozen=True)
class HeadChoice:
    """What cross-validation chose."""

    cost: float  # C
    scale: float  # by which margins become logits
    accuracies: dict[float, float]  # of each cost: the share of images answered right by SVMs that learned from others
    images: int  # that it was chosen on

    def figures(self) -> dict[str, Any]:
        """For a model's record, ready for ``json.dumps``: ``{"cost", "scale", "cross_validated": {cost: accuracy}, "images"}``."""
        shares = {f"{cost:g}": round(accuracy, DECIMALS) for cost, accuracy in self.accuracies.items()}
        return {
            "cost": self.cost,
            "scale": round(self.scale, DECIMALS),
            "cross_validated": shares,
            "images": self.images,
        }


def train_svm_head(
    model: SPPNet, train: LabelledImages, held_out: LabelledImages, cache: Path, *, seed: int, report: Report
) -> tuple[HeadChoice, dict[str, float] | None]:
    """Learn the head of a model, in place, from images that go through its frozen backbone once.

    Args:
        model: ``Architecture(detects=False, classifier="svm")``; in evaluation mode, its features calibrated.
        train: N images of two classes at least. All SVMs say no to a class without images, whatever they see.
        held_out: images that choose nothing and only show what was learned; may be none.
        cache: a folder that keeps pooled vectors: a run that was stopped computes only those that are missing.
        seed: of the folds.
        report: told of the progress: "features" and then "training", done, total.

    Returns:
        `HeadChoice`, and of the held-out images, if any, ``{"images", "wrong", "loss"}``: how many, how many answered wrong, the
        mean log loss. The same images and seed give the same model, bit for bit, on one machine with one thread count.

    Raises:
        UserError: more than `MOST_IMAGES`, images that cannot be read, no room for vectors, features that are no numbers.
        ValueError: a model of another kind.
    """
    architecture = model.architecture
    if architecture.detects or architecture.classifier != "svm":
        raise ValueError("train_svm_head: expected a model of Architecture(detects=False, classifier='svm')")
    check_count(len(train))
    files = KeptFeatures.of(model, cache).fill(model, [*train.paths, *held_out.paths], report, mirrored=False)
    rows = UnitRows(Vectors(files[: len(train)], mirrored=False), architecture.levels)
    gram, labels, classes = rows.products(), train.labels, len(architecture.names)
    if not np.isfinite(gram).all():
        raise UserError("the backbone gives features that are no numbers: its weights are damaged; get them again")
    places = _drawn(labels, seed)
    done, steps = count(1), len(COSTS) * min(FOLDS, len(places)) + 1

    def tell() -> None:
        report("training", next(done), steps)

    inner = gram if len(places) == len(labels) else gram[np.ix_(places, places)]
    choice = choose_head(inner, labels[places], classes, seed=seed, progress=tell)
    present = np.unique(labels)
    coefficients, biases = solve_gram(gram, label_targets(labels, classes)[:, present], choice.cost)
    weights = rows.combined(coefficients) * np.float32(choice.scale)
    with torch.no_grad():
        model.image_classifier.weight.zero_()
        model.image_classifier.bias.fill_(
            -choice.scale
        )  # a margin of -1: that of an SVM which saw no image of its class
        model.image_classifier.weight[present] = torch.from_numpy(weights).to(model.device)
        model.image_classifier.bias[present] = torch.from_numpy(biases * np.float32(choice.scale)).to(model.device)
    tell()
    return choice, _measured(model, Vectors(files[len(train) :], mirrored=False), held_out.labels)


def _measured(model: SPPNet, vectors: Vectors, labels: npt.NDArray[np.int64]) -> dict[str, float] | None:
    """What kept vectors of images that were not learned from show."""
    if not len(labels):
        return None
    with torch.inference_mode():
        pooled = (vectors.read(place, mirrored=False)[None].to(model.device) for place in range(len(labels)))
        logits = torch.cat([model.image_classifier(model.fully_connected(each)) for each in pooled]).cpu().numpy()
    wrong = int((logits.argmax(1) != labels).sum())
    return {"images": len(labels), "wrong": wrong, "loss": log_loss(logits, labels)}


def check_count(images: int) -> None:
    """Refuse more images than SVMs are learned from.

    Example:
        >>> check_count(20_001)
        Traceback (most recent call last):
        sppnet.errors.UserError: SVMs learn from at most 20000 images here: got 20001; take the softmax classifier
    """
    if images > MOST_IMAGES:
        raise UserError(f"SVMs learn from at most {MOST_IMAGES} images here: got {images}; take the softmax classifier")


def choose_head(
    gram: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    seed: int,
    progress: Callable[[], None] | None = None,
) -> HeadChoice:
    """Choose C, and the scale of the margins, by cross-validation on images to learn from.

    The best C is that of the highest accuracy; of as good ones, that of the least log loss. The scale is fitted to the margins
    of images that the SVMs had not learned from, and so knows how sure these may be.

    Args:
        gram: [N, N] products of vectors of length 1.
        labels: [N] int64, 0..classes-1. Lone images of their class count for nothing.
        classes: K.
        seed: of the folds.
        progress: called after each fold of each cost.

    Example:
        >>> rows = np.repeat(np.eye(2, dtype=np.float32), 10, 0)
        >>> choice = choose_head(rows @ rows.T, np.repeat([0, 1], 10), 2, seed=0)
        >>> choice.accuracies[choice.cost], choice.scale > 1
        (1.0, True)
    """
    fold = stratified_folds(labels, min(FOLDS, len(labels)), np.random.default_rng([seed, 1]))
    tried: list[tuple[float, float, float, float]] = []  # accuracy, minus the loss, minus the cost, scale
    for cost in COSTS:
        margins = fold_margins(gram, labels, fold, classes, cost=cost, progress=progress)
        known = np.isfinite(margins[np.arange(len(labels)), labels])
        if known.any():
            margins, truth = margins[known], labels[known]
            scale = probability_scale(margins, truth)
            tried.append((float((margins.argmax(1) == truth).mean()), -log_loss(scale * margins, truth), -cost, scale))
    if not tried:  # no class has two images: nothing can be said of images that were not learned from
        return HeadChoice(COST, 1.0, {}, 0)
    _, _, cost, scale = max(tried)
    return HeadChoice(-cost, scale, {-cost: accuracy for accuracy, _, cost, _ in tried}, len(labels))


class UnitRows:
    """Kept vectors as SVMs see them: made length 1, in single precision, a block of images at a time.

    Args:
        vectors: of N images.
        levels: of their pyramid.
    """

    def __init__(self, vectors: Vectors, levels: Sequence[int]) -> None:
        self.vectors, self.levels = vectors, levels
        self.starts = range(0, len(vectors.files), AT_ONCE)

    def block(self, start: int) -> FloatArray:
        """[n, D], n up to `AT_ONCE`."""
        places = range(start, min(start + AT_ONCE, len(self.vectors.files)))
        pooled = np.stack([self.vectors.read(place, mirrored=False).numpy() for place in places])
        return to_vectors(pooled, self.levels)

    def products(self) -> FloatArray:
        """Of each with each, [N, N]."""
        gram = np.empty((len(self.vectors.files),) * 2, np.float32)
        for start in self.starts:
            rows = self.block(start)
            own = slice(start, start + len(rows))
            gram[own, own] = rows @ rows.T
            for before in range(0, start, AT_ONCE):
                other = slice(before, before + AT_ONCE)
                gram[own, other] = rows @ self.block(before).T
                gram[other, own] = gram[own, other].T
        return gram

    def combined(self, coefficients: FloatArray) -> FloatArray:
        """Sums of the vectors: coefficients [N, K] -> [K, D]."""
        parts = (coefficients[start : start + AT_ONCE].T @ self.block(start) for start in self.starts)
        total: FloatArray = sum(parts, np.zeros((), np.float32))
        return total


def _drawn(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Places of up to `MOST_CHOOSING` images, of each class its share."""
    if len(labels) <= MOST_CHOOSING:
        return np.arange(len(labels))
    parts = -(-len(labels) // MOST_CHOOSING)
    return np.flatnonzero(stratified_folds(labels, parts, np.random.default_rng([seed, 0])) == 0)
