"""VOC folders: boxes read right to the pixel, whatever is missing or broken named by file and line, in reading and in check."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check import check_folder
from sppnet.data.formats.voc import VOC_CLASSES, read
from sppnet.errors import DataError, UserError


def box(name: str = "cat", corners: tuple[object, ...] = (1, 1, 10, 10), more: str = "") -> str:
    """One object, on four lines."""
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"  <object>{more}\n    <name>{name}</name>\n    <bndbox>{sides}</bndbox>\n  </object>\n"


def write(
    root: Path, annotations: dict[str, str], stated: tuple[int, int] | None = (40, 50), exif: Image.Exif | None = None
) -> Path:
    """A VOC folder of one split, "train"; images of noise, 40 x 50 pixels (height x width); objects begin on line 3."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    size = f"  <size><width>{stated[1]}</width><height>{stated[0]}</height></size>" if stated else ""
    for image_id, objects in annotations.items():
        pixels = np.random.default_rng(zlib.crc32(image_id.encode())).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", **({"exif": exif} if exif else {}))
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>\n{size}\n{objects}</annotation>\n")
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{image_id}\n" for image_id in annotations))
    return root


def test_a_box_worked_by_hand(tmp_path: Path) -> None:
    """Pixels 3 to 7 (1-based, both included) are five pixels: from 2 up to, not including, 7."""
    root = write(tmp_path, {"a": box("cat", (3, 1, 7, 30)), "b": ""})
    data = read(root)
    first, second = data.images
    assert first.gt_boxes.tolist() == [[2, 0, 7, 30]]
    assert first.gt_labels.tolist() == [1 + VOC_CLASSES.index("cat")]
    assert (first.gt_boxes.dtype, first.gt_labels.dtype) == (np.float32, np.int64)
    assert first.difficult.tolist() == [False]
    assert (first.image_id, first.size, first.path.name) == ("a", (40, 50), "a.jpg")
    assert second.gt_boxes.shape == (0, 4)
    assert second.gt_labels.shape == second.difficult.shape == (0,)
    assert (data.class_names, data.split) == (VOC_CLASSES, "train")
    assert list(VOC_CLASSES) == sorted(set(VOC_CLASSES))
    assert len(VOC_CLASSES) == 20


