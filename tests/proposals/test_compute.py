"""Proposals of a whole set: each made once, made anew when it must be, bad images named and the rest done."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import content_key
from sppnet.errors import UserError
from sppnet.metrics import overlaps
from sppnet.proposals import compute
from sppnet.proposals.compute import (
    METHODS,
    check_method,
    grid_boxes,
    method_settings,
    proposals_for,
    proposals_of,
    propose,
)
from sppnet.proposals.files import IMPORTED, load_proposals, save_proposals
from sppnet.proposals.selective_search import drop_near_duplicates, selective_search

FAST = "edge-boxes"


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, Path]]:
    rng = np.random.default_rng(0)
    for index in range(5):
        image = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((60 + index, 50))
        image.save(tmp_path / f"{index}.png")
    return [(str(index), tmp_path / f"{index}.png") for index in range(5)]


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
            UserError, match=f"{re.escape(repr(wrong))}; choose one of: selective-search, grid, edge-boxes; or"
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


def test_imported_ones_are_looked_for_and_never_made(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    made_by = {"proposer": method_settings(IMPORTED), "image": content_key(images[0][1])}
    for image_id in "01":  # of the second image, the content is another
        save_proposals(tmp_path / "out" / f"{image_id}.npz", np.array([[0, 0, 5, 5]]), made_by)
    paths, errors = proposals_for(images[:3], tmp_path / "out", IMPORTED)
    assert list(paths) == ["0"]
    assert list(errors) == ["1", "2"]
    assert "no imported proposals" in errors["2"]
    assert len(load_proposals(tmp_path / "out/1.npz")[0]) == 1
    with pytest.raises(UserError, match="made elsewhere"):
        propose(np.zeros((9, 9, 3), np.uint8), IMPORTED)


def test_files_hold_what_propose_gives(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    calls: list[tuple[str, int, int]] = []
    paths, errors = proposals_for(images, tmp_path / "out", FAST, progress=lambda *call: calls.append(call))
    assert list(paths) == [image_id for image_id, _ in images]
    assert errors == {}
    assert calls == [("proposals", done, 5) for done in range(1, 6)]
    boxes, made_by = load_proposals(paths["3"])
    assert np.array_equal(boxes, propose(np.asarray(Image.open(images[3][1])), FAST))
    assert made_by["proposer"] == method_settings(FAST)


def test_only_what_is_missing_or_outdated_is_computed(
    tmp_path: Path, images: list[tuple[str, Path]], computed: list[tuple[int, ...]]
) -> None:
    def run(method: str = FAST) -> list[tuple[int, ...]]:
        computed.clear()
        proposals_for(images, tmp_path / "out", method)
        return sorted(computed)

    everything = [(50, 60 + index, 3) for index in range(5)]
    assert run() == everything
    assert run() == []
    (tmp_path / "out/1.npz").unlink()
    (tmp_path / "out/2.npz").write_bytes(b"damaged")
    assert run() == everything[1:3]
    Image.new("RGB", (33, 44)).save(images[4][1])
    assert run() == [(44, 33, 3)]
    assert len(run("grid")) == 5
    assert run("grid") == []


def test_bad_images_are_named_and_the_rest_is_done(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    images[1][1].write_bytes(b"no image")
    images.insert(0, ("gone", tmp_path / "gone.jpg"))
    paths, errors = proposals_for(images, tmp_path / "out", "grid")
    assert list(paths) == ["0", "2", "3", "4"]
    assert list(errors) == ["gone", "1"]
    assert "no such file" in errors["gone"]
    assert str(images[2][1]) in errors["1"]


def test_an_interrupt_stops_after_the_images_in_work(
    tmp_path: Path, images: list[tuple[str, Path]], computed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, "getNumberOfCPUs", lambda: 1)
    many = [(f"{image_id}-{copy}", path) for copy in range(20) for image_id, path in images]
    with pytest.raises(KeyboardInterrupt):
        proposals_for(many, tmp_path / "out", FAST, progress=interrupt)
    assert len(computed) < 50
    assert all(path.suffix == ".npz" for path in (tmp_path / "out").iterdir())
    assert len(list((tmp_path / "out").iterdir())) == len(computed)


def test_mistakes_of_the_caller(tmp_path: Path, images: list[tuple[str, Path]]) -> None:
    with pytest.raises(ValueError, match="twice"):
        proposals_for([*images, images[0]], tmp_path, "grid")
    with pytest.raises(UserError, match="cannot name a file"):
        proposals_for([("../a", images[0][1])], tmp_path, "grid")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        proposals_for(images, tmp_path / "file", "grid")
    assert proposals_for([], tmp_path / "out", "grid") == ({}, {})


def test_the_proposals_of_a_data_set(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train")
    first, again = (proposals_of(data, "grid", tmp_path) for _ in range(2))
    assert len(first) == 8
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    for image in data.images[:2]:
        image.path.write_bytes(image.path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"2 of 8 images cannot be used: .*000000\.jpg: .*; .*000001\.jpg: "):
        proposals_of(data, "grid", tmp_path)
