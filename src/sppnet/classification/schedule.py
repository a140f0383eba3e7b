"""At which sizes training sees the images: one, several in turn, random ones, or each image's own.

A network with a pyramid has no size of its own, so the same weights can learn from several. Between the images as they are
read and the batches: [H, W, 3] uint8 -> [h, w, 3] uint8. Sizes are (height, width), sides in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sppnet.data.augment import corner_crop
from sppnet.data.images import resize_image, scaled_size
from sppnet.errors import UserError

SizeRule = Literal["native", "single", "multi", "random", "random-batch"]
SIZE_RULES: tuple[SizeRule, ...] = get_args(SizeRule)

SHORT_SIDE_PER_CROP = 8 / 7  # the paper's 256 for a crop of 224
LARGEST_ASPECT = 4  # of the image a square is cut from: longer ones are squeezed, as one may be 20000 x 20


@dataclass(frozen=True)
class TrainingSizes:
    """How large the images are in training.

    ``native``: each image as the model takes it in use: at its own shape, short and long side bounded, or as the model's
    fit says; batches are made of images of like sizes. The other rules follow the paper: a square region of 8/7 of the
    largest side's short side (224 of 256), cut from the centre or a corner, shown

    - ``single``: at the largest of ``sides`` (section 3.1.2);
    - ``multi``: at each of ``sides`` in turn, an epoch each (section 2.3, "multi-size training": 224 and 180);
    - ``random``: at a side drawn evenly from the smallest to the largest, anew for every epoch (section 3.1.3);
    - ``random-batch``: the same, drawn anew for every batch. Not in the paper.

    In all of them the regions, and so what is to be seen, are the same; only how many pixels show it differs.

    Raises:
        UserError: no such rule, or sides that it cannot do with.

    Source: arXiv:1406.4729, sections 2.3 and 3.1.

    Example:
        >>> multi = TrainingSizes("multi")
        >>> [multi.side(seed=0, epoch=epoch, batch=0) for epoch in range(3)]
        [224, 180, 224]
    """

    rule: SizeRule = "native"
    sides: tuple[int, ...] = (224, 180)  # pixels; not used by "native"

    def __post_init__(self) -> None:
        if self.rule not in SIZE_RULES:
            raise UserError(f"training sizes: expected one of {', '.join(SIZE_RULES)}, got {self.rule!r}")
        if not self.sides or min(self.sides) < 1:
            raise UserError(f"training sizes: expected sides of at least 1 pixel, got {list(self.sides)}")
        if self.rule in ("multi", "random", "random-batch") and len(set(self.sides)) < 2:
            raise UserError(f"training sizes: {self.rule!r} needs at least two different sides, got {list(self.sides)}")

    def side(self, seed: int, epoch: int, batch: int) -> int | None:
        """The side of the squares of one batch, the same on every rank; None where each image has its own size.

        Args:
            seed: of the training.
            epoch, batch: counted from 0; the batch within its epoch.
        """
        match self.rule:
            case "native":
                return None
            case "single":
                return max(self.sides)
            case "multi":
                return self.sides[epoch % len(self.sides)]
            case "random":
                draw = np.random.default_rng([seed, 1, epoch])
            case "random-batch":
                draw = np.random.default_rng([seed, 2, epoch, batch])
        return int(draw.integers(min(self.sides), max(self.sides) + 1))

    def square(self, image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
        """A square region of the image, centre or corner, at the side of its batch.

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