def test_difficult_parts_fractions_and_lone_pixels(tmp_path: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    objects = (
        box("person", (2.5, 1, 7, 9), "<difficult>1</difficult>")
        + box("person", (2, 2, 9, 9), head)
        + box("person", (0, 0, 51, 41), "<difficult>0</difficult>")  # a pixel over: cut to the image
        + box("person", (5, 5, 5, 5))
    )
    image = read(write(tmp_path, {"a": objects})).images[0]
    assert image.gt_boxes.tolist() == [[1.5, 0, 7, 9], [1, 1, 9, 9], [0, 0, 50, 40], [4, 4, 5, 5]]
    assert image.difficult.tolist() == [True, False, False, False]


@pytest.mark.parametrize("size", [None, (0, 0), (10**400, 5)])
def test_a_size_not_stated_is_read_from_the_image(tmp_path: Path, size: tuple[int, int] | None) -> None:
    assert read(write(tmp_path, {"a": box()}, size)).images[0].size == (40, 50)


@pytest.mark.parametrize("tag", ['annotation xmlns="urn:voc"', 'v:annotation xmlns:v="urn:voc"'])
def test_tags_in_a_namespace_are_read(tmp_path: Path, tag: str) -> None:
    root = write(tmp_path, {"a": box(), "b": box("dog")})
    path = root / "Annotations/a.xml"
    prefix = "v:" if ":annotation" in tag else ""
    text = re.sub(r"<(/?)(\w)", rf"<\1{prefix}\2", path.read_text())
    path.write_text(text.replace(f"<{prefix}annotation", f"<{tag}", 1))
    assert read(root).images[0].gt_boxes.tolist() == [[0, 0, 10, 10]]
    assert dict(check_folder(root).classes) == {"cat": 1, "dog": 1}


def test_other_classes_are_those_of_the_whole_folder(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": box("zebra"), "b": box("apple")})
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    assert read(root, "val").class_names == read(root, "train").class_names == ("apple", "zebra")
    assert read(root, "val").images[0].gt_labels.tolist() == [2]


def test_what_macos_leaves_on_other_disks_is_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": box("zebra"), "b": box("apple")})
    for name in ("Annotations/._a.xml", "JPEGImages/._a.jpg", "ImageSets/Main/._train.txt"):
        (root / name).write_bytes(b"\x00\x05\x16\x07")
    assert check_folder(root).findings == ()
    assert read(root).class_names == ("apple", "zebra")


def test_limit_takes_the_first_and_keeps_the_labels(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": box("cat"), "b": box("unicorn", (9, 9, 1, 1))})
    data = read(root, limit=1)
    assert [image.image_id for image in data.images] == ["a"]
    assert data.class_names == ("cat", "unicorn")
    with pytest.raises(DataError, match="empty or swapped"):
        read(root, limit=2)


def test_the_folder_above_will_do_if_there_is_one_inside(tmp_path: Path) -> None:
    write(tmp_path / "VOC2007", {"a": box() + box("dog"), "b": box()})
    assert len(read(tmp_path)) == 2
    report = check_folder(tmp_path)
    assert report.findings == ()
    assert (report.layout, report.images, dict(report.classes)) == ("VOC, split into train", 2, {"cat": 2, "dog": 1})
    write(tmp_path / "VOC2012", {"a": ""})
    with pytest.raises(DataError, match=r"VOC2007, VOC2012"):
        read(tmp_path)


@pytest.mark.parametrize("part", ["Annotations", "JPEGImages", "ImageSets"])
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    root = write(tmp_path, {"a": ""})
    shutil.rmtree(root / part)
    with pytest.raises(DataError, match=f"{part} missing"):
        read(root)
    with pytest.raises(DataError, match=f"{part} missing"):
        check_folder(root, layout="voc")


def test_missing_folders_splits_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a VOC folder"):
        read(tmp_path)
    root = write(tmp_path / "VOC", {"a": "", "b": ""})
    with pytest.raises(DataError, match="this is a file"):
        read(root / "ImageSets/Main/train.txt")
    with pytest.raises(DataError, match=r"ImageSets/Main: no such split 'val'; splits there: train$"):
        read(root, "val")
    (root / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match=r"train\.txt:2: no image for 'b'.*expected b\.jpg"):
        read(root)
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(
        DataError, match=r"train\.txt:1: no annotation a\.xml .*\(and 1 more: `sppnet check` names each"
    ):
        read(root)


@pytest.mark.parametrize(
    ("content", "says"), [("", "empty"), ("\n \n", "empty"), ("a\na\n", ":2: 'a' is listed twice")], ids=str
)
def test_broken_splits(tmp_path: Path, content: str, says: str) -> None:
    root = write(tmp_path, {"a": ""})
    (root / "ImageSets/Main/train.txt").write_text(content)
    with pytest.raises(DataError, match=says):
        read(root)
    assert check_folder(root).counts()["error"] == {"list": 1}


@pytest.mark.parametrize(
    ("objects", "line", "says"),
    [
        (box(corners=(9, 1, 3, 5)), 5, "box of 'cat' is empty or swapped: xmin=9 ymin=1 xmax=3 ymax=5"),
        (box() + box("dog", (1, 9, 3, 3)), 9, "box of 'dog' is empty or swapped"),
        (box(corners=("nan", 1, 5, 5)), 5, "box of 'cat' is not four numbers: xmin=nan"),
        (box(corners=(1, 1, 52, 5)), 5, "box of 'cat' is outside the image of 50 x 40 pixels: xmin=1"),
        (box(corners=(-1, 1, 5, 5)), 5, "box of 'cat' is outside the image"),
        (box(corners=(51, 1, 51, 5)), 5, "box of 'cat' is outside the image"),
        (box(corners=("", 1, 5, 5)), 5, "box of 'cat' is not four numbers: xmin=missing"),
        (box(corners=("left", 1, 5, 5)), 5, "box of 'cat' is not four numbers: xmin=left"),
        (box(more="<difficult>maybe</difficult>"), 5, "difficult of 'cat' is 'maybe'; expected 0 or 1"),
        (box("", (1, 1, 2, 2)), 5, "an object has no name"),
        ("  <object>\n", 4, "not readable as a VOC annotation: mismatched tag"),
    ],
)
def test_a_bad_object_is_named_by_file_and_line(tmp_path: Path, objects: str, line: int, says: str) -> None:
    root = write(tmp_path, {"a": objects, "b": box()})
    (error,) = check_folder(root).errors
    assert (error.path, error.line) == (root / "Annotations/a.xml", line)
    assert error.message.startswith(says)
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == f"{error.path}:{line}: {error.message}"
    assert "\n" not in error.message


def test_every_bad_box_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {name: box(corners=(9, 1, 3, 5)) * 3 for name in "abc"})
    lines = [(error.path.stem, error.line) for error in check_folder(root).errors]
    assert lines == [(name, line) for name in "abc" for line in (5, 9, 13)]
    with pytest.raises(DataError, match=r"and 8 more"):
        read(root)


def test_lists_are_checked_line_by_line(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": box(), "b": box(), "c": box(), "d": box()})
    lists = root / "ImageSets/Main"
    (lists / "train.txt").write_text("a\nb\n\nb\nghost\n")
    (lists / "val.txt").write_text("b\nc\n")
    (lists / "test.txt").write_text("\n")
    (lists / "cat_train.txt").write_text("a  1\nb -1\n")  # the devkit's: one class, not a list of images
    (root / "Annotations/c.xml").unlink()
    (root / "JPEGImages/d.jpg").unlink()
    report = check_folder(root)
    found = [(finding.path.name, finding.line, f"{finding.severity} {finding.kind}") for finding in report.findings]
    assert set(found) == {
        ("train.txt", 4, "error list"),
        ("train.txt", 5, "error missing"),  # the image, and the annotation
        ("val.txt", 2, "error missing"),
        ("test.txt", None, "error list"),
        ("d.xml", 2, "warning missing"),
        ("Annotations", None, "warning leak"),
        ("Annotations", None, "note no-object"),
    }
    assert report.layout == "VOC, split into train, test, val"


def test_images_without_annotation_that_no_list_names(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": box()})
    Image.new("RGB", (40, 40)).save(root / "JPEGImages/b.jpg")
    (note,) = check_folder(root).findings
    assert (note.severity, note.kind) == ("note", "unannotated")


def test_annotated_pictures_that_exif_turns_are_a_danger(tmp_path: Path) -> None:
    """Stored 40 x 50, upright 50 x 40: the stated size tells which of them the boxes were drawn on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = write(tmp_path / "stored", {"a": box()}, (40, 50), exif)
    (error,) = check_folder(stored).errors
    assert (error.kind, error.path.name, error.line) == ("turned-boxes", "a.xml", 2)
    assert error.message.startswith("it states 50 x 40 pixels, the image has 40 x 50 once upright")
    report = check_folder(write(tmp_path / "upright", {"a": box()}, (50, 40), exif))
    assert [finding.kind for finding in report.warnings] == ["turned-boxes"]
    assert report.exit_status == 0
    other = write(tmp_path / "other", {"a": box()}, (80, 100))
    assert check_folder(other).counts()["error"] == {"size": 1}


def test_class_names_that_look_like_slips(tmp_path: Path) -> None:
    root = write(tmp_path / "voc", {"a": box() + box("persn"), "b": box("person")})
    (warning,) = check_folder(root).warnings
    assert (warning.path.name, warning.line) == ("a.xml", 8)
    assert warning.message.startswith("'persn' is none of VOC's 20 classes (1 such objects)")
    assert warning.message.endswith("is it 'person'?")
    own = write(tmp_path / "own", {"a": box("zebra") * 10 + box("Zebra") + box("apple"), "b": box("yak")})
    messages = [warning.message for warning in check_folder(own).warnings if warning.kind == "class-name"]
    assert messages == ["'Zebra' stands here only once; is it 'zebra'?"]


def test_oddities_of_boxes_and_bad_images(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": box() * 2, "b": box("dog", (0, 0, 9, 9)), "c": "", "d": box(), "e": box()})
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\nd\n")
    (root / "ImageSets/Main/val.txt").write_text("e\n")
    (root / "JPEGImages/e.jpg").write_bytes((root / "JPEGImages/a.jpg").read_bytes())
    (root / "JPEGImages/d.jpg").write_bytes(b"")
    found = [(str(f.path.relative_to(root)), f.line, f.severity, f.kind) for f in check_folder(root).findings]
    assert sorted(found, key=str) == [
        ("Annotations", None, "note", "from-zero"),
        ("Annotations", None, "note", "no-object"),
        ("Annotations/a.xml", 9, "warning", "box-twice"),
        ("JPEGImages/d.jpg", None, "error", "empty"),
        ("JPEGImages/e.jpg", None, "warning", "leak"),
    ]


def test_the_made_up_voc_folder_is_clean(tiny_voc_original: Path) -> None:
    report = check_folder(tiny_voc_original)
    assert (report.errors, report.warnings) == ((), ())
    assert report.layout == "VOC, split into train, trainval, val"


@pytest.mark.slow
def test_the_real_voc_2007(shared_data: Path) -> None:
    report = check_folder(shared_data / "VOCdevkit")
    assert report.errors == ()
    assert (report.images, len(report.sizes)) == (3500, 3500)
    train, val = (read(shared_data / "VOCdevkit", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (2500, 1000)
    assert train.class_names == val.class_names == VOC_CLASSES
    for image in (*train.images, *val.images):
        assert (image.gt_boxes >= 0).all()
        assert (image.gt_boxes[:, 2:] <= image.size[::-1]).all()
        assert (image.gt_boxes[:, :2] < image.gt_boxes[:, 2:]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: re.sub(r"(</?)(\w)", lambda m: m[1] + m[2].upper(), text),  # <Annotation><Object><Bndbox> ...
        lambda text: text.upper().replace("CAT", "cat"),
        lambda text: f"<?xml version='1.0'?><root>{text}</root>",
        lambda text: text.replace("<object>", "<objects><object>").replace("</object>", "</object></objects>"),
        lambda text: text.replace("<annotation>", "<v:annotation xmlns:v='http://voc'>").replace("</annotation>", "</v:annotation>"),
    ],
)  # fmt: skip
def test_other_spellings_of_the_tags_are_read(tmp_path: Path, change: Callable[[str], str]) -> None:
    root = write(tmp_path, {"a": box()})
    path = root / "Annotations/a.xml"
    path.write_text(change(path.read_text()))
    assert read(root).images[0].gt_boxes.tolist() == [[0, 0, 10, 10]]
    assert check_folder(root).classes["cat"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: f"<!DOCTYPE a [<!ENTITY cat 'cat'>]>{text}", "declares entities"),
        (lambda text: f"<all>{text}{text}</all>", "holds 2 annotations; expected a file for each image"),
        (lambda text: text.replace(">10<", ">1_0<"), "box of 'cat' is not four numbers: xmin=1 ymin=1 xmax=1_0"),
        (lambda text: re.sub(r"min>1<", "min>0.2<", text).replace(">10<", ">0.7<"), "within one pixel: .* shares of the sides"),
        (lambda text: "<a>" * 50_000 + text, "not readable as a VOC annotation"),
    ],
)  # fmt: skip
def test_what_is_not_meant_so_is_refused(tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    root = write(tmp_path, {"a": box()})
    path = root / "Annotations/a.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=rf"a\.xml.*{says}"):
        read(root)
    assert check_folder(root).exit_status == 2


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "x" * 5000, "a\0b", "sub/a"])
def test_names_in_a_list_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "set", {"a": box()})
    (tmp_path / "secret.xml").write_text((root / "Annotations/a.xml").read_text())
    (root / "ImageSets/Main/train.txt").write_text(f"a\n{name}\n")
    with pytest.raises(DataError, match=r"train\.txt:2") as caught:
        read(root)
    assert len(str(caught.value)) < 1000
    assert check_folder(root).exit_status == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["Annotations/a.xml", "ImageSets/Main/train.txt", "JPEGImages/a.jpg"])
def test_a_pipe_in_place_of_a_file(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, {"a": box()}, stated=None)
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(UserError, match=r"not a regular file|no annotation"):
        read(root)
    assert check_folder(root).exit_status == 2
