"""YOLO folders: a text file beside each image.

``images/`` and ``labels/``, split as ``images/train`` or as ``train/images``; class names in ``data.yaml`` or
``classes.txt``. A line is ``class cx cy w h``: the class counts from 0, the box is its center and sides as shares of the
image's width and height. A line of more corners is an outline, and its bounding box is taken.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from sppnet.data import formats
from sppnet.data.annotations import DetectionData
from sppnet.data.find import is_hidden, list_images
from sppnet.data.formats import Entry, Fault, Finding, Object, Parsed
from sppnet.errors import DataError

NAME, LAYOUT = "YOLO", "data.yaml, or images/ and labels/ with classes.txt"
_NAMES_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def recognize(root: Path) -> bool:
    """Tell whether this is a YOLO folder, or the YAML file of one.

    Example:
        >>> Path("set/images").mkdir(parents=True); Path("set/labels").mkdir()
        >>> recognize(Path("set")), recognize(Path("set/images"))
        (True, False)
    """
    if root.is_file():
        return root.suffix.lower() in (".yaml", ".yml")
    return any((root / name).is_file() for name in _YAML) or any(
        (folder / "images").is_dir() and (folder / "labels").is_dir()
        for folder in (root, *(root / name for name in formats.SPLIT_NAMES))
    )


def read(root: str | os.PathLike[str], split: str = "train", limit: int | None = None) -> DetectionData:
    """Read one split of a YOLO folder.

    A line ``k cx cy w h`` becomes label k + 1 and the box ``(cx - w/2, cy - h/2, cx + w/2, cy + h/2)`` times the width and
    height of the upright image; keypoints after it, which a ``kpt_shape`` in the YAML announces, are passed over. An image
    without a text file, or with an empty one, has no objects. The format marks nothing as difficult.

    Args:
        root: the folder with ``data.yaml``, or with ``images/`` and ``labels/``; or the YAML file itself.
        split: such as ``"train"``; "val" finds "valid" too. A folder that is not split has one, "train".
        limit: take only the first so many images by path, at least 1; None takes all.

    Returns:
        The split, images sorted by path. ``image_id`` is the path from the root without "images" and ending, as in
        "train/0001". The head of each image is read, for its size; an EXIF orientation is applied, as most tools for
        drawing boxes do (``sppnet check`` names such images).

    Raises:
        DataError: no such split, no class names, an image that is missing; a line that is not as above, of an unknown
            class, or whose box is empty, swapped or more than a pixel outside. The message names the file and line.
        ImageError: an image that cannot be read.

    Source: the "Ultralytics YOLO format", and Darknet's before it.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        sppnet.errors.DataError: no/such/folder: no such file or folder; expected a YOLO folder: data.yaml, or images/ and ...
    """
    return _parse(_find_folder(Path(root)), split, formats.checked_limit(limit)).data(split)


def check(root: Path) -> Parsed:
    """Parse all label files of a YOLO folder.

    Raises:
        DataError: not a YOLO folder, or one without class names.
    """
    folder = _find_folder(root)
    parsed = _parse(folder)
    with_image = {label_path(entry.path) for entry in parsed.entries() if entry.path is not None}
    names = {Path(name).name for name in _NAMES_FILES}
    for beside in sorted({path.parent for path in with_image}):
        for path in sorted(beside.glob("*.txt")):
            if path not in with_image and path.name not in names:
                parsed.found(path, "warning", "missing", "no image belongs to it")
    return parsed


def label_path(image: Path) -> Path:
    """The text file of an image: under ``labels`` where the image is under ``images``; if it is not there, beside it.

    Example:
        >>> label_path(Path("images/train/0001.jpg")).as_posix()
        'labels/train/0001.txt'
    """
    beside = path = image.with_suffix(".txt")
    if "images" in (folders := image.parent.parts):
        at = len(folders) - 1 - folders[::-1].index("images")
        path = Path(*folders[:at], "labels", *folders[at + 1 :], beside.name)
    return beside if beside.is_file() and not path.is_file() else path


@dataclass(frozen=True)
class _Folder:
    """Where the parts of a YOLO data set lie."""

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]  # of each: folders of images, and .txt files that list images
    names_from: Path  # the file that the names come from
    keypoints: int = 0  # numbers of keypoints after each box


def _parse(folder: _Folder, split: str | None = None, limit: int | None = None) -> Parsed:
    names = list(folder.splits) if split is None else [formats.choose_split(folder.root, split, folder.splits)]
    layout = f"YOLO, split into {', '.join(names)}" if len(names) > 1 else "YOLO, not split"
    parsed = Parsed(layout, folder.root, folder.class_names)
    known: dict[Path, Entry] = {}
    for name in names:
        try:
            images = list(_split_images(folder, name).items())[:limit]
        except DataError as error:  # a YAML names a test part even where an export has none
            spared = split is None and formats.plain_split(name) == "test"
            parsed.found(error.path, "warning" if spared else "error", "missing", error.reason, error.line)
            continue
        for image_id, path in images:
            if path not in known:
                known[path] = Entry(image_id, path, partial(Finding, label_path(path), None))
                _parse_labels(known[path], label_path(path), folder, parsed)
        parsed.splits[name] = [known[path] for _, path in images]
    return parsed


def _parse_labels(entry: Entry, path: Path, folder: _Folder, parsed: Parsed) -> None:
    try:
        lines = formats.read_text(path).splitlines() if path.exists() else []
    except DataError as error:
        parsed.findings.append(entry.place("error", "annotation", error.reason))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            read_one = partial(_object, line, folder.class_names, folder.keypoints, entry.size)
            parsed.add(entry, partial(Finding, path, number), read_one)


def _object(line: str, class_names: Sequence[str], keypoints: int, size: tuple[int, int]) -> Object:
    words = line.split()
    try:
        kind, *shares = (float(word) for word in words)
    except ValueError:
        kind, shares = math.nan, []
    if not all(map(math.isfinite, (kind, *shares))):
        raise Fault(f"not numbers: {formats.shown(line)}; expected class cx cy w h", "box")
    if keypoints and len(shares) == 4 + keypoints:
        shares = shares[:4]
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        expected = "expected class cx cy w h, or a class and corners x y x y x y"
        raise Fault(f"{len(words)} numbers: {formats.shown(line)}; {expected}", "box")
    if not kind.is_integer() or not 0 <= kind < len(class_names):
        raise Fault(f"class {words[0]} is none of the {len(class_names)} classes; they count from 0", "box")
    if len(shares) == 4:
        cx, cy, w, h = shares
        x0, y0, x1, y1 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        x0, y0, x1, y1 = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    height, width = size
    name, box = class_names[int(kind)], (x0 * width, y0 * height, x1 * width, y1 * height)
    hint = " (pixels? expected shares of width and height)" if max(map(abs, shares)) > 2 else ""
    return Object(name, formats.cut_box(box, size, name, line.strip() + hint, "a width and a height above 0"))


def _find_folder(root: Path) -> _Folder:
    if not root.exists():
        raise DataError(root, f"no such file or folder; expected a YOLO folder: {LAYOUT}")
    for path in (root, *(root / name for name in _YAML)):
        if path.is_file():
            return _from_yaml(path)
    splits = _split_folders(root)
    if not splits:
        raise DataError(root, f"not a YOLO folder; expected {LAYOUT}")
    file = next((root / name for name in _NAMES_FILES if (root / name).is_file()), None)
    if file is None:
        raise DataError(root, "no class names; expected data.yaml or classes.txt, one name a line")
    return _Folder(root, _checked_names(formats.read_text(file).strip().splitlines(), file), splits, file)


def _split_folders(root: Path) -> dict[str, tuple[Path, ...]]:
    """``images/train`` or ``train/images``, by the split's folder name; else all of ``images`` as "train"."""
    splits: dict[str, tuple[Path, ...]] = {}
    for name in formats.SPLIT_NAMES:
        for folder in (root / "images" / name, root / name / "images"):
            if folder.is_dir():
                splits[name] = (folder,)
    if not splits and (root / "images").is_dir():
        inside = sorted(path for path in (root / "images").iterdir() if path.is_dir() and not is_hidden(path.name))
        splits |= {path.name: (path,) for path in inside if (root / "labels" / path.name).is_dir()}
        splits = splits or {"train": (root / "images",)}
    return splits


