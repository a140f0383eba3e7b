"""COCO annotations: boxes read right, every layout found, whatever is broken named by file, line and id, in reading and in check."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet.data.check import check_folder
from sppnet.data.formats.coco import read, recognize
from sppnet.errors import DataError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "cat"}]


def box(corners: object = (1, 1, 9, 9), category: object = 1, image: object = 1, **more: object) -> dict[str, Any]:
    bbox = list(corners) if isinstance(corners, tuple) else corners
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def entry(number: object, size: tuple[int, int] | None = (40, 50), name: str | None = None) -> dict[str, Any]:
    stated = {} if size is None else {"height": size[0], "width": size[1]}
    return {"id": number, "file_name": name or f"{number}.png", **stated}


def coco(annotations: list[Any], images: list[Any] | None = None, categories: list[Any] | None = None) -> str:
    """A file of one entry a line: that of the first image is line 3."""
    images = [entry(1)] if images is None else images
    lists = {"images": images, "categories": categories or CATEGORIES, "annotations": annotations}
    parts = (f'"{key}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]" for key, entries in lists.items())
    return '{"info": {"images": ["{"]},\n' + ",\n".join(parts) + "}\n"


def write(root: Path, content: str, split: str = "train", names: tuple[str, ...] = ("1.png",), **options: Any) -> Path:
    """COCO's own folders; images of noise, 40 x 50 pixels (height x width)."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    for index, name in enumerate(names):
        pixels = np.random.default_rng([index, *split.encode()]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / name, **options)
    (root / f"annotations/instances_{split}.json").write_text(content)
    return root


def test_a_box_worked_by_hand(tmp_path: Path) -> None:
    """From x = 2, 4.5 wide: up to, not including, 6.5; labels follow the ids, whatever the order in the file."""
    content = coco([box((2, 3, 4.5, 5), 18), box((2, 3, 4.5, 5), 1, iscrowd=1)], [entry(9), entry(1)])
    data = read(write(tmp_path, content, names=("9.png", "1.png")))
    empty, image = data.images
    assert (data.class_names, data.split) == (("cat", "dog"), "train")
    assert image.gt_boxes.tolist() == [[2, 3, 6.5, 8]] * 2
    assert image.gt_labels.tolist() == [2, 1]
    assert image.difficult.tolist() == [False, True]
    assert (image.gt_boxes.dtype, image.gt_labels.dtype) == (np.float32, np.int64)
    assert (image.image_id, image.size, image.path) == ("train/1", (40, 50), tmp_path / "train/1.png")
    assert empty.gt_boxes.shape == (0, 4)


def test_a_pixel_over_the_edge_is_cut_and_ignore_is_difficult(tmp_path: Path) -> None:
    image = read(write(tmp_path, coco([box((-1, -0.5, 52, 41), ignore=1)]))).images[0]
    assert image.gt_boxes.tolist() == [[0, 0, 50, 40]]
    assert image.difficult.tolist() == [True]


def test_the_limit_takes_the_first_images(tmp_path: Path) -> None:
    content = coco([box((0, 0, 99, 99), image=7), box(image=9)], [entry(9, None), entry(7)])
    (image,) = read(write(tmp_path, content, names=("9.png",)), limit=1).images
    assert (image.image_id, image.size, len(image.gt_labels)) == ("train/9", (40, 50), 1)  # the size from the image


@pytest.mark.parametrize("size", [(10**400, 50), (0, 0)])
def test_a_size_that_cannot_be_is_measured(tmp_path: Path, size: tuple[int, int]) -> None:
    assert read(write(tmp_path, coco([box()], [entry(1, size)]))).images[0].size == (40, 50)


