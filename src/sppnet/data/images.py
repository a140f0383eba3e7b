"""Read, measure and resize images: everything that decodes image files, and nothing about networks.

First step of the method: whatever people have becomes one form, [H, W, 3] uint8 RGB, upright as a person sees it.
Sizes are (height, width) everywhere.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from sppnet.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 500_000_000  # 1.5 GB as RGB; beyond it a file is far more likely broken or hostile than a photo
EXIF_ORIENTATION = 0x0112
_VECTOR_FORMATS = frozenset({"EPS", "WMF"})  # drawing them would run another program
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)

# What people find under the name of an image, by its first bytes, and what to do.
_FOREIGN = {
    rb"version https://git-lfs": "a Git LFS pointer; fetch the files with: git lfs pull",
    rb"<!doctype html|<html": "a web page, saved in place of the image; download it again",
    rb"<\?xml|<svg": "XML; an SVG drawing must be converted to PNG",
    rb"%pdf": "a PDF document; convert its pages to PNG",
    rb"pk\x03\x04": "a ZIP archive; unpack it",
    rb"....ftyp(hei|mif1)": "a HEIC photo; convert it to JPEG",
    rb"....ftyp": "a film or another MP4 file",
}

DECODED_AHEAD = 4  # images: what bounds the memory of `read_ahead`
ImageFile = str | os.PathLike[str] | bytes | BinaryIO

# Pillow's pixel limit and Python's warning filters belong to the whole process: one thread at a time changes them.
_header_lock = threading.Lock()


class UnusableImage(ImageError):
    """One image that cannot be used, and why.

    ``kind`` is missing, empty, unreadable, not-an-image, damaged or too-large; ``reason`` is the message without the name.
    """

    def __init__(self, name: object, kind: str = "damaged", reason: str = "") -> None:
        super().__init__(f"{name}: {reason}" if reason else name)  # the message alone, as where it is unpickled
        self.kind, self.reason = kind, reason


def read_image(source: ImageFile | Image.Image | np.ndarray | Tensor) -> np.ndarray:
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
        ImageError: no file, an empty one, not an image, damaged, cut short, of more than 500 megapixels; an address such
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
        return _from_pillow(source)
    if any(base.__module__.partition(".")[0] == "torch" for base in type(source).__mro__):  # torch is not imported
        return _from_tensor(source)
    with open_image(source) as image:  # type: ignore[arg-type]  # only files are left
        return _from_pillow(image)


def image_size(source: ImageFile) -> tuple[int, int]:
    """Measure an image as ``read_image`` would return it, reading only the head of the file.

    Returns:
        (height, width) in pixels, after the EXIF orientation.

    Raises:
        ImageError: as ``read_image``, except for damage beyond the head of the file.

    Example:
        >>> image_size("no/such/photo.jpg")
        Traceback (most recent call last):
        sppnet.data.images.UnusableImage: no/such/photo.jpg: no such file
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
    _check_file(Path(source))
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, lambda: digest).hexdigest()
    except OSError as error:
        raise UnusableImage(source, "unreadable", f"cannot be read: {error.strerror or error}") from error


