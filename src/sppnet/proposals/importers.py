"""Proposals that were made elsewhere, brought in as the project's own files: one ``.npz`` for each image.

Read: the project's ``.npz``, one file for each image or one for all; R-CNN's ``.mat`` (and Fast R-CNN's); detectron2's
``.pkl``. Whatever a file's own convention, boxes become half-open xyxy in continuous pixels.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import content_key
from sppnet.errors import UserError
from sppnet.proposals.compute import IMPORTED, Proposer
from sppnet.proposals.files import load_proposals, proposals_path, save_proposals
from sppnet.proposals.plain_pickle import load_plain_pickle

Order = Literal["yxyx", "xyxy"]
_OUTSIDE = 1.5  # px that a box may reach over the edge before it counts as one of another image
_MOST_OUTSIDE = 0.02  # share of such boxes in an image; more means the wrong order of corners, or another image
_ABSOLUTE = {0: False, 1: True}  # detectron2's box modes: corners, or corner with width and height; both in pixels


@dataclass(frozen=True)
class Imported:
    """What an import has written, and what it could not."""

    files: Mapping[str, Path]  # by image id, in the order of the data
    missing: tuple[str, ...]  # images of the data that the source has no boxes for; they have no file
    unused: int  # images of the source that the data does not have
    boxes: int  # written in all
    dropped: int  # boxes that were empty, or lay outside their image


def import_proposals(
    source: str | os.PathLike[str],
    data: DetectionData,
    folder: str | os.PathLike[str],
    *,
    order: Order = "yxyx",
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Write the boxes of a file for the images of a data set, where ``proposals_for(..., "imported")`` looks for them.

    An image of the source is found by its id, the last part of its id, or its file name without ending; numbers also
    without leading zeros. Boxes are cut to the image; those with nothing left are dropped.

    Args:
        source: see ``read_boxes``.
        data: the images; their stated sizes are trusted.
        folder: where the files go, such as ``work/proposals/imported``.
        order: of the corners in a ``.mat``: "yxyx" as R-CNN's, or "xyxy".
        most: keep the first so many of each image, which in a scored file are the best; None keeps all.
        progress: called with (images done, images in all) after each image.

    Raises:
        UserError: a source that cannot be read, or holds none of the images; boxes of which more than a fiftieth lie
            outside their image (in the wrong order, or of other images). Nothing is written then for that image.
        ValueError: ``most`` below 1.

    Example:
        >>> data = DetectionData(names=("cat",), images=(), split="train")
        >>> import_proposals("no/such.mat", data, "proposals")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such.mat: no such file or folder of proposals
    """
    if most is not None and most < 1:
        raise ValueError(f"import_proposals: most must be at least 1 or None, got {most}")
    boxes_of = read_boxes(source, order=order)
    keys = {image.image_id: _key_of(image, boxes_of) for image in data.images}
    if not any(key is not None for key in keys.values()):
        some = ", ".join(map(repr, list(boxes_of)[:3]))
        wanted = ", ".join(repr(image.image_id) for image in data.images[:3])
        raise UserError(f"{source}: holds none of the {len(data)} images ({wanted} ...), but {some} ...")
    files: dict[str, Path] = {}
    count = dropped = 0
    for done, image in enumerate(data.images, start=1):
        key = keys[image.image_id]
        if key is not None:
            given = boxes_of[key]
            kept = _cut(given, image, source)
            dropped += len(given) - len(kept)
            kept = kept[:most]
            count += len(kept)
            files[image.image_id] = proposals_path(folder, image.image_id)
            made_by = {"proposer": Proposer(IMPORTED).to_dict(), "image": content_key(image.path)}
            save_proposals(files[image.image_id], kept, made_by | {"source": Path(source).name})
        if progress is not None:
            progress(done, len(data))
    missing = tuple(image_id for image_id, key in keys.items() if key is None)
    unused = len(boxes_of.keys() - {key for key in keys.values() if key is not None})
    return Imported(files, missing, unused, count, dropped)


