"""COCO annotations: one JSON for a split, with lists ``images``, ``categories`` and ``annotations``.

A box is ``[x, y, width, height]`` in continuous pixels from the upper left corner, so that only its far corner has to be
added up. ``iscrowd`` becomes ``difficult``. Found where they lie: COCO's own folders
(``annotations/instances_train2017.json`` and ``train2017/``), exports with ``train/_annotations.coco.json`` beside the
images, and one JSON with its images near it.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeGuard

from sppnet.data import formats
from sppnet.data.annotations import DetectionData
from sppnet.data.find import is_hidden
from sppnet.data.formats import Entry, Fault, Finding, Object, Parsed
from sppnet.errors import DataError

NAME, LAYOUT = "COCO", "annotations/instances_<split>.json, <split>/_annotations.coco.json or <split>.json"
_LISTS = ("images", "annotations", "categories")
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_LIST_OF_COCO = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*[\[{\]]')
_SNIFFED = 65536  # bytes: "info" and "licenses", which may come before the first list, are shorter


def recognize(root: Path) -> bool:
    """Tell whether this is a folder with COCO annotations, or one JSON of them.

    Example:
        >>> recognize(Path("no/such/folder"))
        False
    """
    if root.is_file():
        return root.suffix.lower() == ".json" and _looks_like_coco(root)
    return root.is_dir() and bool(_annotation_files(root))


def read(
    root: str | os.PathLike[str], split: str = "train", limit: int | None = None, *, drop_faulty: bool = False
) -> DetectionData:
    """Read one split of COCO annotations.

    A box ``[x, y, w, h]`` becomes ``(x, y, x + w, y + h)``, cut to the image. Class names are the categories by rising
    id. A crowd (``iscrowd`` 1), or what is marked ``ignore``, is ``difficult``: it neither helps nor harms in evaluation.

    Args:
        root: the folder that holds the annotations, or one JSON file, of which ``split`` is then only the name.
        split: such as ``"train"``, ``"val"`` or ``"train2017"``; "train" finds "train2017", and "val" finds "valid".
        limit: take only the first so many images, at least 1; None takes all.
        drop_faulty: leave out boxes that are empty, swapped or outside their image, where otherwise the first of them is
            an error. COCO's own train2017 holds two without a height.

    Returns:
        The split, images in the file's order. ``image_id`` is the split and the id in the file, as in "train2017/139".
        Boxes are taken to lie on the upright image: the stated size is trusted, and ``sppnet check`` compares it with
        the image's, EXIF orientation applied. Image files are looked for but not opened, unless no size is stated.

    Raises:
        DataError: no annotations of that split, or not of that form; a box that is not four numbers, empty, swapped or
            more than a pixel outside its image; an unknown category or image; an image that is missing. The message
            names the file, the line and the entry.

    Source: "Data format" at cocodataset.org.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        sppnet.errors.DataError: no/such/folder: no such file or folder; expected COCO annotations: annotations/instances_...
    """
    parsed = _parse(Path(root), split, formats.checked_limit(limit))
    if drop_faulty:
        parsed.findings = [finding for finding in parsed.findings if finding.kind != "box"]
    return parsed.data(split)


def check(root: Path) -> Parsed:
    """Parse all annotation files of a folder, or one file.

    Raises:
        DataError: no annotations.
    """
    return _parse(root)


@dataclass(frozen=True, eq=False)
class _File:
    """One JSON of annotations: its three lists, and where their entries stand in the file."""

    path: Path
    split: str  # as the file is named, such as "train2017"
    content: Mapping[str, list[Any]]  # the three lists, by name

    @cached_property
    def classes(self) -> dict[int, str]:
        """Names by category id, by rising id; without an export's head category that no annotation uses."""
        names: dict[int, str] = {}
        categories, annotations = self.content["categories"], self.content["annotations"]
        for index, entry in enumerate(categories):
            number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
            if not _is_whole(number) or not isinstance(name, str) or not name.strip():
                raise self.error("categories", index, f"expected an id and a name, got {formats.shown(entry)}")
            if number in names:
                raise self.error("categories", index, f"the id {number} is given twice; number them apart")
            names[number] = name.strip()
        heads = {name for name in names.values() if any(c.get("supercategory") == name for c in categories)}
        heads &= {c["name"].strip() for c in categories if c.get("supercategory") in (None, "", "none")}
        if heads:
            ids = (a.get("category_id") for a in annotations if isinstance(a, dict))
            used = {number for number in ids if _is_whole(number)}
            names = {number: name for number, name in names.items() if name not in heads or number in used}
        twice = {name for name in names.values() if list(names.values()).count(name) > 1}
        if twice:
            raise DataError(self.path, f"two categories are called {min(twice)!r}; make them one, or rename one")
        if not names:
            raise DataError(self.path, "no categories; expected one for each class, with an id and a name")
        return dict(sorted(names.items()))

    def find(self, key: str, index: int, severity: Any, kind: str, message: str) -> Finding:
        """A finding of one entry, with its number and id, as many files are a single line."""
        error = self.error(key, index, message)
        return Finding(self.path, error.line, severity, kind, error.reason)

    def error(self, key: str, index: int, reason: str) -> DataError:
        """What is wrong with an entry."""
        entry = self.content[key][index]
        number = entry.get("id") if isinstance(entry, dict) else None
        name = f"{key}[{index}]" + ("" if number is None else f" (id {number})")
        return DataError(self.path, f"{name}: {reason}", self._lines[key][index])

    @cached_property
    def _lines(self) -> dict[str, list[int]]:
        """On which line each entry begins: a second look at the file, so that reading a sound one is fast."""
        text = formats.read_text(self.path)
        ends = list(accumulate(map(len, text.split("\n")), lambda end, length: end + 1 + length))
        return {key: [bisect_right(ends, at - 1) + 1 for at in starts] for key, starts in _starts(text).items()}


