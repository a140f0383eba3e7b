"""Proposals on disk: one ``.npz`` for an image, with what made it; and boxes made elsewhere, brought in as such files.

A cached file holds ``boxes`` [R, 4] float32 and ``made_by``, a JSON text (the method's settings, the key of the image's
content ...). Only arrays are read: never a pickle, and no format whose reader a damaged file can bring down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import content_key
from sppnet.errors import UserError
from sppnet.files import atomic_write
from sppnet.progress import Progress, no_progress

MOST_BYTES = 1_000_000_000  # of an .npz, unpacked: the boxes of some ten thousand images
IMPORTED = "imported"  # the method of boxes made elsewhere
IMPORT: dict[str, Any] = {"method": IMPORTED, "rules": 1}  # stands as the method's settings in the files of an import
_OUTSIDE = 1.5  # px that a box may reach over the edge before it counts as one of another image
_MOST_WRONG = 0.02  # share of such boxes in an image; more means other columns, or another image


def proposals_path(folder: str | os.PathLike[str], image_id: str) -> Path:
    """Where the proposals of an image belong: ``folder/<image_id>.npz``; ``/`` in the id makes sub-folders.

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
    """Write an image's proposals atomically.

    Args:
        path: of the file, in a cache directory: an existing file is replaced, missing folders are made.
        boxes: [R, 4], xyxy in pixels of the image; R may be 0. Stored as float32.
        made_by: what made the boxes; anything that JSON holds.

    Raises:
        OutputError: the file cannot be written.

    Example:
        >>> save_proposals("000005.npz", np.array([[0, 0, 500, 375]]), {"method": "grid"})
        >>> load_proposals("000005.npz")
        (array([[  0.,   0., 500., 375.]], dtype=float32), {'method': 'grid'})
    """
    boxes = np.asarray(boxes, dtype=np.float32)
    text = json.dumps(dict(made_by), sort_keys=True)
    with atomic_write(Path(path), replace="any") as unfinished, open(unfinished, "wb") as file:
        np.savez(file, boxes=boxes, made_by=np.array(text))


