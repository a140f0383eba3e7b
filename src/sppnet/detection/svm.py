"""One linear SVM a class, trained on an object's own box against hard negatives: the scores of the paper's detector.

features [R, D] of windows (what the fully connected layers say, or the pooled windows themselves) -> margins [R, K].

The recipe, image by image, one pass (arXiv:1406.4729, section 4.1; the numbers are the authors' release's):

1. scale the features so that their mean length is 20, measured on a sample;
2. positives: the objects' own boxes. Negatives: windows that overlap no object of the class by .3 or more;
3. describe an image's windows, keep those whose margin is above -1.0001 for a class (at first, while there are no SVMs, all);
   of two that overlap by more than .7 only the harder;
4. after 2000 new ones train the class's SVM anew, then drop the negatives whose margin is below -1.2: they are easy now.

Where paper and release differ, or this from both:

- the paper drops negatives that overlap another by 70 %, the release those that fall on the very same cells. Here it is the
  paper's rule, among hard windows only and hardest first; windows on the same cells are described once;
- the paper's text has IoU <= .3, the release < .3: the latter here;
- Fast R-CNN's copy of the recipe drops below -1.1;
- the release starts from all windows of its first image, in the order of the list. Here images come in an order drawn by
  ``seed``, so that a list sorted by class does no harm, and the first SVMs come after the first 2000 windows;
- a class's negatives are bounded in memory; beyond it the easiest go. The release has no such bound;
- liblinear is one of two solvers (`sppnet.detection.svm_solvers`); both find the same SVMs.

Difficult objects are neither positives nor negatives (`sppnet.detection.image_windows`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sppnet.detection.hard_negatives import NegativeCache, hard_windows
from sppnet.detection.image_windows import ImageWindows, feature_scale
from sppnet.detection.state_file import read_state, write_state
from sppnet.detection.svm_solvers import Loss, solve_compiled, solve_liblinear
from sppnet.errors import UserError

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class SVMSettings:
    """How the SVMs learn; the values are those of the authors' release where nothing else is said."""

    cost: float = 0.001  # of a unit of loss, against half the squared length of the weights
    positive_weight: float = 2.0  # times the cost, for positives
    bias_input: float = 10.0  # what the bias's weight is multiplied by: makes a large bias cheap
    loss: Loss = "hinge"
    solver: Literal["compiled", "liblinear"] = "compiled"  # the same SVMs, and measured about ten times as fast
    feature_norm: float = 20.0  # mean length that features are scaled to; ``cost`` is meant for it
    negative_iou: float = 0.3  # windows that overlap an object of the class by less are negatives
    duplicate_iou: float = 0.7  # negatives of one image that overlap a harder one by more are left out
    hard_margin: float = -1.0001  # negatives above this are kept: the loss begins at -1
    easy_margin: float = -1.2  # kept negatives below this are dropped
    retrain_after: int = 2000  # new negatives of a class
    passes: int = 1  # over the images
    bytes_per_class: int = 128 * 2**20  # of negatives' features, for each class: 65,000 of length 1024, half precision
    save_every: int = 500  # images; a training that was stopped goes on from there
    seed: int = 0  # of the order of the images and the sample for the norm


