"""COCO annotations: boxes read right, every layout found, and whatever is missing or broken named by file and line."""

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

from sppnet.data.formats.coco import _annotation_files as annotation_files
from sppnet.data.formats.coco import read as read_coco
from sppnet.data.formats.coco import recognize as is_coco
from sppnet.errors import UserError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]


def annotation(
    box: object = (2, 3, 4.5, 5), category: object = 18, image: object = 7, **more: object
) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(box) if isinstance(box, tuple) else box, **more}


def coco(annotations: list[Any], images: list[Any] | None = None, categories: list[Any] | None = None) -> str:
    """A file of one entry a line."""
    images = images or [{"id": 7, "file_name": "a.png", "height": 30, "width": 40}]
    lists = {"images": images, "categories": categories or CATEGORIES, "annotations": annotations}
    parts = (f'"{key}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]" for key, entries in lists.items())
    return '{"info": {"images": ["{"]},\n' + ",\n".join(parts) + "}\n"


def write_coco(root: Path, content: str, names: tuple[str, ...] = ("a.png",), split: str = "train") -> Path:
    """COCO's own folders; every image has 30 x 40 pixels (height x width)."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(root / split / name)
    (root / f"annotations/instances_{split}.json").write_text(content)
    return root


def test_a_box_worked_by_hand(tmp_path: Path) -> None:
    """From x = 2, 4.5 wide: up to, not including, 6.5; labels follow the ids, whatever the order in the file."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (9, 7)]
    root = write_coco(tmp_path, coco([annotation(), annotation(category=1, iscrowd=1)], images), ("9.png", "7.png"))
    data = read_coco(root)
    empty, image = data.images
    assert data.class_names == ("person", "dog")
    assert data.split == "train"
    assert image.gt_boxes.tolist() == [[2, 3, 6.5, 8]] * 2
    assert image.gt_labels.tolist() == [2, 1]
    assert image.difficult.tolist() == [False, True]
    assert (image.gt_boxes.dtype, image.gt_labels.dtype) == (np.float32, np.int64)
    assert (image.image_id, image.size, image.path) == ("train/7", (30, 40), root / "train/7.png")
    assert empty.gt_boxes.shape == (0, 4)


def test_a_pixel_over_the_edge_is_cut_and_ignore_is_difficult(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco([annotation((-1, -0.5, 42, 31), ignore=1)]))
    image = read_coco(root).images[0]
    assert image.gt_boxes.tolist() == [[0, 0, 40, 30]]
    assert image.difficult.tolist() == [True]


def test_the_limit_takes_the_first_images(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in (9, 7)]
    root = write_coco(tmp_path, coco([annotation((0, 0, 99, 99), image=7), annotation(image=9)], images), ("9.png",))
    (image,) = read_coco(root, limit=1).images
    assert (image.image_id, image.size, len(image.gt_labels)) == ("train/9", (30, 40), 1)  # the size from the image
    with pytest.raises(UserError, match="limit"):
        read_coco(root, limit=0)


def test_splits_by_their_names(tmp_path: Path) -> None:
    for split in ("train2017", "val2017", "val2014"):
        write_coco(tmp_path, coco([]), split=split)
    (tmp_path / "annotations/captions_val2017.json").write_text(coco([]))
    (tmp_path / "annotations/notes.json").write_text('{"images": 3}')
    assert list(annotation_files(tmp_path)) == ["train2017", "val2014", "val2017"]
    assert read_coco(tmp_path, "train").images[0].image_id == "train2017/7"
    assert read_coco(tmp_path, "val2014").images[0].path == tmp_path / "val2014/a.png"
    with pytest.raises(UserError, match="'val' may be any of val2014, val2017"):
        read_coco(tmp_path, "val")
    with pytest.raises(UserError, match="no such split 'test'; splits there: train2017, val2014, val2017"):
        read_coco(tmp_path, "test")


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
    Image.new("RGB", (40, 30)).save(tmp_path / image_path)
    (tmp_path / json_path).write_text(coco([annotation()], [{"id": 7, "file_name": file_name}]))
    assert is_coco(tmp_path)
    assert read_coco(tmp_path, split).images[0].path == tmp_path / image_path
    assert len(read_coco(tmp_path / json_path, "whatever")) == 1


def test_a_head_category_of_an_export_is_no_class(tmp_path: Path) -> None:
    head = [{"id": 0, "name": "animals", "supercategory": "none"}]
    below = [{"id": 1, "name": "dog", "supercategory": "animals"}, {"id": 2, "name": "cat", "supercategory": "animals"}]
    root = write_coco(tmp_path, coco([annotation(category=1)], categories=head + below))
    assert read_coco(root).class_names == ("dog", "cat")
    write_coco(tmp_path, coco([annotation(category=0)], categories=head + below))
    assert read_coco(root).class_names == ("animals", "dog", "cat")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (annotation((5, 5, 0, 3)), "box of 'dog' is empty or swapped: bbox=[5, 5, 0, 3]"),
        (annotation((5, 5, 3, -3)), "box of 'dog' is empty or swapped"),
        (annotation((5, 5, float("nan"), 3)), "box of 'dog' is empty or swapped"),
        (annotation((5, 5, 37, 3)), "box of 'dog' is outside the image of 40 x 30 pixels"),
        (annotation((-2, 5, 3, 3)), "box of 'dog' is outside"),
        (annotation((-1, 5, 1, 3)), "box of 'dog' is outside"),
        (annotation((5, 30, 3, 1)), "box of 'dog' is outside"),
        (annotation((5, 10**400, 3, 1)), "box of 'dog' is outside"),
        (annotation((5, 5, 3)), "not four numbers [x, y, width, height]: [5, 5, 3]"),
        (annotation(None), "not four numbers"),
        (annotation(category=2), "category_id 2 is none of the categories; known ids: 1, 18"),
        (annotation(category=[]), "category_id [] is none"),
        (annotation(image=8), "image_id 8 is none of the 1 images' ids"),
        (annotation(image={}), "image_id {} is none"),
        (annotation(iscrowd="yes"), "iscrowd (or ignore) is 'yes'; expected 0 or 1"),
        ("box", "expected an object"),
    ],
)
def test_a_bad_annotation_is_named_by_file_line_and_id(tmp_path: Path, entry: Any, says: str) -> None:
    if isinstance(entry, dict):
        entry["id"] = 42
    root = write_coco(tmp_path, coco([annotation(id=41), entry]))
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_coco(root)
    name = "annotations[1] (id 42)" if isinstance(entry, dict) else "annotations[1]"
    assert str(caught.value).startswith(f"{root}/annotations/instances_train.json:11: {name}: ")
    assert "\n" not in str(caught.value)


