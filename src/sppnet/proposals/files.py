"""Proposals on disk: one ``.npz`` for an image, with what made it; never a pickle.

``boxes`` [R, 4] float32 and ``made_by``, a JSON text (the proposer's settings, the key of the image's content ...).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sppnet.errors import UserError
from sppnet.whole_file import whole_file


def proposals_path(folder: str | os.PathLike[str], image_id: str) -> Path:
    """Where the proposals of an image belong: ``folder/<image_id>.npz``.

    Args:
        folder: the folder of one image set and one proposer.
        image_id: the image's name in its set; ``/`` in it makes sub-folders.

    Raises:
        UserError: an id that would lead out of the folder.

    Example:
        >>> proposals_path("proposals", "000005").as_posix()
        'proposals/000005.npz'
    """
    parts = PurePosixPath(image_id)
    if not image_id or "\0" in image_id or parts.is_absolute() or ".." in parts.parts or not parts.name:
        raise UserError(f"image id {image_id!r} cannot name a file; expected a relative name without '..'")
    return Path(folder, f"{image_id}.npz")


def save_proposals(path: str | os.PathLike[str], boxes: np.ndarray, made_by: Mapping[str, Any]) -> None:
    """Write an image's proposals, all or nothing: the file appears complete, or not at all.

    Args:
        path: of the file; missing folders are made, an existing file is replaced.
        boxes: [R, 4], xyxy in pixels of the image; R may be 0. Stored as float32.
        made_by: what made the boxes; anything that JSON holds.

    Raises:
        ValueError: boxes of another shape, or not finite.
        UserError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_proposals(folder / "000005.npz", np.array([[0, 0, 500, 375]]), {"method": "grid"})
        >>> load_proposals(folder / "000005.npz")
        (array([[  0.,   0., 500., 375.]], dtype=float32), {'method': 'grid'})
    """
    boxes = np.asarray(boxes, dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"save_proposals: expected finite boxes [R, 4], got shape {boxes.shape}")
    text = json.dumps(dict(made_by), sort_keys=True)
    path = Path(path)
    with whole_file(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, boxes=boxes, made_by=np.array(text))


def load_proposals(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read an image's proposals and what made them.

    Args:
        path: of a file that ``save_proposals`` wrote.

    Returns:
        boxes [R, 4] float32, and the ``made_by`` given on saving.

    Raises:
        UserError: no such file, or not one of proposals. The message names it.

    Example:
        >>> load_proposals("no/such.npz")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such.npz: no such file of proposals
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            boxes, made_by = stored["boxes"], json.loads(str(stored["made_by"]))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of proposals") from error
    except Exception as error:  # what zip and npy readers raise on damage is of many kinds
        raise UserError(f"{path}: not a file of proposals, or damaged; delete it to have it made anew") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != np.float32 or not isinstance(made_by, dict):
        raise UserError(
            f"{path}: not a file of proposals: boxes are {boxes.shape} {boxes.dtype}, expected [R, 4] float32"
        )
    return boxes, made_by
