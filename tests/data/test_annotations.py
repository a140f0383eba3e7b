"""One form of annotations, one reader for whichever layout a folder has, and data sets that PyTorch can load."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from sppnet.data import annotated_layout, read_annotated, read_dataset
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.check import check_folder
from sppnet.data.formats import voc
from sppnet.data.images import read_image
from sppnet.data.labelled import LabelledImages
from sppnet.errors import DataError, UserError


def as_coco(data: DetectionData, root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    for image in data.images:
        (root / image.path.name).symlink_to(image.path)
    images = [{"id": n, "file_name": image.path.name} for n, image in enumerate(data.images)]
    objects = [
        {"image_id": n, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(crowd)}
        for n, image in enumerate(data.images)
        for (x0, y0, x1, y1), label, crowd in zip(
            image.gt_boxes.tolist(), image.gt_labels, image.difficult, strict=True
        )
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(data.class_names, start=1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / f"annotations/instances_{data.split}.json").write_text(json.dumps(content))
    return root


def as_yolo(data: DetectionData, root: Path) -> Path:
    for part in ("images", "labels"):
        (root / part / data.split).mkdir(parents=True)
    (root / "data.yaml").write_text(f"{data.split}: images/{data.split}\nnames: {json.dumps(data.class_names)}\n")
    for image in data.images:
        (root / f"images/{data.split}/{image.path.name}").symlink_to(image.path)
        height, width = image.size
        lines = [
            f"{label - 1} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}\n"
            for (x0, y0, x1, y1), label in zip(image.gt_boxes.tolist(), image.gt_labels, strict=True)
        ]
        (root / f"labels/{data.split}/{image.path.stem}.txt").write_text("".join(lines))
    return root


def as_class_folders(root: Path) -> Path:
    """A red and a blue image of 30 x 40 pixels (height x width) in each part."""
    for part in ("train", "val"):
        for name in ("blue", "red"):
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (40, 30), name).save(root / part / name / f"{number}.png")
    return root


def test_shapes_must_agree() -> None:
    boxes, labels, difficult = np.zeros((2, 4), np.float32), np.array([1, 2]), np.array([False, True])
    image = AnnotatedImage("a", Path("a.jpg"), (10, 20), boxes, labels, difficult)
    assert len(DetectionData(class_names=("cat", "dog"), images=(image,), split="train")) == 1
    for wrong in ((boxes[:1], labels, difficult), (boxes, labels, difficult[:1]), (boxes[:, :3], labels, difficult)):
        with pytest.raises(ValueError, match="a: expected gt_boxes"):
            AnnotatedImage("a", Path("a.jpg"), (10, 20), *wrong)


def test_labels_follow_the_order_of_the_names() -> None:
    labels = np.array([1, 3, 2])
    image = AnnotatedImage("a", Path("a.jpg"), (10, 20), np.zeros((3, 4), np.float32), labels, np.zeros(3, bool))
    data = DetectionData(class_names=("cat", "dog", "owl"), images=(image,), split="train")
    other = data.relabelled(("owl", "cat", "dog"))
    assert [other.class_names[label - 1] for label in other.images[0].gt_labels] == ["cat", "owl", "dog"]
    assert labels.tolist() == [1, 3, 2]
    with pytest.raises(UserError, match=r"only in the model \['emu'\], only in the data \['owl'\]"):
        data.relabelled(("cat", "dog", "emu"))


def test_the_same_objects_in_three_layouts(tiny_voc_original: Path, tmp_path: Path) -> None:
    expected = voc.read(tiny_voc_original, "val")
    roots = {
        "voc": tiny_voc_original,
        "coco": as_coco(expected, tmp_path / "coco"),
        "yolo": as_yolo(expected, tmp_path / "yolo"),
    }
    for layout, root in roots.items():
        assert annotated_layout(root) == layout
        data = read_dataset(root, "val")
        assert isinstance(data, DetectionData)
        assert (data.class_names, data.split, len(data)) == (expected.class_names, "val", len(expected))
        for image, original in zip(data.images, expected.images, strict=True):
            assert image.size == original.size
            assert np.allclose(image.gt_boxes, original.gt_boxes, atol=1e-3)
            assert np.array_equal(image.gt_labels, original.gt_labels)
            assert np.array_equal(image.difficult, original.difficult) or layout == "yolo"
        assert len(read_dataset(root, "val", limit=1)) == 1
    assert len(read_annotated(roots["coco"] / "annotations/instances_val.json")) == len(expected)
    assert len(read_annotated(roots["yolo"] / "data.yaml", "val")) == len(expected)


def test_class_folders_are_a_data_set_too(tmp_path: Path) -> None:
    root = as_class_folders(tmp_path)
    data = read_dataset(root, "val")
    assert isinstance(data, LabelledImages)
    assert (data.class_names, data.labels.tolist()) == (("blue", "red"), [0] * 3 + [1] * 3)
    assert {path.parts[-3] for path in data.paths} == {"val"}
    some = read_dataset(root, "validation", limit=3)  # of every class in turn
    assert [path.relative_to(root / "val").as_posix() for path in some.paths] == [
        "blue/0.png",
        "blue/1.png",
        "red/0.png",
    ]
    assert len(read_dataset(root / "train")) == 6
    with pytest.raises(DataError, match="no such split 'test'; splits there: train, val"):
        read_dataset(root, "test")
    with pytest.raises(DataError, match="no split 'val', as it is not split; take 'train'"):
        read_dataset(root / "train", "val")
    with pytest.raises(DataError, match=r"expected one of VOC \(.*\), COCO \(.*\), YOLO \(.*\)"):
        read_annotated(root)


def test_none_of_the_layouts(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    (tmp_path / "measured.json").write_text('{"images": 12, "categories": {}}')
    for root in (tmp_path, tmp_path / "a.jpg", tmp_path / "measured.json", tmp_path / "gone"):
        assert annotated_layout(root) is None
        with pytest.raises(UserError, match=r"expected one of VOC \(.*\), COCO \(.*\), YOLO \(.*\)") as caught:
            read_dataset(root)
        assert str(caught.value).startswith(f"{root}: no ")
    (tmp_path / "classes.txt").write_text("cat")
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    with pytest.raises(UserError, match="limit must be at least 1"):
        read_annotated(tmp_path, limit=0)


def test_what_may_be_read_in_two_ways_is_refused(tiny_voc_original: Path, tmp_path: Path) -> None:
    expected = voc.read(tiny_voc_original, "val")
    root = as_yolo(expected, tmp_path / "both")
    shutil.move(as_coco(expected, tmp_path / "coco") / "annotations", root / "annotations")
    for refuses in (read_dataset, read_annotated, check_folder):
        with pytest.raises(
            DataError,
            match=r"both: can be read as COCO \(.*\) and as YOLO \(.*\): move the parts of one away, or give its JSON",
        ):
            refuses(root)
    assert len(read_dataset(root / "data.yaml", "val")) == len(read_dataset(root / "annotations/instances_val.json"))
    assert check_folder(root, layout="coco").exit_status == 0


def test_one_image_with_what_is_in_it(tiny_voc_original: Path) -> None:
    data = voc.read(tiny_voc_original)
    image, target = data[1]
    assert (image == read_image(data.images[1].path)).all()
    assert target["image_id"] == data.images[1].image_id
    assert (target["boxes"].dtype, target["boxes"].shape) == (np.float32, (len(target["labels"]), 4))
    target["boxes"] += 1  # nobody else's
    assert not np.array_equal(target["boxes"], data.images[1].gt_boxes)
    assert len(list(data)) == len(data)  # ends
    assert len(pickle.loads(pickle.dumps(data))) == len(data)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_pytorch_loads_either_in_other_processes(tiny_voc_original: Path, tmp_path: Path, method: str) -> None:
    data = ConcatDataset([voc.read(tiny_voc_original, limit=2), read_dataset(as_class_folders(tmp_path))])  # type: ignore[list-item]
    loader = DataLoader(data, batch_size=3, num_workers=1, collate_fn=list, multiprocessing_context=method)
    seen = [sample for batch in loader for sample in batch]
    assert [image.shape for image, _ in seen] == [image.shape for image, _ in data]
    assert [label for _, label in seen[2:]] == [0, 0, 0, 1, 1, 1]
