"""How a box should move, by what is in its window: one ridge regression a class, the paper's last stage.

head features [R, D] -> box deltas [R, K, 4] (`sppnet.boxes`) -> boxes. Trained on windows that overlap an object of the class by
.6 or more: from the window's features to the deltas that lead to the object.

Memory is bounded: of a class's windows only sums are held, or the windows themselves where they are fewer than D
(`sppnet.linear.ridge`); and where those of all classes together would take more than ``memory_bytes``, the images are gone through
again for the next classes.

Source: arXiv:1406.4729, section 4.2; arXiv:1311.2524, appendix C. The release takes lambda 4000 and overlap .5, R-CNN 1000
and .6; both on features of mean length 20. Both whiten the four deltas before fitting and undo it after: with one lambda
for all four this changes nothing, so it is left out. Both also shrink the constant, which is free here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.boxes import box_iou, encode_boxes
from sppnet.detection.windows_of_images import ImageWindows, ManyWindows, read_state, write_state
from sppnet.linear.ridge import RidgeSums, ridge_bytes
from sppnet.models.heads import RidgeRegressor
from sppnet.progress import Progress, no_progress


@dataclass(frozen=True)
class BoxRegressionSettings:
    """How the regressors are trained.

    Args:
        ridge: lambda, the penalty on the squared weights, for features of a mean length of 20.
        min_iou: windows learn from the object that they overlap most, if by this or more.
        memory_bytes: for the sums of the classes that are fitted at the same time.
        checkpoint_interval: images; a training that was stopped goes on from there.
    """

    ridge: float = 1000.0
    min_iou: float = 0.6
    memory_bytes: int = 2**30
    checkpoint_interval: int = 500

    def key(self) -> dict[str, Any]:
        """What decides the result, by name; see `SVMSettings.key`."""
        return {"ridge": self.ridge, "min_iou": self.min_iou, "memory_bytes": self.memory_bytes}


def train_box_regression(
    images: ManyWindows,
    num_classes: int,
    settings: BoxRegressionSettings = BoxRegressionSettings(),
    *,
    scale: float,
    state: Path | None = None,
    progress: Progress = no_progress,
) -> RidgeRegressor:
    """Fit one ridge regression for each class; of a class without examples, one that moves nothing.

    The same images, settings and scale give the same numbers, also where the training was killed and went on.

    Args:
        images: each is asked for when its turn comes, twice or more. Embedded are the windows to learn from, once each.
        num_classes: K.
        settings: see there.
        scale: that features are multiplied by: `sppnet.detection.windows_of_images.feature_scale`, or that of SVMs on them.
        state: a .safetensors file, as of `sppnet.detection.svm.train_svms`.
        progress: the stage is "box regression"; a step for each image and each group of classes that fits in memory.

    Raises:
        UserError: a state of another training.

    Source: arXiv:1406.4729, section 4.2; arXiv:1311.2524, appendix C.
    """
    told = {"ridge": 2, "num_classes": num_classes, "images": len(images), "scale": scale, **settings.key()}
    fit = _Fit(images, num_classes, settings, scale)
    if (stored := read_state(state, told)) is not None:
        fit.restore(*stored)
    else:
        fit.begin()
    groups = fit.groups()
    total = len(images) * len(groups)
    for step in range(fit.done, total):
        turn, index = divmod(step, len(images))
        fit.look(groups[turn], images[index])
        fit.done += 1
        if index == len(images) - 1:
            for label in groups[turn]:
                fit.weights[label - 1], fit.biases[label - 1] = fit.sums.pop(label).solve(settings.ridge)
        if state is not None and (fit.done % settings.checkpoint_interval == 0 or fit.done == total):
            write_state(state, told, fit.arrays(), done=fit.done)
        progress("box regression", fit.done, total)
    return RidgeRegressor(fit.weights, fit.biases, scale)


class _Fit:
    """All that a training has reached: what is saved, and goes on."""

    def __init__(self, images: ManyWindows, num_classes: int, settings: BoxRegressionSettings, scale: float) -> None:
        self.images, self.num_classes, self.settings, self.scale = images, num_classes, settings, scale
        self.done = 0
        self.counts = torch.zeros(num_classes + 1, dtype=torch.int64)  # of windows to learn from
        self.weights, self.biases = torch.zeros(num_classes, 4, 0), torch.zeros(num_classes, 4)
        self.sums: dict[int, RidgeSums] = {}  # by label, of the group that is being looked at

    def begin(self) -> None:
        """Count what there is to learn from; nothing is embedded but one window."""
        width = 0
        for index in range(len(self.images)):
            image = self.images[index]
            labels = _matches(image, self.settings.min_iou)[2]
            self.counts += labels.bincount(minlength=self.num_classes + 1)
            if not width and len(image.labels):
                width = image.features(torch.tensor([0])).shape[1]
        self.weights = torch.zeros(self.num_classes, 4, width)

    def groups(self) -> list[list[int]]:
        """Labels, so that the sums of those in one group fit in memory."""
        groups: list[list[int]] = []
        room = 0
        for label in self.counts[1:].nonzero().flatten().add(1).tolist():
            needed = ridge_bytes(self.weights.shape[2], int(self.counts[label]), self.settings.memory_bytes)
            if needed > room:
                groups.append([])
                room = self.settings.memory_bytes
            groups[-1].append(label)
            room -= needed
        return groups

    def look(self, group: list[int], image: ImageWindows) -> None:
        """Take an image's windows of these classes into the sums."""
        self.sums = self.sums or self._empty(group)
        rows, targets, labels = _matches(image, self.settings.min_iou)
        here = torch.isin(labels, torch.tensor(group))
        if here.any():
            features = image.features(rows[here]).float() * self.scale
            for label in labels[here].unique().tolist():
                same = labels[here] == label
                self.sums[label].add(features[same], targets[here][same])

    def arrays(self) -> dict[str, Tensor]:
        """All of it, for a file; `restore` takes it."""
        arrays = {"counts": self.counts, "weights": self.weights, "biases": self.biases}
        for label, sums in self.sums.items():
            arrays |= {f"sums.{label}.{name}": part for name, part in sums.arrays().items()}
        return arrays

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self.done = int(metadata["done"])
        self.counts, self.weights, self.biases = tensors["counts"], tensors["weights"], tensors["biases"]
        if self.done % len(self.images):
            self.sums = self._empty(self.groups()[self.done // len(self.images)])
            for label, sums in self.sums.items():
                sums.restore({name: tensors[f"sums.{label}.{name}"] for name in ("seen", "examples", "sums")})

    def _empty(self, group: list[int]) -> dict[int, RidgeSums]:
        width, memory = self.weights.shape[2], self.settings.memory_bytes
        return {label: RidgeSums(width, int(self.counts[label]), memory) for label in group}


def _matches(image: ImageWindows, min_iou: float) -> tuple[Tensor, Tensor, Tensor]:
    """Windows to learn from: rows [n], the deltas to the object that each overlaps most [n, 4], its label [n]."""
    objects = image.labels.nonzero().flatten()
    best, which = F.pad(box_iou(image.boxes, image.boxes[objects]), (0, 1)).max(1)  # where there are no objects, 0
    rows = (best >= min_iou).nonzero().flatten()
    matched = objects[which[rows]]
    return rows, encode_boxes(image.boxes[rows], image.boxes[matched]), image.labels[matched]
