"""Pascal VOC folders (the devkit's layout) into ``DetectionData``.

``JPEGImages/<id>.jpg``, ``Annotations/<id>.xml``, ``ImageSets/Main/<split>.txt``. VOC counts pixels from 1 and its
boxes include their last pixel; here, and only here, that becomes half-open boxes that count from 0.
"""

import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.image_files import IMAGE_ENDINGS
from sppnet.data.images import image_size
from sppnet.errors import UserError

VOC_CLASSES: tuple[str, ...] = (  # the devkit's order
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_PARTS = ("Annotations", "ImageSets", "JPEGImages")
_TOLERANCE = 1.0  # pixels a box may reach over the edge (annotators round); it is then cut to the image


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]  # half-open, from 0
    difficult: bool


def read_voc(root: str | os.PathLike[str], split: str = "train", limit: int | None = None) -> DetectionData:
    """Read one split of a Pascal VOC folder.

    A box of VOC (counted from 1, last pixel included) becomes ``(xmin - 1, ymin - 1, xmax, ymax)``. Class names are
    ``VOC_CLASSES`` where those cover the split, and else all names in the folder's annotations, sorted, so that every
    split of one folder has the same labels.

    Args:
        root: the folder that holds Annotations, ImageSets and JPEGImages; or its parent, where only one VOC* folder
            lies in that.
        split: name of a list in ImageSets/Main, without ``.txt``, such as ``"train"`` or ``"val"``.
        limit: take only the first so many images of the list; None takes all.

    Returns:
        The split, images in the order of its list. Image files are looked for but not opened, unless an annotation
        does not state the size.

    Raises:
        UserError: a part of the folder, the split, an annotation or an image is missing; an annotation cannot be read;
            a box is empty, swapped or more than a pixel outside its image. The message names the file and the object.
        ValueError: a limit below 1.

    Example:
        >>> read_voc("no/such/folder")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such/folder: no such folder; expected a folder with Annotations, ImageSets, JPEGImages
    """
    if limit is not None and limit < 1:
        raise ValueError(f"read_voc: limit must be at least 1 or None, got {limit}")
    folder = voc_folder(Path(root))
    image_ids = _read_split(folder, split)
    files = image_files(folder / "JPEGImages")

    names: set[str] = set()
    annotated: list[tuple[str, Path, tuple[int, int], list[_Object]]] = []
    for index, image_id in enumerate(image_ids):
        annotation_path = folder / "Annotations" / f"{image_id}.xml"
        annotation = _parse(annotation_path, f"split {split!r}")
        names.update(_name(item, annotation_path) for item in annotation.iterfind("object"))
        if limit is None or index < limit:
            if image_id not in files:
                raise UserError(
                    f"{folder / 'JPEGImages'}: no image for {image_id!r} of split {split!r}; expected {image_id}.jpg"
                )
            path = files[image_id]
            size = stated_size(annotation) or image_size(path)
            objects = [read_object(item, size, annotation_path) for item in annotation.iterfind("object")]
            annotated.append((image_id, path, size, objects))

    class_names = VOC_CLASSES if names <= set(VOC_CLASSES) else _all_names(folder / "Annotations")
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    images = (
        AnnotatedImage(
            image_id=image_id,
            path=path,
            size=size,
            gt_boxes=np.array([o.box for o in objects], dtype=np.float32).reshape(-1, 4),
            gt_labels=np.array([label_of[o.name] for o in objects], dtype=np.int64),
            difficult=np.array([o.difficult for o in objects], dtype=bool),
        )
        for image_id, path, size, objects in annotated
    )
    return DetectionData(names=class_names, images=tuple(images), split=split)


def voc_folder(root: Path) -> Path:
    if not root.is_dir():
        what = "this is a file" if root.exists() else "no such folder"
        raise UserError(f"{root}: {what}; expected a folder with {', '.join(_PARTS)}")
    missing = [part for part in _PARTS if not (root / part).is_dir()]
    if not missing:
        return root
    if len(missing) < len(_PARTS):
        raise UserError(
            f"{root}: not a complete VOC folder, {' and '.join(missing)} missing; expected {', '.join(_PARTS)}"
        )
    inside = sorted(path for path in root.glob("VOC*") if path.is_dir())
    if len(inside) == 1:
        return voc_folder(inside[0])
    if inside:
        raise UserError(f"{root}: holds several VOC folders ({', '.join(p.name for p in inside)}); give one of them")
    raise UserError(f"{root}: not a VOC folder; expected {', '.join(_PARTS)} in it")


def _read_split(folder: Path, split: str) -> list[str]:
    lists = folder / "ImageSets" / "Main"
    path = lists / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
        raise UserError(f"{path}: no such split; splits there: {there}")
    try:
        image_ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    if not image_ids:
        raise UserError(f"{path}: the split is empty; expected one image id a line")
    seen: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise UserError(f"{path}: {image_id!r} is listed twice; list every image once")
        seen.add(image_id)
    return image_ids


def image_files(folder: Path) -> dict[str, Path]:
    """All images by their id: one listing of the folder instead of a look-up for each image."""
    files: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        image_id, ending = os.path.splitext(name)
        if ending.lower() in IMAGE_ENDINGS and (image_id not in files or ending == ".jpg"):
            files[image_id] = folder / name
    return files


def _parse(path: Path, wanted_by: str = "") -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation, but {wanted_by} lists it") from error
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two: a false encoding
        raise UserError(f"{path}: not readable as a VOC annotation: {error}") from error


def stated_size(annotation: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(annotation.findtext(f"size/{side}", "")) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if min(height, width) >= 1 else None


def read_object(item: ElementTree.Element, size: tuple[int, int], path: Path) -> _Object:
    name = _name(item, path)
    texts = {key: item.findtext(f"bndbox/{key}", "").strip() for key in ("xmin", "ymin", "xmax", "ymax")}
    shown = " ".join(f"{key}={text or 'missing'}" for key, text in texts.items())
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts.values())
    except ValueError as error:
        raise UserError(f"{path}: box of {name!r} is not four numbers: {shown}") from error
    x0, y0, x1, y1 = xmin - 1, ymin - 1, xmax, ymax
    height, width = size
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x0 >= x1 or y0 >= y1:
        raise UserError(f"{path}: box of {name!r} is empty or swapped: {shown}; expected xmin <= xmax, ymin <= ymax")
    if min(x0, y0) < -_TOLERANCE or x1 > width + _TOLERANCE or y1 > height + _TOLERANCE or x0 >= width or y0 >= height:
        raise UserError(f"{path}: box of {name!r} is outside the image of {width} x {height} pixels: {shown}")
    difficult = item.findtext("difficult", "0").strip()
    if difficult not in ("", "0", "1"):
        raise UserError(f"{path}: difficult of {name!r} is {difficult!r}; expected 0 or 1")
    return _Object(name, (max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)), difficult == "1")


def _name(item: ElementTree.Element, path: Path) -> str:
    name = item.findtext("name", "").strip()
    if not name:
        raise UserError(f"{path}: an object has no name; expected <name> in each <object>")
    return name


def _all_names(folder: Path) -> tuple[str, ...]:
    paths = sorted(path for path in folder.glob("*.xml") if not path.name.startswith("."))  # "._1.xml" is macOS' own
    return tuple(sorted({_name(item, path) for path in paths for item in _parse(path).iterfind("object")}))