def _parse(root: Path, split: str | None = None, limit: int | None = None) -> Parsed:
    if not root.exists():
        raise DataError(root, f"no such file or folder; expected COCO annotations: {LAYOUT}")
    paths = {split or root.stem: root} if root.is_file() else _annotation_files(root)
    if not paths:
        raise DataError(root, f"no COCO annotations; expected {LAYOUT}, or give the JSON file itself")
    order = sorted(paths, key=lambda name: (not name.startswith("train"), name))
    names = order if split is None else [formats.choose_split(root, split, order)]
    parsed = Parsed(f"COCO, split into {', '.join(names)}" if len(names) > 1 else f"COCO, {names[0]}", root)
    first: _File | None = None
    for name in names:
        try:
            file = _load(paths[name], name)
            classes = list(file.classes.values())
        except DataError as error:
            parsed.found(error.path, "error", "annotations", error.reason, error.line)
            continue
        first = first or file
        parsed.class_names = list(dict.fromkeys([*parsed.class_names, *classes]))
        if classes != list(first.classes.values()):
            differing = [repr(name) for name in sorted(set(classes) ^ set(first.classes.values()))]
            what = f"({formats.some(differing) or 'their order'}): labels would not mean the same"
            parsed.found(file.path, "error", "classes", f"its classes are not those of {first.path.name} {what}")
        _parse_file(file, parsed, limit)
    return parsed


def _parse_file(file: _File, parsed: Parsed, limit: int | None) -> None:
    entries: dict[int | str, Entry | None] = {}  # None: beyond the limit
    find = _ImageFinder(file)
    for index, content in enumerate(file.content["images"]):
        place = partial(file.find, "images", index)
        try:
            number, name, stated = _image_entry(content)
            if number in entries:
                raise Fault(f"the image id {number} is given twice; every image needs its own", "image-entry")
            entries[number] = None
            if limit is None or index < limit:
                entries[number] = entry = Entry(f"{file.split}/{number}", None, place, stated)
                entry.path = find(name)
        except Fault as fault:
            parsed.findings.append(place("error", fault.kind, str(fault)))
    if not file.content["images"]:
        parsed.found(file.path, "error", "list", "no images in it")
    for index, content in enumerate(file.content["annotations"]):
        place = partial(file.find, "annotations", index)
        of_id = content.get("image_id") if isinstance(content, dict) else None
        if not (_is_whole(of_id) or isinstance(of_id, str)) or of_id not in entries:
            message = f"image_id {of_id!r} is none of the {len(entries)} images' ids"
            parsed.findings.append(place("error", "image-id", message))
        elif (of := entries[of_id]) is not None:
            parsed.add(of, place, partial(_object, content, file.classes, of.size))
    parsed.splits[file.split] = [entry for entry in entries.values() if entry is not None]


