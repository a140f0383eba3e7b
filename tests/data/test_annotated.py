"""One reader for whichever annotations a folder holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.annotated import annotated_layout, read_annotated
from sppnet.data.annotations import DetectionData
from sppnet.data.voc import read_voc
from sppnet.errors import UserError


def as_coco(data: DetectionData, root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    images = [{"id": n, "file_name": str(image.path)} for n, image in enumerate(data.images)]
    objects = [
        {"image_id": n, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(crowd)}
        for n, image in enumerate(data.images)
        for (x0, y0, x1, y1), label, crowd in zip(
            image.gt_boxes.tolist(), image.gt_labels, image.difficult, strict=True
        )
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(data.names, start=1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / f"annotations/instances_{data.split}.json").write_text(json.dumps(content))
    return root


def as_yolo(data: DetectionData, root: Path) -> Path:
    for part in ("images", "labels"):
        (root / part / data.split).mkdir(parents=True)
    (root / "data.yaml").write_text(f"{data.split}: images/{data.split}\nnames: {json.dumps(data.names)}\n")
    for image in data.images:
        (root / f"images/{data.split}/{image.path.name}").symlink_to(image.path)
        height, width = image.size
        lines = [
            f"{label - 1} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}\n"
            for (x0, y0, x1, y1), label in zip(image.gt_boxes.tolist(), image.gt_labels, strict=True)
        ]
        (root / f"labels/{data.split}/{image.path.stem}.txt").write_text("".join(lines))
    return root


def test_the_same_objects_in_three_layouts(tiny_voc_original: Path, tmp_path: Path) -> None:
    voc = read_voc(tiny_voc_original, "val")
    roots = {
        "voc": tiny_voc_original,
        "coco": as_coco(voc, tmp_path / "coco"),
        "yolo": as_yolo(voc, tmp_path / "yolo"),
    }
    for layout, root in roots.items():
        assert annotated_layout(root) == layout
        data = read_annotated(root, "val")
        assert (data.names, data.split, len(data)) == (voc.names, "val", len(voc))
        for image, expected in zip(data.images, voc.images, strict=True):
            assert image.size == expected.size
            assert np.allclose(image.gt_boxes, expected.gt_boxes, atol=1e-3)
            assert np.array_equal(image.gt_labels, expected.gt_labels)
            assert np.array_equal(image.difficult, expected.difficult) or layout == "yolo"
        assert len(read_annotated(root, "val", limit=1)) == 1


def test_one_file_will_do(tiny_voc_original: Path, tmp_path: Path) -> None:
    voc = read_voc(tiny_voc_original, "val")
    assert len(read_annotated(as_coco(voc, tmp_path / "a") / "annotations/instances_val.json")) == len(voc)
    assert len(read_annotated(as_yolo(voc, tmp_path / "b") / "data.yaml", "val")) == len(voc)


def test_none_of_the_three(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "cat/a.jpg")
    (tmp_path / "measured.json").write_text('{"images": 12, "categories": {}}')
    for root in (tmp_path, tmp_path / "cat/a.jpg", tmp_path / "measured.json", tmp_path / "gone"):
        assert annotated_layout(root) is None
        with pytest.raises(UserError, match=r"expected one of VOC \(.*\), COCO \(.*\), YOLO \(.*\)") as caught:
            read_annotated(root)
        assert str(caught.value).startswith(f"{root}: no ")
    with pytest.raises(ValueError, match="limit"):
        read_annotated(tmp_path, limit=0)
