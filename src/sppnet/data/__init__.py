"""Images and their annotations, read: a folder of whichever layout -> a data set. Nothing here knows of networks."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Literal

from sppnet.data.annotations import DetectionData
from sppnet.data.formats import coco, folder, voc, yolo
from sppnet.data.labelled import LabelledImages
from sppnet.errors import DataError

AnnotatedLayout = Literal["voc", "coco", "yolo"]
ANNOTATED: dict[AnnotatedLayout, ModuleType] = {"voc": voc, "coco": coco, "yolo": yolo}


def annotated_layout(root: str | os.PathLike[str]) -> AnnotatedLayout | None:
    """Recognize the format of an annotated image set; None where it is none of the three.

    Raises:
        DataError: it could be several; the message names them.

    Example:
        >>> Path("set/images").mkdir(parents=True); Path("set/labels").mkdir()
        >>> annotated_layout("set")
        'yolo'
    """
    root = Path(root)
    found = [layout for layout, module in ANNOTATED.items() if module.recognize(root)]
    if len(found) > 1:
        names = " and as ".join(f"{ANNOTATED[layout].NAME} ({ANNOTATED[layout].LAYOUT})" for layout in found)
        what = "move the parts of one away, or give its JSON or YAML file itself"
        raise DataError(root, f"can be read as {names}: {what}")
    return found[0] if found else None


def read_annotated(root: str | os.PathLike[str], split: str = "train", limit: int | None = None) -> DetectionData:
    """Read one split of an annotated image set, whichever of VOC, COCO and YOLO its layout is.

    Args:
        root: the folder; or one JSON of COCO annotations, or the YAML of a YOLO folder.
        split: such as ``"train"`` or ``"val"``.
        limit: take only the first so many images, at least 1; None takes all.

    Raises:
        DataError: none of the three, several of them, or what the format's ``read`` raises.

    Example:
        >>> Path("photos").mkdir()
        >>> read_annotated("photos")
        Traceback (most recent call last):
        sppnet.errors.DataError: photos: no annotated images found; expected one of VOC (Annotations, ImageSets, ...
    """
    layout = annotated_layout(root)
    if layout is None:
        what = "no annotated images found" if os.path.exists(root) else "no such file or folder"
        expected = ", ".join(f"{module.NAME} ({module.LAYOUT})" for module in ANNOTATED.values())
        raise DataError(Path(root), f"{what}; expected one of {expected}")
    data: DetectionData = ANNOTATED[layout].read(root, split, limit)
    return data


def read_dataset(
    root: str | os.PathLike[str], split: str = "train", limit: int | None = None
) -> DetectionData | LabelledImages:
    """Read one split of a data set of any layout: VOC, COCO, YOLO, or class folders.

    Args:
        root: the folder; or one JSON of COCO annotations, or the YAML of a YOLO folder.
        split: such as ``"train"`` or ``"val"``; a folder of class folders that is not split is all "train".
        limit: take only so many images, at least 1; of class folders, of every class in turn. None takes all.

    Returns:
        `DetectionData` of annotated images, `LabelledImages` of class folders. Both are data sets as PyTorch's DataLoader takes
        them; give it a ``collate_fn`` such as ``list``, as sizes differ.

    Raises:
        DataError: no such layout, several that fit, no such split, or a file that cannot be used. The message names it.

    Example:
        >>> for name in ("cat/1.jpg", "dog/2.jpg"):
        ...     Path("pets", name).parent.mkdir(parents=True)
        ...     Path("pets", name).touch()
        >>> read_dataset("pets").class_names
        ('cat', 'dog')
    """
    if annotated_layout(root) is None and folder.recognize(Path(root)):
        return folder.read(root, split, limit)
    return read_annotated(root, split, limit)
