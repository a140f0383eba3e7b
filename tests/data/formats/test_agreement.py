"""Check and reading agree, whatever is wrong: what check passes is read, object for object, and what it does not is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppnet.data import read_annotated
from sppnet.data.check import check_folder
from sppnet.errors import UserError

SPLITS = ("train", "val")
NAMES = ("cat", "dog", "owl")
HEIGHT, WIDTH = 32, 40


class Drawn(NamedTuple):
    """One image of a set: its split, and its objects as (class, corners in pixels from 0, half-open)."""

    split: str
    objects: list[tuple[str, tuple[float, float, float, float]]]
    fault: str  # what is wrong with the files, or ""


corner = st.integers(-2, 42)  # of boxes that are often empty, swapped, or outside
good_box = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h),
    st.integers(0, 20),
    st.integers(0, 16),
    st.integers(1, 20),
    st.integers(1, 16),
)
any_box = st.tuples(corner, corner, corner, corner)
objects = st.lists(st.tuples(st.sampled_from(NAMES), good_box | good_box | good_box | any_box), max_size=3)
faults = st.sampled_from(
    ["", "", "", "", "", "no image", "no annotation", "damaged image", "damaged annotation", "stranger"]
)
sets = st.lists(st.builds(Drawn, st.sampled_from(SPLITS), objects, faults), min_size=1, max_size=4)


def write_image(path: Path, number: int, fault: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if fault != "no image":
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), number, np.uint8)).save(path)
    if fault == "damaged image":
        path.write_bytes(path.read_bytes()[:20])


def write_voc(root: Path, drawn: list[Drawn]) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for number, (_, inside, fault) in enumerate(drawn):
        write_image(root / f"JPEGImages/{number}.png", number, fault)
        rows = [
            f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for name, (x0, y0, x1, y1) in inside
        ]
        rows += {"damaged annotation": ["<object>"], "stranger": ["<object></object>"]}.get(fault, [])
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>" if number % 2 else ""
        if fault != "no annotation":
            text = "\n".join(["<annotation>", size, *rows, "</annotation>"])
            (root / f"Annotations/{number}.xml").write_text(text)
    for split in SPLITS:
        ids = [str(number) for number, image in enumerate(drawn) if image.split == split]
        if ids:
            (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids))


def write_coco(root: Path, drawn: list[Drawn]) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in {image.split for image in drawn}:
        images, annotations = [], []
        for number, image in enumerate(drawn):
            if image.split != split:
                continue
            write_image(root / f"{split}/{number}.png", number, image.fault)
            if image.fault != "no annotation":  # of the image: its boxes then belong to none
                images.append({"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
            for name, (x0, y0, x1, y1) in image.objects:
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append({"image_id": number, "category_id": 1 + NAMES.index(name), "bbox": box})
            if image.fault == "stranger":
                annotations.append({"image_id": number, "category_id": 99, "bbox": [1, 1, 1, 1]})
        categories = [{"id": 1 + index, "name": name} for index, name in enumerate(NAMES)]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories}, indent=1)
        damaged = any(image.fault == "damaged annotation" and image.split == split for image in drawn)
        (root / f"annotations/instances_{split}.json").write_text(text[:-2] if damaged else text)


def write_yolo(root: Path, drawn: list[Drawn]) -> None:
    for number, (split, inside, fault) in enumerate(drawn):
        write_image(root / f"images/{split}/{number}.png", number, fault)
        rows = [
            f"{NAMES.index(name)} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} {(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}"
            for name, (x0, y0, x1, y1) in inside
        ]
        rows += {"damaged annotation": ["0 0.5"], "stranger": ["3 0.5 0.5 1 1"]}.get(fault, [])
        path = root / f"labels/{split}/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if fault != "no annotation":
            path.write_text("\n".join(rows))
    (root / "classes.txt").write_text("\n".join(NAMES))


@pytest.mark.parametrize("write", [write_voc, write_coco, write_yolo])
@given(drawn=sets)
@settings(max_examples=50)
def test_what_check_passes_is_read_and_counts_agree(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path, list[Drawn]], None], drawn: list[Drawn]
) -> None:
    root = tmp_path_factory.getbasetemp() / "drawn"
    shutil.rmtree(root, ignore_errors=True)
    write(root, drawn)
    report = check_folder(root)
    of_annotations = [error for error in report.errors if error.kind not in ("damaged", "not-an-image")]
    read = {}
    refused = []
    for split in {image.split for image in drawn}:
        try:
            read[split] = read_annotated(root, split)
        except UserError as error:
            refused.append(str(error).partition(" (and ")[0])
    if of_annotations:  # what reading refuses is one of check's errors, in the same words, at the same place
        named = [str(error).removeprefix("error: ") for error in report.errors]
        assert refused
        assert all(error in named or "damaged" in error or "not an image" in error for error in refused)
        return
    if refused:  # an image that is damaged, whose size is not stated
        assert report.errors
        return
    found = [
        (data.class_names[label - 1], tuple(box))
        for data in read.values()
        for image in data.images
        for label, box in zip(image.gt_labels, image.gt_boxes.round(3).tolist(), strict=True)
    ]
    cut = [
        (name, (max(x0, 0), max(y0, 0), min(x1, WIDTH), min(y1, HEIGHT)))
        for image in drawn
        for name, (x0, y0, x1, y1) in image.objects
        if not (write is write_yolo and image.fault in ("no image", "no annotation"))
    ]
    assert Counter(found) == Counter(cut)
    assert {name: count for name, count in report.classes.items() if count} == Counter(name for name, _ in cut)
