"""COCO annotations (one JSON for a split) into ``DetectionData``.

Lists ``images``, ``categories`` and ``annotations``; a box is ``[x, y, width, height]`` in continuous pixels from the
upper left corner, so that only its far corner has to be added up. ``iscrowd`` becomes ``difficult``.

Read where they lie: COCO's own folders (``annotations/instances_train2017.json`` and ``train2017/``), exports with
``train/_annotations.coco.json`` beside the images, and one JSON with its images near it.
"""

import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import image_size
from sppnet.data.placed import PlacedError
from sppnet.errors import UserError

LAYOUT = "annotations/instances_<split>.json, <split>/_annotations.coco.json or <split>.json"
TOLERANCE = 1.0  # pixels a box may reach over the edge (annotators round); it is then cut to the image
_MOST_PIXELS = 10**9  # a JSON's whole numbers may be too large to calculate with
_LISTS = ("images", "annotations", "categories")
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_LIST_OF_COCO = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*[\[{\]]')
_SNIFFED = 65536  # bytes: "info" and "licenses", which may come before the first list, are shorter
_PARTS = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


class Object(NamedTuple):
    """One annotation, as read."""

    label: int  # 1..K
    box: tuple[float, float, float, float]  # half-open, cut to the image
    crowd: bool


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
            if not _is_whole(number) or not isinstance(name, str) or not name.strip():
                raise self.error("categories", index, f"expected an id and a name, got {_shown(entry)}")
            if number in names:
                raise self.error("categories", index, f"the id {number} is given twice; number them apart")
            names[number] = name.strip()
        heads = {name for name in names.values() if any(c.get("supercategory") == name for c in self.categories)}
        heads &= {c["name"].strip() for c in self.categories if c.get("supercategory") in (None, "", "none")}
        if heads:
            ids = (a.get("category_id") for a in self.annotations if isinstance(a, dict))
            used = {number for number in ids if _is_whole(number)}
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


def read_coco(
    root: str | os.PathLike[str], split: str = "train", limit: int | None = None, *, drop_faulty: bool = False
) -> DetectionData:
    """Read one split of COCO annotations.

    A box ``[x, y, w, h]`` becomes ``(x, y, x + w, y + h)``, cut to the image. Class names are the categories by rising
    id. A crowd (``iscrowd`` 1), or what is marked ``ignore``, is ``difficult``: it neither helps nor harms in evaluation.

    Args:
        root: the folder that holds the annotations, or one JSON file, of which ``split`` is then only the name.
        split: such as ``"train"``, ``"val"`` or ``"train2017"``; "train" finds "train2017", and "val" finds "valid".
        limit: take only the first so many images; None takes all.
        drop_faulty: leave out boxes that are empty, swapped or outside their image, where otherwise the first of them is
            an error. COCO's own train2017 holds two without a height.

    Returns:
        The split, images in the file's order. ``image_id`` is the split and the id in the file, as in "train2017/139".
        Boxes are taken to lie on the upright image: the stated size is trusted, and ``sppnet check`` compares it with
        the image's, EXIF orientation applied. Image files are looked for but not opened, unless no size is stated.

    Raises:
        UserError: no annotations of that split, or not of that form; a box that is not four numbers, empty, swapped or
            more than a pixel outside its image; an unknown category or image; an image that is missing. The message
            names the file, the line and the entry.
        ValueError: a limit below 1.

    Source: "Data format" at cocodataset.org.

    Example:
        >>> read_coco("no/such/folder")
        Traceback (most recent call last):
        sppnet.data.placed.PlacedError: no/such/folder: no such file or folder; expected COCO annotations: annotations/insta...
    """
    if limit is not None and limit < 1:
        raise ValueError(f"read_coco: limit must be at least 1 or None, got {limit}")
    file = _file_of(Path(root), split)
    label_of = {number: label for label, number in enumerate(file.classes, start=1)}
    of_image: dict[Any, list[Object]] = {}
    sizes: dict[Any, tuple[int, int]] = {}
    paths: dict[Any, Path] = {}
    find = ImageFinder(file)
    for index, entry in enumerate(file.images):
        try:
            number, name, size = read_image_entry(entry)
            if number in of_image:
                raise UserError(f"the image id {number} is given twice; every image needs its own")
            of_image[number] = []
            if limit is None or index < limit:
                paths[number] = find(name)
                sizes[number] = size or image_size(paths[number])
        except UserError as error:
            raise file.error("images", index, str(error)) from error
    for index, annotation in enumerate(file.annotations):
        of = image_of(annotation)
        if of in of_image and of not in paths:
            continue  # beyond the limit
        try:
            if isinstance(annotation, dict) and of not in of_image:
                raise UserError(f"image_id {annotation.get('image_id')!r} is none of the {len(of_image)} images' ids")
            found = read_annotation(annotation, label_of, sizes.get(of, (0, 0)))
        except BoxError as error:
            if drop_faulty:
                continue
            raise file.error("annotations", index, str(error)) from error
        except UserError as error:
            raise file.error("annotations", index, str(error)) from error
        of_image[of].append(found)
    images = (
        AnnotatedImage(
            image_id=f"{file.split}/{number}",
            path=path,
            size=sizes[number],
            gt_boxes=np.array([o.box for o in of_image[number]], dtype=np.float32).reshape(-1, 4),
            gt_labels=np.array([o.label for o in of_image[number]], dtype=np.int64),
            difficult=np.array([o.crowd for o in of_image[number]], dtype=bool),
        )
        for number, path in paths.items()
    )
    return DetectionData(names=tuple(file.classes.values()), images=tuple(images), split=split)


class BoxError(UserError):
    """A box that is empty, swapped or outside its image."""


def read_annotation(entry: Any, label_of: Mapping[int, int], size: tuple[int, int]) -> Object:
    """Read one entry of ``annotations``; what is wrong with it is a ``UserError`` that does not name the place.

    Example:
        >>> read_annotation({"bbox": [2, 3, 4, 5], "category_id": 18}, {18: 1}, (30, 40))
        Object(label=1, box=(2.0, 3.0, 6.0, 8.0), crowd=False)
    """
    if not isinstance(entry, dict):
        raise UserError(f"expected an object with bbox and category_id, got {_shown(entry)}")
    category = entry.get("category_id")
    if not _is_whole(category) or category not in label_of:
        known = ", ".join(map(str, list(label_of)[:10])) + (", ..." if len(label_of) > 10 else "")
        raise UserError(f"category_id {category!r} is none of the categories; known ids: {known}")
    crowd = entry.get("iscrowd", 0) or entry.get("ignore", 0) or 0
    if crowd not in (0, 1):
        raise UserError(f"iscrowd (or ignore) is {crowd!r}; expected 0 or 1")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise UserError(f"bbox is not four numbers [x, y, width, height]: {_shown(box)}")
    if any(isinstance(v, int) and abs(v) > _MOST_PIXELS for v in box):
        raise BoxError(f"box is far outside any image: bbox={_shown(box)}")
    x0, y0, x1, y1 = float(box[0]), float(box[1]), float(box[0]) + box[2], float(box[1]) + box[3]
    height, width = size
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x0 >= x1 or y0 >= y1:
        raise BoxError(f"box is empty or swapped: bbox={_shown(box)}; expected [x, y, width, height], both above 0")
    if min(x0, y0) < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE or x0 >= width or y0 >= height:
        raise BoxError(f"box is outside the image of {width} x {height} pixels: bbox={_shown(box)}")
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise BoxError(f"box is outside the image of {width} x {height} pixels: bbox={_shown(box)}")
    return Object(label_of[category], cut, bool(crowd))


def image_of(annotation: Any) -> int | str | None:
    """The id of the image that an entry of ``annotations`` belongs to; None where it names none."""
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return number if isinstance(number, str) or _is_whole(number) else None


def read_image_entry(entry: Any) -> tuple[int | str, str, tuple[int, int] | None]:
    """Id, file name and, where stated, (height, width) of one entry of ``images``; a ``UserError`` names no place."""
    if not isinstance(entry, dict):
        raise UserError(f"expected an object with id and file_name, got {_shown(entry)}")
    number: Any = entry.get("id")
    name = entry.get("file_name")
    if not (_is_whole(number) or (isinstance(number, str) and number)) or not isinstance(name, str) or not name:
        raise UserError(f"expected an id and a file_name, got {_shown(entry)}")
    height, width = entry.get("height"), entry.get("width")
    size = (height, width) if _is_whole(height) and _is_whole(width) and min(height, width) >= 1 else None
    return number, name, size


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


def is_coco(root: Path) -> bool:
    """Tell whether this is a folder with COCO annotations, or one JSON of them.

    Example:
        >>> is_coco(Path("no/such/folder"))
        False
    """
    if root.is_file():
        return root.suffix.lower() == ".json" and _looks_like_coco(root)
    return root.is_dir() and bool(annotation_files(root))


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


def _file_of(root: Path, split: str) -> CocoFile:
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


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
