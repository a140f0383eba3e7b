"""Boxes made elsewhere come in right to the pixel, for the right images, and what cannot be is said."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.errors import UserError
from sppnet.proposals.compute import IMPORTED, proposals_for
from sppnet.proposals.files import load_proposals, save_proposals
from sppnet.proposals.importers import import_proposals, read_boxes, read_rcnn_mat

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


def write_mat(path: Path, names: list[str], boxes: list[np.ndarray], **more: Any) -> Path:
    cells, texts = np.empty((1, len(boxes)), object), np.empty((len(names), 1), object)
    for index, of_image in enumerate(boxes):
        cells[0, index] = of_image
    texts[:, 0] = names
    savemat(path, {"images": texts, "boxes": cells, **more})
    return path


def write_pickle(path: Path, **changes: Any) -> Path:
    content = {
        "ids": [139, 141],
        "boxes": [BOXES, BOXES[:1]],
        "objectness_logits": [np.array([-1.0, 2.0], np.float32), np.array([0.0])],
        "bbox_mode": 0,
    }
    content = {key: value for key, value in (content | changes).items() if value is not None}
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("dtype", [np.float64, np.uint16])
def test_rcnns_mat_worked_by_hand(tmp_path: Path, dtype: Any) -> None:
    """y0 x0 y1 x1 from 1, the last pixel included: rows 4 to 10, columns 3 to 20."""
    mat = write_mat(tmp_path / "a.mat", ["000005", "7"], [np.array([[4, 3, 10, 20]], dtype), np.empty((0, 4), dtype)])
    found = read_boxes(mat)
    assert found["000005"].tolist() == [[2, 3, 20, 10]]
    assert found["000005"].dtype == np.float32
    assert found["7"].shape == (0, 4)
    assert read_boxes(mat, order="xyxy")["000005"].tolist() == [[3, 2, 10, 20]]
    with pytest.raises(ValueError, match="order"):
        read_rcnn_mat(mat, "xywh")  # type: ignore[arg-type]


def test_detectron2s_pickle_worked_by_hand(tmp_path: Path) -> None:
    found = read_boxes(write_pickle(tmp_path / "a.pkl"))
    assert list(found) == ["139", "141"]
    assert found["139"].tolist() == [[2, 3, 20, 10], [0, 0, 40, 30]]  # the better one first
    sides = read_boxes(write_pickle(tmp_path / "a.pkl", bbox_mode=1))
    assert sides["139"].tolist() == [[2, 3, 22, 13], [0, 0, 40, 30]]
    older = {"ids": None, "objectness_logits": None, "bbox_mode": None}
    old = write_pickle(tmp_path / "a.pkl", **older, indexes=np.array([5]), boxes=[BOXES], scores=[np.array([2, 1])])
    assert read_boxes(old)["5"].tolist() == BOXES.tolist()


def test_a_box_mode_that_is_detectron2s_own_type(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pkl", bbox_mode=None)
    content = pickle.dumps(pickle.loads(path.read_bytes()), protocol=0)
    path.write_bytes(content[:-1] + b"S'bbox_mode'\ncdetectron2.structures.boxes\nBoxMode\n(I1\ntRs.")
    assert read_boxes(path)["139"].tolist() == [[2, 3, 22, 13], [0, 0, 40, 30]]


def test_an_evil_pickle_runs_nothing(tmp_path: Path, data: DetectionData) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "mark"),)

    with pytest.raises(UserError, match=r"refused: it asks for posix\.mkdir"):
        import_proposals(write_pickle(tmp_path / "a.pkl", boxes=[Evil()]), data, tmp_path / "out")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "out").exists()


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
    calls: list[tuple[int, int]] = []
    found = import_proposals(tmp_path / "all.npz", data, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert list(found.files) == ["train/139"]
    assert (found.missing, found.unused, found.boxes, found.dropped) == (("train/140", "train/141"), 1, 2, 0)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_what_is_imported_is_what_training_finds(tmp_path: Path, data: DetectionData) -> None:
    source = write_pickle(tmp_path / "a.pkl")
    import_proposals(source, data, tmp_path / "out", most=1)
    paths, errors = proposals_for([(i.image_id, i.path) for i in data.images], tmp_path / "out", IMPORTED)
    assert list(paths) == ["train/139", "train/141"]
    assert list(errors) == ["train/140"]
    boxes, made_by = load_proposals(paths["train/139"])
    assert boxes.tolist() == [[2, 3, 20, 10]]
    assert made_by["source"] == "a.pkl"
    with pytest.raises(ValueError, match="most"):
        import_proposals(source, data, tmp_path / "out", most=0)


def test_boxes_are_cut_to_the_image(tmp_path: Path, data: DetectionData) -> None:
    boxes = np.array([[-1, -1, 41, 31], [5, 5, 5, 9], [9, 9, 5, 12], [1, 2, 3, 4]])
    np.savez(tmp_path / "all.npz", **{"139": boxes})
    found = import_proposals(tmp_path / "all.npz", data, tmp_path / "out")
    assert load_proposals(found.files["train/139"])[0].tolist() == [[0, 0, 40, 30], [1, 2, 3, 4]]
    assert (found.boxes, found.dropped) == (2, 2)


def test_corners_in_the_wrong_order_are_noticed(tmp_path: Path, data: DetectionData) -> None:
    mat = write_mat(tmp_path / "a.mat", ["139"], [np.array([[1, 1, 40, 30], [1, 1, 9, 9]])])
    with pytest.raises(
        UserError, match=r"1 of 2 boxes of 'train/139' lie outside its 40 x 30 pixels.*order of corners"
    ):
        import_proposals(mat, data, tmp_path / "out")
    assert len(import_proposals(mat, data, tmp_path / "out", order="xyxy").files) == 1


def _named(name: str, content: bytes = b"") -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda folder: folder / "gone.npz", "no such file or folder of proposals"),
        (lambda folder: folder, "no .npz files in this folder"),
        (_named("a.csv"), "expected .npz, .mat or .pkl"),
        (_named("a.npz", b"damaged"), "not a file of arrays named by image id"),
        (_named("a.mat", b"damaged" * 99), "not readable as a .mat file"),
        (_named("a.pkl", b"damaged"), "not a pickle of plain data"),
        (_named("a.pkl", pickle.dumps([1])), "no list ids and no list boxes and no list objectness_logits"),
        (lambda folder: write_mat(folder / "a.mat", ["a", "b"], [BOXES]), "2 images but boxes of 1"),
        (lambda folder: write_mat(folder / "a.mat", ["a"], [BOXES[:, :3]]), "image 'a': boxes are [2, 3] float32"),
        (lambda folder: write_pickle(folder / "a.pkl", ids=[1]), "1 ids, 2 boxes, 2 objectness_logits"),
        (lambda folder: write_pickle(folder / "a.pkl", bbox_mode=4), "bbox_mode is 4; expected 0"),
        (lambda folder: write_pickle(folder / "a.pkl", bbox_mode=[]), "bbox_mode is []; expected 0"),
        (lambda folder: write_pickle(folder / "a.pkl", objectness_logits=[[1], [1]]), "2 boxes, but objectness_logits"),
        (lambda folder: write_pickle(folder / "a.pkl", boxes=[BOXES * np.nan, BOXES]), "expected finite numbers [R, 4]"),
        (lambda folder: write_pickle(folder / "a.pkl", ids=["x", "y"]), "holds none of the 3 images ('train/139'"),
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
