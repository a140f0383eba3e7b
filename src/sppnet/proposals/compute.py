"""The proposals of one image, and of a whole set: choose the method, run over the images, keep the results as files.

image [H, W, 3] -> boxes [R, 4] float32, pixels of the image.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sppnet.data.images import ImageError, checked_size, content_key, read_image
from sppnet.errors import UserError
from sppnet.proposals.edge_boxes import EdgeBoxes, edge_boxes
from sppnet.proposals.files import load_proposals, proposals_path, save_proposals
from sppnet.proposals.grid import Grid, grid_boxes
from sppnet.proposals.selective_search import SelectiveSearch, drop_near_duplicates, selective_search

METHODS = ("selective-search", "grid", "edge-boxes")
IMPORTED = "imported"  # boxes made elsewhere, brought in by ``importers``; nothing here can make them
_UNION_IOU = 0.95  # near-duplicates of a union are dropped; where selective search takes part, by its own setting
_RULES = 1  # raise when the code begins to give other boxes for the same settings: files on disk are then made anew


@dataclass(frozen=True)
class Proposer:
    """What proposes boxes: a method and its settings.

    Example:
        >>> Proposer("grid").method
        'grid'
        >>> Proposer("guess")
        Traceback (most recent call last):
        sppnet.errors.UserError: no proposals called 'guess'; choose one of: selective-search, grid, edge-boxes; or ...
    """

    method: str = "selective-search"  # one of METHODS, a union of several such as "selective-search+grid", or IMPORTED
    selective_search: SelectiveSearch = field(default_factory=SelectiveSearch)
    grid: Grid = field(default_factory=Grid)
    edge_boxes: EdgeBoxes = field(default_factory=EdgeBoxes)

    def __post_init__(self) -> None:
        if self.method != IMPORTED and (set(self.parts) - set(METHODS) or len(set(self.parts)) < len(self.parts)):
            raise UserError(
                f"no proposals called {self.method!r}; choose one of: {', '.join(METHODS)}; or several, each once, "
                f"joined by +, such as selective-search+grid; or {IMPORTED}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The methods of a union, those first whose boxes are kept of near-duplicates."""
        return tuple(self.method.split("+"))

    def to_dict(self) -> dict[str, Any]:
        """Say in JSON's types what the boxes depend on: the method and the settings that it reads, and no others.

        Example:
            >>> sorted(Proposer("grid").to_dict())
            ['grid', 'method', 'rules']
        """
        settings: dict[str, Any] = {"method": self.method, "rules": _RULES}
        if "selective-search" in self.parts:
            settings["selective_search"] = asdict(self.selective_search)
        if "grid" in self.parts:
            settings["grid"] = asdict(self.grid) | {"aspects": list(self.grid.aspects)}
        if "edge-boxes" in self.parts:
            settings["edge_boxes"] = asdict(self.edge_boxes)
        return settings


def propose(image: np.ndarray, proposer: Proposer | str = "selective-search") -> np.ndarray:
    """Propose boxes of an image that may hold an object.

    Args:
        image: [H, W, 3] uint8 RGB, of any size. Not modified.
        proposer: a ``Proposer``, or the name of a method at its standard settings: ``"selective-search"``, ``"grid"``,
            ``"edge-boxes"``; or of several joined by ``+``, their union without near-duplicates.

    Returns:
        [R, 4] float32 xyxy in pixels of ``image``, half-open; the first is the whole image, so R is at least 1.

    Raises:
        UserError: an unknown method, or "imported": those boxes are in files only.
        ValueError: an image of another form.

    Example:
        >>> propose(np.zeros((375, 500, 3), dtype=np.uint8), "grid").shape
        (1887, 4)
    """
    if isinstance(proposer, str):
        proposer = Proposer(proposer)
    size = checked_size(image, "propose")
    if proposer.method == IMPORTED:
        raise UserError("imported proposals are made elsewhere, not computed; give the image's boxes as proposals")
    methods: dict[str, Callable[[], np.ndarray]] = {
        "selective-search": lambda: selective_search(image, proposer.selective_search),
        "grid": lambda: grid_boxes(size, proposer.grid),
        "edge-boxes": lambda: edge_boxes(image, proposer.edge_boxes),
    }
    found = [methods[part]() for part in proposer.parts]
    if len(found) == 1:
        return found[0]
    searched = "selective-search" in proposer.parts
    iou = proposer.selective_search.near_duplicate_iou if searched else _UNION_IOU
    return drop_near_duplicates(np.concatenate(found), iou)


