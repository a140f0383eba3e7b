"""Read, measure and resize images, whatever form they come in; nothing about networks.

First step of the method: whatever people have becomes one form, [H, W, 3] uint8 RGB, upright as a person sees it.
Sizes are (height, width) everywhere.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from sppnet.data.decode import Source, UnusableImage, check_file, decode, exif_orientation, open_image
from sppnet.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

DECODED_AHEAD, BYTES_AHEAD = 4, 400_000_000  # images, and their bytes: what bounds the memory of `read_ahead`


def read_image(source: Source | Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """Read one image as upright RGB, whatever its form.

    The EXIF orientation is applied. Gray, palette, CMYK and 16-bit images become 8-bit RGB; transparent pixels are laid
    on white; of an animation the first frame is taken.

    Args:
        source: path of a file; its bytes; a file open for reading bytes (read to its end); a PIL image; an array
            [H, W, 3] uint8 RGB, which may also be [H, W] or [H, W, 1] (gray) or [H, W, 4] (with alpha); a torch tensor,
            [3, H, W] or [H, W, 3] uint8, or [3, H, W] of floating point in 0..1, on any device. Not modified.

    Returns:
        [H, W, 3] uint8, C-contiguous, RGB. May be the array given, where that already has this form.

    Raises:
        ImageError: no file, an empty one, not an image, damaged, cut short, of more than 1.4 GB in memory; an address such
            as https://; an array or tensor of another shape, type or range. The message names the file.

    Example:
        >>> read_image(np.zeros((3, 500), dtype=np.uint8)).shape
        (3, 500, 3)
        >>> read_image("https://example.com/cat.jpg")
        Traceback (most recent call last):
        sppnet.errors.ImageError: https://example.com/cat.jpg: this is an address; download it first, and give the file ...
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return decode(source)
    if any(base.__module__.partition(".")[0] == "torch" for base in type(source).__mro__):  # torch is not imported
        return _from_tensor(source)
    with open_image(source) as image:  # type: ignore[arg-type]  # only files are left
        return decode(image)


def image_size(source: Source) -> tuple[int, int]:
    """Measure an image as ``read_image`` would return it, reading only the head of the file.

    Returns:
        (height, width) in pixels, after the EXIF orientation.

    Raises:
        ImageError: as ``read_image``, except for damage beyond the head of the file.

    Example:
        >>> image_size("no/such/photo.jpg")
        Traceback (most recent call last):
        sppnet.data.decode.UnusableImage: no/such/photo.jpg: no such file
    """
    with open_image(source) as image:
        width, height = image.size
        turned = exif_orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def scaled_size(size: tuple[int, int], short_side: int, long_side: int, minimum: int = 32) -> tuple[int, int]:
    """Choose the size at which an image is seen: aspect kept, short side as wanted, long side bounded.

    The scale is ``min(short_side / min(size), long_side / max(size))``. Sides are rounded to whole pixels; a side that
    would come out below ``minimum`` is raised to it, so extremely long images are stretched rather than lost.

    Args:
        size: (height, width) of the image; it and the lengths in pixels, each at least 1.
        short_side, long_side: length of the shorter side, unless the longer one would then exceed its own.

    Example:
        >>> scaled_size((375, 500), 600, 1000), scaled_size((20000, 20), 600, 1000)
        ((600, 800), (1000, 32))
    """
    if min(*size, short_side, long_side, minimum) < 1:
        given = f"size={size}, short_side={short_side}, long_side={long_side}, minimum={minimum}"
        raise ValueError(f"scaled_size: every length must be at least 1, got {given}")
    scale = min(short_side / min(size), long_side / max(size))
    height, width = (max(minimum, int(side * scale + 0.5)) for side in size)
    return height, width


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image: averaging where it shrinks, linear interpolation where it grows, each direction by itself.

    Args:
        image: [H, W, 3] uint8. Not modified.
        size: (height, width) wanted, each at least 1: that of the result, which is the image itself where it fits.

    Example:
        >>> resize_image(np.zeros((20, 2000, 3), dtype=np.uint8), (32, 600)).shape
        (32, 600, 3)
    """
    height, width = checked_size(image, "resize_image")
    if min(size) < 1:
        raise ValueError(f"resize_image: expected a size of at least (1, 1), got {size}")
    shrunk = (min(height, size[0]), min(width, size[1]))
    image = np.ascontiguousarray(image)
    if shrunk != (height, width):
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if shrunk != tuple(size):
        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return image


def checked_size(image: np.ndarray, caller: str) -> tuple[int, int]:
    """(height, width) of what ``caller`` was given as an image [H, W, 3] uint8; a ValueError where it is none.

    Example:
        >>> checked_size(np.zeros((20, 30), dtype=np.uint8), "resize_image")
        Traceback (most recent call last):
        ValueError: resize_image: expected [H, W, 3] uint8 with pixels, got (20, 30) uint8
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"{caller}: expected [H, W, 3] uint8 with pixels, got {image.shape} {image.dtype}")
    return image.shape[0], image.shape[1]


