"""What parsing gives in every format, and what reading and checking make of it: the same, so that they cannot disagree.

A format is one file with ``recognize(root)``; a parser, one pass that gives the objects and the findings; ``read(root, split,
limit)``, which raises the first finding that is an error; and ``check(root)``, which gives them all.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.find import Listing
from sppnet.data.images import image_size
from sppnet.errors import DataError, ImageError, SettingsError

Severity = Literal["error", "warning", "note"]
Size = tuple[int, int]  # (height, width)
Box = tuple[float, float, float, float]  # xyxy, pixels, half-open

TOLERANCE = 1.0  # pixels a box may reach over the edge (annotators and decimals round); it is then cut to the image
MOST_PIXELS = 10**9  # of a side: files may hold numbers too large to calculate with
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
OUTSIDE = "SPPNET_OUTSIDE"  # environment variable: whether a data set may name files outside of its folder
_UNKNOWN = (10**6, 10**6)  # an image that cannot be read is an error by itself; its boxes are judged all the same
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_NAMES = tuple(name for names in _SPLITS.values() for name in names)


@dataclass(frozen=True)
class Finding:
    """One thing about one file: an *error* cannot be used, a *warning* hardly as meant, a *note* is worth knowing.

    Example:
        >>> print(Finding(Path("labels/1.txt"), 3, "error", "box", "box of 'cat' is empty"))
        error: labels/1.txt:3: box of 'cat' is empty
    """

    path: Path
    line: int | None  # counted from 1, in text files
    severity: Severity
    kind: str  # one word, to count and to filter by
    message: str  # one line, without the path

    def __str__(self) -> str:
        """Severity, file, line and message, as compilers write it."""
        return f"{self.severity}: {DataError(self.path, self.message, self.line)}"


Place = Callable[[Severity, str, str], Finding]  # what is found there: (severity, kind, message)


class Fault(Exception):
    """Why one entry of a file cannot be used; whoever knows its place makes a `Finding` of it."""

    def __init__(self, reason: str, kind: str = "annotation") -> None:
        super().__init__(reason)
        self.kind = kind


class Object(NamedTuple):
    """One object, as read."""

    name: str  # of its class
    box: Box  # cut to the image
    difficult: bool = False


@dataclass(eq=False)
class Entry:
    """One image of a set, and what its annotations say."""

    image_id: str
    path: Path | None  # None: the image is missing
    place: Place  # where the size is stated
    stated: Size | None = None
    label: str = ""  # of the whole image, in class folders
    objects: list[Object] = field(default_factory=list)
    seen: set[Object] = field(default_factory=set)

    @cached_property
    def size(self) -> Size:
        """As stated, or as measured."""
        try:
            return self.stated or image_size(self.path or "")
        except ImageError:
            return _UNKNOWN

    def annotated(self, label_of: dict[str, int]) -> AnnotatedImage:
        """The form that training works on; an `ImageError` where the size is not stated and cannot be measured."""
        assert self.path is not None, "a missing image is an error, which was raised before"
        boxes = np.array([found.box for found in self.objects], np.float32).reshape(-1, 4)
        labels = np.array([label_of[found.name] for found in self.objects], np.int64)
        difficult = np.array([found.difficult for found in self.objects], bool)
        size = self.stated or image_size(self.path)
        return AnnotatedImage(self.image_id, self.path, size, boxes, labels, difficult)


@dataclass
class Parsed:
    """A data set as parsed: all of it, or one split."""

    layout: str  # in words, such as "class folders"
    place: Path  # the file or folder that findings about the whole are about
    class_names: Sequence[str] = ()
    splits: dict[str, list[Entry]] = field(default_factory=dict)  # an entry may be in several
    findings: list[Finding] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)  # what lies in class folders beside their images

    def found(self, path: Path, severity: Severity, kind: str, message: str, line: int | None = None) -> None:
        """Take down a finding."""
        self.findings.append(Finding(path, line, severity, kind, message))

    def add(self, entry: Entry, place: Place, read: Callable[[], Object]) -> None:
        """Read one object of an image; a `Fault` becomes a finding of its place."""
        try:
            found = read()
        except Fault as fault:
            self.findings.append(place("error", fault.kind, str(fault)))
            return
        if found in entry.seen:
            self.findings.append(place("warning", "box-twice", f"the same box of {found.name!r} for the second time"))
        entry.seen.add(found)
        entry.objects.append(found)

    def entries(self) -> list[Entry]:
        """Every entry once."""
        return list(dict.fromkeys(entry for entries in self.splits.values() for entry in entries))

    def counts(self) -> dict[str, int]:
        """Objects of each class; images of each, where classes are of whole images."""
        counts = Counter(dict.fromkeys(self.class_names, 0))
        for entry in self.entries():
            counts.update([entry.label] if entry.label else [found.name for found in entry.objects])
        return dict(counts)

    def data(self, split: str) -> DetectionData:
        """The one split that was parsed; a `DataError` of the first finding that is an error."""
        raise_first_error(self.findings)
        label_of = {name: label for label, name in enumerate(self.class_names, start=1)}
        return DetectionData(tuple(self.class_names), tuple(e.annotated(label_of) for e in self.entries()), split)


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Raise a `DataError` of the first error, if there is one; the message counts the others."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: `sppnet check` names each)" if len(errors) > 1 else ""
        raise DataError(errors[0].path, errors[0].message + more, errors[0].line)


def checked_limit(limit: int | None) -> int | None:
    """How many images are read, at least 1, or None for all; a `SettingsError` for another number."""
    if limit is not None and limit < 1:
        raise SettingsError(f"limit must be at least 1, or left out for all images: got {limit}")
    return limit


def checked_size(height: int, width: int) -> Size | None:
    """A stated size, where it can be one: many tools write 0 for what they do not know."""
    return (height, width) if min(height, width) >= 1 and max(height, width) <= MOST_PIXELS else None


def cut_box(box: Box, size: Size, name: str, given: object, expected: str) -> Box:
    """The box cut to the image; a `Fault` if it is empty, swapped, or more than `TOLERANCE` outside.

    Example:
        >>> cut_box((-1, 5, 9, 20.5), (20, 30), "cat", [-1, 5, 10, 15.5], "[x, y, width, height]")
        (0.0, 5, 9, 20.0)
    """
    x0, y0, x1, y1 = box
    height, width = float(size[0]), float(size[1])
    if not all(map(math.isfinite, box)) or x0 >= x1 or y0 >= y1:
        raise Fault(f"box of {name!r} is empty or swapped: {shown(given)}; expected {expected}", "box")
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height))
    beyond = max(cut[0] - x0, cut[1] - y0, x1 - cut[2], y1 - cut[3])
    if beyond > TOLERANCE or cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise Fault(f"box of {name!r} is outside the image of {size[1]} x {size[0]} pixels: {shown(given)}", "box")
    return cut


def check_pixels(box: Box, name: str, given: object) -> None:
    """Raise a `Fault` for a box within the first pixel, as fractions: it is probably given in shares of the image's sides."""
    if max(map(abs, box)) <= 1 and not all(float(corner).is_integer() for corner in box):
        raise Fault(
            f"box of {name!r} lies within one pixel: {shown(given)}; shares of the sides? expected pixels", "box"
        )


