"""Four ways to make an image the input of a network: at its own shape, or made square by squashing, cropping or padding.

[H, W, 3] uint8 -> [h, w, 3] uint8. A network with a pyramid takes images at their own shape (``native``); the other three are
what networks of one fixed input size need, and what they cost can be compared. Sizes are (height, width), in pixels.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sppnet.data.images import resize_image, scaled_size

Fit = Literal["native", "squash", "crop", "pad"]
FITS: tuple[Fit, ...] = get_args(Fit)
# Of a longer image only the middle is resized: a crop of 30000 x 10 would otherwise take 450 MB on the way.
WIDEST_CROPPED = 4


def fitted_size(size: tuple[int, int], fit: str, short_side: int, long_side: int, minimum: int = 1) -> tuple[int, int]:
    """The size that `fit_image` gives an image of ``size``.

    Example:
        >>> fitted_size((375, 500), "native", 240, 400), fitted_size((375, 500), "crop", 240, 400)
        ((240, 320), (240, 240))
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}: got {fit!r}")
    if fit == "native":
        return scaled_size(size, short_side, long_side, minimum=minimum)
    return short_side, short_side


def fit_image(
    image: np.ndarray, fit: str, short_side: int, long_side: int, *, minimum: int = 1, fill: tuple[int, int, int]
) -> np.ndarray:
    """Resize an image to what a network takes.

    Args:
        image: [H, W, 3] uint8. Not modified.
        fit: ``"native"`` keeps the shape: the short side becomes ``short_side``, unless the long one would exceed
            ``long_side``. The others make a square of ``short_side``: ``"squash"`` distorts; ``"crop"`` resizes the short
            side and cuts the middle out; ``"pad"`` resizes the long side and fills up around the image.
        minimum: no side of a native image becomes shorter, even where that distorts it.
        fill: RGB of what is filled up.

    Returns:
        [h, w, 3] uint8 of `fitted_size`.

    Raises:
        ValueError: no such fit, a length below 1, or an image of another form.

    Source: arXiv:1406.4729, figure 1: cropping loses content, warping its shape.

    Example:
        >>> fit_image(np.zeros((50, 200, 3), np.uint8), "pad", 80, 80, fill=(255, 255, 255))[:, 0, 0].tolist().count(0)
        20
    """
    size = fitted_size(image.shape[:2], fit, short_side, long_side, minimum)
    if fit in ("native", "squash"):
        return resize_image(image, size)
    if fit == "crop":
        image = _middle(image, WIDEST_CROPPED)
    height, width = image.shape[:2]
    scale = short_side / (min(height, width) if fit == "crop" else max(height, width))
    resized = resize_image(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    top, left = (abs(short_side - side) // 2 for side in resized.shape[:2])
    if fit == "crop":
        return np.ascontiguousarray(resized[top : top + short_side, left : left + short_side])
    square = np.empty((short_side, short_side, 3), dtype=np.uint8)
    square[:] = fill
    square[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return square


def _middle(image: np.ndarray, aspect: int) -> np.ndarray:
    """The middle of an image that is longer than ``aspect`` times its breadth, cut to about that; another as it is."""
    most = aspect * min(image.shape[:2])
    top, left = (max(0, side - most) // 2 for side in image.shape[:2])
    return image[top : image.shape[0] - top, left : image.shape[1] - left]
