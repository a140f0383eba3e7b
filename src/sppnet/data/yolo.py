"""YOLO folders (a text file beside each image) into ``DetectionData``.

``images/`` and ``labels/``, split as ``images/train`` or as ``train/images``; class names in ``data.yaml`` or
``classes.txt``. A line is ``class cx cy w h``: the class counts from 0, the box is its centre and sides as shares of the
image's width and height. A line of more corners is an outline, and its bounding box is taken.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.image_files import images_below
from sppnet.data.images import image_size
from sppnet.data.placed import PlacedError

LAYOUT = "data.yaml, or images/ and labels/ with classes.txt"
TOLERANCE = 1.0  # pixels a box may reach over the edge (six decimals round); it is then cut to the image
_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
NAMES_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


class Object(NamedTuple):
    """One line, as read."""

    label: int  # 1..K
    box: tuple[float, float, float, float]  # half-open, pixels, cut to the image


@dataclass(frozen=True)
class YoloFolder:
    """Where the parts of a YOLO data set lie."""

    root: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]  # of each: folders of images, and .txt files that list images
    names_from: Path  # the file that the names come from


def read_yolo(root: str | os.PathLike[str], split: str = "train", limit: int | None = None) -> DetectionData:
    """Read one split of a YOLO folder.

    A line ``k cx cy w h`` becomes label k + 1 and the box ``(cx - w/2, cy - h/2, cx + w/2, cy + h/2)`` times the width and
    height of the upright image. An image without a text file, or with an empty one, has no objects. The format marks
    nothing as difficult.

    Args:
        root: the folder with ``data.yaml``, or with ``images/`` and ``labels/``; or the YAML file itself.
        split: such as ``"train"``; "val" finds "valid" too. A folder that is not split has one, "train".
        limit: take only the first so many images by name; None takes all.

    Returns:
        The split, images sorted by path. ``image_id`` is the path from the root without "images" and ending, as in
        "train/0001". The head of each image is read, for its size; an EXIF orientation is applied, as most tools for
        drawing boxes do (``sppnet check`` names such images).

    Raises:
        UserError: no such split, no class names, an image that is missing; a line that is not as above, of an unknown
            class, or whose box is empty, swapped or more than a pixel outside. The message names the file and line.
        ValueError: a limit below 1.

    Source: the "Ultralytics YOLO format", and Darknet's before it.

    Example:
        >>> read_yolo("no/such/folder")
        Traceback (most recent call last):
        sppnet.data.placed.PlacedError: no/such/folder: no such file or folder; expected a YOLO folder: data.yaml, or images/...
    """
    if limit is not None and limit < 1:
        raise ValueError(f"read_yolo: limit must be at least 1 or None, got {limit}")
    folder = yolo_folder(Path(root))
    images = []
    for image_id, path in list(split_images(folder, split).items())[:limit]:
        size = image_size(path)
        label_file = label_path(path)
        objects = [read_line(line, folder.names, size, label_file, n) for n, line in label_lines(label_file)]
        images.append(
            AnnotatedImage(
                image_id=image_id,
                path=path,
                size=size,
                gt_boxes=np.array([o.box for o in objects], dtype=np.float32).reshape(-1, 4),
                gt_labels=np.array([o.label for o in objects], dtype=np.int64),
                difficult=np.zeros(len(objects), dtype=bool),
            )
        )
    return DetectionData(names=folder.names, images=tuple(images), split=split)


def read_line(line: str, names: Sequence[str], size: tuple[int, int], path: Path, number: int) -> Object:
    """Read one line of a label file.

    Args:
        line: ``class cx cy w h``, or ``class x y x y x y ...``.
        names: the class names.
        size: (height, width) of the upright image.
        path: of the file, for the message.
        number: of the line, likewise.

    Raises:
        PlacedError: what is wrong with the line.

    Example:
        >>> read_line("1 0.5 0.5 0.5 1", ("cat", "dog"), (30, 40), Path("a.txt"), 1)
        Object(label=2, box=(10.0, 0.0, 30.0, 30.0))
    """
    words = line.split()
    try:
        kind, *shares = (float(word) for word in words)
    except ValueError as error:
        raise PlacedError(path, f"not numbers: {_shown(line)}; expected class cx cy w h", number) from error
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        expected = "expected class cx cy w h, or a class and corners x y x y x y"
        raise PlacedError(path, f"{len(words)} numbers: {_shown(line)}; {expected}", number)
    if not kind.is_integer() or not 0 <= kind < len(names):
        raise PlacedError(path, f"class {words[0]} is none of the {len(names)} classes; they count from 0", number)
    if len(shares) == 4:
        cx, cy, w, h = shares
        x0, y0, x1, y1 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        x0, y0, x1, y1 = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    if not all(map(math.isfinite, shares)) or x0 >= x1 or y0 >= y1:
        raise PlacedError(
            path, f"box is empty or swapped: {_shown(line)}; expected a width and a height above 0", number
        )
    height, width = size
    x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    beyond = max(cut[0] - x0, cut[1] - y0, x1 - cut[2], y1 - cut[3])
    if beyond > TOLERANCE or cut[0] >= cut[2] or cut[1] >= cut[3]:
        hint = "; these look like pixels, expected shares of width and height" if max(map(abs, shares)) > 2 else ""
        raise PlacedError(path, f"box is outside the image of {width} x {height} pixels: {_shown(line)}{hint}", number)
    return Object(int(kind) + 1, cut)


def label_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a label file that are not blank, numbered from 1; none where there is no file.

    Raises:
        UserError: not readable as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise PlacedError(path, f"cannot be read as text: {error}") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def label_path(image: Path) -> Path:
    """The text file of an image: under ``labels`` where the image is under ``images``; if it is not there, beside it.

    Example:
        >>> label_path(Path("images/train/0001.jpg")).as_posix()
        'labels/train/0001.txt'
    """
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    path, beside = Path(*parts).with_suffix(".txt"), image.with_suffix(".txt")
    return beside if beside.is_file() and not path.is_file() else path


def is_yolo(root: Path) -> bool:
    """Tell whether this is a YOLO folder, or the YAML file of one.

    Example:
        >>> Path("set/images").mkdir(parents=True); Path("set/labels").mkdir()
        >>> is_yolo(Path("set")), is_yolo(Path("set/images"))
        (True, False)
    """
    if root.is_file():
        return root.suffix.lower() in (".yaml", ".yml")
    pairs = (root, *(root / name for names in _PARTS.values() for name in names))
    return any((root / name).is_file() for name in _YAML) or any(
        (pair / "images").is_dir() and (pair / "labels").is_dir() for pair in pairs
    )


def yolo_folder(root: Path) -> YoloFolder:
    """Find the class names and splits of a YOLO folder.

    Raises:
        UserError: not a YOLO folder, or one without class names.
    """
    if root.is_file():
        return _from_yaml(root)
    if not root.is_dir():
        raise PlacedError(root, f"no such file or folder; expected a YOLO folder: {LAYOUT}")
    for name in _YAML:
        if (root / name).is_file():
            return _from_yaml(root / name)
    splits = _split_folders(root)
    if not splits:
        raise PlacedError(root, f"not a YOLO folder; expected {LAYOUT}")
    files = [root / name for name in NAMES_FILES if (root / name).is_file()]
    if not files:
        raise PlacedError(root, "no class names; expected data.yaml or classes.txt, one name a line")
    try:
        names = tuple(line.strip() for line in files[0].read_text(encoding="utf-8-sig").strip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PlacedError(files[0], f"cannot be read as text: {error}") from error
    return YoloFolder(root, _checked_names(names, files[0]), splits, files[0])


def split_images(folder: YoloFolder, split: str) -> dict[str, Path]:
    """The images of one split by their id, sorted by path.

    Raises:
        UserError: no such split, a part of it that is missing, no images, or two images that share a label file.
    """
    found: dict[str, Path] = {}
    for source in _sources(folder, split):
        for path in _listed_images(source, folder.root) if source.is_file() else images_below(source):
            image_id = _image_id(path, folder.root)
            if found.setdefault(image_id, path) != path:
                raise PlacedError(path, f"it shares its label file with {found[image_id]}; rename one")
    if not found:
        raise PlacedError(folder.root, f"no images in split {split!r}; looked in {_places(folder, split)}")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _sources(folder: YoloFolder, split: str) -> tuple[Path, ...]:
    same = next((names for names in _PARTS.values() if split in names), (split,))
    for name in (split, *same):
        if name in folder.splits:
            for source in folder.splits[name]:
                if not source.exists():
                    raise PlacedError(folder.names_from, f"split {name!r} lies in {source}, which is not there")
            return folder.splits[name]
    there = ", ".join(folder.splits) or "none"
    raise PlacedError(folder.root, f"no such split {split!r}; splits there: {there}")


def _places(folder: YoloFolder, split: str) -> str:
    return ", ".join(map(str, _sources(folder, split)))


def _split_folders(root: Path) -> dict[str, tuple[Path, ...]]:
    """``images/train`` or ``train/images``, by the split's folder name; else all of ``images`` as "train"."""
    splits: dict[str, tuple[Path, ...]] = {}
    for name in (name for names in _PARTS.values() for name in names):
        for folder in (root / "images" / name, root / name / "images"):
            if folder.is_dir():
                splits[name] = (folder,)
    if not splits and (root / "images").is_dir():
        inside = sorted(path for path in (root / "images").iterdir() if path.is_dir() and path.name[0] != ".")
        splits = {path.name: (path,) for path in inside if (root / "labels" / path.name).is_dir()}
        if not splits:
            splits = {"train": (root / "images",)}
    return splits