def test_splits_by_their_names(tmp_path: Path) -> None:
    for split in ("train2017", "val2017", "val2014"):
        write(tmp_path, coco([]), split)
    (tmp_path / "annotations/captions_val2017.json").write_text(coco([]))
    (tmp_path / "annotations/notes.json").write_text('{"images": 3}')
    assert read(tmp_path, "train").images[0].image_id == "train2017/1"
    assert read(tmp_path, "val2014").images[0].path == tmp_path / "val2014/1.png"
    with pytest.raises(DataError, match="'val' may be any of val2014, val2017"):
        read(tmp_path, "val")
    with pytest.raises(DataError, match=r"no such split 'test'; splits there: train2017, val2014, val2017$"):
        read(tmp_path, "test")


@pytest.mark.parametrize(
    ("json_path", "image_path", "file_name", "split"),
    [
        ("annotations/instances_val.json", "images/val/a.png", "a.png", "val"),
        ("annotations/train.json", "images/a.png", "a.png", "train"),
        ("valid/_annotations.coco.json", "valid/a.png", "a.png", "val"),
        ("train.json", "a.png", "a.png", "train"),
        ("result.json", "images/a.png", "images\\a.png", "result"),
    ],
)
def test_where_annotations_and_images_may_lie(
    tmp_path: Path, json_path: str, image_path: str, file_name: str, split: str
) -> None:
    for path in (json_path, image_path):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40)).save(tmp_path / image_path)
    (tmp_path / json_path).write_text(coco([box()], [entry(1, name=file_name)]))
    assert recognize(tmp_path)
    assert read(tmp_path, split).images[0].path == tmp_path / image_path
    assert len(read(tmp_path / json_path, "whatever")) == 1
    assert check_folder(tmp_path / json_path).images == 1


def test_a_head_category_of_an_export_is_no_class(tmp_path: Path) -> None:
    head = [{"id": 0, "name": "animals", "supercategory": "none"}]
    below = [{"id": 1, "name": "dog", "supercategory": "animals"}, {"id": 2, "name": "cat", "supercategory": "animals"}]
    root = write(tmp_path, coco([box(category=1)], categories=head + below))
    assert read(root).class_names == ("dog", "cat")
    assert read(write(root, coco([box(category=0)], categories=head + below))).class_names == ("animals", "dog", "cat")


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        (box((5, 5, 0, 3)), "box", "box of 'cat' is empty or swapped: [5, 5, 0, 3]"),
        (box((5, 5, 3, -3)), "box", "box of 'cat' is empty or swapped"),
        (box((5, 5, float("nan"), 3)), "box", "box of 'cat' is empty or swapped"),
        (box((5, 5, 47, 3)), "box", "box of 'cat' is outside the image of 50 x 40 pixels"),
        (box((-2, 5, 3, 3)), "box", "box of 'cat' is outside"),
        (box((-1, 5, 1, 3)), "box", "box of 'cat' is outside"),
        (box((5, 40, 3, 1)), "box", "box of 'cat' is outside"),
        (box((5, 10**400, 3, 1)), "box", "box of 'cat' is outside"),
        (box((5, 5, 3)), "annotation", "bbox is not four numbers [x, y, width, height]: [5, 5, 3]"),
        (box(None), "annotation", "bbox is not four numbers"),
        (box(category=2), "annotation", "category_id 2 is none of the categories; known ids: 1, 18"),
        (box(category=[]), "annotation", "category_id [] is none"),
        (box(iscrowd="yes"), "annotation", "iscrowd (or ignore) is 'yes'; expected 0 or 1"),
        (box(image=8), "image-id", "image_id 8 is none of the 1 images' ids"),
        (box(image={}), "image-id", "image_id {} is none"),
        ("box", "image-id", "image_id None is none"),
    ],
)
def test_a_bad_annotation_is_named_by_file_line_and_id(tmp_path: Path, bad: Any, kind: str, says: str) -> None:
    if isinstance(bad, dict):
        bad["id"] = 42
    root = write(tmp_path, coco([box(id=41), bad]))
    (error,) = check_folder(root).errors
    assert (error.path, error.line, error.kind) == (root / "annotations/instances_train.json", 11, kind)
    name = "annotations[1] (id 42)" if isinstance(bad, dict) else "annotations[1]"
    assert error.message.startswith(f"{name}: {says}")
    assert "\n" not in error.message
    with pytest.raises(DataError) as caught:
        read(root)
    assert str(caught.value) == f"{error.path}:11: {error.message}"


