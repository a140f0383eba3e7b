"""The one transform between an image and what the backbone takes, there and back.

image [H, W, 3] uint8 -> resized [h, w, 3] uint8 -> normalized [1, 3, h, w]. A network with a pyramid takes images at their own
shape (``"keep-aspect"``); the other three modes make the square that networks of one fixed input size need, and what they cost can
be compared. Sizes are (height, width), in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sppnet.data.images import resize_image, scaled_size
from sppnet.errors import SettingsError

ResizeMode = Literal["keep-aspect", "warp", "crop", "letterbox"]
RGB = tuple[float, float, float]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LONGEST_SIDE = 20_000  # pixels: far more is a slip, and would take all memory
LONGEST_CROPPED = 4  # only the middle of a longer image is resized: a crop of 30000 x 10 would take 450 MB on the way


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input of a network.

    Args:
        short_side: pixels; an image is resized so that its short side is this,
        long_side: unless its long side would become longer than this.
        resize_mode: ``"keep-aspect"``; or a square of ``short_side``: ``"warp"`` distorts, ``"crop"`` cuts the middle out,
            ``"letterbox"`` fills up around the image with the mean.
        fixed_size: whether the network takes that square alone, as networks without a pyramid do.
        mean, std: of RGB in 0..1; where they are left out, `build_model` takes those that the backbone was taught on.
        smallest_side: pixels; no side becomes shorter, even where that distorts the image: what the backbone needs.

    Raises:
        SettingsError: a side below 1 or above 20000, no such mode, a ``std`` of 0, or a fixed size of images at their own shape.

    Source: arXiv:1406.4729, figure 1: cropping loses content, warping its shape.

    Example:
        >>> preprocess = Preprocess(short_side=600, long_side=1000)
        >>> preprocess.input_size((375, 500)), preprocess.input_size((375, 500), 1200)
        ((600, 800), (1200, 1600))
    """

    short_side: int = 600
    long_side: int = 1000
    resize_mode: str = "keep-aspect"
    fixed_size: bool = False
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    smallest_side: int = 1

    def __post_init__(self) -> None:
        sides = (self.short_side, self.long_side, self.smallest_side)
        if not 1 <= min(sides) <= max(sides) <= LONGEST_SIDE:
            raise SettingsError(f"sides must be 1 to {LONGEST_SIDE} pixels: got {self.short_side} and {self.long_side}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SettingsError(f"mean and std must be three numbers each, std above 0: got {self.mean} and {self.std}")
        if self.resize_mode not in RESIZE_MODES:
            raise SettingsError(f"resize mode must be one of {', '.join(RESIZE_MODES)}: got {self.resize_mode!r}")
        if self.fixed_size and self.resize_mode == "keep-aspect":
            remedy = "resize by crop, warp or letterbox"
            raise SettingsError(f"a network of one fixed input size needs square images: {remedy}")

    def __call__(self, image: np.ndarray, short_side: int | None = None) -> tuple[Tensor, tuple[float, float]]:
        """An image [H, W, 3] uint8 -> [1, 3, h, w] float32, channels last in memory, and the (vertical, horizontal) factor."""
        resized = self.resize(image, short_side)
        vertical, horizontal = (new / old for new, old in zip(resized.shape[:2], image.shape[:2], strict=True))
        return self.normalize(resized), (vertical, horizontal)

    def sides(self, short_side: int | None = None) -> tuple[int, int]:
        """The short side, our own where none is given, and the longest long side, in proportion."""
        if short_side is None:
            return self.short_side, self.long_side
        return short_side, round(self.long_side * short_side / self.short_side)

    def input_size(self, size: tuple[int, int], short_side: int | None = None) -> tuple[int, int]:
        """The (height, width) that `resize` gives an image of ``size``."""
        short, long = self.sides(short_side)
        if self.resize_mode == "keep-aspect":
            return scaled_size(size, short, long, minimum=self.smallest_side)
        return short, short

    def resize(self, image: np.ndarray, short_side: int | None = None) -> np.ndarray:
        """An image [H, W, 3] uint8 -> [h, w, 3] uint8 of `input_size`; the image itself where it has that size.

        Example:
            >>> white = Preprocess(80, 80, "letterbox", mean=(1.0, 1.0, 1.0))
            >>> white.resize(np.zeros((50, 200, 3), np.uint8))[:, 0, 0].tolist().count(0)
            20
        """
        height, width = self.input_size((image.shape[0], image.shape[1]), short_side)
        if self.resize_mode in ("keep-aspect", "warp"):
            return resize_image(image, (height, width))
        crops, side = self.resize_mode == "crop", height
        if crops:
            image = _middle(image)
        scale = side / (min if crops else max)(image.shape[:2])
        h, w = (max(1, round(length * scale)) for length in image.shape[:2])
        resized, top, left = resize_image(image, (h, w)), abs(side - h) // 2, abs(side - w) // 2
        if crops:
            return np.ascontiguousarray(resized[top : top + side, left : left + side])
        square = np.full((side, side, 3), self.fill, np.uint8)
        square[top : top + h, left : left + w] = resized
        return square

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean as RGB in 0..255: what is filled up."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def normalize(self, image: np.ndarray | Tensor, device: torch.device | str | None = None) -> Tensor:
        """Pixels [h, w, 3] uint8 -> [1, 3, h, w] float32, channels last in memory, on the device (an array: the CPU)."""
        pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements="W"))
        pixels = pixels.to(device).permute(2, 0, 1)[None]
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def pixels(self, normalized: Tensor) -> np.ndarray:
        """The way back of `normalize`: [1, 3, h, w] -> [h, w, 3] uint8."""
        mean, std = (normalized.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        values = ((normalized[0] * std + mean) * 255).round().clamp(0, 255).byte()
        return values.permute(1, 2, 0).cpu().numpy()

    def to_input(self, boxes: Tensor, size: tuple[int, int], short_side: int | None = None) -> Tensor:
        """Boxes [R, 4] in pixels of an image of ``size`` -> in pixels of what the network sees.

        Example:
            >>> Preprocess(100, 100, "letterbox").to_input(torch.tensor([[0.0, 0, 200, 50]]), (50, 200))
            tensor([[  0.0000,  37.5000, 100.0000,  62.5000]])
        """
        factors, shifts = self._placement(boxes, size, short_side)
        return boxes * factors + shifts

    def to_image(self, boxes: Tensor, size: tuple[int, int], short_side: int | None = None) -> Tensor:
        """The way back of `to_input`."""
        factors, shifts = self._placement(boxes, size, short_side)
        return (boxes - shifts) / factors

    def _placement(self, boxes: Tensor, size: tuple[int, int], short_side: int | None) -> tuple[Tensor, Tensor]:
        """Factor and shift [4] of x, y, x, y."""
        seen = self.input_size(size, short_side)
        factors = [new / old for new, old in zip(seen, size, strict=True)]
        if self.resize_mode in ("crop", "letterbox"):
            factors = [(max if self.resize_mode == "crop" else min)(factors)] * 2
        shifts = [(new - old * factor) / 2 for new, old, factor in zip(seen, size, factors, strict=True)]
        return boxes.new_tensor(factors[::-1] * 2), boxes.new_tensor(shifts[::-1] * 2)


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of an image that is longer than `LONGEST_CROPPED` times its breadth, cut to that; another as it is."""
    most = LONGEST_CROPPED * min(image.shape[:2])
    top, left = (max(0, side - most) // 2 for side in image.shape[:2])
    return image[top : image.shape[0] - top, left : image.shape[1] - left]
