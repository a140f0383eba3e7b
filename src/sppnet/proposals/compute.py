"""The proposals of one image (a grid is laid here), and of a whole set: run over the images, cache the results as files.

image [H, W, 3] -> boxes [R, 4] float32, pixels of the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sppnet.data.annotations import DetectionData
from sppnet.data.images import checked_size, content_key, read_image
from sppnet.errors import SettingsError, UserError
from sppnet.progress import Progress, no_progress
from sppnet.proposals.edge_boxes import EdgeBoxes, edge_boxes
from sppnet.proposals.files import IMPORT, IMPORTED, load_proposals, proposals_path, save_proposals
from sppnet.proposals.selective_search import SelectiveSearch, drop_near_duplicates, selective_search


@dataclass(frozen=True)
class Grid:
    """Settings of `grid_boxes`. A box's size is the root of its area, as a share of the root of the image's area."""

    smallest: float = 0.15  # 65 px in a photo of 500 x 375; smaller sizes would double the number of boxes each
    largest: float = 1.05
    growth: float = math.sqrt(2)  # from one size to the next: neighbours overlap by an IoU of one half
    aspects: tuple[float, ...] = (0.5, 1.0, 2.0)  # width / height
    step: float = 1 / 3  # from one box to the next, as a share of its width and height
    smallest_side: float = 4.0  # px; shorter boxes are left out, unless the image itself is as short


def grid_boxes(size: tuple[int, int], settings: Grid = Grid()) -> np.ndarray:
    """Lay boxes of several sizes and aspects evenly over an image of a size, with no look at its pixels, so at no cost.

    Alone they find less than selective search; added to it, they find the small and weakly outlined objects that it misses.

    A box that would be wider or higher than the image gets the image's width or height. In each direction boxes of one
    kind begin at the edge, end at the other edge, and lie at most ``step`` times their side apart.

    Args:
        size: (height, width) of the image in pixels, each at least 1.
        settings: see ``Grid``.

    Returns:
        [R, 4] float32 xyxy, each box once; the first is the whole image. About 1900 for a photo, whatever its size.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> grid_boxes((375, 500)).shape
        (1887, 4)
        >>> grid_boxes((1, 1))
        array([[0., 0., 1., 1.]], dtype=float32)
    """
    height, width = size
    if min(size) < 1:
        raise ValueError(f"grid_boxes: height and width must be at least 1, got {size}")
    scale = math.sqrt(height * width)
    steps = math.floor(math.log(settings.largest / settings.smallest) / math.log(settings.growth) + 1e-9)
    found = [np.array([[0, 0, width, height]], dtype=np.float32)]
    for share in (settings.smallest * settings.growth**k for k in range(steps + 1)):
        for aspect in settings.aspects:
            box_width = min(float(width), share * scale * math.sqrt(aspect))
            box_height = min(float(height), share * scale / math.sqrt(aspect))
            if min(box_width, box_height) >= min(settings.smallest_side, height, width):
                starts = _starts(width, box_width, settings.step), _starts(height, box_height, settings.step)
                corners = np.stack(np.meshgrid(*starts), axis=-1).reshape(-1, 2)
                boxes = np.concatenate([corners, corners + (box_width, box_height)], axis=1)
                found.append(np.minimum(boxes, [width, height, width, height]).astype(np.float32))
    boxes = np.concatenate(found)
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def _starts(length: int, side: float, step: float) -> np.ndarray:
    return np.linspace(0, length - side, math.ceil((length - side) / (side * step) - 1e-9) + 1)


METHODS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Any]] = {  # with the settings that its boxes depend on
    "selective-search": (selective_search, SelectiveSearch()),
    "grid": (lambda image: grid_boxes(checked_size(image, "grid")), Grid()),
    "edge-boxes": (edge_boxes, EdgeBoxes()),
}
NETWORK = "network"  # by the detector's own proposal head: see `sppnet.detection.network_proposals`
NEAR_DUPLICATE_IOU = 0.95  # of the boxes of a union that overlap more, the first stays
_RULES = 1  # raise when the code begins to give other boxes for the same settings: cached files are then computed anew


def check_method(method: str) -> tuple[str, ...]:
    """The parts of a proposal method: of a union, those first whose boxes stay of near-duplicates.

    Raises:
        SettingsError: an unknown method.

    Example:
        >>> check_method("edge-boxes+grid")
        ('edge-boxes', 'grid')
        >>> check_method("guess")
        Traceback (most recent call last):
        sppnet.errors.SettingsError: no proposals called 'guess'; choose one of: selective-search, grid, edge-boxes, network; or ...
    """
    parts = tuple(method.split("+"))
    if method != IMPORTED and (set(parts) - {NETWORK, *METHODS} or len(set(parts)) < len(parts)):
        several = "or several, each once, joined by +, such as selective-search+grid"
        expected = f"choose one of: {', '.join(METHODS)}, {NETWORK}; {several}; or {IMPORTED}"
        raise SettingsError(f"no proposals called {method!r}; {expected}")
    return parts


def method_settings(method: str) -> dict[str, Any]:
    """What the boxes of a method depend on, in JSON's types: caches hold it.

    Example:
        >>> sorted(method_settings("grid"))
        ['grid', 'method', 'rules']
    """
    if method == IMPORTED:
        return IMPORT
    settings = {part.replace("-", "_"): asdict(METHODS[part][1]) for part in _image_parts(method)}
    return {"method": method, "rules": _RULES} | json.loads(json.dumps(settings))


def _image_parts(method: str) -> tuple[str, ...]:
    """`check_method`, of methods that look at the image alone."""
    parts = check_method(method)
    if NETWORK in parts:
        raise UserError("network proposals come from a detector's feature map: ask a detector for them")
    return parts


def propose(image: np.ndarray, method: str = "selective-search") -> np.ndarray:
    """Propose boxes of an image that may hold an object.

    Args:
        image: [H, W, 3] uint8 RGB, of any size. Not modified.
        method: ``"selective-search"``, ``"grid"`` or ``"edge-boxes"``, at their default settings; or several joined by ``+``,
            their union without near-duplicates.

    Returns:
        [R, 4] float32 xyxy in pixels of ``image``, half-open; the first is the whole image, so R is at least 1.

    Raises:
        UserError: an unknown method, or "imported" or "network": those boxes are in files, or need a detector.
        ValueError: an image of another form.

    Example:
        >>> propose(np.zeros((375, 500, 3), dtype=np.uint8), "grid").shape
        (1887, 4)
    """
    parts = _image_parts(method)
    if method == IMPORTED:
        raise UserError("imported proposals are made elsewhere, not computed; give the image's boxes as proposals")
    found = [METHODS[part][0](image) for part in parts]
    return found[0] if len(found) == 1 else drop_near_duplicates(np.concatenate(found), NEAR_DUPLICATE_IOU)


def proposals_of(data: DetectionData, method: str, cache: Path, progress: Progress = no_progress) -> list[np.ndarray]:
    """The proposals [R, 4] of each image, in order; those that the cache directory lacks are computed, one on each core.

    A file made by other settings, for other image content, or damaged, is made anew, so an interrupted run resumes where it
    was. Imported ones are only looked for. Ctrl-C waits for the images in work, and leaves no half-written file.

    They stay in memory, 30 KB an image, as every stage of a training asks for them.

    Args:
        data: the images; their ids name the files.
        method: as for `propose`.
        cache: the files lie below its folder ``proposals``; made if missing.
        progress: called in this thread after each image.

    Raises:
        UserError: an unknown method, an id that cannot name a file, a folder that cannot be written to; or images that cannot
            be used: all are named, and the proposals of the others are in the cache directory.
        ValueError: an image id given twice.
    """
    settings = method_settings(method)
    files = [proposals_path(cache / "proposals" / method, image.image_id) for image in data.images]
    if len(set(files)) < len(files):
        raise ValueError("proposals_of: an image id is given twice; every image needs its own")
    results: list[np.ndarray | str] = []
    executor = ThreadPoolExecutor(cv2.getNumberOfCPUs(), "proposals")  # as many as this process may use
    try:
        for result in executor.map(lambda of, file: _cached(of.path, file, method, settings), data.images, files):
            results.append(result)
            progress("proposals", len(results), len(data))
    finally:
        executor.shutdown(cancel_futures=True)
    errors = [result for result in results if isinstance(result, str)]
    if errors:
        raise UserError(f"{len(errors)} of {len(data)} images cannot be used: {'; '.join(errors)}")
    return [result for result in results if not isinstance(result, str)]


def _cached(path: Path, file: Path, method: str, settings: dict[str, Any]) -> np.ndarray | str:
    """An image's boxes out of an up-to-date file, or made anew and written to it; or why the image cannot be used."""
    try:
        wanted = {"proposer": settings, "image": content_key(path)}
        with suppress(UserError):  # no such file, or a damaged one
            boxes, made_by = load_proposals(file)
            if made_by | wanted == made_by:
                return boxes
        if method == IMPORTED:
            return f"{path}: no imported proposals in {file}, or of another image; import them first"
        boxes = propose(read_image(path), method)
    except UserError as error:
        return str(error)
    except (cv2.error, MemoryError) as error:
        return f"{path}: no proposals found: {' '.join(str(error).split()) or type(error).__name__}"
    save_proposals(file, boxes, wanted | {"opencv": cv2.__version__})
    return boxes
