"""YOLO folders: boxes read right, every layout found, whatever is broken named by file and line, in reading and in check."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet.data.check import check_folder
from sppnet.data.formats.yolo import label_path, read, recognize
from sppnet.errors import DataError

WHOLE = "0 0.5 0.5 1 1"


def write_images(root: Path, labels: dict[str, str | None], exif: Image.Exif | None = None) -> Path:
    """Images of noise, 40 x 50 pixels (height x width), and their label files, by the image's path; None: no label file."""
    for name, text in labels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **({} if exif is None else {"exif": exif}))
        if text is not None:
            label_path(path).parent.mkdir(parents=True, exist_ok=True)
            label_path(path).write_text(text)
    return root


def write(root: Path, labels: dict[str, str | None], exif: Image.Exif | None = None) -> Path:
    """images/ and labels/, with classes.txt."""
    write_images(root, {f"images/{name}": text for name, text in labels.items()}, exif)
    (root / "labels").mkdir(exist_ok=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def test_a_box_worked_by_hand(tmp_path: Path) -> None:
    """Of 50 x 40 pixels: center (25, 20), sides 12.5 and 40."""
    root = write(tmp_path, {"b.jpg": "1 0.5 0.5 0.25 1\n\n0 0.05 0.1 0.1 0.2\n", "a.png": None, "c.jpg": " \n"})
    data = read(root)
    assert [image.image_id for image in data.images] == ["a", "b", "c"]
    assert data.class_names == ("cat", "dog")
    none, image, blank = data.images
    assert image.gt_boxes.tolist() == [[18.75, 0, 31.25, 40], [0, 0, 5, 8]]
    assert image.gt_labels.tolist() == [2, 1]
    assert image.difficult.tolist() == [False, False]
    assert (image.size, image.path) == ((40, 50), root / "images/b.jpg")
    assert none.gt_boxes.shape == blank.gt_boxes.shape == (0, 4)
    assert len(read(root, limit=2)) == 2


def test_outlines_and_keypoints_give_boxes(tmp_path: Path) -> None:
    """With a kpt_shape in the YAML, what follows the box are keypoints; without, all corners are an outline."""
    root = write(tmp_path, {"a.jpg": "0 0.2 0.5 0.5 0.1 0.8 0.9"})
    assert np.allclose(read(root).images[0].gt_boxes, [[10, 4, 40, 36]])
    (root / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 1\n0 0.5 0.5 0.4 0.4 0 0 0 0 0 0\n")
    (root / "data.yaml").write_text("train: images\nnames: [cat]\nkpt_shape: [2, 3]\n")
    assert np.allclose(read(root).images[0].gt_boxes, [[20, 16, 30, 24], [15, 12, 35, 28]])


def test_boxes_lie_on_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    root = write(tmp_path, {"a.jpg": "0 0.5 0.5 1 0.5", "b.jpg": None}, exif)
    image = read(root).images[0]
    assert (image.size, image.gt_boxes.tolist()) == ((50, 40), [[0, 12.5, 40, 37.5]])
    (warning,) = check_folder(root).warnings
    assert (warning.kind, warning.path.name) == ("turned-boxes", "a.txt")


@given(st.floats(0, 49), st.floats(0, 39), st.floats(0.01, 1), st.floats(0.01, 1))
def test_what_is_written_with_six_decimals_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, x0: float, y0: float, right: float, down: float
) -> None:
    x1, y1 = x0 + right * (50 - x0), y0 + down * (40 - y0)
    shares = ((x0 + x1) / 100, (y0 + y1) / 80, (x1 - x0) / 50, (y1 - y0) / 40)
    root = tmp_path_factory.getbasetemp() / "decimals"
    if not root.exists():
        write(root, {"a.jpg": WHOLE})
    (root / "labels/a.txt").write_text("0 " + " ".join(f"{share:.6f}" for share in shares))
    assert read(root).images[0].gt_boxes.tolist()[0] == pytest.approx((x0, y0, x1, y1), abs=1e-4)


@pytest.mark.parametrize("layout", ["images/{}/a.jpg", "{}/images/a.jpg"])
def test_splits_as_folders(tmp_path: Path, layout: str) -> None:
    root = write_images(tmp_path, {layout.format(split): WHOLE for split in ("train", "valid")})
    (root / "classes.txt").write_text("cat\ndog")
    assert recognize(root)
    assert [image.image_id for image in read(root, "val").images] == ["valid/a"]
    assert len(read(root, "train").images[0].gt_labels) == 1
    assert check_folder(root).layout == "YOLO, split into train, valid"
    with pytest.raises(DataError, match="no such split 'test'; splits there: train, valid"):
        read(root, "test")


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 2",
        "train: ../images/train\nval: ../images/val\nnames:\n  0: cat\n  1: dog\nd: 2001-99-99",
        "path: nowhere/on/this/machine\ntrain: [images/train]\nval: val.txt\nnames: [cat, dog]",
        "path: .\ntrain: images/train\nval: val.txt\ntest:\nnames: ['cat', 'dog']",
    ],
)
def test_data_yaml(tmp_path: Path, yaml: str) -> None:
    root = write_images(tmp_path / "set", {f"images/{split}/a.jpg": "1 0.5 0.5 1 1" for split in ("train", "val")})
    (root / "data.yaml").write_text(yaml)
    (root / "val.txt").write_text("images/val/a.jpg\n\n")
    for place in (root, root / "data.yaml"):
        for split in ("train", "val"):
            data = read(place, split)
            assert data.class_names == ("cat", "dog")
            assert [image.image_id for image in data.images] == [f"{split}/a"]
            assert data.images[0].gt_labels.tolist() == [2]