def load_proposals(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Read an image's proposals, [R, 4] float32, and the ``made_by`` given to `save_proposals`.

    Raises:
        UserError: no such file, or not one of proposals. The message names it.

    Example:
        >>> load_proposals("no/such.npz")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such.npz: no such file of proposals
    """
    try:
        stored = _arrays(path)
        boxes, made_by = stored["boxes"], json.loads(str(stored["made_by"]))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of proposals") from error
    except Exception as error:  # what zip and npy readers raise on damage is of many kinds
        raise UserError(f"{path}: not a file of proposals, or damaged; delete it to have it made anew") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != np.float32 or not isinstance(made_by, dict):
        there = f"{boxes.shape} {boxes.dtype}"
        raise UserError(f"{path}: not a file of proposals: boxes are {there}, expected [R, 4] float32")
    return boxes, made_by


def read_boxes(source: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the boxes of many images, made elsewhere: half-open xyxy in pixels, the best first where they are ranked.

    Other programs' files are brought into this form by a few lines of Python. R-CNN's ``.mat`` of selective search counts
    from 1, has y before x, and includes the last pixel::

        file = scipy.io.loadmat("boxes.mat")
        cells = zip(file["images"].ravel(), file["boxes"].ravel())
        np.savez("boxes.npz", **{name.item(): boxes[:, [1, 0, 3, 2]] - [1.0, 1, 0, 0] for name, boxes in cells})

    detectron2's ``.pkl``, if you trust where it comes from (reading a pickle runs what is in it)::

        file = pickle.loads(Path("boxes.pkl").read_bytes())
        np.savez("boxes.npz", **{str(name): boxes for name, boxes in zip(file["ids"], file["boxes"])})

    Args:
        source: one ``.npz`` of arrays [R, 4], each named by its image; or our own of one image, or a folder of those.

    Returns:
        [R, 4] float32 by the image's name in the source.

    Raises:
        UserError: no such file, of another kind, or not as expected. Objects in it, which would be pickles, are refused.

    Example:
        >>> np.savez("boxes.npz", **{"000005": np.array([[0, 0, 500, 375]])})
        >>> read_boxes("boxes.npz")
        {'000005': array([[  0.,   0., 500., 375.]], dtype=float32)}
    """
    path = Path(source)
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: no such file or folder of proposals")
    if path.is_dir():
        found = {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(path.rglob("*.npz"))}
        if not found:
            raise UserError(f"{path}: no .npz files in this folder; expected one for each image, named by its id")
        return {image_id: load_proposals(file)[0] for image_id, file in found.items()}
    if path.suffix.lower() != ".npz":
        remedy = "help(sppnet.proposals.files.read_boxes) converts .mat and .pkl in three lines"
        raise UserError(f"{path}: expected .npz, got {path.suffix or 'no ending'}; {remedy}")
    try:
        arrays = _arrays(path)
    except Exception as error:  # what zip and npy readers raise on damage is of many kinds
        raise UserError(f"{path}: not a file of arrays named by image id, or damaged: {error}") from error
    if set(arrays) == {"boxes", "made_by"}:
        return {path.stem: load_proposals(path)[0]}
    for name, boxes in arrays.items():
        if boxes.size and (boxes.shape[1:] != (4,) or boxes.dtype.kind not in "fiu" or not np.isfinite(boxes).all()):
            there = f"{list(boxes.shape)} {boxes.dtype}"
            raise UserError(f"{path}: image {name!r}: boxes are {there}; expected finite numbers [R, 4]")
    return {name: boxes.astype(np.float32).reshape(-1, 4) for name, boxes in arrays.items()}


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz; nothing that would run code, and no more than `MOST_BYTES`."""
    with open(path, "rb") as file:
        unpacked = sum(part.file_size for part in ZipFile(file).infolist())
        if unpacked > MOST_BYTES:
            raise ValueError(f"it unpacks to {unpacked / 1e9:.1f} GB, more than {MOST_BYTES / 1e9:.1f} GB")
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def cut_boxes(boxes: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """Boxes [R, 4] cut to an image of ``size`` (height, width); those with nothing left are dropped.

    Raises:
        UserError: more than a fiftieth of them lie outside, or end before they begin: other columns (y before x, widths), or
            boxes of another image.

    Example:
        >>> cut_boxes(np.array([[-1, 0, 9, 9], [5, 5, 5, 9]], np.float32), (10, 10), "a.npz: 'a'")
        array([[0., 0., 9., 9.]], dtype=float32)
    """
    height, width = size
    corners = np.array([width, height, width, height], dtype=np.float32)
    wrong = ((boxes < -_OUTSIDE) | (boxes > corners + _OUTSIDE)).any(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.sum() > _MOST_WRONG * len(boxes):
        example = " ".join(f"{value:g}" for value in boxes[wrong][0])
        expected = f"expected boxes x0 y0 x1 y1 inside the image's {width} x {height} pixels"
        found = f"got {wrong.sum()} of {len(boxes)} that are not, such as {example}"
        raise UserError(f"{name}: {expected}, {found}; put the columns in order, or find the right image")
    cut: np.ndarray = np.clip(boxes, 0, corners)
    return cut[(cut[:, :2] < cut[:, 2:]).all(axis=1)]


def import_proposals(
    source: str | os.PathLike[str], data: DetectionData, folder: str | Path, progress: Progress = no_progress
) -> tuple[dict[str, np.ndarray], int]:
    """Write the boxes of a file for the images of a data set, where ``proposals_of(..., "imported")`` looks for them.

    An image of the source is found by its id, the last part of its id, or its file name without ending; numbers also
    without leading zeros. Boxes are cut to the image; those with nothing left are dropped.

    Args:
        source: see `read_boxes`.
        data: the images; their stated sizes are trusted.
        folder: where the files go, such as ``work/proposals/imported``.
        progress: called after each image.

    Returns:
        The boxes written, [R, 4] float32 by image id, in the order of the data; images that the source has no boxes for are
        missing. And how many boxes were dropped: they were empty, or lay outside their image.

    Raises:
        UserError: a source that cannot be read, or holds none of the images; boxes of which more than a fiftieth lie
            outside their image. Nothing is written then for that image.

    Example:
        >>> data = DetectionData(class_names=("cat",), images=(), split="train")
        >>> import_proposals("no/such.npz", data, "proposals")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such.npz: no such file or folder of proposals
    """
    boxes_of = read_boxes(source)
    keys = [_key_of(image, boxes_of) for image in data.images]
    if all(key is None for key in keys):
        some = ", ".join(map(repr, list(boxes_of)[:3]))
        wanted = ", ".join(repr(image.image_id) for image in data.images[:3])
        raise UserError(f"{source}: holds none of the {len(data)} images ({wanted} ...), but {some} ...")
    found: dict[str, np.ndarray] = {}
    dropped = 0
    for done, (image, key) in enumerate(zip(data.images, keys, strict=True), start=1):
        if key is not None:
            boxes = cut_boxes(boxes_of[key], image.size, f"{source}: {image.image_id!r}")
            made_by = {"proposer": IMPORT, "image": content_key(image.path), "source": Path(source).name}
            save_proposals(proposals_path(folder, image.image_id), boxes, made_by)
            found[image.image_id] = boxes
            dropped += len(boxes_of[key]) - len(boxes)
        progress("import", done, len(data))
    return found, dropped


def _key_of(image: AnnotatedImage, boxes_of: Mapping[str, np.ndarray]) -> str | None:
    """The name by which a source knows an image."""
    names = [image.image_id, PurePosixPath(image.image_id).name, image.path.stem, image.path.name]
    names += [str(int(name)) for name in names if name.isdecimal()]
    return next((name for name in names if name in boxes_of), None)