def read_boxes(source: str | os.PathLike[str], *, order: Order = "yxyx") -> dict[str, np.ndarray]:
    """Read the boxes of many images, whatever the format.

    Args:
        source: a folder of the project's ``.npz`` files, one ``.npz`` (``read_npz``), ``.mat`` (``read_rcnn_mat``), or
            ``.pkl`` (``read_detectron2_pickle``).
        order: of the corners in a ``.mat``.

    Returns:
        [R, 4] float32 by the image's name in the source; half-open xyxy, pixels; of scored files the best first.

    Raises:
        UserError: no such file, of another kind, or not as expected.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder of proposals")
    if path.is_dir():
        found = {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(path.rglob("*.npz"))}
        if not found:
            raise UserError(f"{path}: no .npz files in this folder; expected one for each image, named by its id")
        return {image_id: load_proposals(file)[0] for image_id, file in found.items()}
    kind = path.suffix.lower()
    if kind == ".npz":
        return read_npz(path)
    if kind == ".mat":
        return read_rcnn_mat(path, order)
    if kind in (".pkl", ".pickle"):
        return read_detectron2_pickle(path)
    raise UserError(f"{path}: not a kind of proposals that can be read; expected .npz, .mat or .pkl")


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read one ``.npz`` of all images, each array [R, 4] named by its image's id; or the project's own of one image.

    The boxes are half-open xyxy in pixels. The easiest way in: ``np.savez("boxes.npz", **{image_id: boxes, ...})``.

    Raises:
        UserError: not such a file. Objects in it, which would be pickles, are refused.

    Example:
        >>> np.savez("boxes.npz", **{"000005": np.array([[0, 0, 500, 375]])})
        >>> read_npz("boxes.npz")
        {'000005': array([[  0.,   0., 500., 375.]], dtype=float32)}
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            if set(stored.files) == {"boxes", "made_by"}:
                return {path.stem: load_proposals(path)[0]}
            return {name: _boxes(stored[name], path, name) for name in stored.files}
    except UserError:
        raise
    except Exception as error:  # what zip and npy readers raise on damage is of many kinds
        raise UserError(f"{path}: not a file of arrays named by image id, or damaged: {error}") from error


def read_rcnn_mat(path: str | os.PathLike[str], order: Order = "yxyx") -> dict[str, np.ndarray]:
    """Read R-CNN's ``.mat`` of selective search: cell arrays ``images`` (names) and ``boxes``, in the same order.

    Each cell of ``boxes`` is [R, 4], ``y0 x0 y1 x1``, counted from 1, the last pixel included: it becomes
    ``(x0 - 1, y0 - 1, x1, y1)``.

    Args:
        path: the file, of MATLAB's formats up to 7 (``save -v7``).
        order: "yxyx"; or "xyxy" for files that hold the corners the other way about.

    Raises:
        UserError: not readable, or not of that form.

    Source: selective_search_boxes.m of rbgirshick/rcnn; the files of rbgirshick/fast-rcnn.

    Example:
        >>> import scipy.io
        >>> cells = np.empty((1, 2), object)
        >>> cells[0, 0] = cells[0, 1] = np.array([[1, 2, 10, 20]])
        >>> scipy.io.savemat("boxes.mat", {"images": np.array([["a", "b"]], object), "boxes": cells})
        >>> read_rcnn_mat("boxes.mat")["b"]
        array([[ 1.,  0., 20., 10.]], dtype=float32)
    """
    if order not in ("yxyx", "xyxy"):
        raise ValueError(f'read_rcnn_mat: order must be "yxyx" or "xyxy", got {order!r}')
    from scipy.io import loadmat  # type: ignore[import-untyped]

    path = Path(path)
    try:
        content = loadmat(str(path), variable_names=["images", "boxes"])
    except NotImplementedError as error:
        raise UserError(f"{path}: of MATLAB's format 7.3; save it again in MATLAB with the option -v7") from error
    except Exception as error:  # what the reader raises on damage is of many kinds
        raise UserError(f"{path}: not readable as a .mat file: {error}") from error
    missing = [name for name in ("images", "boxes") if name not in content]
    if missing:
        raise UserError(f"{path}: no {' and no '.join(missing)} in it; expected cell arrays images and boxes")
    names = [_mat_text(cell) for cell in content["images"].ravel()]
    cells = content["boxes"].ravel()
    if len(names) != len(cells):
        raise UserError(f"{path}: {len(names)} images but boxes of {len(cells)}; expected one cell for each image")
    columns = (1, 0, 3, 2) if order == "yxyx" else (0, 1, 2, 3)
    shift = np.array([1, 1, 0, 0], dtype=np.float32)
    return {
        name: _boxes(cell, path, name)[:, columns] - shift for name, cell in zip(names, cells, strict=True)
    }  # unsigned integers are floats before 1 is taken off


def read_detectron2_pickle(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read detectron2's ``.pkl`` of precomputed proposals, without running anything that is in it.

    A dictionary of lists, one entry for each image: ``ids``, ``boxes`` [R, 4], ``objectness_logits`` [R], by which boxes
    are sorted; and ``bbox_mode``: 0 for xyxy, 1 for x y width height, in pixels. Older names (``indexes``, ``scores``)
    are read too.

    Raises:
        UserError: not readable, not of that form, or holding more than plain data.

    Source: load_proposals_into_dataset in facebookresearch/detectron2.

    Example:
        >>> import pickle
        >>> boxes, logits = np.array([[0.0, 0, 9, 9], [5, 5, 9, 9]]), np.array([-1.0, 2.0])
        >>> content = {"ids": [139], "boxes": [boxes], "objectness_logits": [logits], "bbox_mode": 0}
        >>> _ = Path("boxes.pkl").write_bytes(pickle.dumps(content))
        >>> read_detectron2_pickle("boxes.pkl")
        {'139': array([[5., 5., 9., 9.],
               [0., 0., 9., 9.]], dtype=float32)}
    """
    path = Path(path)
    content = load_plain_pickle(path)
    lists = {
        "ids": _entries(content, "ids", "indexes"),
        "boxes": _entries(content, "boxes"),
        "objectness_logits": _entries(content, "objectness_logits", "scores"),
    }
    missing = [name for name, values in lists.items() if values is None]
    if missing:
        raise UserError(f"{path}: no list {' and no list '.join(missing)} in it; expected detectron2's proposals")
    ids, boxes, logits = ([] if values is None else values for values in lists.values())
    if not len(ids) == len(boxes) == len(logits):
        raise UserError(
            f"{path}: {len(ids)} ids, {len(boxes)} boxes, {len(logits)} objectness_logits; expected as many"
        )
    mode = content.get("bbox_mode", 0)
    if not isinstance(mode, int) or mode not in _ABSOLUTE:
        raise UserError(f"{path}: bbox_mode is {mode!r}; expected 0 (x y x y) or 1 (x y width height), in pixels")
    found = {}
    for name, of_image, scores in zip(ids, boxes, logits, strict=True):
        array, score = _boxes(of_image, path, name), np.asarray(scores)
        if score.shape != (len(array),) or score.dtype.kind not in "fiu":
            raise UserError(f"{path}: image {name!r}: {len(array)} boxes, but objectness_logits {score.shape}")
        if _ABSOLUTE[mode]:
            array = np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)
        found[str(name)] = array[np.argsort(-score.astype(np.float64), kind="stable")]
    return found


