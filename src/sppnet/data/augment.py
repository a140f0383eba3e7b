"""Vary training images at random: flipped, cropped, cut, in other light.

Between reading and batching, in training only. Each function takes one image [H, W, 3] uint8 RGB and a NumPy random
generator, and returns a new one of the same form; the image given is not changed. Sizes are in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from sppnet.data.images import checked_size

# Principal axes of RGB values (0 to 1) in photos, one a column, and the variance along each: measured on the 2500 train
# images of Pascal VOC 2007, each averaged to 64 x 64 pixels. Nearly brightness, blue against red, green against both.
_COLOR_AXES = np.array([[0.5586, -0.7393, 0.3761], [0.5827, 0.0271, -0.8122], [0.5903, 0.6728, 0.4459]])
_COLOR_VARIANCES = np.array([0.1882, 0.0143, 0.0024])


def random_flip(image: np.ndarray, rng: np.random.Generator, share: float = 0.5) -> np.ndarray:
    """Flip an image left to right, or leave it.

    Args:
        image: [H, W, 3] uint8. Not modified.
        rng: source of randomness.
        share: how often it is flipped, 0 to 1.

    Returns:
        [H, W, 3] uint8, C-contiguous; the image itself where it is left and already has this form.

    Example:
        >>> image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
        >>> random_flip(image, np.random.default_rng(0), share=1).tolist()
        [[[3, 4, 5], [0, 1, 2]]]
    """
    checked_size(image, "random_flip")
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < share else image)


def corner_crop(image: np.ndarray, rng: np.random.Generator, side: int = 224) -> np.ndarray:
    """Cut a square from the center or from one of the four corners, each as likely: the paper's training crop.

    For multi-size training the same region is then resized, to 180 x 180 for instance, so that both sizes show the
    same.

    Args:
        image: [H, W, 3] uint8, both sides at least ``side`` (the paper: short side 256). Not modified.
        rng: source of randomness.
        side: of the square, in pixels, at least 1.

    Returns:
        [side, side, 3] uint8, C-contiguous.

    Raises:
        ValueError: an image smaller than the square, or of another form.

    Source: He, Zhang, Ren, Sun, arXiv:1406.4729, section 3.1: corners of the whole image, not of its central square.

    Example:
        >>> corner_crop(np.zeros((256, 300, 3), dtype=np.uint8), np.random.default_rng(0)).shape
        (224, 224, 3)
    """
    height, width = checked_size(image, "corner_crop")
    if side < 1 or min(height, width) < side:
        raise ValueError(f"corner_crop: expected sides of at least {side}, and that at least 1, got {height} x {width}")
    free = (height - side, width - side)
    corners = [(free[0] // 2, free[1] // 2), (0, 0), (0, free[1]), (free[0], 0), free]
    y0, x0 = corners[rng.integers(len(corners))]
    return np.ascontiguousarray(image[y0 : y0 + side, x0 : x0 + side])


def random_region(image: np.ndarray, rng: np.random.Generator, shares: tuple[float, float] = (0.5, 1.0)) -> np.ndarray:
    """Cut a region of random size at a random place, in the shape of the whole image: nothing is distorted.

    The region has the share ``a`` of the image's area, drawn evenly from ``shares``; each side is ``sqrt(a)`` of the
    image's.

    Args:
        image: [H, W, 3] uint8. Not modified.
        rng: source of randomness.
        shares: least and largest share of the area, above 0 and up to 1.

    Returns:
        [h, w, 3] uint8, C-contiguous, both sides at least 1; h / w is H / W up to rounding to whole pixels.

    Raises:
        ValueError: shares out of range, or an image of another form.

    Example:
        >>> random_region(np.zeros((300, 400, 3), dtype=np.uint8), np.random.default_rng(0), (0.25, 0.25)).shape
        (150, 200, 3)
    """
    height, width = checked_size(image, "random_region")
    if not 0 < shares[0] <= shares[1] <= 1:
        raise ValueError(f"random_region: expected 0 < least <= largest <= 1, got shares {shares}")
    scale = rng.uniform(*shares) ** 0.5
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    y0, x0 = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return np.ascontiguousarray(image[y0 : y0 + h, x0 : x0 + w])


def vary_light(image: np.ndarray, rng: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    """Shift all pixels alike along the axes in which the colors of photos vary: more or less, bluer or redder light.

    Adds ``sum_i a_i * v_i * e_i`` to the RGB values (0 to 1), with e_i the principal axes of the colors of photos, v_i
    the variance along each, and a_i normal with mean 0 and deviation ``spread``.

    Args:
        image: [H, W, 3] uint8. Not modified.
        rng: source of randomness.
        spread: deviation of a_i; 0 changes nothing.

    Returns:
        [H, W, 3] uint8, values cut to 0..255.

    Source: the "color altering" of He, Zhang, Ren, Sun, arXiv:1406.4729, section 3.1, after Krizhevsky, Sutskever,
    Hinton, NIPS 2012, section 4.1. The axes are measured on other photos (see the module).

    Example:
        >>> vary_light(np.full((2, 2, 3), 128, dtype=np.uint8), np.random.default_rng(0), spread=0).max()
        np.uint8(128)
    """
    checked_size(image, "vary_light")
    shift = 255 * _COLOR_AXES @ (rng.normal(scale=spread, size=3) * _COLOR_VARIANCES)
    return cv2.transform(np.ascontiguousarray(image), np.column_stack([np.eye(3), shift]).astype(np.float32))