@contextmanager
def open_image(source: ImageFile) -> Iterator[Image.Image]:
    """Open an image file whose head is sound and promises no more than `MAX_PIXELS`; `UnusableImage` for any other."""
    file, name = _checked_file(source)
    try:
        image = _open_without_limit(file)
    except UnidentifiedImageError as error:
        raise UnusableImage(name, "not-an-image", f"not an image{_foreign(file)}") from error
    except OSError as error:
        kind = "unreadable" if isinstance(error, PermissionError) else "damaged"
        raise UnusableImage(name, kind, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's readers raise many kinds on damaged heads
        raise UnusableImage(name, "damaged", f"damaged image: {_one_line(error)}") from error
    with image:
        _check_pixels(image, name)
        yield image


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied: 1 to 8, 1 = upright. Looks only at what the head of the file said."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF itself, and already gives the turned size
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # the base class's: PNG's own would first decode the whole image to look for EXIF behind the pixels
            orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
        except Exception:  # damaged EXIF: the picture itself is still good
            return 1
    return orientation if orientation in range(1, 9) else 1


def _checked_file(source: object) -> tuple[Path | io.BytesIO, str]:
    """What Pillow is to open, and its name for messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        content, name = bytes(source), "image bytes"
    elif hasattr(source, "read"):
        content, name = source.read(), str(getattr(source, "name", "image file"))
        if not isinstance(content, bytes):
            raise ImageError(f"{name}: the file is open as text; open it with mode 'rb'")
    elif isinstance(source, str | os.PathLike):
        if isinstance(source, str) and _ADDRESS.match(source):
            raise ImageError(f"{source[:60]}: this is an address; download it first, and give the file or its bytes")
        _check_file(Path(source))
        return Path(source), str(source)
    else:
        expected = "a path, bytes, an open file, a PIL image, a uint8 array or a tensor"
        raise ImageError(f"an image must be given as {expected}, got {type(source).__name__}")
    if not content:
        raise UnusableImage(name, "empty", "there are no bytes to read; was it read before?")
    return io.BytesIO(content), name


def _check_file(path: Path) -> None:
    if not path.exists():
        what = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise UnusableImage(path, "missing", what)
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "not a regular file"
        raise UnusableImage(path, "unreadable", f"{what}; expected an image file")
    if path.stat().st_size == 0:
        raise UnusableImage(path, "empty", "the file is empty (0 bytes)")


def _open_without_limit(file: Path | io.BytesIO) -> Image.Image:
    """Open without Pillow's own pixel limit (ours follows) and without its warnings."""
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _foreign(file: Path | io.BytesIO) -> str:
    """What a file is that is no image, where its first bytes tell."""
    with file.open("rb") if isinstance(file, Path) else io.BytesIO(file.getvalue()) as stream:
        head = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = (f": {what}" for start, what in _FOREIGN.items() if re.match(start, head, re.DOTALL))
    return next(known, " that can be read (JPEG, PNG, WebP, TIFF ...)")


def _check_pixels(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnusableImage(name, "not-an-image", f"the image has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        limit = f"more than {MAX_PIXELS // 1_000_000} megapixels"
        raise UnusableImage(name, "too-large", f"{width} x {height} is {limit}; scale it down first")
    if image.format in _VECTOR_FORMATS:
        raise UnusableImage(name, "not-an-image", f"{image.format} is a drawing, not a photo; convert it to PNG first")


def _from_pillow(image: Image.Image) -> np.ndarray:
    name = getattr(image, "filename", "") or "image"
    _check_pixels(image, name)
    orientation = exif_orientation(image)
    try:
        image.load()
        rgb = _to_rgb(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... on damaged data
        raise UnusableImage(name, "damaged", f"damaged or cut short: {_one_line(error)}") from error
    array = np.asarray(rgb, dtype=np.uint8)
    array = array.transpose(1, 0, 2) if orientation >= 5 else array
    array = array[:, ::-1] if orientation in (2, 3, 6, 7) else array
    return np.ascontiguousarray(array[::-1] if orientation in (3, 4, 7, 8) else array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":  # 16-bit, 32-bit and floating-point gray
        return Image.fromarray(_to_8_bit(np.asarray(image), known_range=image.mode.startswith("I;16"))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(gray: np.ndarray, known_range: bool) -> np.ndarray:
    """Scale by the smallest usual range that holds all values: 0..1 (floating point), 0..255, 0..65535, 0..largest."""
    gray = np.nan_to_num(gray.astype(np.float32), posinf=0, neginf=0).clip(min=0)
    largest, whole = float(gray.max()), bool((gray == np.floor(gray)).all())
    usual = (65535.0,) if known_range else (255.0, 65535.0) if whole else (1.0, 255.0, 65535.0)
    top = next((top for top in usual if largest <= top), largest)
    return (gray * (255.0 / top) + 0.5).astype(np.uint8)


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
        return _from_pillow(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_ahead(sources: Iterable[Any], read: Callable[[Any], Any] = read_image) -> Iterator[Any]:
    """What ``read`` makes of many sources, in order; two threads are a few sources ahead.

    Example:
        >>> [image.shape for image in read_ahead([np.zeros((2, 5, 3), np.uint8)] * 2, read_image)]
        [(2, 5, 3), (2, 5, 3)]
    """
    waiting = iter(sources)
    with ThreadPoolExecutor(2) as pool:
        running = deque(pool.submit(read, source) for source in islice(waiting, DECODED_AHEAD))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(read, source) for source in islice(waiting, 1))
            yield result


def image_or_error(source: Any) -> np.ndarray | ImageError:
    """`read_image`, with the error as a value: for work that names a bad file and goes on."""
    try:
        return read_image(source)
    except ImageError as error:
        return error
