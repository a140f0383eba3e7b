"""The check of COCO annotations names every bad entry by file and line; what it passes can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check import check_folder
from sppnet.data.formats.coco import read as read_coco
from sppnet.errors import UserError

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def box(image: object = 1, corners: tuple[float, ...] = (1, 1, 9, 9), category: object = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(corners)}


def entry(number: int, size: tuple[int, int] | None = (40, 50), name: str | None = None) -> dict[str, Any]:
    stated = {} if size is None else {"height": size[0], "width": size[1]}
    return {"id": number, "file_name": name or f"{number}.png", **stated}


def write(
    root: Path,
    annotations: list[Any],
    images: list[Any] | None = None,
    split: str = "train",
    categories: list[Any] = CATEGORIES,
    **options: Any,
) -> Path:
    """Images "1.png", "2.png" of 40 x 50 pixels; each entry of the lists stands on a line of its own."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    images = [entry(1), entry(2)] if images is None else images
    for number in (1, 2):
        pixels = np.random.default_rng([number, len(split)]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / f"{number}.png", **options)
    lists = {"images": images, "categories": categories, "annotations": annotations}
    text = ",\n".join(f'"{key}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for key, rows in lists.items())
    (root / f"annotations/instances_{split}.json").write_text("{" + text + "}")
    return root


def test_clean_annotations(tmp_path: Path) -> None:
    for split in ("val", "train"):
        write(tmp_path, [box(1), box(2), box(2, category=2)], split=split)
    report = check_folder(tmp_path)
    assert report.findings == ()
    assert (report.layout, report.images) == ("COCO, split into train, val", 4)
    assert dict(report.classes) == {"cat": 4, "dog": 2}
    assert "2 classes of 2 ('dog') to 4 objects" in report.lines()
    assert check_folder(tmp_path / "annotations/instances_val.json").images == 2
    assert check_folder(tmp_path, layout="coco").images == 4


def test_every_bad_entry_is_named_by_line_and_the_reader_refuses_each(tmp_path: Path) -> None:
    bad = [box(1, (9, 9, 0, 1)), box(1, (45, 1, 9, 9)), box(1, category=9), box(8), box(2, (1, 2))]
    root = write(tmp_path, [box(1), *bad, box(2)])
    path = root / "annotations/instances_train.json"
    report = check_folder(root)
    assert [(e.path, e.line, e.kind) for e in report.errors] == [
        (path, 11, "box"),
        (path, 12, "box"),
        (path, 13, "annotation"),
        (path, 14, "image-id"),
        (path, 15, "annotation"),
    ]
    assert report.errors[0].message.startswith("annotations[1]: box of 'cat' is empty or swapped: bbox=[9, 9, 0, 1]")
    assert report.exit_status == 2
    for entry_ in bad:
        with pytest.raises(UserError):
            read_coco(write(tmp_path, [entry_]))


def test_images_that_are_missing_or_listed_twice(tmp_path: Path) -> None:
    root = write(tmp_path, [box(1), box(2), box(3)], [entry(1), entry(2), entry(3), entry(1), {"id": 4}])
    report = check_folder(root)
    assert [(e.line, e.kind) for e in report.errors] == [(4, "missing"), (5, "image-entry"), (6, "image-entry")]
    assert "images[2] (id 3): no image '3.png'; looked in" in report.errors[0].message


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ('{"images": [{\n}', 2, "not readable as JSON"),
        ('{"images": [], "annotations": []}', None, "not COCO annotations of boxes: no list 'categories'"),
        ('{"images": [], "annotations": [],\n"categories": [3]}', 2, "categories[0]: expected an id and a name"),
    ],
)
def test_a_broken_file_is_one_error_and_the_others_are_checked(
    tmp_path: Path, content: str, line: int | None, says: str
) -> None:
    root = write(tmp_path, [box(1), box(2)])
    (root / "annotations/val.json").write_text(content)
    report = check_folder(root)
    (error,) = report.errors
    assert (error.path.name, error.line, report.images) == ("val.json", line, 2)
    assert error.message.startswith(says)


def test_annotated_pictures_that_exif_turns_are_a_danger(tmp_path: Path) -> None:
    """Stored 40 x 50, upright 50 x 40: the stated size tells which of them the boxes were drawn on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = write(tmp_path / "stored", [box(1)], [entry(1, (40, 50))], exif=exif)
    (error,) = check_folder(stored).errors
    assert (error.kind, error.line) == ("turned-boxes", 2)
    assert "it states 50 x 40 pixels, the image has 40 x 50 once upright" in error.message
    upright = check_folder(write(tmp_path / "upright", [box(1)], [entry(1, (50, 40))], exif=exif))
    assert [finding.kind for finding in upright.findings] == ["turned-boxes", "turned"]
    assert upright.exit_status == 0
    other = check_folder(write(tmp_path / "other", [box(1)], [entry(1, (80, 100))]))
    assert other.counts()["error"] == {"size": 1}
    unsaid = check_folder(write(tmp_path / "unsaid", [box(1, (1, 1, 60, 9))], [entry(1, None)]))
    assert unsaid.counts()["error"] == {"box": 1}


def test_other_oddities(tmp_path: Path) -> None:
    root = write(tmp_path, [box(1), box(1)])
    write(root, [box(1), box(2)], split="val", categories=CATEGORIES[::-1])
    write(root, [box(1)], [entry(1, name="../val/1.png")], split="test", categories=[{"id": 1, "name": "cow"}])
    report = check_folder(root)
    assert [(f.severity, f.kind, f.path.name) for f in report.findings] == [
        ("error", "classes", "instances_test.json"),
        ("warning", "leak", "1.png"),
        ("warning", "box-twice", "instances_train.json"),
        ("note", "no-object", root.name),
    ]
    (root / "val/1.png").write_bytes(b"")
    assert "empty" in check_folder(root).counts()["error"]


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no COCO annotations"):
        check_folder(tmp_path, layout="coco")
