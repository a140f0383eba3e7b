"""COCO annotations (one JSON for a split) into ``DetectionData``.

Lists ``images``, ``categories`` and ``annotations``; a box is ``[x, y, width, height]`` in continuous pixels from the
upper left corner, so that only its far corner has to be added up. ``iscrowd`` becomes ``difficult``. The file itself is
found and parsed by `sppnet.data.coco_file`.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.coco_file import ImageFinder, find_file, is_whole, shown
from sppnet.data.images import image_size
from sppnet.errors import UserError

TOLERANCE = 1.0  # pixels a box may reach over the edge (annotators round); it is then cut to the image
_MOST_PIXELS = 10**9  # a JSON's whole numbers may be too large to calculate with


class Object(NamedTuple):
    """One annotation, as read."""

    label: int  # 1..K
    box: tuple[float, float, float, float]  # half-open, cut to the image
    crowd: bool


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
    file = find_file(Path(root), split)
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
        raise UserError(f"expected an object with bbox and category_id, got {shown(entry)}")
    category = entry.get("category_id")
    if not is_whole(category) or category not in label_of:
        known = ", ".join(map(str, list(label_of)[:10])) + (", ..." if len(label_of) > 10 else "")
        raise UserError(f"category_id {category!r} is none of the categories; known ids: {known}")
    crowd = entry.get("iscrowd", 0) or entry.get("ignore", 0) or 0
    if crowd not in (0, 1):
        raise UserError(f"iscrowd (or ignore) is {crowd!r}; expected 0 or 1")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise UserError(f"bbox is not four numbers [x, y, width, height]: {shown(box)}")
    if any(isinstance(v, int) and abs(v) > _MOST_PIXELS for v in box):
        raise BoxError(f"box is far outside any image: bbox={shown(box)}")
    x0, y0, x1, y1 = float(box[0]), float(box[1]), float(box[0]) + box[2], float(box[1]) + box[3]
    height, width = size
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x0 >= x1 or y0 >= y1:
        raise BoxError(f"box is empty or swapped: bbox={shown(box)}; expected [x, y, width, height], both above 0")
    if min(x0, y0) < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE or x0 >= width or y0 >= height:
        raise BoxError(f"box is outside the image of {width} x {height} pixels: bbox={shown(box)}")
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise BoxError(f"box is outside the image of {width} x {height} pixels: bbox={shown(box)}")
    return Object(label_of[category], cut, bool(crowd))


def image_of(annotation: Any) -> int | str | None:
    """The id of the image that an entry of ``annotations`` belongs to; None where it names none."""
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return number if isinstance(number, str) or is_whole(number) else None


def read_image_entry(entry: Any) -> tuple[int | str, str, tuple[int, int] | None]:
    """Id, file name and, where stated, (height, width) of one entry of ``images``; a ``UserError`` names no place."""
    if not isinstance(entry, dict):
        raise UserError(f"expected an object with id and file_name, got {shown(entry)}")
    number: Any = entry.get("id")
    name = entry.get("file_name")
    if not (is_whole(number) or (isinstance(number, str) and number)) or not isinstance(name, str) or not name:
        raise UserError(f"expected an id and a file_name, got {shown(entry)}")
    height, width = entry.get("height"), entry.get("width")
    size = (height, width) if is_whole(height) and is_whole(width) and min(height, width) >= 1 else None
    return number, name, size
