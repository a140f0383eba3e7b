"""Check and training read by one parser: what passes the check is read, object for object, and what is read is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppnet.data.check import check_folder
from sppnet.data.dataset import read_annotated
from sppnet.errors import UserError

HEIGHT, WIDTH = 30, 40
NAMES = ("cat", "dog")
SIDES = st.integers(-3, 45)
OBJECTS = st.lists(st.tuples(st.sampled_from([*NAMES, "", "cow"]), SIDES, SIDES, SIDES, SIDES), max_size=3)


def write_voc(root: Path, images: list[list[tuple[str, int, int, int, int]]]) -> None:
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True)
    for index, objects in enumerate(images):
        boxes = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for name, x0, y0, x1, y1 in objects
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (root / f"Annotations/{index}.xml").write_text(f"<annotation>{size}{boxes}</annotation>")
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"JPEGImages/{index}.png")
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{index}\n" for index in range(len(images))))


def write_coco(root: Path, images: list[list[tuple[str, int, int, int, int]]]) -> None:
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    ids = {name: number for number, name in enumerate(NAMES)}
    annotations = [
        {"image_id": index, "category_id": ids.get(name, 9), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for index, objects in enumerate(images)
        for name, x0, y0, x1, y1 in objects
    ]
    entries = [
        {"id": index, "file_name": f"{index}.png", "height": HEIGHT, "width": WIDTH} for index in range(len(images))
    ]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    document = {"images": entries, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train.json").write_text(json.dumps(document))
    for index in range(len(images)):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"train/{index}.png")


def write_yolo(root: Path, images: list[list[tuple[str, int, int, int, int]]]) -> None:
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES))
    for index, objects in enumerate(images):
        lines = [
            f"{NAMES.index(name) if name in NAMES else 7} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} "
            f"{(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}"
            for name, x0, y0, x1, y1 in objects
        ]
        (root / f"labels/{index}.txt").write_text("\n".join(lines))
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"images/{index}.png")


@pytest.mark.parametrize("write", [write_voc, write_coco, write_yolo])
@given(images=st.lists(OBJECTS, min_size=1, max_size=2))
@settings(max_examples=25)
def test_what_passes_is_read_and_what_is_read_is_counted(
    tmp_path_factory: pytest.TempPathFactory, write: object, images: list[list[tuple[str, int, int, int, int]]]
) -> None:
    root = tmp_path_factory.mktemp("set") / "set"
    write(root, images)  # type: ignore[operator]
    report = check_folder(root, workers=1)
    try:
        data = read_annotated(root)
    except UserError:
        assert report.exit_status == 2
        return
    assert report.exit_status == 0
    read = Counter(data.class_names[label - 1] for image in data.images for label in image.gt_labels)
    assert read == Counter(name for objects in images for name, *_ in objects)
    assert {name: count for name, count in report.classes.items() if count} == read
