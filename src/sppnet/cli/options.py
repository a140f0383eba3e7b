"""Options that several commands have, and the devices they compute on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sppnet.errors import SettingsError

Images = Annotated[list[Path], Parameter(help="Image files, folders (searched through) or patterns such as '*.jpg'.")]
Data = Annotated[Path, Parameter(help="Annotated images: a VOC folder, COCO JSON with its images, or a YOLO folder.")]
Model = Annotated[str, Parameter(help="A shipped model's name, or the path of a model file.")]
Split = Annotated[str, Parameter(help="Of the data set.")]
Limit = Annotated[int | None, Parameter(help="Only the first so many images.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document and nothing else.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute; auto takes a GPU if there is one.")
]
Scales = Annotated[
    tuple[int, ...],
    Parameter(
        help="Short sides, such as 480 688 1000: a window is looked at where its object looks the usual size; left out: as the model "
        "was trained. Several find more, and take longer."
    ),
]
Views = Annotated[
    Literal["single", "center-crop", "10-view", "full", "multi-view", "multi-view+full"],
    Parameter(help="How each image is looked at: once, or many times over, which is slower and may be better."),
]


def chosen_device(name: str) -> str:
    """PyTorch's name of the device that ``--device`` says; a `SettingsError` where it is not there.

    Example:
        >>> chosen_device("cpu")
        'cpu'
    """
    from sppnet.models.precision import choose_device  # which imports torch

    return choose_device(name).type


def checked_limit(limit: int | None) -> int | None:
    """``--limit`` as it is, at least 1 or left out."""
    if limit is not None and limit < 1:
        raise SettingsError(f"--limit must be at least 1: got {limit}; leave it out for all images")
    return limit