def _from_yaml(path: Path) -> _Folder:
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.load(formats.read_text(path), yaml.BaseLoader)  # leaves names as written: no, 010, 1.10, null
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"not readable as YAML: {getattr(error, 'problem', None) or error}"
        raise DataError(path, reason, mark.line + 1 if mark else None) from error
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(path, "not the YAML of a YOLO folder; expected names, train and val in it")
    names = content["names"]
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if set(names) != set(numbers):
            numbered = f"names are numbered {formats.shown(sorted(names))}"
            raise DataError(path, f"{numbered}; expected 0, 1, 2 ... without gaps")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(path, "names are not a list of names, nor a mapping from 0, 1, 2 ... to names")
    checked = _checked_names(names, path)
    nc, base, shape = content.get("nc"), content.get("path"), content.get("kpt_shape")
    shape = shape if isinstance(shape, list) else ["0"]
    if isinstance(nc, str) and nc != str(len(checked)):
        raise DataError(path, f"nc is {formats.shown(nc)}, but there are {len(checked)} names; correct one")
    root = path.parent / base if isinstance(base, str) else path.parent
    root = root if root.is_dir() else path.parent  # a path of the machine where the file was written
    splits = {}
    for name in ("train", "val", "valid", "test", "minival", "trainval"):
        values = content[name] if isinstance(content.get(name), list) else [content.get(name)]
        if places := tuple(_resolved(root, value) for value in values if isinstance(value, str) and value):
            splits[name] = places
    if not splits:
        raise DataError(path, "no splits; expected train and val, each a folder of images or a list of images")
    sides = [int(side) for side in shape if isinstance(side, str) and side.isdecimal()]
    return _Folder(path.parent, checked, splits, path, math.prod(sides))


