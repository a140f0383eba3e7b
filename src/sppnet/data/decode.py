"""Open and decode image files, whatever is in them: damage is an error, and memory is bounded before anything is decoded.

Pillow decodes. Around it: a look at the head of the file, a bound on memory by size and mode, PNGs without their texts, and
messages that name the file where a library's own would not.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging

from sppnet.errors import ImageError

MOST_MEMORY = 1_400_000_000  # bytes while one image is decoded: 200 megapixels of a JPEG; beyond, hardly a photo
LARGE = 300_000_000  # bytes: such images are decoded one at a time, whatever the number of threads
TRUNCATED = (
    "SPPNET_ALLOW_TRUNCATED"  # environment variable: whether images that are cut short are read, the rest of them gray
)
EXIF_ORIENTATION = 0x0112
Source = str | os.PathLike[str] | bytes | BinaryIO

# Bytes a pixel, in Pillow; others: 4.
_BYTES = dict.fromkeys(("1", "L", "P"), 1) | dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), 2)
_OF_DECODERS = {"WEBP": 13, "JPEG2000": 12, "AVIF": 9}  # bytes a pixel that these take besides, measured
_BAND = 4_000_000  # pixels that are converted at once
_VECTOR_FORMATS = frozenset({"EPS", "WMF"})  # drawing them would run another program
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
_NAME = "name of the file"  # in an image's info
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # and color profiles, which are not applied

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


logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs is in our messages, with the file's name


class UnusableImage(ImageError):
    """One image that cannot be used, and why.

    ``kind`` is missing, empty, unreadable, not-an-image, damaged or too-large; ``reason`` is the message without the name.
    """

    def __init__(self, name: object, kind: str = "damaged", reason: str = "") -> None:
        super().__init__(f"{name}: {reason}" if reason else name)  # the message alone, as where it is unpickled
        self.kind, self.reason = kind, reason


@contextmanager
def open_image(source: Source) -> Iterator[Image.Image]:
    """Open an image file whose head is sound and promises no more than `MOST_MEMORY`; `UnusableImage` for any other."""
    stream, name = _opened(
        source
    )  # not the file's name: Pillow would map it into memory, and read past what its head says
    with stream, _Quiet():
        try:
            image = Image.open(_without_texts(stream))
        except UnidentifiedImageError as error:
            raise UnusableImage(name, "not-an-image", f"not an image{_foreign(stream)}") from error
        except OSError as error:
            raise UnusableImage(name, "damaged", f"cannot be read: {error.strerror or error}") from error
        except Exception as error:  # Pillow's readers raise many kinds on damaged heads
            raise UnusableImage(name, "damaged", f"damaged image: {_one_line(error)}") from error
        with image:
            image.info[_NAME] = name
            _check_head(image, name)
            yield image


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied: 1 to 8, 1 = upright. Looks only at what the head of the file said."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF itself, and already gives the turned size
    with _Quiet():
        try:
            # the base class's: PNG's own would first decode the whole image to look for EXIF behind the pixels
            orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
        except Exception:  # damaged EXIF: the picture itself is still good
            return 1
    return orientation if orientation in range(1, 9) else 1


def decode(image: Image.Image) -> np.ndarray:
    """Decode an opened image: upright RGB [H, W, 3] uint8, on white where it is transparent.

    Args:
        image: as `open_image` gives it, or one of Pillow's own.

    Raises:
        UnusableImage: damaged, cut short, or larger than `MOST_MEMORY`.
    """
    name = str(image.info.get(_NAME) or getattr(image, "filename", "") or "image")
    needed = _check_head(image, name)
    orientation = exif_orientation(image)
    with _one_at_a_time if needed > LARGE else nullcontext(), _Quiet():
        try:
            _quiet_libtiff()
            image.load()
            return _upright_rgb(image, orientation)
        except MemoryError as error:
            raise UnusableImage(name, "too-large", f"not enough memory: it takes {needed / 1e9:.1f} GB") from error
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... on damaged data
            raise UnusableImage(name, "damaged", f"damaged or cut short: {_one_line(error)}") from error


_one_at_a_time = threading.Lock()


class _Quiet:
    """While any thread reads: no warnings of Pillow's, its pixel limit aside, as `MOST_MEMORY` follows, and what `TRUNCATED` says.

    All belong to the whole process, so the first reader sets them, and the last one puts them back.
    """

    _lock, _readers = threading.Lock(), 0
    _before: tuple[int | None, bool]
    _warnings: warnings.catch_warnings[None]

    def __enter__(self) -> None:
        with _Quiet._lock:
            if not _Quiet._readers:
                _Quiet._before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
                _Quiet._warnings = warnings.catch_warnings()
                Image.MAX_IMAGE_PIXELS = None
                ImageFile.LOAD_TRUNCATED_IMAGES |= bool(os.environ.get(TRUNCATED))
                _Quiet._warnings.__enter__()
                warnings.simplefilter("ignore")
            _Quiet._readers += 1

    def __exit__(self, *error: object) -> None:
        with _Quiet._lock:
            _Quiet._readers -= 1
            if not _Quiet._readers:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _Quiet._before
                _Quiet._warnings.__exit__(None, None, None)


@cache
def _quiet_libtiff() -> None:
    """Pillow reports what libtiff finds, with the file's name; libtiff itself would print it without."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def _opened(source: object) -> tuple[BinaryIO, str]:
    """What Pillow is to read, and its name for messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        content, name = bytes(source), "image bytes"
    elif hasattr(source, "read"):
        content, name = source.read(), str(getattr(source, "name", "image file"))
        if not isinstance(content, bytes):
            raise ImageError(f"{name}: the file is open as text; open it with mode 'rb'")
    elif isinstance(source, str | os.PathLike):
        if isinstance(source, str) and _ADDRESS.match(source):
            raise ImageError(f"{source[:60]}: this is an address; download it first, and give the file or its bytes")
        check_file(Path(source))
        try:
            return open(source, "rb"), str(source)
        except OSError as error:
            raise UnusableImage(source, "unreadable", f"cannot be read: {error.strerror or error}") from error
    else:
        expected = "a path, bytes, an open file, a PIL image, a uint8 array or a tensor"
        raise ImageError(f"an image must be given as {expected}, got {type(source).__name__}")
    if not content:
        raise UnusableImage(name, "empty", "there are no bytes to read; was it read before?")
    return io.BytesIO(content), name


def check_file(path: Path) -> None:
    """Raise an `UnusableImage` where there is no regular file, or an empty one."""
    if not os.path.exists(path):
        what = "a link to a file that is not there" if os.path.islink(path) else "no such file"
        raise UnusableImage(path, "missing", what)
    if not os.path.isfile(path):
        what = "this is a folder" if os.path.isdir(path) else "not a regular file"
        raise UnusableImage(path, "unreadable", f"{what}; expected an image file")
    if path.stat().st_size == 0:
        raise UnusableImage(path, "empty", "the file is empty (0 bytes)")


def _without_texts(stream: BinaryIO) -> BinaryIO:
    """A PNG without long texts and color profiles, which Pillow would refuse to unpack though the picture is sound."""
    kept, at, found = [slice(0, 8)], 8, False
    if stream.read(8) == _PNG:
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in _PNG_TEXTS and length > 1000:  # no fewer bytes unpack to more than Pillow's million
                found = True
            else:
                kept.append(slice(at, at + length + 12))
            at += length + 12
            stream.seek(at)
    stream.seek(0)
    if not found:
        return stream
    content = stream.read()
    return io.BytesIO(b"".join(content[part] for part in kept))


def _foreign(stream: BinaryIO) -> str:
    """What a file is that is no image, where its first bytes tell."""
    stream.seek(0)
    head = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = (f": {what}" for start, what in _FOREIGN.items() if re.match(start, head, re.DOTALL))
    return next(known, " that can be read (JPEG, PNG, WebP, TIFF ...)")


def _check_head(image: Image.Image, name: str) -> int:
    """The bytes that decoding takes at most; an `UnusableImage` where the head of the file says that it cannot be used."""
    width, height = image.size
    if width < 1 or height < 1:
        raise UnusableImage(name, "not-an-image", f"the image has no pixels ({width} x {height})")
    if image.format in _VECTOR_FORMATS:
        raise UnusableImage(name, "not-an-image", f"{image.format} is a drawing, not a photo; convert it to PNG first")
    needed = width * height * (_BYTES.get(image.mode, 4) + _OF_DECODERS.get(image.format or "", 0) + 3)
    if needed > MOST_MEMORY:
        what = f"{width} x {height} takes {needed / 1e9:.1f} GB to decode, more than {MOST_MEMORY / 1e9:.1f} GB"
        raise UnusableImage(name, "too-large", f"{what}; scale it down first")
    return needed


def _upright_rgb(image: Image.Image, orientation: int) -> np.ndarray:
    """The pixels, converted and turned band by band, so that there is never a second copy of them all."""
    width, height = image.size
    upright = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    stored = upright[::-1] if orientation in (3, 4, 7, 8) else upright  # the same pixels, as the file has them
    stored = stored[:, ::-1] if orientation in (2, 3, 6, 7) else stored
    stored = stored.transpose(1, 0, 2) if orientation >= 5 else stored
    rows = max(1, _BAND // width)
    bands = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    deep = image.mode[0] in "IF"  # 16-bit, 32-bit and floating-point gray
    white = _white(image, bands) if deep else 0
    for band in bands:
        if deep:
            stored[band] = (_gray(image, band).clip(max=white) * (255.0 / white) + 0.5).astype(np.uint8)[..., None]
        else:
            stored[band] = _rgb(image.crop((0, band.start, width, band.stop)))
    return upright


def _rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _gray(image: Image.Image, band: slice) -> np.ndarray:
    """Rows of a gray image as float32, at least 0; what is not a number is 0."""
    part = np.asarray(image.crop((0, band.start, image.width, band.stop)))
    return np.nan_to_num(part.astype(np.float32), posinf=0, neginf=0).clip(min=0)


def _white(image: Image.Image, bands: list[slice]) -> float:
    """The value of white: the end of the smallest usual range that holds all values: 0..1 (fractions), 0..255, 0..65535, 0..largest.

    Fractions may lie a twentieth above 1: interpolation and sharpening leave such values, which are then white too.
    """
    largest, whole = 0.0, True
    for gray in (_gray(image, band) for band in bands):
        largest, whole = max(largest, float(gray.max())), whole and bool((gray == np.floor(gray)).all())
    if image.mode.startswith("I;16"):
        return 65535.0
    if not whole and largest <= 1.05:
        return 1.0
    return next((top for top in (255.0, 65535.0) if largest <= top), largest)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