def _from_yaml(path: Path) -> YoloFolder:
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"not readable as YAML: {getattr(error, 'problem', None) or error}"
        raise PlacedError(path, reason, mark.line + 1 if mark else None) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlacedError(path, f"cannot be read as text: {error}") from error
    if not isinstance(content, dict) or "names" not in content:
        raise PlacedError(path, "not the YAML of a YOLO folder; expected names, train and val in it")
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise PlacedError(path, f"names are numbered {sorted(map(str, names))}; expected 0, 1, 2 ... without gaps")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise PlacedError(path, f"names are {_shown(str(names))}; expected a list, or a mapping from 0, 1, 2 ...")
    checked = _checked_names(tuple(str(name).strip() for name in names), path)
    if content.get("nc", len(checked)) != len(checked):
        raise PlacedError(path, f"nc is {content['nc']}, but there are {len(checked)} names; correct one")
    base = path.parent / str(content.get("path") or "")
    base = base if base.is_dir() else path.parent  # a path of the machine where the file was written
    splits = {}
    for name in ("train", "val", "valid", "test", "minival", "trainval"):
        value = content.get(name)
        values = value if isinstance(value, list) else [value]
        places = tuple(_resolved(base, v) for v in values if isinstance(v, str) and v)
        if places:
            splits[name] = places
    if not splits:
        raise PlacedError(path, "no splits; expected train and val, each a folder of images or a list of images")
    return YoloFolder(path.parent, checked, splits, path)


