"""Scoring a detector on an annotated set: labels brought to the data's order, and what does not fit refused."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
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


def renamed(model: SPPNet, names: Sequence[str]) -> SPPNet:
    return SPPNet(dataclasses.replace(model.architecture, names=tuple(names)), model.backbone).eval()


@pytest.mark.parametrize("names", [("circle", "square"), ("square", "circle")])
def test_perfect_detections_score_one(
    tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    data = read_voc(tiny_voc, "val")
    images = iter(data.images)

    def perfect(*_: Any, **__: Any) -> Detections:
        """Every object of the next image, labelled as the model would."""
        image = next(images)
        found = [data.class_names[label - 1] for label in image.gt_labels]
        labels = np.array([names.index(name) + 1 for name in found])
        return Detections(image.gt_boxes, np.full(len(found), 0.9, np.float32), labels, tuple(found))

    monkeypatch.setattr(evaluate, "select", perfect)
    calls: list[tuple[str, int, int]] = []
    model = renamed(tiny_detector, names)
    answer = evaluate_detector(model, data, tmp_path, lambda *progress: calls.append(progress))
    assert answer.result.map07 == pytest.approx(1)
    assert answer.result.map_area == pytest.approx(1)
    assert answer.coco is not None
    assert answer.coco.ap == pytest.approx(1)
    assert [call for call in calls if call[0] == "detection"] == [("detection", done, 4) for done in (1, 2, 3, 4)]
    assert ("proposals", 4, 4) in calls


def test_the_order_of_the_models_classes_does_not_matter(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    turned = renamed(tiny_detector, ("square", "circle"))
    turned.load_state_dict(copy.deepcopy(tiny_detector.state_dict()))
    with torch.no_grad():
        for layer, order in (
            (turned.image_classifier, [1, 0]),
            (turned.window_classifier, [0, 2, 1]),
            (turned.class_deltas, [4, 5, 6, 7, 0, 1, 2, 3]),
        ):
            layer.weight.copy_(layer.weight[order].clone())
            layer.bias.copy_(layer.bias[order].clone())
    data = read_voc(tiny_voc, "train")
    first, second = (evaluate_detector(model, data, tmp_path) for model in (tiny_detector, turned))
    assert [(each.name, each.n_objects) for each in first.result.classes] == [
        (each.name, each.n_objects) for each in second.result.classes
    ]
    for one, other in zip(first.result.classes, second.result.classes, strict=True):
        assert one.ap_area == pytest.approx(other.ap_area, abs=1e-3)  # bfloat16 adds up in another order
    assert first.whole_images.map_area == pytest.approx(second.whole_images.map_area)


def test_kept_maps_are_read_and_answer_the_same(
    tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = read_voc(tiny_voc, "val"), tmp_path / "maps"
    anew = evaluate_detector(tiny_detector, data, tmp_path)
    kept = evaluate_detector(tiny_detector, data, tmp_path, maps_folder=folder)
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == len(data)
    files[0].write_bytes(files[0].read_bytes()[:-8])  # a damaged one is made anew
    monkeypatch.setattr(evaluate, "compute_feature_maps", None)
    read = evaluate_detector(tiny_detector, data, tmp_path, maps_folder=folder)
    assert anew.result.to_dict() == kept.result.to_dict() == read.result.to_dict()
    assert anew.whole_images.to_dict() == read.whole_images.to_dict()


def test_a_document_of_figures_and_times(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    answer = evaluate_detector(tiny_detector, read_voc(tiny_voc, "val"), tmp_path).to_dict()
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
    stages = {"proposals", "decode", "maps", "whole image", "pooling", "fully connected", "nms"}
    assert set(answer["seconds_per_image"]) == stages


def test_other_classes_than_the_datas_are_refused(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    model = renamed(tiny_detector, ("circle", "triangle"))
    with pytest.raises(UserError, match=r"only in the model \['triangle'\], only in the data \['square'\]"):
        evaluate_detector(model, read_voc(tiny_voc, "val"), tmp_path)


def test_no_images(tiny_detector: SPPNet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'val' holds no images"):
        evaluate_detector(tiny_detector, DetectionData(("circle", "square"), (), "val"), tmp_path)


def test_without_cocos_packages_the_rest_is_scored(
    tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    answer = evaluate_detector(tiny_detector, read_voc(tiny_voc, "val"), tmp_path)
    assert answer.coco is None
    assert answer.to_dict()["coco"] is None
    assert 0 <= answer.result.map07 <= 1
