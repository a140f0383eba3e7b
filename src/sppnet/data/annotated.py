"""An annotated image set of whichever layout -> ``DetectionData``: look which of the readers it is for, and read."""

import os
from pathlib import Path
from typing import Literal

from sppnet.data import coco_file, yolo
from sppnet.data.annotations import DetectionData
from sppnet.data.check_voc import is_voc
from sppnet.data.coco import read_coco
from sppnet.data.coco_file import is_coco
from sppnet.data.voc import read_voc
from sppnet.data.yolo import is_yolo, read_yolo
from sppnet.errors import UserError

AnnotatedLayout = Literal["voc", "coco", "yolo"]


def annotated_layout(root: str | os.PathLike[str]) -> AnnotatedLayout | None:
    """Recognise the layout of an annotated image set; None where it is none of the three.

    A folder that could be several is the first of: VOC, COCO, YOLO.

    Example:
        >>> Path("set/images").mkdir(parents=True); Path("set/labels").mkdir()
        >>> annotated_layout("set")
        'yolo'
    """
    root = Path(root)
    layouts: tuple[tuple[AnnotatedLayout, bool], ...] = (
        ("voc", is_voc(root)),
        ("coco", is_coco(root)),
        ("yolo", is_yolo(root)),
    )
    return next((layout for layout, fits in layouts if fits), None)


def read_annotated(root: str | os.PathLike[str], split: str = "train", limit: int | None = None) -> DetectionData:
    """Read one split of an annotated image set, whichever of VOC, COCO and YOLO its layout is.

    Args:
        root: the folder; or one JSON of COCO annotations, or the YAML of a YOLO folder.
        split: such as ``"train"`` or ``"val"``.
        limit: take only the first so many images; None takes all.

    Returns:
        The split, as ``read_voc``, ``read_coco`` or ``read_yolo`` give it.

    Raises:
        UserError: none of the three layouts, or what the reader of the layout raises.
        ValueError: a limit below 1.

    Example:
        >>> Path("photos").mkdir()
        >>> read_annotated("photos")
        Traceback (most recent call last):
        sppnet.errors.UserError: photos: no annotated images found; expected one of VOC (Annotations, ImageSets, ...
    """
    if limit is not None and limit < 1:
        raise ValueError(f"read_annotated: limit must be at least 1 or None, got {limit}")
    layout = annotated_layout(root)
    if layout is None:
        what = "no annotated images found" if os.path.exists(root) else "no such file or folder"
        raise UserError(
            f"{root}: {what}; expected one of VOC (Annotations, ImageSets, JPEGImages), "
            f"COCO ({coco_file.LAYOUT}), YOLO ({yolo.LAYOUT})"
        )
    reader = {"voc": read_voc, "coco": read_coco, "yolo": read_yolo}[layout]
    return reader(root, split, limit)