def _resolved(base: Path, value: str) -> Path:
    """A place named in the YAML. Exports write ``../train/images`` for what lies beside the file."""
    path = base / value
    inside = base / re.sub(r"^(\.\./)+", "", value)
    path = inside if not path.exists() and inside.exists() else path
    return path / "images" if (path / "images").is_dir() and (path / "labels").is_dir() else path


def _checked_names(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if not name:
            raise PlacedError(path, f"class {index} has no name; expected one name for each class")
        if name in names[:index]:
            raise PlacedError(path, f"classes {names.index(name)} and {index} are both called {name!r}; rename one")
    if not names:
        raise PlacedError(path, "no class names in it; expected one for each class")
    return names


def _listed_images(path: Path, root: Path) -> list[Path]:
    found = []
    for number, line in label_lines(path):
        places = [base / line.strip() for base in (path.parent, root)]
        there = [place for place in places if place.is_file()]
        if not there:
            raise PlacedError(path, f"no image {line.strip()!r}; looked in {path.parent} and {root}", number)
        found.append(Path(os.path.normpath(there[0])))
    return found


def _image_id(path: Path, root: Path) -> str:
    """The path from the root, without what every path has: ``images/train/0001.jpg`` -> train/0001."""
    inside = PurePath(os.path.relpath(path, root)).with_suffix("").parts
    *folders, name = (part for part in inside if part not in ("..", ".", "/"))
    return "/".join([*(folder for folder in folders if folder != "images"), name])


def _shown(value: Any) -> str:
    text = repr(str(value).strip())
    return text if len(text) <= 80 else text[:77] + "..."