def plain_split(name: str) -> str:
    """Without a year, and in one spelling: train2017 -> train, valid -> val."""
    name = re.sub(r"[_-]?(19|20)\d\d$", "", name.casefold())
    return next((plain for plain, names in _SPLITS.items() if name in names), name)


def choose_split(root: Path, split: str, there: Iterable[str]) -> str:
    """The name of a split as the data set has it: "val" may be "valid", and "train" may be "train2017".

    Raises:
        DataError: there is none, or several.
    """
    there = list(there)
    alike = [split] if split in there else [name for name in there if plain_split(name) == plain_split(split)]
    if len(alike) > 1:
        raise DataError(root, f"{split!r} may be any of {', '.join(alike)}; say which")
    if not alike:
        raise DataError(root, f"no such split {split!r}; splits there: {', '.join(there) or 'none'}")
    return alike[0]


def number(text: str) -> float:
    """A number as data sets write it; a ValueError for what Python alone reads as one, such as 1_000."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number: {text!r}")
    return float(text)


def read_text(path: Path, most: int = 100_000_000) -> str:
    """The text of a file; a `DataError` where it is none, or longer than ``most`` bytes."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, f"cannot be read as text: {error}") from error


def read_bytes(path: Path, most: int = 100_000_000) -> bytes:
    """The content of a regular file; a `DataError` where there is none, or more than ``most`` bytes."""
    try:
        if not os.path.isfile(path):
            raise DataError(path, "not a regular file" if os.path.exists(path) else "no such file")
        if path.stat().st_size > most:
            raise DataError(
                path, f"{path.stat().st_size / 1e6:.0f} MB, more than {most / 1e6:.0f} MB of text; split it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from error


def check_inside(path: Path, root: Path) -> None:
    """Raise a `Fault` for a path, written in a data set's files, that leads out of it by ``..`` or from the root of the disk.

    Links are followed: who makes one knows where it leads.
    """
    here, top = os.path.abspath(path), os.path.abspath(root)
    if os.path.commonpath([here, top]) != top and not os.environ.get(OUTSIDE):
        raise Fault(
            f"{shown(str(path))} lies outside of {root}; move it there, or set {OUTSIDE}=1 to allow it", "outside"
        )


def shown(value: object) -> str:
    """A value for a message, cut to 80 characters; a text as it is."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def some(names: Sequence[str], most: int = 10) -> str:
    """Write out a list for a message: the first few, and how many more.

    Example:
        >>> some(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