def content_key(source: str | os.PathLike[str] | np.ndarray) -> str:
    """Name an image by its content, so that what was computed from it is found again, and only for it.

    The bytes of a file are hashed; of an array its type, shape and values: 32 hexadecimal digits (BLAKE2b, 16 bytes).

    Example:
        >>> content_key(np.zeros((2, 2, 3), np.uint8)) == content_key(np.zeros((2, 2, 3), np.uint8))
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, np.ndarray):
        digest.update(f"{source.dtype.str} {source.shape}".encode())
        digest.update(np.ascontiguousarray(source).data)
        return digest.hexdigest()
    check_file(Path(source))
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, lambda: digest).hexdigest()
    except OSError as error:
        raise UnusableImage(source, "unreadable", f"cannot be read: {error.strerror or error}") from error


def _from_array(array: np.ndarray) -> np.ndarray:
    gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[2] in (3, 4))):
        found = f"got shape {array.shape} {array.dtype}; move channels last and scale to 0..255"
        raise ImageError(f"an image array must be [height, width, 3] uint8 RGB, {found}")
    if array.size == 0:
        raise ImageError(f"the image array has no pixels: shape {array.shape}")
    if gray:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.shape[2] == 4:
        return decode(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
    return np.ascontiguousarray(array)


def _from_tensor(tensor: Any) -> np.ndarray:
    first = tensor.ndim == 3 and tensor.shape[0] == 3  # where both fit, channels are first
    last = tensor.ndim == 3 and tensor.shape[2] == 3
    floating = first and tensor.is_floating_point()
    if not floating and not (str(tensor.dtype) == "torch.uint8" and (first or last)):
        expected = "[3, H, W] or [H, W, 3] uint8, or [3, H, W] of floating point in 0..1"
        found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise ImageError(f"an image tensor must be {expected}, got {found}; of a batch, give one image")
    array = (tensor.detach().cpu().float() if floating else tensor.cpu()).numpy()
    if floating:
        if not ((array >= 0) & (array <= 1)).all():
            found = f"{array.min():g} to {array.max():g}; divide by 255, or undo the normalization"
            raise ImageError(f"an image tensor of floating point must lie in 0..1, got {found}")
        array = (array * 255 + 0.5).astype(np.uint8)
    return _from_array(array.transpose(1, 2, 0) if first else array)


def read_ahead(sources: Iterable[Any], read: Callable[[Any], Any] = read_image) -> Iterator[Any]:
    """What ``read`` makes of many sources, in order; two threads are a few sources ahead, of large images fewer.

    Example:
        >>> [image.shape for image in read_ahead([np.zeros((2, 5, 3), np.uint8)] * 2, read_image)]
        [(2, 5, 3), (2, 5, 3)]
    """
    waiting = iter(sources)
    with ThreadPoolExecutor(2) as pool:
        running = deque(pool.submit(read, source) for source in islice(waiting, 2))
        while running:
            result = running.popleft().result()
            ahead = max(1, min(DECODED_AHEAD, BYTES_AHEAD // (getattr(result, "nbytes", 0) or 1)))
            running.extend(pool.submit(read, source) for source in islice(waiting, max(0, ahead - len(running))))
            yield result
            del result


def image_or_error(source: Any, read: Callable[[Any], Any] = read_image) -> Any:
    """`read_image`, or another, with the `ImageError` as a value: for work that names a bad file and goes on."""
    try:
        return read(source)
    except ImageError as error:
        return error
