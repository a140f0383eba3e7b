"""YOLO folders: boxes read right, every layout found, and whatever is missing or broken named by file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet.data.formats.yolo import label_path
from sppnet.data.formats.yolo import read as read_yolo
from sppnet.data.formats.yolo import recognize as is_yolo
from sppnet.errors import UserError

NAMES = ("cat", "dog")


def write_images(root: Path, labels: dict[str, str | None], exif: Image.Exif | None = None) -> Path:
    """Images of 30 x 40 pixels (height x width) and their label files, by the image's path; None: no label file."""
    for name, text in labels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path, **({} if exif is None else {"exif": exif}))
        if text is not None:
            label_path(path).parent.mkdir(parents=True, exist_ok=True)
            label_path(path).write_text(text)
    return root


def write_flat(root: Path, labels: dict[str, str | None]) -> Path:
    """images/ and labels/, with classes.txt."""
    write_images(root, {f"images/{name}": text for name, text in labels.items()})
    (root / "labels").mkdir(exist_ok=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def test_a_box_worked_by_hand(tmp_path: Path) -> None:
    """Of 40 x 30 pixels: centre (20, 15), sides 10 and 30."""
    root = write_flat(tmp_path, {"b.jpg": "1 0.5 0.5 0.25 1\n\n0 0.05 0.1 0.1 0.2\n", "a.png": None, "c.jpg": " \n"})
    data = read_yolo(root)
    assert [image.image_id for image in data.images] == ["a", "b", "c"]
    assert data.class_names == NAMES
    none, image, blank = data.images
    assert image.gt_boxes.tolist() == [[15, 0, 25, 30], [0, 0, 4, 6]]
    assert image.gt_labels.tolist() == [2, 1]
    assert image.difficult.tolist() == [False, False]
    assert (image.size, image.path) == ((30, 40), root / "images/b.jpg")
    assert none.gt_boxes.shape == blank.gt_boxes.shape == (0, 4)
    assert len(read_yolo(root, limit=2)) == 2
    with pytest.raises(UserError, match="limit"):
        read_yolo(root, limit=0)


def read_line(tmp_path: Path, line: str) -> list[float]:
    """The box of one line, of an image of 40 x 30 pixels."""
    root = write_flat(tmp_path, {})
    write_images(root, {"images/a.jpg": line})
    (box,) = read_yolo(root).images[0].gt_boxes.tolist()
    return [float(side) for side in box]


def test_an_outline_gives_its_bounding_box(tmp_path: Path) -> None:
    assert read_line(tmp_path, "0 0.25 0.5 0.5 0.1 0.75 0.9") == pytest.approx((10, 3, 30, 27))


def test_boxes_lie_on_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    root = write_flat(tmp_path, {})
    write_images(root, {"images/a.jpg": "0 0.5 0.5 1 0.5"}, exif)
    image = read_yolo(root).images[0]
    assert (image.size, image.gt_boxes.tolist()) == ((40, 30), [[0, 10, 30, 30]])


@given(st.floats(0, 39), st.floats(0, 29), st.floats(0.01, 1), st.floats(0.01, 1))
def test_what_is_written_with_six_decimals_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, x0: float, y0: float, right: float, down: float
) -> None:
    x1, y1 = x0 + right * (40 - x0), y0 + down * (30 - y0)
    shares = ((x0 + x1) / 80, (y0 + y1) / 60, (x1 - x0) / 40, (y1 - y0) / 30)
    line = "0 " + " ".join(f"{share:.6f}" for share in shares)
    assert read_line(tmp_path_factory.mktemp("set"), line) == pytest.approx((x0, y0, x1, y1), abs=1e-4)


@pytest.mark.parametrize("layout", ["images/{}/a.jpg", "{}/images/a.jpg"])
def test_splits_as_folders(tmp_path: Path, layout: str) -> None:
    root = write_images(tmp_path, {layout.format(split): "0 0.5 0.5 1 1" for split in ("train", "valid")})
    (root / "classes.txt").write_text("cat\ndog")
    assert is_yolo(root)
    assert [image.image_id for image in read_yolo(root, "val").images] == ["valid/a"]
    assert len(read_yolo(root, "train").images[0].gt_labels) == 1
    with pytest.raises(UserError, match="no such split 'test'; splits there: train, valid"):
        read_yolo(root, "test")


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 2",
        "train: ../images/train\nval: ../images/val\nnames:\n  0: cat\n  1: dog",
        "path: nowhere/on/this/machine\ntrain: [images/train]\nval: val.txt\nnames: [cat, dog]",
        "path: .\ntrain: images/train\nval: val.txt\ntest:\nnames: ['cat', 'dog']",
    ],
)
def test_data_yaml(tmp_path: Path, yaml: str) -> None:
    root = write_images(tmp_path / "set", {f"images/{s}/a.jpg": "1 0.5 0.5 1 1" for s in ("train", "val")})
    (root / "data.yaml").write_text(yaml)
    (root / "val.txt").write_text("images/val/a.jpg\n\n")
    for place in (root, root / "data.yaml"):
        for split in ("train", "val"):
            data = read_yolo(place, split)
            assert data.class_names == NAMES
            assert [image.image_id for image in data.images] == [f"{split}/a"]
            assert data.images[0].gt_labels.tolist() == [2]


