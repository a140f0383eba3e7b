"""Anyone's folder of class folders: ``photos/cat/1.jpg`` says that 1.jpg is a cat. Nothing is opened here."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from sppnet.data.find import Listing, checked_folder, is_hidden, list_images
from sppnet.data.formats import Entry, Finding, Parsed, choose_split, raise_first_error, some
from sppnet.data.labelled import LabelledImages
from sppnet.errors import DataError

LAYOUT = "a folder for each class"
TRAIN = "train"
VALIDATION = ("val", "valid", "validation", "test")  # the first of these that is there is the validation part


def recognize(root: Path) -> bool:
    """Tell whether images lie in folders here.

    Example:
        >>> recognize(Path("no/such/folder"))
        False
    """
    return root.is_dir() and (bool(split_parts(root)) or any(path.parent != root for path in list_images(root).images))


def read(root: str | os.PathLike[str], split: str = TRAIN, limit: int | None = None) -> LabelledImages:
    """Read one part of a folder of class folders. A folder that is not split is all "train".

    Args:
        root: the folder that holds the class folders, or a folder of them for each part, such as "train" and "val".
        split: such as ``"train"``; "val" finds "valid" too.
        limit: take only so many images, of every class in turn, at least 1; None takes all.

    Raises:
        DataError: no such part, or as `read_folder`.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such/folder: no such folder; expected a folder of images
    """
    parts = split_parts(root)
    if parts:
        name = choose_split(Path(root), split, parts)
        images = _read_parts(Path(root), list(dict.fromkeys((parts[TRAIN], parts[name]))))[-1]
    elif split == TRAIN:
        images = read_folder(root)
    else:
        raise DataError(Path(root), f"no split {split!r}: it is not split; take 'train', which is all of it")
    turn = np.concatenate([np.arange(count) for count in images.counts()])  # of each image within its class
    return images if limit is None else images.subset(np.sort(np.argsort(turn, kind="stable")[:limit]))


def check(root: Path) -> Parsed:
    """Parse all class folders of all parts: what a training would refuse are errors, the same of further parts warnings."""
    folders = split_parts(root) or {"": root}
    parts = {name: _parse(folder) for name, folder in folders.items()}
    first, *others = parts.values()
    layout = f"class folders, split into {', '.join(parts)}" if len(folders) > 1 or TRAIN in folders else "class folders"
    parsed = Parsed(layout, root, list(dict.fromkeys(name for part in parts.values() for name in part.class_names)))
    if TRAIN in parts:
        parsed.findings += _stray_findings(root, list_images(root, deep=False).images)
    parsed.findings += _findings(first)
    for index, other in enumerate(others):
        for finding in _validation_findings(first, other):
            parsed.findings.append(replace(finding, severity="error" if index == 0 else "warning"))
    parsed.findings += _name_findings(first, lone=len(parts) == 1)
    ...
