"""One JSON of COCO annotations: where it lies, its three lists, where their entries stand in it, and its images' files.

Found where they lie: COCO's own folders (``annotations/instances_train2017.json`` and ``train2017/``), exports with
``train/_annotations.coco.json`` beside the images, and one JSON with its images near it. What the entries say is read by
`sppnet.data.coco`.
"""

import json
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeGuard

from sppnet.data.placed import PlacedError
from sppnet.errors import UserError

LAYOUT = "annotations/instances_<split>.json, <split>/_annotations.coco.json or <split>.json"
_LISTS = ("images", "annotations", "categories")
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_LIST_OF_COCO = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*[\[{\]]')
_SNIFFED = 65536  # bytes: "info" and "licenses", which may come before the first list, are shorter
_PARTS = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True, eq=False)
class CocoFile:
    """One JSON of COCO annotations: its three lists, and where their entries stand in the file."""

    path: Path
    split: str  # as the file is named, such as "train2017"
    root: Path  # where images are looked for
    images: Sequence[Any]
    annotations: Sequence[Any]
    categories: Sequence[Any]

    @cached_property
    def classes(self) -> dict[int, str]:
        """Names by category id, by rising id; without an export's head category that no annotation uses.

        Raises:
            UserError: categories that cannot be told apart or are not as they should be.
        """
        names: dict[int, str] = {}
        for index, entry in enumerate(self.categories):
            number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
            if not is_whole(number) or not isinstance(name, str) or not name.strip():
                raise self.error("categories", index, f"expected an id and a name, got {shown(entry)}")
            if number in names:
                raise self.error("categories", index, f"the id {number} is given twice; number them apart")
            names[number] = name.strip()
        heads = {name for name in names.values() if any(c.get("supercategory") == name for c in self.categories)}
        heads &= {c["name"].strip() for c in self.categories if c.get("supercategory") in (None, "", "none")}
        if heads:
            ids = (a.get("category_id") for a in self.annotations if isinstance(a, dict))
            used = {number for number in ids if is_whole(number)}
            names = {number: name for number, name in names.items() if name not in heads or number in used}
        twice = {name for name in names.values() if list(names.values()).count(name) > 1}
        if twice:
            raise PlacedError(self.path, f"two categories are called {min(twice)!r}; make them one, or rename one")
        if not names:
            raise PlacedError(self.path, "no categories; expected one for each class, with an id and a name")
        return dict(sorted(names.items()))

    @cached_property
    def _lines(self) -> dict[str, list[int]]:
        text = _text(self.path)
        ends = list(accumulate(map(len, text.split("\n")), lambda end, length: end + 1 + length))
        return {key: [bisect_right(ends, at - 1) + 1 for at in starts] for key, starts in _starts(text).items()}

    def line(self, key: str, index: int) -> int:
        """The line on which an entry of one of the three lists begins, counted from 1."""
        return self._lines[key][index]

    def error(self, key: str, index: int, reason: str) -> PlacedError:
        """What is wrong with an entry, with its line and, as many files are a single line, its number and id.

        The line comes from a second look at the file, so that reading a sound one is fast.
        """
        entry = getattr(self, key)[index]
        number = entry.get("id") if isinstance(entry, dict) else None
        name = f"{key}[{index}]" + ("" if number is None else f" (id {number})")
        return PlacedError(self.path, f"{name}: {reason}", self.line(key, index))


def is_coco(root: Path) -> bool:
    """Tell whether this is a folder with COCO annotations, or one JSON of them.

    Example:
        >>> is_coco(Path("no/such/folder"))
        False
    """
    if root.is_file():
        return root.suffix.lower() == ".json" and _looks_like_coco(root)
    return root.is_dir() and bool(annotation_files(root))