def test_faulty_boxes_can_be_left_out_but_nothing_else(tmp_path: Path) -> None:
    root = write(tmp_path, coco([box((5, 5, 3, 0)), box((50, 50, 3, 3)), box()]))
    assert read(root, drop_faulty=True).images[0].gt_boxes.tolist() == [[1, 1, 10, 10]]
    with pytest.raises(DataError, match="category_id 99"):
        read(write(tmp_path, coco([box(category=99)])), drop_faulty=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"images": [],\n "annotations": [}', ":2: not readable as JSON"),
        ('{"images": [], "annotations": []}', ": not COCO annotations of boxes: no list 'categories' in it"),
        ("[" * 100_000, ": not readable as JSON"),
        (f'{{"images": [{"9" * 5000}], "annotations": [], "categories": []}}', ": not readable as JSON"),
        (coco([], [entry(1, name="b.png")]), ":3: images[0] (id 1): no image 'b.png'; looked in"),
        (coco([], [entry(1), entry(1)]), ":4: images[1] (id 1): the image id 1 is given twice"),
        (coco([], [entry(7.5)]), ":3: images[0] (id 7.5): expected an id and a file_name"),
        (coco([], [7]), ":3: images[0]: expected an id and a file_name, got 7"),
        (coco([], categories=[{"id": 1}]), ":6: categories[0] (id 1): expected an id and a name"),
        (coco([], categories=[CATEGORIES[0]] * 2), ":7: categories[1] (id 18): the id 18 is given twice"),
        (coco([], categories=[{"id": n, "name": "dog"} for n in (1, 2)]), ": two categories are called 'dog'"),
        ('{"images": [], "annotations": [], "categories": []}', ": no categories"),
        (coco([], []), ": no images in it"),
    ],
)
def test_a_broken_file_is_an_error_and_the_others_are_checked(tmp_path: Path, content: str, says: str) -> None:
    write(tmp_path, coco([box()]))
    root = write(tmp_path, content, "val")
    path = root / "annotations/instances_val.json"
    with pytest.raises(DataError, match=re.escape(f"{path}{says}")) as caught:
        read(path, "val")
    assert "\n" not in str(caught.value)
    if recognize(path):
        report = check_folder(root)
        (error,) = report.errors
        assert (error.path, f"{error.path}:{error.line}: {error.message}".replace(":None:", ":")) == (
            path,
            str(caught.value),
        )


def test_no_annotations_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no COCO annotations; expected annotations/instances_"):
        read(tmp_path)
    with pytest.raises(DataError, match="no COCO annotations"):
        check_folder(tmp_path, layout="coco")
    assert not recognize(tmp_path)


@given(st.integers(0, 5), st.sampled_from([None, 1]), st.booleans())
def test_lines_are_right_however_the_file_is_laid_out(
    tmp_path_factory: pytest.TempPathFactory, before: int, indent: int | None, ascii_only: bool
) -> None:
    """The entry that is named is the one that begins on that line."""
    root = tmp_path_factory.getbasetemp() / "lines"
    entries = [box(id=n, note='é"}],[\n') for n in range(before)] + [box(category=5, id=before)]
    content = {"é": {"annotations": [1, 2]}, "annotations": entries, "images": [entry(1)], "categories": CATEGORIES}
    write(root, text := json.dumps(content, indent=indent, ensure_ascii=ascii_only))
    with pytest.raises(DataError, match="category_id 5") as caught:
        read(root)
    assert caught.value.line == text[: text.index(f'"id": {before}')].rsplit("{", 1)[0].count("\n") + 1