@dataclass(frozen=True, eq=False)
class LinearSVMs:
    """K linear SVMs over the same features.

    Example:
        >>> svms = LinearSVMs(torch.tensor([[1.0, 0.0]]), torch.tensor([-0.5]), scale=2.0)
        >>> svms.margins(torch.tensor([[1.0, 7.0], [0.0, 7.0]]))
        tensor([[ 1.5000],
                [-0.5000]])
    """

    weights: Tensor  # [K, D] float32, for scaled features
    biases: Tensor  # [K] float32
    scale: float  # that features are multiplied by

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.biases.shape != self.weights.shape[:1] or not self.scale > 0:
            raise ValueError(
                f"expected weights [K, D], biases [K] and a scale above 0, got shapes {list(self.weights.shape)}, "
                f"{list(self.biases.shape)} and {self.scale}"
            )

    def margins(self, features: Tensor) -> Tensor:
        """How surely each window holds an object of each class.

        Args:
            features: [R, D], any floating-point type, not scaled.

        Returns:
            [R, K] float32 on the device of ``features``: above 0 for yes, about -1 for background. Comparable between
            windows of one class; less so between classes, which are trained apart.

        Raises:
            ValueError: features of another length.
        """
        if features.ndim != 2 or features.shape[1] != self.weights.shape[1]:
            raise ValueError(f"expected features [R, {self.weights.shape[1]}], got shape {list(features.shape)}")
        weights, biases = self.weights.to(features.device), self.biases.to(features.device)
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ (weights * self.scale).T + biases

    def arrays(self) -> dict[str, Tensor]:
        """For a .safetensors file; `of_arrays` takes it."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return {"weights": self.weights.contiguous(), "biases": self.biases.contiguous(), "scale": scale}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> LinearSVMs:
        """What `arrays` gave."""
        return cls(arrays["weights"].float(), arrays["biases"].float(), float(arrays["scale"]))


def train_svms(
    images: Sequence[ImageWindows],
    names: Sequence[str],
    settings: SVMSettings | None = None,
    *,
    state: Path | None = None,
    scale: float | None = None,
    progress: Progress | None = None,
) -> LinearSVMs:
    """Train one SVM for each class, with hard negative mining.

    The same images, settings and seed give the same SVMs, also where the training was killed and went on.

    Args:
        images: each is asked for when its turn comes, so that it need not be in memory; twice in one pass: first its
            objects are described, then all its windows. Overlaps [R, K].
        names: of the K classes; label 1 is the first.
        settings: see there.
        state: a .safetensors file, written as the training goes on and read when it goes on from there: one for each
            training, so name it for all that the features come from. A damaged one counts as none.
        scale: that features are multiplied by; from a sample of them where it is not given.
        progress: called with steps done, and all: two for each image.

    Raises:
        UserError: a class without a positive or a negative; a state of another training.
        ValueError: windows of other classes, features of changing length.

    Source: arXiv:1406.4729, section 4.1.
    """
    settings = settings or SVMSettings()
    if not names or not len(images):
        raise UserError(
            f"no SVM can be trained of {len(names)} classes on {len(images)} images: give at least one of each"
        )
    told = dataclasses.asdict(settings)
    del told["save_every"]  # decides nothing
    identity = json.dumps(["sppnet-svm/1", list(names), len(images), scale, told])
    mining = _Mining(tuple(names), settings)
    if state is None or not mining.restore(state, identity):
        mining.scale = feature_scale(images, settings.feature_norm, settings.seed) if scale is None else scale
    total = len(images) * (1 + settings.passes)
    for step in range(mining.done, total):
        turn, position = divmod(step, len(images))
        if turn == 0:
            mining.collect_positives(images[position])
        else:
            order = np.random.default_rng([settings.seed, 1, turn]).permutation(len(images))
            mining.mine(int(order[position]), images[int(order[position])])
        mining.done += 1
        if mining.done == len(images):
            mining.check_positives()
        if mining.done == total:
            mining.fit(mining.fresh.nonzero().flatten().tolist())
        if state is not None and (mining.done % settings.save_every == 0 or mining.done == total):
            mining.save(state, identity)
        if progress:
            progress(mining.done, total)
    untrained = (~mining.trained).nonzero().flatten().tolist()
    if untrained:
        raise UserError(
            f"no window overlaps the objects of class {names[untrained[0]]!r} by less than {settings.negative_iou}: "
            "add images without them"
        )
    return mining.svms


def add_svm(
    svms: LinearSVMs,
    images: Sequence[ImageWindows],
    name: str,
    settings: SVMSettings | None = None,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> LinearSVMs:
    """Train the SVM of one more class; those of the others stay as they are, bit for bit.

    Args:
        svms: of K classes.
        images: with overlaps [R, 1] and label 1 for the new class; images without it give negatives, and so do
            `cached_windows` of the training of the others.
        name: of the new class.
        settings, state, progress: as of `train_svms`; the state not that of the others.

    Returns:
        SVMs of K + 1 classes, the new one last.
    """
    new = train_svms(images, (name,), settings, state=state, scale=svms.scale, progress=progress)
    if new.weights.shape[1] != svms.weights.shape[1]:
        raise ValueError(
            f"expected features of length {svms.weights.shape[1]} as the SVMs', got {new.weights.shape[1]}"
        )
    return LinearSVMs(torch.cat([svms.weights, new.weights]), torch.cat([svms.biases, new.biases]), svms.scale)


def cached_windows(state: Path, *, at_once: int = 1000) -> list[ImageWindows]:
    """The positives and hard negatives that a training ended with, as negatives for one more class.

    No image is read and no window described: adding a class takes seconds. They serve where the new class is not to be
    seen in the old images.

    Args:
        state: the file that `train_svms` was given.
        at_once: windows in each of the groups that stand for images.

    Raises:
        UserError: no such file, or a damaged one.
    """
    stored = read_state(state)
    if stored is None:
        raise UserError(
            f"{state}: no state of an SVM training, or damaged; train the SVMs with this file as their state"
        )
    features = torch.cat([stored[1]["positives"], stored[1]["cache.features"]])

    def group(part: Tensor) -> ImageWindows:
        count = len(part)
        labels = torch.zeros(count, dtype=torch.int64)
        return ImageWindows(torch.zeros(count, 4), labels, torch.zeros(count, 1), lambda rows: part[rows])

    return [group(part) for part in features.split(at_once)]


class _Mining:
    """All that a training has reached: what is saved, and goes on."""

    def __init__(self, names: tuple[str, ...], settings: SVMSettings) -> None:
        self.names, self.settings = names, settings
        self.done = 0  # steps
        self.scale = 1.0
        self.positives: list[Tensor] = []  # [n, D] each, not scaled; only one when all are collected
        self.positive_labels: list[Tensor] = []
        self.weights = torch.zeros(len(names), 0)
        self.biases = torch.zeros(len(names))
        self.trained = torch.zeros(len(names), dtype=torch.bool)
        self.fresh = torch.zeros(len(names), dtype=torch.int64)  # negatives since the class was trained
        self.cache = NegativeCache(len(names), settings.bytes_per_class)

    @property
    def svms(self) -> LinearSVMs:
        return LinearSVMs(self.weights, self.biases, self.scale)

    def collect_positives(self, image: ImageWindows) -> None:
        rows = image.labels.nonzero().flatten()
        if len(rows):
            self.positives.append(image.features(rows))
            self.positive_labels.append(image.labels[rows])

    def check_positives(self) -> None:
        labels = torch.cat([*self.positive_labels, torch.zeros(0, dtype=torch.int64)])
        counts = labels.bincount(minlength=1 + len(self.names))[1:]
        if len(counts) > len(self.names):
            raise ValueError(f"expected labels 0..{len(self.names)}, got {int(labels.max())}")
        for name, count in zip(self.names, counts.tolist(), strict=True):
            if not count:
                raise UserError(f"class {name!r} has no object to learn from: add images of it, or leave it out")
        self.positives, self.positive_labels = [torch.cat(self.positives)], [labels]
        self.weights = torch.zeros(len(self.names), self.positives[0].shape[1])

    def mine(self, number: int, image: ImageWindows) -> None:
        settings = self.settings
        if image.overlaps.shape[1] != len(self.names):
            raise ValueError(f"expected overlaps [R, {len(self.names)}], got shape {list(image.overlaps.shape)}")
        eligible = image.overlaps < settings.negative_iou
        rows = eligible.any(1).nonzero().flatten()
        if not len(rows):
            return
        features = image.features(rows)
        margins = self.svms.margins(features)
        held = self.cache.held_of(number, len(image.labels))[rows]
        hard = hard_windows(
            image.boxes[rows], margins, eligible[rows], held, settings.hard_margin, settings.duplicate_iou
        )
        self.cache.add(number, rows, features, hard, margins)
        self.fresh += hard.sum(0)
        due = self.fresh >= settings.retrain_after
        if self.cache.too_many().any():  # without an SVM there is no telling which to drop
            due |= self.cache.too_many() & ~self.trained
        self.fit(due.nonzero().flatten().tolist())
        self.cache.limit()

    def fit(self, columns: Sequence[int]) -> None:
        """Train these classes on what is kept for them, and drop what has become easy."""
        if not columns:
            return
        together = torch.get_num_threads() if self.settings.solver == "compiled" else 1
        with ThreadPoolExecutor(together) as pool:
            for column, (weights, bias, margins) in zip(columns, pool.map(self._solve, columns), strict=True):
                self.weights[column], self.biases[column] = weights, bias
                self.cache.margins[self.cache.rows_of(column), column] = margins
                self.trained[column], self.fresh[column] = True, 0
        for column in columns:
            self.cache.evict(column, self.settings.easy_margin)

    def _solve(self, column: int) -> tuple[Tensor, float, Tensor]:
        """Weights [D], bias, margins of the negatives."""
        settings = self.settings
        positives = self.positives[0][self.positive_labels[0] == column + 1]
        negatives = self.cache.features[self.cache.rows_of(column)]
        scaled = torch.cat([positives.float(), negatives.float()]).mul_(self.scale).numpy()
        signs = np.repeat((1.0, -1.0), (len(positives), len(negatives)))
        solve = solve_compiled if settings.solver == "compiled" else solve_liblinear
        weights, bias = solve(
            scaled,
            signs,
            cost=settings.cost,
            positive_weight=settings.positive_weight,
            bias_input=settings.bias_input,
            loss=settings.loss,
        )
        return torch.from_numpy(weights), bias, torch.from_numpy(scaled[len(positives) :] @ weights + np.float32(bias))

    def save(self, path: Path, identity: str) -> None:
        """Write all of it, or nothing."""
        width = self.weights.shape[1]
        tensors = {
            "positives": torch.cat(self.positives) if self.positives else torch.zeros(0, width),
            "positive_labels": torch.cat([*self.positive_labels, torch.zeros(0, dtype=torch.int64)]),
            **{name: getattr(self, name) for name in ("weights", "biases", "trained", "fresh")},
            **{f"cache.{name}": part for name, part in self.cache.arrays().items()},
        }
        write_state(path, tensors, {"identity": identity, "done": str(self.done), "scale": repr(self.scale)})

    def restore(self, path: Path, identity: str) -> bool:
        """Whether there was something to go on from."""
        stored = read_state(path)
        if stored is None:
            return False
        metadata, tensors = stored
        if metadata.get("identity") != identity:
            raise UserError(
                f"{path} is the state of another SVM training (classes, images or settings differ): "
                "delete it, or name another file"
            )
        self.done, self.scale = int(metadata["done"]), float(metadata["scale"])
        if len(tensors["positive_labels"]):
            self.positives, self.positive_labels = [tensors["positives"]], [tensors["positive_labels"]]
        self.weights, self.biases = tensors["weights"], tensors["biases"]
        self.trained, self.fresh = tensors["trained"], tensors["fresh"]
        names = ("features", "held", "margins", "keys")
        self.cache.restore({name: tensors[f"cache.{name}"] for name in names})
        return True