def annotation_files(root: Path) -> dict[str, Path]:
    """The JSON files of a folder that hold COCO annotations of boxes, by the split that their names give.

    Example:
        >>> Path("data/valid").mkdir(parents=True)
        >>> Path("data/valid/_annotations.coco.json").write_text('{"images": [], "annotations": []}')
        33
        >>> annotation_files(Path("data"))
        {'valid': PosixPath('data/valid/_annotations.coco.json')}
    """
    found: dict[str, Path] = {}
    for pattern in ("annotations/*.json", "*/_annotations.coco.json", "*.json"):
        for path in sorted(root.glob(pattern)):
            if path.name.startswith(_OTHER_TASKS) or path.name.startswith(".") or not _looks_like_coco(path):
                continue
            if path.name == "_annotations.coco.json":
                name = path.parent.name if path.parent != root else "train"
            else:
                name = path.stem.removeprefix("instances_")
            found.setdefault(name, path)
    return found


def find_file(root: Path, split: str) -> CocoFile:
    """The annotations of one split, in a folder or in the one JSON given; "train" finds "train2017", and "val" "valid".

    Raises:
        UserError: no annotations of that split, or of several that it may mean; and as `load_file`.
    """
    if root.is_file():
        return load_file(root, split)
    if not root.is_dir():
        raise PlacedError(root, f"no such file or folder; expected COCO annotations: {LAYOUT}")
    files = annotation_files(root)
    if not files:
        raise PlacedError(root, f"no COCO annotations; expected {LAYOUT}, or give the JSON file itself")
    names = [split] if split in files else [name for name in files if _plain(name) == _plain(split)]
    if len(names) == 1:
        return load_file(files[names[0]], names[0])
    there = ", ".join(names or sorted(files))
    if names:
        raise PlacedError(root, f"{split!r} may be any of {there}; say which")
    raise PlacedError(root, f"no such split {split!r}; splits there: {there}")


def load_file(path: Path, split: str) -> CocoFile:
    """Parse one JSON of annotations, and see that its three lists are there.

    Raises:
        UserError: not readable, not JSON (with the line), or without one of the lists.
    """
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise PlacedError(path, f"not readable as JSON: {error.msg}", error.lineno) from error
    except RecursionError as error:
        raise PlacedError(path, "not readable as JSON: nested too deeply") from error
    missing = [key for key in _LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise PlacedError(path, f"not COCO annotations of boxes: no list {' and '.join(map(repr, missing))} in it")
    root = path.parent.parent if path.parent.name == "annotations" or path.name.startswith("_") else path.parent
    return CocoFile(path, split, root, content["images"], content["annotations"], content["categories"])


class ImageFinder:
    """Finds the files of a split's images, which lie in one of several places, mostly all in the same."""

    def __init__(self, file: CocoFile) -> None:
        beside = file.path.parent
        splits = dict.fromkeys((file.split, file.path.stem.removeprefix("instances_")))
        names = ("", "images", *splits, *(f"images/{split}" for split in splits))
        self.folders = list(dict.fromkeys(folder / name for folder in (beside, file.root) for name in names))

    def __call__(self, file_name: str) -> Path:
        """The path of an image; ``UserError`` where it lies nowhere."""
        file_name = file_name.replace("\\", "/")
        for index, folder in enumerate(self.folders):
            path = folder / file_name
            if os.path.isfile(path):
                self.folders.insert(0, self.folders.pop(index))  # the next one lies there too
                return path
        places = ", ".join(str(folder) for folder in self.folders if folder.is_dir())
        raise UserError(f"no image {file_name!r}; looked in {places}")


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value of a JSON is a whole number: not true or false, which Python counts as such."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value of a JSON for a message, cut to 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(split: str) -> str:
    """Without a year, and in one spelling: train2017 -> train, valid -> val."""
    name = re.sub(r"[_-]?(19|20)\d\d$", "", split.casefold())
    return _PARTS.get(name, name)


def _looks_like_coco(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return _LIST_OF_COCO.search(file.read(_SNIFFED)) is not None
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PlacedError(path, f"cannot be read as text: {error}") from error


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
