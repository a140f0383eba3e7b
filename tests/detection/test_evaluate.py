"""Scoring a detector on an annotated set: labels brought to the data's order, and what does not fit refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sppnet.data.annotations import DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection import evaluate
from sppnet.detection.evaluate import evaluate_detector
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet
from sppnet.results import Detections


@pytest.mark.parametrize("class_names", [("circle", "square"), ("square", "circle")])
def test_perfect_detections_score_one(
    tiny_detector: SPPNet,
    variant: Callable[..., SPPNet],
    tiny_voc: Path,
    monkeypatch: pytest.MonkeyPatch,
    class_names: tuple[str, str],
) -> None:
    data = read_voc(tiny_voc, "val")
    images = iter(data.images)

    def perfect(*_: Any, **__: Any) -> Detections:
        """Every object of the next image, labelled as the model would."""
        image = next(images)
        found = [data.class_names[label - 1] for label in image.gt_labels]
        labels = np.array([class_names.index(name) + 1 for name in found])
        return Detections(image.gt_boxes, np.full(len(found), 0.9, np.float32), labels, tuple(found))

    monkeypatch.setattr(evaluate, "select", perfect)
    calls: list[tuple[str, int, int]] = []
    model = variant(tiny_detector, class_names=class_names)
    answer = evaluate_detector(model, data, progress=lambda *done: calls.append(done))
    assert answer.result.map07 == pytest.approx(1)
    assert answer.result.map_area == pytest.approx(1)
    assert answer.coco is not None
    assert answer.coco.ap == pytest.approx(1)
    assert [call for call in calls if call[0] == "detection"] == [("detection", done, 4) for done in (1, 2, 3, 4)]
    assert ("proposals", 4, 4) in calls


def test_the_order_of_the_models_classes_does_not_matter(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], tiny_voc: Path, tmp_path: Path
) -> None:
    turned = variant(tiny_detector, class_names=("square", "circle"))
    layers: list[tuple[Any, list[int]]] = [
        (turned.image_classifier, [1, 0]),
        (turned.window_classifier, [0, 2, 1]),
        (turned.box_regressor.per_class, [4, 5, 6, 7, 0, 1, 2, 3]),  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        for layer, order in layers:
            layer.weight.copy_(layer.weight[order].clone())
            layer.bias.copy_(layer.bias[order].clone())
    data = read_voc(tiny_voc, "train")
    first, second = (evaluate_detector(model, data, cache=tmp_path) for model in (tiny_detector, turned))
    assert [(each.name, each.n_objects) for each in first.result.classes] == [
        (each.name, each.n_objects) for each in second.result.classes
    ]
    for one, other in zip(first.result.classes, second.result.classes, strict=True):
        assert one.ap_area == pytest.approx(other.ap_area, abs=1e-3)  # bfloat16 adds up in another order
    assert first.whole_images.map_area == pytest.approx(second.whole_images.map_area)


def test_cached_maps_are_read_and_answer_the_same(
    tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_voc(tiny_voc, "val")
    anew = evaluate_detector(tiny_detector, data)
    written = evaluate_detector(tiny_detector, data, cache=tmp_path, cache_maps=True)
    files = sorted((tmp_path / "feature-maps").rglob("*.safetensors"))
    assert len(files) == len(data)
    files[0].write_bytes(files[0].read_bytes()[:-8])  # a damaged one is computed anew
    monkeypatch.setattr(evaluate, "compute_feature_maps", None)
    read = evaluate_detector(tiny_detector, data, cache=tmp_path, cache_maps=True)
    assert anew.result.to_dict() == written.result.to_dict() == read.result.to_dict()
    assert anew.whole_images.to_dict() == read.whole_images.to_dict()


def test_several_are_evaluated_as_one(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], tiny_voc: Path, tmp_path: Path
) -> None:
    other = variant(tiny_detector, class_names=("square", "circle"), hidden=(8,))
    data = read_voc(tiny_voc, "val")
    alone = evaluate_detector(tiny_detector, data, cache=tmp_path)
    twice = evaluate_detector([tiny_detector, tiny_detector], data, cache=tmp_path)
    assert twice.result.map_area == pytest.approx(alone.result.map_area, abs=0.02)  # bfloat16
    assert twice.whole_images.map_area == pytest.approx(alone.whole_images.map_area)
    both = evaluate_detector([tiny_detector, other], data, cache=tmp_path)
    assert sum(c.n_detections for c in both.result.classes) > 0


def test_a_document_of_figures_and_times(tiny_detector: SPPNet, tiny_voc: Path) -> None:
    answer = evaluate_detector(tiny_detector, read_voc(tiny_voc, "val")).to_dict()
    assert set(answer) == {
        "map",
        "classes",
        "coco",
        "errors",
        "classification",
        "iou",
        "images",
        "score_kind",
        "seconds_per_image",
    }
    assert 0 <= answer["coco"]["ap"] <= answer["coco"]["ap50"] <= 1
    assert 0 <= answer["map"]["voc07"] <= 1
    assert 0 <= answer["classification"]["map"]["area"] <= 1
    assert set(answer["classes"]) == {"circle", "square"}
    assert answer["images"] == 4
    stages = {"proposals", "decode", "feature maps", "whole image", "windows", "suppression"}
    assert set(answer["seconds_per_image"]) == stages


def test_other_classes_than_the_datas_are_refused(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], tiny_voc: Path
) -> None:
    model = variant(tiny_detector, class_names=("circle", "triangle"))
    with pytest.raises(UserError, match=r"only in the model \['triangle'\], only in the data \['square'\]"):
        evaluate_detector(model, read_voc(tiny_voc, "val"))


def test_no_images(tiny_detector: SPPNet) -> None:
    with pytest.raises(UserError, match="split 'val' holds no images"):
        evaluate_detector(tiny_detector, DetectionData(("circle", "square"), (), "val"))


def test_without_cocos_packages_the_rest_is_scored(
    tiny_detector: SPPNet, tiny_voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    answer = evaluate_detector(tiny_detector, read_voc(tiny_voc, "val"))
    assert answer.coco is None
    assert answer.to_dict()["coco"] is None
    assert 0 <= answer.result.map07 <= 1


def test_the_settings_are_those_of_detection(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "val")

    def found(**options: Any) -> int:
        answer = evaluate_detector(tiny_detector, data, cache=tmp_path, **options)
        return sum(each.n_detections for each in answer.result.classes)

    assert found(max_detections=3) == 3 * len(data)
    assert found() > found(score_threshold=0.4)
    assert sorted(path.name for path in (tmp_path / "proposals").iterdir()) == ["grid"]
    found(proposals="edge-boxes")
    assert sorted(path.name for path in (tmp_path / "proposals").iterdir()) == ["edge-boxes", "grid"]