def _resolved(base: Path, value: str) -> Path:
    """A place named in the YAML. Exports write ``../train/images`` for what lies beside the file."""
    path = base / value
    inside = base / re.sub(r"^(\.\./)+", "", value)
    path = inside if not path.exists() and inside.exists() else path
    return path / "images" if (path / "images").is_dir() and (path / "labels").is_dir() else path


def _checked_names(names: list[str], path: Path) -> tuple[str, ...]:
    names = [name.strip() for name in names]
    if not names:
        raise DataError(path, "no class names in it; expected one for each class")
    for index, name in enumerate(names):
        if not name:
            raise DataError(path, f"class {index} has no name; expected one name for each class")
        if name in names[:index]:
            raise DataError(path, f"classes {names.index(name)} and {index} are both called {name!r}; rename one")
    return tuple(names)


def _split_images(folder: _Folder, split: str) -> dict[str, Path]:
    """The images of one split by their id, sorted by path."""
    found: dict[str, Path] = {}
    for source in folder.splits[split]:
        if not source.exists():
            raise DataError(folder.names_from, f"split {split!r} lies in {source}, which is not there")
        for path in _listed_images(source, folder.root) if source.is_file() else list_images(source).images:
            image_id = _image_id(path, folder.root)
            if found.setdefault(image_id, path) != path:
                raise DataError(path, f"it shares its label file with {found[image_id]}; rename one")
    if not found:
        places = ", ".join(map(str, folder.splits[split]))
        raise DataError(folder.root, f"no images in split {split!r}; looked in {places}")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _listed_images(path: Path, root: Path) -> list[Path]:
    found = []
    for number, line in enumerate(formats.read_text(path).splitlines(), start=1):
        there = [base / line.strip() for base in (path.parent, root) if (base / line.strip()).is_file()]
        if there:
            found.append(Path(os.path.normpath(there[0])))
        elif line.strip():
            raise DataError(path, f"no image {line.strip()!r}; looked in {path.parent} and {root}", number)
    return found


def _image_id(path: Path, root: Path) -> str:
    """The path from the root, without what every path has: ``images/train/0001.jpg`` -> train/0001."""
    inside = PurePath(os.path.relpath(path, root)).with_suffix("").parts
    *folders, name = (part for part in inside if part not in ("..", ".", "/"))
    return "/".join([*(folder for folder in folders if folder != "images"), name])
