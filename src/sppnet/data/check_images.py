"""Open every image file completely and say what is wrong with it, or worth knowing: the part of ``check`` that decodes."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from PIL import Image

from sppnet.data.formats import Finding
from sppnet.data.images import EXIF_ORIENTATION, UnusableImage, content_key, exif_orientation, open_image, read_image
from sppnet.errors import ImageError
from sppnet.progress import Progress, no_progress

SMALL = 32  # pixels: the least side that images are resized to, so that a smaller one is magnified
LONG = 30  # beyond about 1:30, 1000 x 32 pixels, an image is stretched rather than kept in shape
_ALONE = 50_000_000  # pixels (150 MB as RGB): such images are decoded one at a time, whatever the number of threads
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}  # written and read alike, and named alike by cameras and programs


@dataclass(frozen=True)
class ImageFacts:
    """What reading one image completely has shown."""

    size: tuple[int, int]  # (height, width), upright
    stored_size: tuple[int, int]  # as in the file, before its EXIF orientation
    orientation: int  # EXIF: 1 upright, 2 to 8 turned or flipped
    key: str  # of the upright RGB pixels: the same picture has the same key, in whatever format it is stored


def inspect_image(path: Path, *, alone: threading.Lock | None = None) -> tuple[ImageFacts | None, list[Finding]]:
    """Read one image file completely, and say what there is to say.

    Args:
        path: the file.
        alone: held while an image of more than 50 megapixels is decoded; for callers with several threads.

    Returns:
        (facts, findings); facts are None, and the one finding is an error, where the file cannot be read.

    Example:
        >>> Path("photo.jpg").write_bytes(b"")
        0
        >>> inspect_image(Path("photo.jpg"))[1][0].message
        'the file is empty (0 bytes)'
    """
    try:
        with open_image(path) as image:
            pixels, orientation = image.width * image.height, _stored_orientation(image)
            findings = list(_head_findings(path, image, orientation))
        with alone if alone is not None and pixels > _ALONE else nullcontext():
            array = read_image(path)
            upright = (array.shape[0], array.shape[1])
            facts = ImageFacts(upright, upright[::-1] if orientation >= 5 else upright, orientation, content_key(array))
    except UnusableImage as error:
        return None, [Finding(path, None, "error", error.kind, error.reason)]
    except MemoryError:
        return None, [Finding(path, None, "error", "too-large", f"not enough memory for {pixels:,} pixels")]
    return facts, findings + list(_shape_findings(path, facts.size))


def inspect_images(
    paths: Sequence[Path], progress: Progress = no_progress, workers: int | None = None
) -> tuple[dict[Path, ImageFacts], list[Finding]]:
    """Read many image files completely, in threads (decoders let go of Python's lock).

    Args:
        paths: the files, each once.
        progress: of the stage "images", in the caller's thread.
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
                progress("images", done, len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    facts = {path: fact for path in paths if (fact := results[path][0]) is not None}
    return facts, [finding for path in paths for finding in results[path][1]]


def same_pictures(facts: Mapping[Path, ImageFacts], groups: Mapping[Path, tuple[str, str]]) -> Iterator[Finding]:
    """Find files that show the same picture, pixel for pixel, in whatever format.

    Args:
        facts: of the images that could be read.
        groups: (part of the split, class) of each image, "" for none; in the order in which the first of several copies
            counts as the original.

    Yields:
        For each further copy: a warning where it has another class, or lies in another part; a note where it does not.
    """
    originals: dict[str, Path] = {}
    for path, (part, label) in groups.items():
        original = originals.setdefault(facts[path].key, path) if path in facts else path
        if original == path:
            continue
        first_part, first_label = groups[original]
        find, same = partial(Finding, path, None), f"the same picture as {original}"
        if label != first_label:
            yield find("warning", "two-labels", f"{same}, which is labeled {first_label!r}, not {label!r}")
        if part != first_part:
            yield find("warning", "leak", f"{same}: {part} would be judged by a picture that {first_part} holds too")
        if (part, label) == (first_part, first_label):
            yield find("note", "copy", same)


def hidden_image(path: Path) -> Finding | None:
    """Say so where a file that is passed over for its ending holds an image all the same.

    Example:
        >>> Path("notes.txt").write_text("the cat is on the left")
        22
        >>> hidden_image(Path("notes.txt")) is None
        True
    """
    try:
        with open_image(path) as image:
            kind = image.format or "image"
    except ImageError:
        return None
    ending = f"its ending {path.suffix!r} is not an image's" if path.suffix else "it has no ending"
    message = f"passed over, though it is a {kind} image: {ending}; rename it"
    return Finding(path, None, "warning", "passed-over", message)


def _stored_orientation(image: Image.Image) -> int:
    if image.format != "TIFF":
        return exif_orientation(image)
    try:  # Pillow turns TIFF by itself, and `image.size` is already the turned one
        return int(image.tag_v2.get(EXIF_ORIENTATION, 1))  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return 1


def _head_findings(path: Path, image: Image.Image, orientation: int) -> Iterator[Finding]:
    find = partial(Finding, path, None)
    expected, kind = _format_of(path.suffix.lower()), image.format or ""
    if expected is not None and _SAME_FORMAT.get(kind, kind) != _SAME_FORMAT.get(expected, expected):
        message = f"a {kind} image under the ending {path.suffix}: read all the same, but other programs may refuse it"
        yield find("warning", "misnamed", message)
    if orientation != 1:
        message = f"stored turned or flipped (EXIF orientation {orientation}); it is set upright on reading"
        yield find("note", "turned", message)
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame: the first is what counts, and that is read next
        frames = 1
    if kind != "MPO" and frames > 1:  # the second picture of an MPO is the camera's own preview or depth map
        yield find("note", "animated", f"holds {frames} frames or pages; only the first is used")


def _shape_findings(path: Path, size: tuple[int, int]) -> Iterator[Finding]:
    height, width = size
    if min(size) < SMALL:
        message = f"only {width} x {height} pixels; sides below {SMALL} are magnified"
        yield Finding(path, None, "note", "small", message)
    if max(size) > LONG * min(size):
        message = f"{width} x {height} pixels, longer than 1:{LONG}: it is stretched rather than kept in shape"
        yield Finding(path, None, "note", "long", message)


@cache
def _formats() -> dict[str, str]:
    return Image.registered_extensions()


def _format_of(ending: str) -> str | None:
    """Pillow's name of the format an ending stands for; its own where Pillow does not know it, as for HEIC."""
    return _formats().get(ending, ending[1:].upper() or None)