def test_names_are_as_written(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "3 0.5 0.5 1 1"})
    (root / "data.yaml").write_text("train: images\nnames: [no, 010, 1.10, null]")
    assert read(root).class_names == ("no", "010", "1.10", "null")
    assert dict(check_folder(root).classes) == {"no": 0, "010": 0, "1.10": 0, "null": 1}


def test_labels_beside_the_images_as_darknet_has_them(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images of mine", {"photos/a.jpg": WHOLE})
    (root / "data.yaml").write_text("train: photos\nnames: [cat]")
    (image,) = read(root).images
    assert (image.gt_labels.tolist(), image.image_id) == ([1], "photos/a")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5 0.5 0 0.1", "box of 'cat' is empty or swapped: 0 0.5 0.5 0 0.1"),
        ("1 0.5 0.5 0.1 -0.1", "box of 'dog' is empty or swapped"),
        ("0 0.9 0.5 0.4 0.1", "box of 'cat' is outside the image of 50 x 40 pixels"),
        ("0 1.2 0.5 0.1 0.1", "box of 'cat' is outside"),
        (
            "0 20 15 10 30",
            "box of 'cat' is outside the image of 50 x 40 pixels: 0 20 15 10 30 (pixels? expected shares",
        ),
        ("2 0.5 0.5 0.1 0.1", "class 2 is none of the 2 classes; they count from 0"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is none"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is none"),
        ("cat 0.5 0.5 0.1 0.1", "not numbers: cat 0.5 0.5 0.1 0.1; expected class cx cy w h"),
        ("0 0.5 nan 0.1 0.1", "not numbers: 0 0.5 nan 0.1 0.1"),
        ("0 0.5 0.5 0.1", "4 numbers: 0 0.5 0.5 0.1; expected"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    root = write(tmp_path, {"a.jpg": f"{WHOLE}\n\n{line}\n"})
    (error,) = check_folder(root).errors
    assert (error.path, error.line, error.kind) == (root / "labels/a.txt", 3, "box")
    assert error.message.startswith(says)
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == f"{error.path}:3: {error.message}"
    assert "\n" not in error.message


def test_lines_of_an_image_that_cannot_be_read_are_judged_all_the_same(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": f"{WHOLE}\n7 0.5 0.5 1 1"})
    (root / "images/a.jpg").write_bytes(b"")
    errors = [(error.path.name, error.line, error.kind) for error in check_folder(root).errors]
    assert errors == [("a.jpg", None, "empty"), ("a.txt", 2, "box")]


def test_no_image_is_taken_twice_or_from_a_hidden_folder(tmp_path: Path) -> None:
    """As where a link leads back to its own folder, and where a program keeps copies of its own."""
    root = write(tmp_path, {"a.jpg": None, "more/b.jpg": None, ".copies/c.jpg": None})
    (root / "images" / "more" / "back").symlink_to(root / "images")
    assert [image.image_id for image in read(root).images] == ["a", "more/b"]


def test_a_pixel_over_the_edge_is_cut(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"a.jpg": "0 0.5 0.5 1.03 1"})).images[0].gt_boxes.tolist() == [[0, 0, 50, 40]]


BOMB = "&a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)  # 9^9 names


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
        ("train: images\nnames: [cat]\nnc: 2", "nc is 2, but there are 1 names"),
        (f"train: images\na: {BOMB}names: *i", "names are not a list of names"),
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
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a YOLO folder; expected data"):
        read(tmp_path)
    root = write(tmp_path, {"a.jpg": "", "a.png": None})
    with pytest.raises(DataError, match=r"it shares its label file with .*/images/a\.(jpg|png); rename one"):
        read(root)
    (root / "classes.txt").unlink()
    for refuses in (read, check_folder):
        with pytest.raises(DataError, match="no class names; expected data"):
            refuses(root)


def test_a_clean_folder(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": f"{WHOLE}\n1 0.5 0.5 0.1 0.1\n", "val/b.jpg": WHOLE})
    report = check_folder(root)
    assert report.findings == ()
    assert (report.layout, report.images) == ("YOLO, split into train, val", 2)
    assert dict(report.classes) == {"cat": 2, "dog": 1}
    assert "2 classes of 1 ('dog') to 2 objects" in report.lines()
    flat = check_folder(write(tmp_path / "flat", {"a.jpg": WHOLE}))
    assert (flat.findings, flat.layout) == ((), "YOLO, not split")


def test_oddities(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": f"{WHOLE}\n0 0.5 0.5 1 1.0", "train/b.jpg": None, "val/c.jpg": "\n"})
    (root / "labels/train/orphan.txt").write_text(WHOLE)
    (root / "images/val/d.jpg").write_bytes((root / "images/train/a.jpg").read_bytes())
    (root / "labels/val/d.txt").write_bytes(b"\xff\xfe\xff")
    report = check_folder(root)
    assert [(f.severity, f.kind, f.path.name, f.line) for f in report.findings] == [
        ("error", "annotation", "d.txt", None),
        ("warning", "leak", "d.jpg", None),
        ("warning", "box-twice", "a.txt", 2),
        ("warning", "missing", "orphan.txt", None),
        ("note", "no-object", root.name, None),
    ]


def test_a_yaml_with_parts_that_are_not_there(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": WHOLE})
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: list.txt\nnames: [cat, dog]\n")
    (root / "list.txt").write_text("images/train/a.jpg\nimages/gone.jpg\n")
    report = check_folder(root)
    assert [(f.severity, f.kind, f.path.name, f.line) for f in report.findings] == [
        ("error", "missing", "data.yaml", None),
        ("warning", "missing", "list.txt", 2),
    ]
    assert check_folder(root / "data.yaml").counts() == report.counts()
    with pytest.raises(DataError, match=r"list\.txt:2: no image"):
        read(root, "test")


POSE = "0 .5 .5 .4 .4 .45 .45 1 .5 .5 2 .55 .55 1 0 0 0"


def test_keypoints_are_read_by_kpt_shape_alone(tmp_path: Path) -> None:
    """Without it, what may be keypoints behind a box is refused, rather than read as an outline."""
    root = write(tmp_path, {"a.jpg": POSE})
    with pytest.raises(DataError, match=r"a\.txt:1: may be keypoints after a box, or an outline: .*; write kpt_shape"):
        read(root)
    assert check_folder(root).exit_status == 2
    (root / "data.yaml").write_text("train: images\nkpt_shape: [4, 3]\nnames: [cat, dog]\n")
    expected = pytest.approx([15, 12, 35, 28], abs=1e-4)
    assert read(root).images[0].gt_boxes.tolist()[0] == expected
    (root / "labels/a.txt").write_text("0 .5 .5 .4 .4 .45 .45 .5 .5")  # two points of two numbers
    assert read(root).images[0].gt_boxes.tolist()[0] == expected
    (warning,) = check_folder(root).warnings
    assert "4 numbers after the box, where kpt_shape says 12" in warning.message


@pytest.mark.parametrize("label", ["0 1_0 .5 1 1", "0 0x1 .5 1 1", "0 ١ .5 1 1", "1_0 .5 .5 1 1", "0 1,5 .5 1 1"])
def test_numbers_as_only_python_writes_them(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=r"a\.txt:1: not numbers"):
        read(write(tmp_path, {"a.jpg": label}))


@pytest.mark.parametrize("value", ["../other/images", "/OTHER/images", "list.txt"])
def test_a_data_set_names_no_files_outside_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Unless the user has given the YAML itself, or set the variable."""
    other, root = write(tmp_path / "other", {"a.jpg": WHOLE}), tmp_path / "set"
    root.mkdir()
    (root / "list.txt").write_text(f"{other}/images/a.jpg\n")
    (root / "data.yaml").write_text(f"train: {value.replace('/OTHER', str(other))}\nnames: [cat, dog]\n")
    with pytest.raises(
        DataError, match=r"(data\.yaml|list\.txt:1): .* lies outside of .*; move it there, or set SPPNET_OUTSIDE=1"
    ):
        read(root)
    if value != "list.txt":
        assert len(read(root / "data.yaml")) == 1
    monkeypatch.setenv("SPPNET_OUTSIDE", "1")
    assert len(read(root)) == 1
