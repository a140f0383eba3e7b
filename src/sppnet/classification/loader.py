"""Labelled images -> batches, each the same for the same seed, epoch and place: what makes a resumed run equal an unbroken one.

A batch is ``{"images": [N, 3, h, w] uint8, or a list of [3, h_i, w_i] where sizes differ, "labels": [N]}``, or, where the
backbone stays as it is, ``{"pooled": [N, M, C], "labels": [N]}``. Nothing random here has a state that would have to be
kept: what happens to an image is drawn from (seed, epoch, image).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sppnet.classification.kept import Vectors
from sppnet.classification.schedule import TrainingSizes
from sppnet.data.augment import random_mirror, random_region, vary_light
from sppnet.data.fit import fit_image, fitted_size
from sppnet.data.images import read_image, resize_image
from sppnet.data.labelled import LabelledImages
from sppnet.data.samplers import SizeBuckets
from sppnet.models.sppnet import Architecture

Batch = dict[str, Any]


class Sample(NamedTuple):
    """One image of a batch, and what is to be done with it."""

    place: int  # among the training images
    epoch: int
    side: int | None  # of the square it becomes; None: its own size


class Stretch(Sampler[list[Sample]]):
    """Batches from where training stands to its next checkpoint, or to the end of the epoch.

    Where training stands is asked of it, and not counted here: so nothing is lost or repeated where it is resumed. It has no
    length, as the next stretch may be shorter or longer.

    Args:
        buckets: which images go together, on this rank.
        sizes: how large they are shown.
        seed: of the training.
        length: most batches in one stretch.
        steps_done: how many batches were learned from on each rank, over all epochs.
    """

    def __init__(
        self, buckets: SizeBuckets, sizes: TrainingSizes, seed: int, length: int, steps_done: Callable[[], int]
    ) -> None:
        super().__init__()
        self.buckets, self.sizes, self.seed, self.length, self.steps_done = buckets, sizes, seed, length, steps_done

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch, first = divmod(self.steps_done(), len(self.buckets))
        batches = self.buckets.batches(epoch)
        for number in range(first, min(first + self.length, len(batches))):
            side = self.sizes.side(self.seed, epoch, number)
            yield [Sample(place, epoch, side) for place in batches[number]]


class TrainingViews(Dataset[tuple[Tensor, int]]):
    """Training images as the network sees them: cut, resized, mirrored, in other light.

    Args:
        images: files and labels.
        architecture: how images of their own size are fed.
        sizes: how those are that are not.
        minimum: no side becomes shorter: the backbone's stride.
        least_region: of images of their own size, at least this share of the area is seen, 0 to 1.
        light: deviation of `vary_light`.
        seed: of the training.
    """

    def __init__(
        self,
        images: LabelledImages,
        architecture: Architecture,
        sizes: TrainingSizes,
        *,
        minimum: int,
        least_region: float,
        light: float,
        seed: int,
    ) -> None:
        self.images, self.architecture, self.sizes = images, architecture, sizes
        self.minimum, self.least_region, self.light, self.seed = minimum, least_region, light, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]:
        rng = np.random.default_rng([self.seed, 0, sample.epoch, sample.place])
        image = read_image(self.images.paths[sample.place])
        if sample.side is None:
            shown = self._own(image, rng)
        else:
            shown = self.sizes.square(image, sample.side, rng)
        shown = vary_light(random_mirror(shown, rng), rng, self.light)
        return as_tensor(shown), int(self.images.labels[sample.place])

    def _own(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image, or a region of its shape, at the size that the whole of it has in use."""
        region = image if self.least_region == 1 else random_region(image, rng, (self.least_region, 1.0))
        if self.architecture.fit == "native":
            return resize_image(region, own_size((image.shape[0], image.shape[1]), self.architecture, self.minimum))
        return fitted(region, self.architecture, self.minimum)


class HeldOutViews(Dataset[tuple[Tensor, int]]):
    """Images exactly as the model takes them in use."""

    def __init__(self, images: LabelledImages, architecture: Architecture, minimum: int) -> None:
        self.images, self.architecture, self.minimum = images, architecture, minimum

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        image = fitted(read_image(self.images.paths[place]), self.architecture, self.minimum)
        return as_tensor(image), int(self.images.labels[place])


class KeptRows(Dataset[tuple[Tensor, int]]):
    """Kept vectors: in training of the image or of its mirror image, as drawn; else of the image.

    Asked for a `Sample` in training, for a place otherwise.
    """

    def __init__(self, vectors: Vectors, labels: np.ndarray, seed: int) -> None:
        self.vectors, self.labels, self.seed = vectors, labels, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: Sample | int) -> tuple[Tensor, int]:
        if not isinstance(sample, Sample):
            return self.vectors.read(sample, mirrored=False), int(self.labels[sample])
        mirrored = np.random.default_rng([self.seed, 0, sample.epoch, sample.place]).random() < 0.5
        return self.vectors.read(sample.place, mirrored=mirrored), int(self.labels[sample.place])


def own_sizes(sizes: np.ndarray, architecture: Architecture, minimum: int) -> np.ndarray:
    """The sizes at which a model takes images of these sizes: [N, 2] -> [N, 2], (height, width)."""
    fitted = [own_size((int(height), int(width)), architecture, minimum) for height, width in sizes]
    return np.array(fitted, np.int64).reshape(-1, 2)


def own_size(size: tuple[int, int], architecture: Architecture, minimum: int) -> tuple[int, int]:
    """The size at which a model takes an image of this size."""
    return fitted_size(size, architecture.fit, architecture.short_side, architecture.long_side, minimum)


def fitted(image: np.ndarray, architecture: Architecture, minimum: int) -> np.ndarray:
    """The image as `SPPNet.prepare` resizes it, before its values are normalised: [h, w, 3] uint8."""
    red, green, blue = (round(255 * value) for value in architecture.mean)
    return fit_image(
        image,
        architecture.fit,
        architecture.short_side,
        architecture.long_side,
        minimum=minimum,
        fill=(red, green, blue),
    )


def as_tensor(image: np.ndarray) -> Tensor:
    """[h, w, 3] -> [3, h, w] uint8, channels last in memory."""
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)


def image_batch(samples: Sequence[tuple[Tensor, int]]) -> Batch:
    """One tensor where all are of one size, else a list."""
    images, labels = zip(*samples, strict=True)
    alike = len({image.shape for image in images}) == 1
    return {"images": torch.stack(images) if alike else list(images), "labels": torch.tensor(labels)}


def pooled_batch(samples: Sequence[tuple[Tensor, int]]) -> Batch:
    """Vectors in one tensor."""
    vectors, labels = zip(*samples, strict=True)
    return {"pooled": torch.stack(vectors), "labels": torch.tensor(labels)}
