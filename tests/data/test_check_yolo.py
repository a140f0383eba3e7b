"""The check of YOLO folders names every bad line by file and number; what it passes can be read."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check import check_folder
from sppnet.data.formats.yolo import read as read_yolo
from sppnet.errors import UserError


def write(root: Path, labels: dict[str, str | None], exif: Image.Exif | None = None) -> Path:
    """images/ and labels/ with classes.txt; pictures of noise, 40 x 50 pixels."""
    for name, text in labels.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **({} if exif is None else {"exif": exif}))
        label_file = root / "labels" / Path(name).with_suffix(".txt")
        label_file.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label_file.write_text(text)
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def test_a_clean_folder(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": "0 0.5 0.5 1 1\n1 0.5 0.5 0.1 0.1\n", "val/b.jpg": "0 0.5 0.5 1 1\n"})
    report = check_folder(root)
    assert report.findings == ()
    assert (report.layout, report.images) == ("YOLO, split into train, val", 2)
    assert dict(report.classes) == {"cat": 2, "dog": 1}
    assert "2 classes of 1 ('dog') to 2 objects" in report.lines()
    flat = check_folder(write(tmp_path / "flat", {"a.jpg": "0 0.5 0.5 1 1"}))
    assert (flat.findings, flat.layout) == ((), "YOLO, not split")


def test_every_bad_line_is_named_and_the_reader_refuses_each(tmp_path: Path) -> None:
    bad = ["0 0.5 0.5 0 0.1", "0 0.9 0.5 0.9 0.1", "2 0.5 0.5 0.1 0.1", "cat 0.5 0.5 1 1", "0 0.5"]
    root = write(tmp_path, {"a.jpg": "\n".join(["0 0.5 0.5 1 1", *bad]), "b.jpg": bad[0]})
    report = check_folder(root)
    assert [(e.path.name, e.line, e.kind) for e in report.errors] == [
        *(("a.txt", number, "box") for number in range(2, 7)),
        ("b.txt", 1, "box"),
    ]
    assert report.errors[0].message.startswith("box of 'cat' is empty or swapped: '0 0.5 0.5 0 0.1'")
    assert report.exit_status == 2
    for line in bad:
        with pytest.raises(UserError):
            read_yolo(write(tmp_path, {"a.jpg": line}))


def test_lines_of_an_image_that_cannot_be_read_are_judged_all_the_same(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "0 0.5 0.5 1 1\n7 0.5 0.5 1 1"})
    (root / "images/a.jpg").write_bytes(b"")
    assert [(e.path.name, e.line, e.kind) for e in check_folder(root).errors] == [
        ("a.jpg", None, "empty"),
        ("a.txt", 2, "box"),
    ]


def test_oddities(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": "0 0.5 0.5 1 1\n0 0.5 0.5 1 1.0", "train/b.jpg": None, "val/c.jpg": "\n"})
    (root / "labels/train/orphan.txt").write_text("0 0.5 0.5 1 1")
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


def test_annotated_pictures_that_exif_turns_are_a_danger(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    report = check_folder(write(tmp_path, {"a.jpg": "0 0.5 0.5 1 1", "b.jpg": None}, exif))
    (warning,) = report.warnings
    assert (warning.kind, warning.path.name) == ("turned-boxes", "a.txt")


def test_a_yaml_with_parts_that_are_not_there(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": "0 0.5 0.5 1 1"})
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: list.txt\nnames: [cat, dog]\n")
    (root / "list.txt").write_text("images/train/a.jpg\nimages/gone.jpg\n")
    report = check_folder(root)
    assert [(f.severity, f.kind, f.path.name, f.line) for f in report.findings] == [
        ("error", "missing", "data.yaml", None),
        ("warning", "missing", "list.txt", 2),
    ]
    assert check_folder(root / "data.yaml").counts() == report.counts()


def test_what_cannot_be_checked_at_all(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": ""})
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match="no class names"):
        check_folder(root)