def test_a_clean_folder(tmp_path: Path) -> None:
    for split in ("val", "train"):
        write(
            tmp_path,
            coco([box(), box(image=2), box(category=18, image=2)], [entry(1), entry(2)]),
            split,
            ("1.png", "2.png"),
        )
    report = check_folder(tmp_path)
    assert report.findings == ()
    assert (report.layout, report.images) == ("COCO, split into train, val", 4)
    assert dict(report.classes) == {"cat": 4, "dog": 2}
    assert "2 classes of 2 ('dog') to 4 objects" in report.lines()
    assert check_folder(tmp_path / "annotations/instances_val.json").images == 2


def test_annotated_pictures_that_exif_turns_are_a_danger(tmp_path: Path) -> None:
    """Stored 40 x 50, upright 50 x 40: the stated size tells which of them the boxes were drawn on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (error,) = check_folder(write(tmp_path / "stored", coco([box()], [entry(1, (40, 50))]), exif=exif)).errors
    assert (error.kind, error.line) == ("turned-boxes", 3)
    assert "it states 50 x 40 pixels, the image has 40 x 50 once upright" in error.message
    upright = check_folder(write(tmp_path / "upright", coco([box()], [entry(1, (50, 40))]), exif=exif))
    assert [finding.kind for finding in upright.findings] == ["turned-boxes", "turned"]
    assert upright.exit_status == 0
    other = check_folder(write(tmp_path / "other", coco([box()], [entry(1, (80, 100))])))
    assert other.counts()["error"] == {"size": 1}
    unsaid = check_folder(write(tmp_path / "unsaid", coco([box((1, 1, 60, 9))], [entry(1, None)])))
    assert unsaid.counts()["error"] == {"box": 1}


def test_oddities(tmp_path: Path) -> None:
    root = write(tmp_path, coco([box(), box()], [entry(1), entry(2)]), names=("1.png", "2.png"))
    write(root, coco([box()], categories=CATEGORIES[::-1]), "val")
    write(root, coco([box()], [entry(1, name="val/1.png")], [{"id": 1, "name": "cow"}]), "test")
    findings = check_folder(root).findings
    assert [(f.severity, f.kind, f.path.name) for f in findings] == [
        ("error", "classes", "instances_test.json"),
        ("warning", "leak", root.name),
        ("warning", "box-twice", "instances_train.json"),
        ("note", "no-object", root.name),
    ]
    assert "its classes are not those of instances_train.json ('cat', 'cow', 'dog')" in findings[0].message
    assert "1 images of val are in test too" in findings[1].message
    (root / "val/1.png").write_bytes(b"")
    assert "empty" in check_folder(root).counts()["error"]


def test_boxes_as_shares_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, coco([box((0.2, 0.3, 0.4, 0.5))]))
    with pytest.raises(
        DataError,
        match=r"annotations\[0\]: box of 'cat' lies within one pixel: .* shares of the sides\? expected pixels",
    ):
        read(root)
    assert check_folder(root).exit_status == 2
    write(tmp_path, coco([box((0, 0, 1, 1))]))  # a pixel
    assert read(root).images[0].gt_boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("name", ["../secret.png", "/ROOT/secret.png", "train/../../secret.png"])
def test_file_names_that_lead_out(tmp_path: Path, name: str) -> None:
    """Unless the user has given the JSON itself."""
    root = tmp_path / "set"
    Image.new("RGB", (50, 40)).save(tmp_path / "secret.png")
    write(root, coco([], [entry(1, name=name.replace("/ROOT", str(tmp_path)))]))
    with pytest.raises(DataError, match=r"lies outside of .*; move it there, or set SPPNET_OUTSIDE=1 to allow it"):
        read(root)
    assert check_folder(root).exit_status == 2


@pytest.mark.parametrize(
    ("key", "value"), [("bbox", [True, 1, 5, 5]), ("image_id", "1"), ("category_id", 1.5), ("bbox", ["1", 1, 5, 5])]
)
def test_values_of_another_type(tmp_path: Path, key: str, value: object) -> None:
    root = write(tmp_path, coco([box() | {key: value}]))
    with pytest.raises(DataError, match=r"annotations\[0\]"):
        read(root)
    assert check_folder(root).exit_status == 2
