"""Proposals of a whole set: each made once, made anew when it must be, bad images named and the rest done."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import content_key
from sppnet.errors import UserError
from sppnet.metrics import overlaps
from sppnet.progress import Progress, no_progress
from sppnet.proposals import compute
from sppnet.proposals.compute import (
    METHODS,
    check_method,
    grid_boxes,
    method_settings,
    proposals_of,
    propose,
)
from sppnet.proposals.files import IMPORTED, load_proposals, save_proposals
from sppnet.proposals.selective_search import drop_near_duplicates, selective_search

FAST = "edge-boxes"


def of(image_id: str, path: Path) -> AnnotatedImage:
    return AnnotatedImage(image_id, path, (50, 60), np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool))


def make(
    images: list[AnnotatedImage], cache: Path, method: str = FAST, progress: Progress = no_progress
) -> list[np.ndarray]:
    return proposals_of(DetectionData(("cat",), tuple(images), "train"), method, cache, progress)


@pytest.fixture
def images(tmp_path: Path) -> list[AnnotatedImage]:
    rng = np.random.default_rng(0)
    for index in range(5):
        image = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((60 + index, 50))
        image.save(tmp_path / f"{index}.png")
    return [of(str(index), tmp_path / f"{index}.png") for index in range(5)]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were worked on."""
    shapes: list[tuple[int, ...]] = []

    def counting(image: np.ndarray, method: str) -> np.ndarray:
        shapes.append(image.shape)
        return propose(image, method)

    monkeypatch.setattr(compute, "propose", counting)
    return shapes


def test_methods() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[10:30, 10:30] = 200
    assert np.array_equal(propose(image), selective_search(image))
    assert np.array_equal(propose(image, "grid"), grid_boxes((40, 60)))
    both = propose(image, "selective-search+grid")
    assert len(both) <= len(selective_search(image)) + len(grid_boxes((40, 60)))
    assert len(both) > len(grid_boxes((40, 60))) * 0.9
    assert both[0].tolist() == [0, 0, 60, 40]
    for wrong in ("rpn", "", "grid+", "grid+grid", "grid+rpn", "imported+grid"):
        with pytest.raises(
            UserError, match=f"{re.escape(repr(wrong))}; choose one of: selective-search, grid, edge-boxes, network; or"
        ):
            propose(image, wrong)
    for method in (*METHODS, "grid+edge-boxes"):
        with pytest.raises(ValueError, match="expected"):
            propose(image[:, :, 0], method)


def test_unions_of_any_methods() -> None:
    """Each box of each method is there, or one that is nearly the same; the first method's are all there."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    union = propose(image, "edge-boxes+grid+selective-search")
    parts = [propose(image, method) for method in ("edge-boxes", "grid", "selective-search")]
    first = drop_near_duplicates(parts[0], 0.95)
    assert np.array_equal(union[: len(first)], first)
    for boxes in parts:
        assert overlaps(boxes, union).max(axis=1).min() > 0.95 - 1e-6
    assert check_method("grid+edge-boxes") == ("grid", "edge-boxes")


def test_files_of_these_settings_stay_valid() -> None:
    """What a file on disk says of its making; a change here makes everybody's proposals anew."""
    searched = {
        "working_size": 350, "smallest_side": 8, "coarseness": 150, "coarseness_step": 150, "smoothing": 0.8,
        "near_duplicate_iou": 0.95,
    }  # fmt: skip
    alone = method_settings("selective-search")
    assert alone == {"method": "selective-search", "rules": 1, "selective_search": searched}
    both = method_settings("selective-search+grid")
    assert (both["selective_search"], sorted(both)) == (searched, ["grid", "method", "rules", "selective_search"])


def test_imported_ones_are_looked_for_and_never_made(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    made_by = {"proposer": method_settings(IMPORTED), "image": content_key(images[0].path)}
    folder = tmp_path / "proposals" / IMPORTED
    for image_id in "01":  # of the second image, the content is another
        save_proposals(folder / f"{image_id}.npz", np.array([[0, 0, 5, 5]]), made_by)
    assert make(images[:1], tmp_path, IMPORTED)[0].tolist() == [[0, 0, 5, 5]]
    with pytest.raises(
        UserError, match=r"2 of 3 images cannot be used: .*1\.png: no imported.*; .*2\.png: no imported"
    ):
        make(images[:3], tmp_path, IMPORTED)
    assert len(load_proposals(folder / "1.npz")[0]) == 1
    with pytest.raises(UserError, match="made elsewhere"):
        propose(np.zeros((9, 9, 3), np.uint8), IMPORTED)


def test_files_hold_what_propose_gives(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    calls: list[tuple[str, int, int]] = []
    made = make(images, tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [("proposals", done, 5) for done in range(1, 6)]
    boxes, made_by = load_proposals(tmp_path / "proposals" / FAST / "3.npz")
    assert np.array_equal(boxes, propose(np.asarray(Image.open(images[3].path)), FAST))
    assert made_by["proposer"] == method_settings(FAST)
    for each in (made, make(images, tmp_path)):
        assert len(each) == 5
        assert np.array_equal(boxes, each[3])


def test_only_what_is_missing_or_outdated_is_computed(
    tmp_path: Path, images: list[AnnotatedImage], computed: list[tuple[int, ...]]
) -> None:
    def run(method: str = FAST) -> list[tuple[int, ...]]:
        computed.clear()
        make(images, tmp_path, method)
        return sorted(computed)

    everything, out = [(50, 60 + index, 3) for index in range(5)], tmp_path / "proposals" / FAST
    assert run() == everything
    assert run() == []
    (out / "1.npz").unlink()
    (out / "2.npz").write_bytes(b"damaged")
    assert run() == everything[1:3]
    Image.new("RGB", (33, 44)).save(images[4].path)
    assert run() == [(44, 33, 3)]
    (out / "3.npz").write_bytes((out / "4.npz").read_bytes())
    assert run() == [everything[3]]
    assert len(run("grid")) == 5
    assert run("grid") == []


def test_bad_images_are_named_and_the_rest_is_done(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    images[1].path.write_bytes(b"no image")
    images.insert(0, of("gone", tmp_path / "gone.jpg"))
    with pytest.raises(UserError, match=r"2 of 6 images cannot be used: .*gone\.jpg: no such file; .*1\.png: "):
        make(images, tmp_path, "grid")
    assert sorted(file.stem for file in (tmp_path / "proposals/grid").iterdir()) == ["0", "2", "3", "4"]


def test_an_interrupt_stops_after_the_images_in_work(
    tmp_path: Path, images: list[AnnotatedImage], computed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, "getNumberOfCPUs", lambda: 1)
    many = [of(f"{image.image_id}-{copy}", image.path) for copy in range(20) for image in images]
    with pytest.raises(KeyboardInterrupt):
        make(many, tmp_path, FAST, progress=interrupt)
    assert len(computed) < 50
    written = list((tmp_path / "proposals" / FAST).iterdir())
    assert all(path.suffix == ".npz" for path in written)
    assert len(written) == len(computed)


def test_mistakes_of_the_caller(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    with pytest.raises(ValueError, match="twice"):
        make([*images, images[0]], tmp_path, "grid")
    with pytest.raises(UserError, match="cannot name a file"):
        make([of("../a", images[0].path)], tmp_path, "grid")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        make(images, tmp_path / "file", "grid")
    assert make([], tmp_path, "grid") == []