def test_faulty_boxes_can_be_left_out_but_nothing_else(tmp_path: Path) -> None:
    faulty = [annotation((5, 5, 3, 0)), annotation((50, 50, 3, 3))]
    root = write_coco(tmp_path, coco([*faulty, annotation()]))
    assert read_coco(root, drop_faulty=True).images[0].gt_boxes.tolist() == [[2, 3, 6.5, 8]]
    write_coco(tmp_path, coco([annotation(category=99)]))
    with pytest.raises(UserError, match="category_id 99"):
        read_coco(root, drop_faulty=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"images": [],\n "annotations": [}', ":2: not readable as JSON"),
        ('{"images": [], "annotations": []}', "no list 'categories' in it"),
        ("[" * 100_000, "not readable as JSON"),
        (coco([], [{"id": 7, "file_name": "b.png"}]), ":3: images[0] (id 7): no image 'b.png'; looked in"),
        (coco([], [{"id": 7, "file_name": "a.png"}] * 2), ":4: images[1] (id 7): the image id 7 is given twice"),
        (coco([], [{"id": 7.5, "file_name": "a.png"}]), "expected an id and a file_name"),
        (coco([], categories=[{"id": 1}]), ":6: categories[0] (id 1): expected an id and a name"),
        (coco([], categories=[CATEGORIES[0]] * 2), ":7: categories[1] (id 18): the id 18 is given twice"),
        (coco([], categories=[{"id": n, "name": "dog"} for n in (1, 2)]), "two categories are called 'dog'"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
    ],
)
def test_broken_files(tmp_path: Path, content: str, says: str) -> None:
    root = write_coco(tmp_path, content)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_coco(root / "annotations/instances_train.json")
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_annotations_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no COCO annotations; expected annotations/instances_"):
        read_coco(tmp_path)
    assert not is_coco(tmp_path)


@given(st.integers(0, 5), st.sampled_from([None, 1]), st.booleans())
def test_lines_are_right_however_the_file_is_laid_out(
    tmp_path_factory: pytest.TempPathFactory, before: int, indent: int | None, ascii_only: bool
) -> None:
    """The entry that is named is the one that begins on that line."""
    root = tmp_path_factory.getbasetemp() / "lines"
    entries = [annotation(id=n, note='é"}],[\n') for n in range(before)] + [annotation(category=5, id=before)]
    images = [{"id": 7, "file_name": "a.png", "height": 30, "width": 40}]
    content = {"é": {"annotations": [1, 2]}, "annotations": entries, "images": images, "categories": CATEGORIES}
    write_coco(root, text := json.dumps(content, indent=indent, ensure_ascii=ascii_only))
    with pytest.raises(UserError, match="category_id 5") as caught:
        read_coco(root)
    line = int(str(caught.value).split(":")[1])
    assert line == text[: text.index(f'"id": {before}')].rsplit("{", 1)[0].count("\n") + 1
