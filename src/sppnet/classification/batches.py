"""Batches that a classifier is trained on: images cut, resized and changed anew in every epoch, or their pooled features.

Batch number n is the same for the same seed, whatever was asked for before: what makes a resumed training equal an unbroken one. It
holds what the network takes, normalized images [N, 3, h, w], or a list of [3, h_i, w_i] where sizes differ, or pooled features
[N, M, C]; and labels [N]. Sizes are (height, width), sides in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sppnet.classification.features import LARGEST_ASPECT, PooledFeatures, ReadableImages
from sppnet.data.images import read_image, resize_image, scaled_size
from sppnet.data.samplers import SizeBuckets, corner_crop, random_flip, random_region, vary_light
from sppnet.errors import SettingsError
from sppnet.models.preprocess import Preprocess

SHORT_SIDE_PER_CROP = 8 / 7  # the paper's 256 for a crop of 224
LEAST_REGION = 0.4  # share of the area that is seen, at least, of images of their own size

Images = Tensor | list[Tensor]
SizeRule = Literal["native", "single", "multi", "random"]


@dataclass(frozen=True)
class TrainingSizes:
    """How large the images are in training.

    ``native``: each image as the model takes it in use; batches are made of images of like sizes. The other rules follow the paper:
    a square region of 8/7 of the largest side's short side (224 of 256), cut from the center or a corner, shown

    - ``single``: at the largest of ``sides`` (section 3.1.2);
    - ``multi``: at each of ``sides`` in turn, an epoch each (section 2.3, "multi-size training": 224 and 180);
    - ``random``: at a side drawn evenly from the smallest to the largest, anew for every epoch (section 3.1.3).

    In all of them the regions, and so what is to be seen, are the same; only how many pixels show it differs.

    Raises:
        SettingsError: sides that the rule cannot do with.

    Source: arXiv:1406.4729, sections 2.3 and 3.1.

    Example:
        >>> multi = TrainingSizes("multi")
        >>> [multi.side(seed=0, epoch=epoch) for epoch in range(3)]
        [224, 180, 224]
    """

    rule: SizeRule = "native"
    sides: tuple[int, ...] = (224, 180)  # pixels; not used by "native"

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1:
            raise SettingsError(f"training sizes: expected sides of at least 1 pixel, got {list(self.sides)}")
        if self.rule in ("multi", "random") and len(set(self.sides)) < 2:
            raise SettingsError(f"training sizes: {self.rule!r} needs two different sides, got {list(self.sides)}")

    def side(self, seed: int, epoch: int) -> int | None:
        """The side of the squares of an epoch, from 0, the same on every rank; None where each image has its own size."""
        match self.rule:
            case "native":
                return None
            case "single":
                return max(self.sides)
            case "multi":
                return self.sides[epoch % len(self.sides)]
            case "random":
                draw = np.random.default_rng([seed, 1, epoch])
                return int(draw.integers(min(self.sides), max(self.sides) + 1))

    def square(self, image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
        """A square region of the image, center or corner, at the side of its batch.

        Args:
            image: [H, W, 3] uint8, any size. Not modified.
            side: as ``side`` gives it.
            rng: chooses the region; the same state, the same region, whatever the side.

        Returns:
            [side, side, 3] uint8.

        Source: arXiv:1406.4729, section 2.3: "we resize the aforementioned 224 x 224 region to 180 x 180", so that both
        differ in resolution, not in content or layout.

        Example:
            >>> TrainingSizes("multi").square(np.zeros((300, 500, 3), np.uint8), 180, np.random.default_rng(0)).shape
            (180, 180, 3)
        """
        region = max(self.sides)
        short = round(region * SHORT_SIDE_PER_CROP)
        size = scaled_size((image.shape[0], image.shape[1]), short, LARGEST_ASPECT * short, minimum=region)
        return resize_image(corner_crop(resize_image(image, size), rng, region), (side, side))


@dataclass(frozen=True)
class ImageBatches:
    """Training images as the network sees them: cut, resized, flipped, in other light.

    Args:
        images: files and labels.
        order: which go together.
        preprocess: of the model.
        sizes: how large the images are.
        seed: of the training.
    """

    images: ReadableImages
    order: SizeBuckets
    preprocess: Preprocess
    sizes: TrainingSizes
    seed: int

    def __getitem__(self, n: int) -> tuple[Images, Tensor]:
        epoch, indices = self.order.batch(n)
        side = self.sizes.side(self.seed, epoch)
        images = [self.preprocess.normalize(self._view(index, epoch, side))[0] for index in indices]
        return stack(images), torch.from_numpy(self.images.images.labels[indices])

    def _view(self, index: int, epoch: int, side: int | None) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0, epoch, index])
        image = read_image(self.images.images.paths[index])
        shown = self._in_use(image, rng) if side is None else self.sizes.square(image, side, rng)
        return vary_light(random_flip(shown, rng), rng)

    def _in_use(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A region of the image's shape, at the size that the whole image has in use."""
        region = random_region(image, rng, (LEAST_REGION, 1.0))
        if self.preprocess.resize_mode == "keep-aspect":
            return resize_image(region, self.preprocess.input_size((image.shape[0], image.shape[1])))
        return self.preprocess.resize(region)


@dataclass(frozen=True)
class FeatureBatches:
    """Pooled features of images or of their flips, as drawn, where the backbone is frozen.

    Args:
        features: with flips.
        labels: [N] int64.
        order: which go together.
        seed: of the training.
    """

    features: PooledFeatures
    labels: np.ndarray
    order: SizeBuckets
    seed: int

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        epoch, indices = self.order.batch(n)
        flips = [np.random.default_rng([self.seed, 0, epoch, index]).random() < 0.5 for index in indices]
        pooled = [self.features.read(index, flip=bool(flip)) for index, flip in zip(indices, flips, strict=True)]
        return torch.stack(pooled), torch.from_numpy(self.labels[indices])


def stack(images: list[Tensor]) -> Images:
    """One tensor where all are of one size, else the list."""
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images
