"""Batches for learning end to end: few images, many windows of each, so that windows share what the convolutions cost.

One batch is a list of `Sample`s: image [h, w, 3] as the backbone is to see it (mirrored or not, at a side drawn for it), and
boxes [R, 4] of it with their labels and deltas. Batch number ``step`` is always the same for the same seed: what makes a
resumed run equal an unbroken one. Source: arXiv:1504.08083, section 2.3, "mini-batch sampling".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sppnet.boxes import flip_boxes, flip_deltas
from sppnet.data.fit import fit_image
from sppnet.data.images import read_image
from sppnet.detection.targets import Candidates, draw
from sppnet.models.sppnet import Architecture


@dataclass(frozen=True)
class LearningImage:
    """One image as learning end to end sees it."""

    path: Path
    candidates: Candidates  # at least one


class Sample(NamedTuple):
    """One image of a batch, and windows of it."""

    image: np.ndarray  # [h, w, 3] uint8
    boxes: Tensor  # [R, 4] pixels of the image before it was resized
    size: tuple[int, int]  # (height, width), then
    labels: Tensor  # [R], 0 = background
    deltas: Tensor  # [R, 4], over DELTA_SCALE
    image_labels: Tensor  # [K]

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) factor from the image before it was resized to ``image``."""
        return self.image.shape[0] / self.size[0], self.image.shape[1] / self.size[1]


class ImageBatches(Dataset[list[Sample]]):
    """The batches of one process.

    Args:
        images: to draw from; every one once before any comes again.
        architecture: how images are fitted.
        minimum: pixels, the shortest side that the backbone takes.
        images_per_step, windows_per_image: of a batch; fewer windows where an image has fewer.
        foreground_share: at most this part of the windows is foreground.
        short_sides: pixels; each image gets one of these, drawn for it, in place of the architecture's; with the long side's
            limit in proportion. None: the architecture's own, one or several.
        mirrored: show half of the images mirrored.
        seed: of all that is drawn.
        rank, ranks: of this process; together they go through the images once.
    """

    def __init__(
        self,
        images: Sequence[LearningImage],
        architecture: Architecture,
        minimum: int,
        *,
        images_per_step: int,
        windows_per_image: int,
        foreground_share: float,
        short_sides: Sequence[int],
        mirrored: bool,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.images, self.architecture, self.minimum = images, architecture, minimum
        self.images_per_step, self.windows_per_image = images_per_step, windows_per_image
        self.foreground_share, self.mirrored = foreground_share, mirrored
        self.short_sides = tuple(short_sides) or architecture.short_sides
        self.seed, self.rank, self.ranks = seed, rank, ranks

    def __getitem__(self, step: int) -> list[Sample]:
        first = (step * self.ranks + self.rank) * self.images_per_step
        return [self._sample(position) for position in range(first, first + self.images_per_step)]

    def place(self, position: int) -> int:
        """Which image comes at this position of all that are shown, over all ranks."""
        turn, within = divmod(position, len(self.images))
        return int(np.random.default_rng([self.seed, 1, turn]).permutation(len(self.images))[within])

    def _sample(self, position: int) -> Sample:
        rng = np.random.default_rng([self.seed, 2, position])
        one = self.images[self.place(position)]
        chosen = torch.from_numpy(draw(one.candidates, self.windows_per_image, self.foreground_share, rng))
        boxes, deltas = one.candidates.boxes[chosen], one.candidates.deltas[chosen]
        short_side = int(rng.choice(self.short_sides))
        image = read_image(one.path)
        if self.mirrored and rng.random() < 0.5:
            image, boxes, deltas = image[:, ::-1], flip_boxes(boxes, image.shape[1]), flip_deltas(deltas)
        shown = self._fitted(image, short_side)
        size = (image.shape[0], image.shape[1])
        labels = one.candidates.labels[chosen]
        return Sample(shown, boxes, size, labels, deltas, one.candidates.image_labels)

    def _fitted(self, image: np.ndarray, short_side: int) -> np.ndarray:
        settings = self.architecture
        red, green, blue = (round(255 * value) for value in settings.mean)
        sides = settings.sides(short_side)
        return fit_image(image, settings.fit, *sides, minimum=self.minimum, fill=(red, green, blue))
