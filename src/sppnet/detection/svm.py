"""One linear SVM a class, trained on an object's own box against hard negatives: the scores of the paper's detector.

head features [R, D] of windows (what the fully connected layers give, or the pooled windows themselves) -> decision scores [R, K].

The recipe, image by image, one pass (arXiv:1406.4729, section 4.1; the numbers are the authors' release's):

1. scale the features so that their mean length is 20, measured on a sample;
2. positives: the objects' own boxes. Negatives: windows that overlap no object of the class by .3 or more;
3. embed an image's windows, take those whose decision score is above -1.0001 for a class (at first, while there are no SVMs,
   all); of two that overlap by more than .7 only the harder;
4. after 2000 new ones train the class's SVM anew, then drop the negatives that score below -1.2: they are easy now.

Where paper and release differ, or this from both:

- the paper drops negatives that overlap another by 70 %, the release those that fall on the very same cells. Here it is the
  paper's rule, among hard windows only and hardest first; windows on the same cells are embedded once;
- the paper's text has IoU <= .3, the release < .3: the latter here;
- Fast R-CNN's copy of the recipe drops below -1.1;
- the release starts from all windows of its first image, in the order of the list. Here images come in an order drawn by
  ``seed``, so that a list sorted by class does no harm, and the first SVMs come after the first 2000 windows;
- a class's negatives are bounded in memory; beyond it the easiest go. The release has no such bound.

Difficult objects are neither positives nor negatives (`sppnet.detection.windows_of_images`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppnet.cache import read_tensors
from sppnet.detection.hard_negatives import NegativeCache, hard_windows
from sppnet.detection.windows_of_images import ImageWindows, ManyWindows, feature_scale, read_state, write_state
from sppnet.errors import UserError
from sppnet.linear.svm import solve_svms
from sppnet.models.heads import SVMClassifier
from sppnet.progress import Progress, no_progress

BYTES_PER_CLASS = 2**27  # of negatives at most: 65,000 of length 1024, 1000 of a pyramid with 64,000 numbers
SOLVING_BYTES = 2**29  # of features in single precision: so many classes are solved side by side
TRAINED = ("weights", "biases", "trained", "fresh")  # what of a training is in a state under these names
EMBEDDED_BYTES = 2**27  # of an image's windows in single precision that are looked at together


@dataclass(frozen=True)
class SVMSettings:
    """How the SVMs are trained; the values are those of the authors' release where nothing else is said.

    Args:
        cost: of a unit of loss, against half the squared length of the weights.
        positive_weight: times the cost, for positives.
        bias_input: what the bias's weight is multiplied by: makes a large bias cheap.
        negative_iou: windows that overlap an object of the class by less are negatives.
        duplicate_iou: negatives of one image that overlap a harder one by more are left out.
        hard_score: negatives that score above this are taken in: the loss begins at -1.
        easy_score: negatives that score below this are dropped.
        retrain_after: new negatives of a class.
        memory_bytes: for the negatives of all classes; each has its share of it, at most 128 MiB.
        checkpoint_interval: images; a training that was stopped goes on from there.
        seed: of the order of the images and of the sample for the norm.
    """

    cost: float = 0.001
    positive_weight: float = 2.0
    bias_input: float = 10.0
    negative_iou: float = 0.3
    duplicate_iou: float = 0.7
    hard_score: float = -1.0001
    easy_score: float = -1.2
    retrain_after: int = 2000
    memory_bytes: int = 2 * 2**30
    checkpoint_interval: int = 500
    seed: int = 0

    def key(self) -> dict[str, Any]:
        """What decides the result, by name. A field that comes later belongs here only where it is not at its default."""
        names = [field.name for field in fields(SVMSettings) if field.name != "checkpoint_interval"]
        return {name: getattr(self, name) for name in names}


def train_svms(
    images: ManyWindows,
    class_names: Sequence[str],
    settings: SVMSettings = SVMSettings(),
    *,
    state: Path | None = None,
    scale: float | None = None,
    progress: Progress = no_progress,
) -> SVMClassifier:
    """Train one SVM for each class, with hard negative mining.

    The same images, settings and seed give the same SVMs, also where the training was killed and went on.

    Args:
        images: each is asked for when its turn comes, so that it need not be in memory; twice: first its objects are embedded,
            then all its windows. Overlaps [R, K].
        class_names: K; label 1 is the first.
        settings: see there.
        state: a .safetensors file, written as the training goes on and read when it goes on from there: one for each
            training, so name it for all that the features come from. A damaged one counts as none.
        scale: that features are multiplied by; from a sample of them where it is not given.
        progress: the stage is "SVMs"; two steps for each image.

    Raises:
        UserError: a class without a positive or a negative; a state of another training.

    Source: arXiv:1406.4729, section 4.1.
    """
    told = {"svms": 2, "class_names": list(class_names), "images": len(images), "scale": scale, **settings.key()}
    mining = _Mining(class_names, settings)
    if (stored := read_state(state, told)) is not None:
        mining.restore(*stored)
    else:
        mining.scale = feature_scale(images, settings.seed) if scale is None else scale
    order = np.random.default_rng([settings.seed, 1, 1]).permutation(len(images)).tolist()
    total = 2 * len(images)
    for step in range(mining.done, total):
        if step < len(images):
            mining.collect_positives(images[step])
        else:
            mining.mine(images[order[step - len(images)]])
        mining.done += 1
        if mining.done == len(images):
            mining.check_positives()
        if mining.done == total:
            mining.fit(mining.fresh.nonzero().flatten().tolist())
        if state is not None and (mining.done % settings.checkpoint_interval == 0 or mining.done == total):
            write_state(state, told, mining.arrays(), done=mining.done, scale=mining.scale)
        progress("SVMs", mining.done, total)
    untrained = (~mining.trained).nonzero().flatten().tolist()
    if untrained:
        name, iou = class_names[untrained[0]], settings.negative_iou
        raise UserError(f"no window overlaps the objects of class {name!r} by less than {iou}: add images without them")
    return mining.svms


def cached_windows(state: Path, *, group_size: int = 1000) -> list[ImageWindows]:
    """The positives and hard negatives that a training ended with, as negatives for one more class.

    No image is read and no window embedded: adding a class takes seconds. They serve where the new class is not to be seen in
    the old images.

    Args:
        state: the file that `train_svms` was given.
        group_size: windows in each of the groups that stand for images.

    Returns:
        None of them where there is no such file, or a damaged one.
    """
    stored = read_tensors(state)
    if stored is None or not {"positives", "cache.features"} <= stored[0].keys():
        return []
    groups = []
    for features in torch.cat([stored[0]["positives"], stored[0]["cache.features"]]).split(group_size):
        zeros = torch.zeros(len(features), 4)
        groups.append(ImageWindows(zeros, zeros[:, 0].long(), zeros[:, :1], features.__getitem__))
    return groups


class _Mining:
    """All that a training has reached: what is saved, and goes on."""

    def __init__(self, class_names: Sequence[str], settings: SVMSettings) -> None:
        count = len(class_names)
        self.class_names, self.settings = class_names, settings
        self.done = 0  # steps
        self.scale = 1.0
        self.positives: list[Tensor] = []  # [n, D] each, not scaled; only one when all are collected
        self.positive_labels: list[Tensor] = []
        self.weights, self.biases = torch.zeros(count, 0), torch.zeros(count)
        self.trained = torch.zeros(count, dtype=torch.bool)
        self.fresh = torch.zeros(count, dtype=torch.int64)  # negatives since the class was trained
        self.cache = NegativeCache(count, min(BYTES_PER_CLASS, settings.memory_bytes // count))

    @property
    def svms(self) -> SVMClassifier:
        return SVMClassifier(self.weights, self.biases, self.scale)

    def collect_positives(self, image: ImageWindows) -> None:
        rows = image.labels.nonzero().flatten()
        if len(rows):
            self.positives.append(image.features(rows))
            self.positive_labels.append(image.labels[rows])

    def check_positives(self) -> None:
        labels = torch.cat([*self.positive_labels, torch.zeros(0, dtype=torch.int64)])
        for label, name in enumerate(self.class_names, start=1):
            if not (labels == label).any():
                raise UserError(f"class {name!r} has no object to learn from: add images of it, or leave it out")
        self.positives, self.positive_labels = [torch.cat(self.positives)], [labels]
        self.weights = torch.zeros(len(self.class_names), self.positives[0].shape[1])

    def mine(self, image: ImageWindows) -> None:
        """Take in the hard windows of an image, and train the classes that have many new ones."""
        settings = self.settings
        eligible = image.overlaps < settings.negative_iou
        svms, found = self.svms, []
        together = max(1, EMBEDDED_BYTES // (4 * max(1, self.weights.shape[1])))
        for part in eligible.any(1).nonzero().flatten().split(together):
            features = image.features(part)
            scores = svms(features)[:, 1:]
            near = (eligible[part] & (scores > settings.hard_score)).any(1)
            found.append((part[near], features[near], scores[near]))
        rows, features, scores = (torch.cat(column) for column in zip(*found, strict=True))
        hard = hard_windows(image.boxes[rows], scores, eligible[rows], settings.hard_score, settings.duplicate_iou)
        self.cache.add(features, hard, scores)
        self.fresh += hard.sum(0)
        due = self.fresh >= settings.retrain_after
        due |= self.cache.too_many() & ~self.trained  # without an SVM there is no telling which to drop
        self.fit(due.nonzero().flatten().tolist())
        self.cache.limit()

    def fit(self, columns: Sequence[int]) -> None:
        """Train these classes on what is cached for them, and drop what has become easy."""
        examples = int(self.cache.held.sum(0).max() + self.positive_labels[0].bincount().max())
        together = max(1, min(torch.get_num_threads(), SOLVING_BYTES // (4 * examples * self.weights.shape[1])))
        with ThreadPoolExecutor(together) as pool:
            for column, (weights, bias, scores) in zip(columns, pool.map(self._solve, columns), strict=True):
                self.weights[column], self.biases[column] = weights, bias
                self.cache.scores[self.cache.rows_of(column), column] = scores
                self.trained[column], self.fresh[column] = True, 0
        for column in columns:
            self.cache.evict(column, self.settings.easy_score)

    def _solve(self, column: int) -> tuple[Tensor, float, Tensor]:
        """Weights [D], bias, decision scores of the negatives."""
        positives = self.positives[0][self.positive_labels[0] == column + 1]
        negatives = self.cache.features[self.cache.rows_of(column)]
        joined = torch.empty(len(positives) + len(negatives), self.weights.shape[1])  # the one copy in single precision
        joined[: len(positives)], joined[len(positives) :] = positives, negatives
        scaled = joined.mul_(self.scale).numpy()
        signs = np.repeat((1, -1), (len(positives), len(negatives)))[:, None]
        cost, weight, bias_input = self.settings.cost, self.settings.positive_weight, self.settings.bias_input
        svm = solve_svms(scaled, signs, cost, positive_weight=weight, bias_input=bias_input, loss="hinge")
        scores = svm.decision_scores(scaled[len(positives) :])[:, 0]
        return torch.from_numpy(svm.weights[0]), float(svm.biases[0]), torch.from_numpy(scores)

    def arrays(self) -> dict[str, Tensor]:
        """All of it, for a file; `restore` takes it."""
        return {
            "positives": torch.cat(self.positives) if self.positives else torch.zeros(0, 0),
            "positive_labels": torch.cat([*self.positive_labels, torch.zeros(0, dtype=torch.int64)]),
            **{name: getattr(self, name) for name in TRAINED},
            **{f"cache.{name}": part for name, part in self.cache.arrays().items()},
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.done, self.scale = int(metadata["done"]), float(metadata["scale"])
        if len(tensors["positive_labels"]):
            self.positives, self.positive_labels = [tensors["positives"]], [tensors["positive_labels"]]
        self.weights, self.biases, self.trained, self.fresh = (tensors[name] for name in TRAINED)
        self.cache.restore({name.removeprefix("cache."): part for name, part in tensors.items()})
