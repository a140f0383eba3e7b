"""Open every image file completely and say what is wrong with it, or worth knowing: the part of ``check`` that decodes.

A ``Finding`` is an *error* where the file cannot be used, a *warning* where it can be but hardly as its owner thinks,
and a *note* where it is merely worth knowing. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from sppnet.data import images
from sppnet.data.images import ImageError, content_key, read_image

Severity = Literal["error", "warning", "note"]

SMALL = 32  # pixels: the least side that images are resized to, so that a smaller one is magnified
LONG = 30  # beyond about 1:30, 1000 x 32 pixels, an image is stretched rather than kept in shape
_ALONE = 50_000_000  # pixels (150 MB as RGB): such images are decoded one at a time, whatever the number of threads

# What people find under the name of an image: first bytes, where they start, what it is and what to do.
_FOREIGN: tuple[tuple[bytes, int, str], ...] = (
    (b"version https://git-lfs", 0, "a Git LFS pointer; fetch the files with: git lfs pull"),
    (b"<!doctype html", 0, "a web page, saved in place of the image; download it again"),
    (b"<html", 0, "a web page, saved in place of the image; download it again"),
    (b"<?xml", 0, "XML; an SVG drawing must be converted to PNG"),
    (b"<svg", 0, "an SVG drawing; convert it to PNG"),
    (b"%pdf", 0, "a PDF document; convert its pages to PNG"),
    (b"pk\x03\x04", 0, "a ZIP archive; unpack it"),
    (b"ftyphei", 4, "a HEIC photo; convert it to JPEG"),
    (b"ftypmif1", 4, "a HEIC photo; convert it to JPEG"),
    (b"ftyp", 4, "a film or another MP4 file"),
)
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}  # written and read alike, and named alike by cameras and programs


@dataclass(frozen=True)
class Finding:
    """One thing about one file.

    Example:
        >>> print(Finding("error", "empty", Path("cat/1.jpg"), "the file is empty (0 bytes)"))
        error: cat/1.jpg: the file is empty (0 bytes)
    """

    severity: Severity
    kind: str  # one word, to count and to filter by
    path: Path
    message: str  # one line, without the path
    line: int | None = None  # counted from 1, in text files

    def __str__(self) -> str:
        """Severity, file, line and message, as compilers write it."""
        place = f"{self.path}:{self.line}" if self.line is not None else str(self.path)
        return f"{self.severity}: {place}: {self.message}"


@dataclass(frozen=True)
class ImageFacts:
    """What reading one image completely has shown."""

    size: tuple[int, int]  # upright
    stored_size: tuple[int, int]  # as in the file, before its EXIF orientation
    orientation: int  # EXIF: 1 upright, 2 to 8 turned or mirrored
    key: str  # of the upright RGB pixels: the same picture has the same key, in whatever format it is stored


@dataclass(frozen=True)
class Collection:
    """The images of one layout of data, and what that layout can say about them: one for each kind of data set.

    ``sppnet.data.check`` makes one for class folders and plain folders, ``check_voc`` one for VOC; a further kind of
    annotations is a further function that returns a Collection.
    """

    layout: str  # in words
    images: Sequence[Path]
    classes: Mapping[str, int] = field(default_factory=dict)  # images (or objects) of each class
    findings: Sequence[Finding] = ()  # what shows without opening an image
    judge: Callable[[Mapping[Path, ImageFacts]], Iterable[Finding]] = lambda facts: ()  # what shows once all are read


def inspect_image(path: Path, *, alone: threading.Lock | None = None) -> tuple[ImageFacts | None, list[Finding]]:
    """Read one image file completely, and say what there is to say.

    Args:
        path: the file.
        alone: held while an image of more than 50 megapixels is decoded; for callers with several threads.

    Returns:
        (facts, findings); facts are None, and the first finding is an error, where the file cannot be read.

    Example:
        >>> Path("photo.jpg").write_bytes(b"")
        0
        >>> inspect_image(Path("photo.jpg"))[1][0].message
        'the file is empty (0 bytes)'
    """
    problem = _file_problem(path)
    if problem is not None:
        return None, [problem]

    findings: list[Finding] = []
    try:
        with images.open_image(path) as image:
            width, height = image.size
            if width * height > images.MAX_PIXELS:
                return None, [_too_large(path, width, height)]
            images.check_pixels(image, str(path))
            orientation = _stored_orientation(image)
            findings += _notes(path, image, orientation)
    except ImageError as error:
        return None, [_unreadable(path, error)]

    with alone if alone is not None and width * height > _ALONE else nullcontext():
        try:
            array = read_image(path)
            upright = (array.shape[0], array.shape[1])
            stored = upright[::-1] if orientation >= 5 else upright
            facts = ImageFacts(upright, stored, orientation, content_key(array))
        except ImageError as error:
            return None, [Finding("error", "damaged", path, _without(path, error))]
        except MemoryError:
            return None, [Finding("error", "too-large", path, f"not enough memory for {width} x {height} pixels")]
    return facts, findings + _shape_notes(path, facts.size)


def inspect_images(
    paths: Sequence[Path], report: Callable[[str, int, int], None] | None = None, workers: int | None = None
) -> tuple[dict[Path, ImageFacts], list[Finding]]:
    """Read many image files completely, in threads (decoders let go of Python's lock).

    Args:
        paths: the files, each once.
        report: called with ("images", done, total) after every file, in the caller's thread.
        workers: number of threads, at least 1; None: one a processor core, at most 8.

    Returns:
        (facts of the files that could be read, findings), both in the order of ``paths``.

    Example:
        >>> inspect_images([])
        ({}, [])
    """
    alone = threading.Lock()
    results: dict[Path, tuple[ImageFacts | None, list[Finding]]] = {}
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8), thread_name_prefix="check")
    try:
        with warnings.catch_warnings():  # Pillow's, about oddities that do not keep it from reading
            warnings.simplefilter("ignore")
            futures = {pool.submit(inspect_image, path, alone=alone): path for path in paths}
            for done, future in enumerate(as_completed(futures), start=1):
                results[futures[future]] = future.result()
                if report is not None:
                    report("images", done, len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    facts = {path: fact for path in paths if (fact := results[path][0]) is not None}
    return facts, [finding for path in paths for finding in results[path][1]]


def same_pictures(facts: Mapping[Path, ImageFacts], groups: Mapping[Path, tuple[str, str]]) -> list[Finding]:
    """Find files that show the same picture, pixel for pixel, in whatever format.

    Args:
        facts: of the images that could be read.
        groups: (part of the split, class) of each image, "" for none; in the order in which the first of several copies
            counts as the original. Images that are not in here are left out.

    Returns:
        For each further copy: a warning where it has another class, or lies in another part; a note where it does not.
    """
    originals: dict[str, Path] = {}
    findings = []
    for path, (part, label) in groups.items():
        if path not in facts:
            continue
        original = originals.setdefault(facts[path].key, path)
        if original == path:
            continue
        first_part, first_label = groups[original]
        same = f"the same picture as {original}"
        if label != first_label:
            message = f"{same}, which is labelled {first_label!r}, not {label!r}"
            findings.append(Finding("warning", "two-labels", path, message))
        if part != first_part:
            message = f"{same}: {part} would be judged by a picture that {first_part} holds too"
            findings.append(Finding("warning", "leak", path, message))
        if (part, label) == (first_part, first_label):
            findings.append(Finding("note", "copy", path, same))
    return findings


def hidden_image(path: Path) -> Finding | None:
    """Say so where a file that is passed over for its ending holds an image all the same.

    Example:
        >>> Path("notes.txt").write_text("the cat is on the left")
        22
        >>> hidden_image(Path("notes.txt")) is None
        True
    """
    if _file_problem(path) is not None:
        return None
    try:
        with images.open_image(path) as image:
            kind = image.format or "image"
    except ImageError:
        return None
    ending = f"its ending {path.suffix!r} is not an image's" if path.suffix else "it has no ending"
    return Finding("warning", "passed-over", path, f"passed over, though it is a {kind} image: {ending}; rename it")


def _file_problem(path: Path) -> Finding | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        what = "a link to a file that is not there" if os.path.islink(path) else "no such file"
        return Finding("error", "missing", path, what)
    except OSError as error:
        return Finding("error", "unreadable", path, f"cannot be read: {error.strerror or error}")
    if not stat.S_ISREG(status.st_mode):
        return Finding("error", "unreadable", path, "not a regular file")
    if status.st_size == 0:
        return Finding("error", "empty", path, "the file is empty (0 bytes)")
    return None


def _unreadable(path: Path, error: ImageError) -> Finding:
    """Tell apart, by what was raised beneath: not an image at all, damaged, kept from being read."""
    if isinstance(error.__cause__, UnidentifiedImageError):
        what = _foreign(path)
        message = f"not an image: {what}" if what else _without(path, error)
        return Finding("error", "not-an-image", path, message)
    if error.__cause__ is None:  # nothing failed: a drawing, or no pixels
        return Finding("error", "not-an-image", path, _without(path, error))
    kind = "unreadable" if isinstance(error.__cause__, PermissionError) else "damaged"
    return Finding("error", kind, path, _without(path, error))


def _foreign(path: Path) -> str | None:
    with open(path, "rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for start, at, what in _FOREIGN if head[at:].startswith(start)), None)


def _too_large(path: Path, width: int, height: int) -> Finding:
    limit = f"more than {images.MAX_PIXELS // 1_000_000} megapixels"
    size = os.path.getsize(path)
    bomb = " (a decompression bomb?)" if width * height > 1000 * size else ""  # photos take about a byte for ten pixels
    return Finding(
        "error", "too-large", path, f"{width} x {height} pixels in {size:,} bytes{bomb}: {limit}; scale it down"
    )


def _stored_orientation(image: Image.Image) -> int:
    if image.format != "TIFF":
        return images.exif_orientation(image)
    try:  # Pillow turns TIFF by itself, and `image.size` is already the turned one
        return int(image.tag_v2.get(images.EXIF_ORIENTATION, 1))  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return 1


def _notes(path: Path, image: Image.Image, orientation: int) -> list[Finding]:
    findings = []
    expected, kind = _format_of(path.suffix.lower()), image.format or ""
    if expected is not None and _SAME_FORMAT.get(kind, kind) != _SAME_FORMAT.get(expected, expected):
        message = (
            f"a {kind} image under the ending {path.suffix}: it is read all the same, but other programs may refuse it"
        )
        findings.append(Finding("warning", "misnamed", path, message))
    if orientation != 1:
        message = f"stored turned or mirrored (EXIF orientation {orientation}); it is set upright on reading"
        findings.append(Finding("note", "turned", path, message))
    if kind != "MPO" and _frames(image) > 1:  # the second picture of an MPO is the camera's own preview or depth map
        message = f"holds {_frames(image)} frames or pages; only the first is used"
        findings.append(Finding("note", "animated", path, message))
    return findings


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame: the first is what counts, and that is read next
        return 1


def _shape_notes(path: Path, size: tuple[int, int]) -> list[Finding]:
    findings = []
    height, width = size
    if min(size) < SMALL:
        message = f"only {width} x {height} pixels; sides below {SMALL} are magnified"
        findings.append(Finding("note", "small", path, message))
    if max(size) > LONG * min(size):
        message = f"{width} x {height} pixels, longer than 1:{LONG}: it is stretched rather than kept in shape"
        findings.append(Finding("note", "long", path, message))
    return findings


@cache
def _formats() -> dict[str, str]:
    return Image.registered_extensions()


def _format_of(ending: str) -> str | None:
    """Pillow's name of the format an ending stands for; its own where Pillow does not know it, as for HEIC."""
    return _formats().get(ending, ending[1:].upper() or None)


def _without(path: Path, error: Exception) -> str:
    return str(error).removeprefix(f"{path}: ")