def test_labels_beside_the_images_as_darknet_has_them(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images of mine", {"photos/a.jpg": "0 0.5 0.5 1 1"})
    (root / "data.yaml").write_text("train: photos\nnames: [cat]")
    assert read_yolo(root).images[0].gt_labels.tolist() == [1]
    assert read_yolo(root).images[0].image_id == "photos/a"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5 0.5 0 0.1", "box of 'cat' is empty or swapped: '0 0.5 0.5 0 0.1'"),
        ("0 0.5 0.5 0.1 -0.1", "box of 'cat' is empty or swapped"),
        ("0 0.5 nan 0.1 0.1", "not numbers"),
        ("0 0.9 0.5 0.4 0.1", "box of 'cat' is outside the image of 40 x 30 pixels"),
        ("0 1.2 0.5 0.1 0.1", "box of 'cat' is outside"),
        ("0 20 15 10 30", "these look like pixels, expected shares"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is none of the 2 classes; they count from 0"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is none"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is none"),
        ("cat 0.5 0.5 0.1 0.1", "not numbers: 'cat 0.5 0.5 0.1 0.1'; expected class cx cy w h"),
        ("0 0.5 0.5 0.1", "4 numbers: '0 0.5 0.5 0.1'; expected"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    root = write_flat(tmp_path, {"a.jpg": f"0 0.5 0.5 1 1\n\n{line}\n"})
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_yolo(root)
    assert str(caught.value).startswith(f"{root}/labels/a.txt:3: ")
    assert "\n" not in str(caught.value)


def test_no_image_is_taken_twice_or_from_a_hidden_folder(tmp_path: Path) -> None:
    """As where a link leads back to its own folder, and where a program keeps copies of its own."""
    root = write_flat(tmp_path, {"a.jpg": None, "more/b.jpg": None, ".copies/c.jpg": None})
    (root / "images" / "more" / "back").symlink_to(root / "images")
    assert [image.image_id for image in read_yolo(root).images] == ["a", "more/b"]


def test_a_pixel_over_the_edge_is_cut(tmp_path: Path) -> None:
    assert read_line(tmp_path, "0 0.5 0.5 1.04 1") == [0, 0, 40, 30]


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("names: [cat\ntrain: x", "data.yaml:2: not readable as YAML"),
        ("train: images", "not the YAML of a YOLO folder; expected names"),
        ("train: images\nnames: [cat, cat]", "classes 0 and 1 are both called 'cat'"),
        ("train: images\nnames: [cat, '']", "class 1 has no name"),
        ("train: images\nnames: []", "no class names"),
        ("train: images\nnames: 3", "names are not a list of names"),
        ("train: images\nnames: {1: cat, 2: dog}", "expected 0, 1, 2"),
        ("train: images\nnames: [cat]\nnc: 2", "nc is '2', but there are 1 names"),
        ("names: [cat]", "no splits; expected train and val"),
        ("train: gone\nnames: [cat]", "split 'train' lies in"),
        ("train: list.txt\nnames: [cat]", "list.txt:2: no image 'images/gone.jpg'"),
        ("train: empty\nnames: [cat]", "no images in split 'train'; looked in"),
    ],
)
def test_broken_folders(tmp_path: Path, yaml: str, says: str) -> None:
    root = write_images(tmp_path, {"images/a.jpg": ""})
    (root / "empty").mkdir()
    (root / "list.txt").write_text("images/a.jpg\nimages/gone.jpg\n")
    (root / "data.yaml").write_text(yaml)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_yolo(root)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a YOLO folder; expected data"):
        read_yolo(tmp_path)
    root = write_flat(tmp_path, {"a.jpg": "", "a.png": None})
    with pytest.raises(UserError, match=r"it shares its label file with .*/images/a\.(jpg|png); rename one"):
        read_yolo(root)
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match="no class names; expected data"):
        read_yolo(root)
