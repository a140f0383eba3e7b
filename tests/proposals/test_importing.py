"""Boxes made elsewhere come in right to the pixel, for the right images, and what cannot be is said."""

from __future__ import annotations

import os
import pickle
import struct
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.io import savemat

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.errors import UserError
from sppnet.proposals.compute import proposals_of
from sppnet.proposals.files import IMPORTED, import_proposals, load_proposals, read_boxes, save_proposals

BOXES = np.array([[0, 0, 40, 30], [2, 3, 20, 10]], dtype=np.float32)  # of an image of 30 x 40 (height x width)


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """Three images of 30 x 40: "train/139" in 000000000139.png, and so on."""
    images = []
    for number in (139, 140, 141):
        path = tmp_path / f"{number:012d}.png"
        Image.fromarray(np.full((30, 40, 3), number, dtype=np.uint8)).save(path)
        images.append(
            AnnotatedImage(
                f"train/{number}",
                path,
                (30, 40),
                np.empty((0, 4), np.float32),
                np.empty(0, np.int64),
                np.empty(0, bool),
            )
        )
    return DetectionData(("cat",), tuple(images), "train")


def test_the_projects_own_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **{"train/139": BOXES, "140": np.empty((0, 4))})
    found = read_boxes(tmp_path / "all.npz")
    assert np.array_equal(found["train/139"], BOXES)
    assert found["140"].shape == (0, 4)
    save_proposals(tmp_path / "each/train/139.npz", BOXES, {"method": "mine"})
    for source in (tmp_path / "each", tmp_path / "each/train/139.npz"):
        (name,) = read_boxes(source)
        assert name in ("train/139", "139")
        assert np.array_equal(read_boxes(source)[name], BOXES)


@pytest.mark.parametrize("name", ["train/139", "139", "000000000139", "000000000139.png"])
def test_images_are_found_by_their_names(tmp_path: Path, data: DetectionData, name: str) -> None:
    np.savez(tmp_path / "all.npz", **{name: BOXES, "another": BOXES})
    calls: list[tuple[str, int, int]] = []
    found, dropped = import_proposals(
        tmp_path / "all.npz", data, tmp_path / "out", progress=lambda *call: calls.append(call)
    )
    assert (list(found), len(found["train/139"]), dropped) == (["train/139"], 2, 0)
    assert calls == [("import", 1, 3), ("import", 2, 3), ("import", 3, 3)]


def test_what_is_imported_is_what_training_finds(tmp_path: Path, data: DetectionData) -> None:
    np.savez(tmp_path / "a.npz", **{"139": BOXES[1:], "141": BOXES})
    import_proposals(tmp_path / "a.npz", data, tmp_path / "proposals/imported")
    with pytest.raises(UserError, match=r"1 of 3 images cannot be used: .*140\.png: no imported proposals"):
        proposals_of(data, IMPORTED, tmp_path)
    first, last = proposals_of(replace(data, images=data.images[::2]), IMPORTED, tmp_path)
    assert (first.tolist(), len(last)) == ([[2, 3, 20, 10]], 2)
    boxes, made_by = load_proposals(tmp_path / "proposals/imported/train/139.npz")
    assert np.array_equal(boxes, first)
    assert made_by["source"] == "a.npz"


def test_boxes_are_cut_to_the_image(tmp_path: Path, data: DetectionData) -> None:
    boxes = np.array([[-1, -1, 41, 31], [5, 5, 5, 9], [9, 9, 9, 12], [1, 2, 3, 4]])
    np.savez(tmp_path / "all.npz", **{"139": boxes})
    found, dropped = import_proposals(tmp_path / "all.npz", data, tmp_path / "out")
    for each in (found["train/139"], load_proposals(tmp_path / "out/train/139.npz")[0]):
        assert each.tolist() == [[0, 0, 40, 30], [1, 2, 3, 4]]
    assert dropped == 2