def proposals_for(
    images: Sequence[tuple[str, Path]],
    folder: str | os.PathLike[str],
    proposer: Proposer | str = "selective-search",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Make sure that every image has its file of proposals; compute the missing ones, several at a time.

    A file made by other settings, for other image content, or damaged, is made anew, so an interrupted run is taken up
    where it was. Imported ones are only looked for. Ctrl-C waits for the images in work, and leaves no half-written file.

    Args:
        images: (image_id, path) of each; ids are unique and name the files.
        folder: where the files lie; made if missing.
        proposer: as for ``propose``.
        workers: threads; each has one image in memory. None: one for each processor core that this process may use.
        progress: called in this thread with (images done, images in all) after each image.

    Returns:
        The path of each image's file by its id, in the order of ``images``; and, for images that cannot be used, by id
        the one-line reason.

    Raises:
        UserError: an unknown method, an id that cannot name a file, or a folder that cannot be written to.
        ValueError: an image id given twice, or fewer than one worker.

    Example:
        >>> proposals_for([("a", Path("no/such.jpg"))], "proposals", "grid")
        ({}, {'a': 'no/such.jpg: no such file'})
    """
    if isinstance(proposer, str):
        proposer = Proposer(proposer)
    if workers is not None and workers < 1:
        raise ValueError(f"proposals_for: workers must be at least 1 or None, got {workers}")
    files = {image_id: proposals_path(folder, image_id) for image_id, _ in images}
    if len(files) < len(images):
        raise ValueError("proposals_for: an image id is given twice; every image needs its own")

    errors: dict[str, str] = {}
    executor = ThreadPoolExecutor(workers or _cores(), thread_name_prefix="proposals")
    try:
        tasks = {executor.submit(_ensure, path, files[image_id], proposer): image_id for image_id, path in images}
        for done, task in enumerate(as_completed(tasks), start=1):
            error = task.result()
            if error is not None:
                errors[tasks[task]] = error
            if progress is not None:
                progress(done, len(images))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    in_order = [image_id for image_id, _ in images]
    return (
        {image_id: files[image_id] for image_id in in_order if image_id not in errors},
        {image_id: errors[image_id] for image_id in in_order if image_id in errors},
    )


def _ensure(path: Path, file: Path, proposer: Proposer) -> str | None:
    """Have an up-to-date file; return why the image cannot be used, or None."""
    try:
        wanted = {"proposer": proposer.to_dict(), "image": content_key(path)}
        if _is_made_by(file, wanted):
            return None
        if proposer.method == IMPORTED:
            return f"{path}: no imported proposals in {file}, or of another image; import them first"
        boxes = propose(read_image(path), proposer)
    except ImageError as error:
        return str(error)
    except (cv2.error, MemoryError) as error:
        return f"{path}: no proposals found: {' '.join(str(error).split()) or type(error).__name__}"
    save_proposals(file, boxes, wanted | {"opencv": cv2.__version__})
    return None


def _is_made_by(file: Path, wanted: Mapping[str, Any]) -> bool:
    if not file.exists():
        return False
    try:
        _, made_by = load_proposals(file)
    except UserError:
        return False
    return all(made_by.get(key) == value for key, value in wanted.items())


def _cores() -> int:
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(available)