def _image_entry(content: Any) -> tuple[int | str, str, tuple[int, int] | None]:
    """Id, file name and, where stated, the size of one entry of ``images``."""
    number: Any
    number, name = (content.get("id"), content.get("file_name")) if isinstance(content, dict) else (None, None)
    if not (_is_whole(number) or (isinstance(number, str) and number)) or not isinstance(name, str) or not name:
        raise Fault(f"expected an id and a file_name, got {formats.shown(content)}", "image-entry")
    height, width = content.get("height"), content.get("width")
    return number, name, formats.checked_size(height, width) if _is_whole(height) and _is_whole(width) else None


def _object(content: Mapping[str, Any], classes: Mapping[int, str], size: tuple[int, int]) -> Object:
    category, box = content.get("category_id"), content.get("bbox")
    if not _is_whole(category) or category not in classes:
        known = formats.some([*map(str, classes)])
        raise Fault(f"category_id {category!r} is none of the categories; known ids: {known}")
    crowd = content.get("iscrowd", 0) or content.get("ignore", 0) or 0
    if crowd not in (0, 1):
        raise Fault(f"iscrowd (or ignore) is {crowd!r}; expected 0 or 1")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise Fault(f"bbox is not four numbers [x, y, width, height]: {formats.shown(box)}")
    most = formats.MOST_PIXELS  # a JSON's whole numbers may be too large to calculate with
    x, y, width, height = (float(max(-most, min(v, most))) if isinstance(v, int) else v for v in box)
    expected = "[x, y, width, height], both above 0"
    cut = formats.cut_box((x, y, x + width, y + height), size, classes[category], box, expected)
    return Object(classes[category], cut, bool(crowd))


class _ImageFinder:
    """Finds the files of a split's images, which lie in one of several places, mostly all in the same."""

    def __init__(self, file: _File) -> None:
        beside = file.path.parent
        above = beside.parent if beside.name == "annotations" or file.path.name.startswith("_") else beside
        splits = dict.fromkeys((file.split, file.path.stem.removeprefix("instances_")))
        names = ("", "images", *splits, *(f"images/{split}" for split in splits))
        self.folders = list(dict.fromkeys(folder / name for folder in (beside, above) for name in names))

    def __call__(self, file_name: str) -> Path:
        file_name = file_name.replace("\\", "/")
        for index, folder in enumerate(self.folders):
            path = folder / file_name
            if os.path.isfile(path):
                self.folders.insert(0, self.folders.pop(index))  # the next one lies there too
                return path
        places = ", ".join(str(folder) for folder in self.folders if folder.is_dir())
        raise Fault(f"no image {file_name!r}; looked in {places}", "missing")


def _annotation_files(root: Path) -> dict[str, Path]:
    """The JSON files of a folder that hold COCO annotations of boxes, by the split that their names give."""
    found: dict[str, Path] = {}
    for pattern in ("annotations/*.json", "*/_annotations.coco.json", "*.json"):
        for path in sorted(root.glob(pattern)):
            if path.name.startswith(_OTHER_TASKS) or is_hidden(path.name) or not _looks_like_coco(path):
                continue
            name = path.stem.removeprefix("instances_")
            if path.name == "_annotations.coco.json":
                name = path.parent.name if path.parent != root else "train"
            found.setdefault(name, path)
    return found


def _looks_like_coco(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return _LIST_OF_COCO.search(file.read(_SNIFFED)) is not None
    except OSError:
        return False


def _load(path: Path, split: str) -> _File:
    try:
        content = json.loads(formats.read_text(path))
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits; lists in lists in lists
        reason, line = getattr(error, "msg", error), getattr(error, "lineno", None)
        raise DataError(path, f"not readable as JSON: {reason}", line) from error
    missing = [key for key in _LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise DataError(path, f"not COCO annotations of boxes: no list {' and '.join(map(repr, missing))} in it")
    return _File(path, split, content)


def _starts(text: str) -> dict[str, list[int]]:
    """Where each entry of the three lists begins. The text has been parsed before, so it is sound."""
    found: dict[str, list[int]] = {key: [] for key in _LISTS}
    decode, space = json.JSONDecoder().raw_decode, re.compile(r"[\s,:]*")

    def skip(at: int) -> int:
        return space.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty text too

    at = skip(text.index("{") + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        at = skip(at)
        if key in found and text[at] == "[":
            found[key] = []  # of a key given twice, the last counts, as in parsing
            at = skip(at + 1)
            while text[at] != "]":
                found[key].append(at)
                at = skip(decode(text, at)[1])
            at = skip(at + 1)
        else:
            at = skip(decode(text, at)[1])
    return found


def _is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value of a JSON is a whole number: not true or false, which Python counts as such."""
    return isinstance(value, int) and not isinstance(value, bool)
