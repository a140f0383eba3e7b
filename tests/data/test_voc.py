"""VOC folders: boxes read right to the pixel, and whatever is missing or broken is named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.voc import VOC_CLASSES
from sppnet.data.formats.voc import read as read_voc
from sppnet.errors import UserError


def voc_object(name: str = "cat", box: tuple[object, ...] = (1, 1, 10, 10), extra: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write_voc(root: Path, annotations: dict[str, str], size: tuple[int, int] | None = (30, 40)) -> Path:
    """A VOC folder of one split, "train"; every image has 30 x 40 pixels (height x width)."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    for image_id, objects in annotations.items():
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{image_id}.jpg")
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{stated}{objects}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{image_id}\n" for image_id in annotations))
    return root


def test_a_box_worked_by_hand(tmp_path: Path) -> None:
    """Pixels 3 to 7 (1-based, both included) are five pixels: from 2 up to, not including, 7."""
    root = write_voc(tmp_path, {"a": voc_object("cat", (3, 1, 7, 30)), "b": ""})
    data = read_voc(root)
    first, second = data.images
    assert first.gt_boxes.tolist() == [[2, 0, 7, 30]]
    assert first.gt_boxes.dtype == np.float32
    assert first.gt_labels.tolist() == [1 + VOC_CLASSES.index("cat")]
    assert first.gt_labels.dtype == np.int64
    assert first.difficult.tolist() == [False]
    assert (first.image_id, first.size, first.path.name) == ("a", (30, 40), "a.jpg")
    assert second.gt_boxes.shape == (0, 4)
    assert second.gt_labels.shape == second.difficult.shape == (0,)
    assert data.class_names == VOC_CLASSES
    assert data.split == "train"


def test_the_devkits_classes() -> None:
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_difficult_parts_and_fractions(tmp_path: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    objects = (
        voc_object("person", (2.5, 1, 7, 9), "<difficult>1</difficult>")
        + voc_object("person", (2, 2, 9, 9), head)
        + voc_object("person", (0, 0, 41, 31), "<difficult>0</difficult>")  # a pixel over: cut to the image
    )
    image = read_voc(write_voc(tmp_path, {"a": objects})).images[0]
    assert image.gt_boxes.tolist() == [[1.5, 0, 7, 9], [1, 1, 9, 9], [0, 0, 40, 30]]
    assert image.difficult.tolist() == [True, False, False]


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_a_size_not_stated_is_read_from_the_image(tmp_path: Path, size: tuple[int, int] | None) -> None:
    assert read_voc(write_voc(tmp_path, {"a": ""}, size)).images[0].size == (30, 40)


def test_other_classes_are_those_of_the_whole_folder(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"a": voc_object("zebra"), "b": voc_object("apple")})
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    assert read_voc(root, "val").class_names == read_voc(root, "train").class_names == ("apple", "zebra")
    assert read_voc(root, "val").images[0].gt_labels.tolist() == [2]
    (root / "Annotations/._a.xml").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them on other disks
    assert read_voc(root, "val").class_names == ("apple", "zebra")


def test_limit_takes_the_first_and_keeps_the_labels(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"a": voc_object("cat"), "b": voc_object("unicorn")})
    data = read_voc(root, limit=1)
    assert [image.image_id for image in data.images] == ["a"]
    assert data.class_names == ("cat", "unicorn")
    assert len(read_voc(root, limit=10)) == 2
    with pytest.raises(ValueError, match="limit"):
        read_voc(root, limit=0)


def test_the_folder_above_will_do_if_there_is_one_inside(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", {"a": ""})
    assert len(read_voc(tmp_path)) == 1
    write_voc(tmp_path / "VOC2012", {"a": ""})
    with pytest.raises(UserError, match=r"VOC2007, VOC2012"):
        read_voc(tmp_path)


@pytest.mark.parametrize("part", ["Annotations", "JPEGImages", "ImageSets"])
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    root = write_voc(tmp_path, {"a": ""})
    shutil.rmtree(root / part)
    with pytest.raises(UserError, match=f"{part} missing"):
        read_voc(root)


def test_missing_folders_splits_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_voc(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a VOC folder"):
        read_voc(tmp_path)
    root = write_voc(tmp_path / "VOC", {"a": "", "b": ""})
    with pytest.raises(UserError, match="this is a file"):
        read_voc(root / "ImageSets/Main/train.txt")
    with pytest.raises(UserError, match=r"no such split 'val'; splits there: train$"):
        read_voc(root, "val")
    (root / "JPEGImages/b.jpg").unlink()
    with pytest.raises(UserError, match=r"no image for 'b'.*expected b\.jpg"):
        read_voc(root)
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(UserError, match=r"a\.xml: no such annotation"):
        read_voc(root)


@pytest.mark.parametrize(
    ("content", "says"), [("", "empty"), ("\n \n", "empty"), ("a\na\n", "'a' is listed twice")], ids=str
)
def test_broken_splits(tmp_path: Path, content: str, says: str) -> None:
    root = write_voc(tmp_path, {"a": ""})
    (root / "ImageSets/Main/train.txt").write_text(content)
    with pytest.raises(UserError, match=says):
        read_voc(root)


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        (voc_object("cat", (9, 1, 3, 5)), "'cat' is empty or swapped"),
        (voc_object("cat", (1, 9, 3, 3)), "'cat' is empty or swapped"),
        (voc_object("cat", (1, 1, 42, 5)), "'cat' is outside the image of 40 x 30"),
        (voc_object("cat", (-1, 1, 5, 5)), "'cat' is outside the image"),
        (voc_object("cat", (41, 1, 41, 5)), "'cat' is outside the image"),
        (voc_object("cat", ("nan", 1, 5, 5)), "'cat' is empty or swapped"),
        (voc_object("cat", ("", 1, 5, 5)), "not four numbers: xmin=missing"),
        (voc_object("cat", ("left", 1, 5, 5)), "not four numbers: xmin=left"),
        (voc_object("cat", extra="<difficult>maybe</difficult>"), "'maybe'; expected 0 or 1"),
        (voc_object(""), "no name"),
        ("<object>", "not readable"),
    ],
)
def test_broken_annotations_name_file_and_object(tmp_path: Path, objects: str, says: str) -> None:
    root = write_voc(tmp_path, {"a": objects})
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_voc(root)
    assert str(root / "Annotations/a.xml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lone_pixel_is_a_box(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"a": voc_object("cat", (5, 5, 5, 5))})
    assert read_voc(root).images[0].gt_boxes.tolist() == [[4, 4, 5, 5]]


@pytest.mark.slow
def test_the_real_voc_2007(shared_data: Path) -> None:
    train, val = (read_voc(shared_data / "VOCdevkit", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (2500, 1000)
    assert train.class_names == val.class_names == VOC_CLASSES
    for image in (*train.images, *val.images):
        assert (image.gt_boxes >= 0).all()
        assert (image.gt_boxes[:, 2:] <= image.size[::-1]).all()
        assert (image.gt_boxes[:, :2] < image.gt_boxes[:, 2:]).all()