@pytest.mark.parametrize("wrong", [[0, 0, 30, 40], [35, 20, 5, 10]], ids=["y before x", "width and height"])
def test_columns_in_the_wrong_order_are_noticed(tmp_path: Path, data: DetectionData, wrong: list[float]) -> None:
    np.savez(tmp_path / "a.npz", **{"139": np.array([wrong, [1, 1, 9, 9]])})
    with pytest.raises(UserError, match=r"'train/139': expected boxes .* 40 x 30 pixels, got 1 of 2 that are not"):
        import_proposals(tmp_path / "a.npz", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_documented_conversions_work(tmp_path: Path) -> None:
    """The lines of `read_boxes`, on files as R-CNN and detectron2 write them: rows 4 to 10, columns 3 to 20, from 1."""
    cells = np.empty((1, 2), object)
    cells[0, :] = [np.array([[4, 3, 10, 20]], np.uint16), np.array([[1, 1, 2, 2]], np.uint16)]
    savemat(tmp_path / "boxes.mat", {"images": np.array([["000005", "7"]], object).T, "boxes": cells})
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps({"ids": [139], "boxes": [BOXES]}))
    examples = [block.split("\n\n")[0] for block in (read_boxes.__doc__ or "").split("::\n\n")[1:]]
    assert len(examples) == 2
    for example, expected in zip(examples, ({"000005": [[2, 3, 20, 10]]}, {"139": BOXES.tolist()}), strict=True):
        code = textwrap.dedent(example).replace('"boxes.', f'"{tmp_path}/boxes.')
        exec(code, {"np": np, "pickle": pickle, "scipy": scipy, "Path": Path})
        found = read_boxes(tmp_path / "boxes.npz")
        assert {name: found[name].tolist() for name in expected} == expected


def _named(name: str, content: bytes = b"") -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _arrays(**arrays: np.ndarray) -> Any:
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
        return folder / "a.npz"

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda folder: folder / "gone.npz", "no such file or folder of proposals"),
        (lambda folder: folder, "no .npz files in this folder"),
        (_named("a.csv"), "expected .npz, got .csv"),
        (_named("a.mat", b"damaged" * 99), "expected .npz, got .mat; help(sppnet.proposals.files.read_boxes) converts"),
        (_named("a.npz", b"damaged"), "not a file of arrays named by image id"),
        (_arrays(a=BOXES[:, :3]), "image 'a': boxes are [2, 3] float32"),
        (_arrays(a=BOXES * np.nan), "expected finite numbers [R, 4]"),
        (_arrays(x=BOXES), "holds none of the 3 images ('train/139'"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(tmp_path: Path, data: DetectionData, write: Any, says: str) -> None:
    folder = tmp_path / "from"
    folder.mkdir()
    source = write(folder)
    with pytest.raises(UserError) as caught:
        import_proposals(source, data, tmp_path / "out")
    assert str(caught.value).startswith(f"{source}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="not a file of arrays"):
        read_boxes(tmp_path / "a.npz")


def test_an_npz_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """A few kilobytes on disk, by its head 2 GB: refused before anything is unpacked."""
    np.savez_compressed(tmp_path / "boxes.npz", a=np.zeros((10**6, 4), np.float32))
    content = bytearray((tmp_path / "boxes.npz").read_bytes())
    assert len(content) < 30_000
    claimed = struct.pack("<I", 2 * 10**9)
    at = content.index(b"PK\x01\x02")  # the archive's list of contents, which says how large each is
    content[at + 24 : at + 28] = claimed
    (tmp_path / "boxes.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"boxes\.npz: .* unpacks to 2\.0 GB, more than 1\.0 GB"):
        read_boxes(tmp_path / "boxes.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_file_of_boxes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "boxes.npz")
    with pytest.raises(UserError, match="no such file or folder of proposals"):
        read_boxes(tmp_path / "boxes.npz")