def _entries(content: Any, *names: str) -> list[Any] | None:
    values = next((content[name] for name in names if name in content), None) if isinstance(content, dict) else None
    return list(values) if isinstance(values, list | tuple | np.ndarray) else None


def _boxes(values: Any, path: Path, name: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        return np.empty((0, 4), dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(
            f"{path}: image {name!r}: boxes are {list(array.shape)} {array.dtype}; expected finite numbers [R, 4]"
        )
    return array.astype(np.float32)


def _mat_text(cell: Any) -> str:
    """A text in a cell: an array of one string, or of one array of it."""
    while isinstance(cell, np.ndarray) and cell.size == 1:
        cell = cell.ravel()[0]
    return str(cell)


def _key_of(image: AnnotatedImage, boxes_of: Mapping[str, np.ndarray]) -> str | None:
    """The name by which a source knows an image."""
    names = [image.image_id, PurePosixPath(image.image_id).name, image.path.stem, image.path.name]
    names += [str(int(name)) for name in names if name.isdecimal()]
    return next((name for name in names if name in boxes_of), None)


def _cut(boxes: np.ndarray, image: AnnotatedImage, source: object) -> np.ndarray:
    height, width = image.size
    corners = np.array([width, height, width, height], dtype=np.float32)
    outside = ((boxes < -_OUTSIDE) | (boxes > corners + _OUTSIDE)).any(axis=1)
    if outside.sum() > _MOST_OUTSIDE * len(boxes):
        example = " ".join(f"{value:g}" for value in boxes[outside][0])
        raise UserError(
            f"{source}: {outside.sum()} of {len(boxes)} boxes of {image.image_id!r} lie outside its {width} x {height} "
            f"pixels, such as {example}; are they of another image or size, or is the order of corners another?"
        )
    cut = np.clip(boxes, 0, corners)
    return cut[(cut[:, :2] < cut[:, 2:]).all(axis=1)]
