"""A class more, in seconds: what it learns from, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sppnet.data.annotations import DetectionData
from sppnet.data.images import read_image
from sppnet.data.voc import read_voc
from sppnet.detection.add_class import add_class
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.finetune import FinetuneSettings
from sppnet.detection.linear_stages import LinearStages
from sppnet.detection.maps import compute_maps
from sppnet.detection.predict import Stopwatch, detect, score_windows
from sppnet.detection.svm import SVMSettings
from sppnet.detection.train import train_detector
from sppnet.errors import UserError
from sppnet.models.files import load, save_model, training_record
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.proposals.compute import propose

STAGES = LinearStages("svm", "ridge", SVMSettings(cost=0.01), BoxRegressionSettings(ridge=10, overlap=0.4))


def only(data: DetectionData, name: str) -> DetectionData:
    """The same images with the objects of one class alone."""
    label = data.names.index(name) + 1
    images = []
    for image in data.images:
        wanted = image.gt_labels == label
        boxes, labels, difficult = image.gt_boxes[wanted], image.gt_labels[wanted], image.difficult[wanted]
        images.append(dataclasses.replace(image, gt_boxes=boxes, gt_labels=labels * 0 + 1, difficult=difficult))
    return DetectionData((name,), tuple(images), data.split)


def answer_of(net: SPPNet, image: np.ndarray) -> tuple[Any, ...]:
    """All that `score_windows` wants to know of an image."""
    return compute_maps(net, image), propose(image, "grid"), Stopwatch()


@pytest.fixture(scope="module")
def trained(tiny_voc_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``circles.safetensors``, a detector of circles with an SVM, and its ``work``. Not to be changed."""
    folder = tmp_path_factory.mktemp("circles")
    architecture = Architecture(("circle",), levels=(2, 1), hidden=(32,), short_side=96, long_side=160, proposer="grid")
    train_detector(
        only(read_voc(tiny_voc_original, "train"), "circle"),
        architecture,
        folder / "circles.safetensors",
        folder / "work",
        settings=FinetuneSettings(steps=40, images_per_step=4, windows_per_image=32),
        stages=STAGES,
        mirrored=False,
    )
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def test_the_other_classes_stay_bit_for_bit(folder: Path, tiny_voc_original: Path) -> None:
    data = read_voc(tiny_voc_original, "train")
    record = add_class(
        folder / "circles.safetensors",
        "square",
        data,
        folder / "both.safetensors",
        folder / "work",
        old_negatives=False,
    )
    before, after = load_file(folder / "circles.safetensors"), load_file(folder / "both.safetensors")
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        assert torch.equal(new[: len(old)] if old.ndim else new, old), name
        grew = name.startswith(("svms.", "ridge.", "image_logits", "window_logits", "class_deltas")) and old.ndim
        assert (new.numel() > old.numel()) == bool(grew), name

    model = load(folder / "both.safetensors")
    assert model.architecture.names == ("circle", "square")
    image = read_image(data.images[0].path)
    (one, boxes), (two, more_boxes) = (
        score_windows(net, *answer_of(net, image)) for net in (load(folder / "circles.safetensors"), model)
    )
    torch.testing.assert_close(two[:, 1], one[:, 1], rtol=1e-4, atol=1e-4)  # sums in another order
    torch.testing.assert_close(more_boxes[:, 0], boxes[:, 0], rtol=1e-3, atol=1e-2)
    weights = model.svms.weights
    assert weights[1].any()
    assert not torch.equal(weights[0], weights[1])
    assert evaluate_detector(model, data, folder / "work").result.classes[1].n_objects > 0

    assert training_record(folder / "both.safetensors")["added"] == record["added"]
    (added,) = record["added"]
    assert (added["class"], added["images"], added["old_negatives"]) == ("square", 8, 0)
    assert added["objects"] == sum(int((image.gt_labels == 2).sum()) for image in data.images)
    assert record["settings"]["steps"] == 40


def test_what_the_other_svms_ended_with_is_to_be_told_apart_too(folder: Path, tiny_voc_original: Path) -> None:
    data = only(read_voc(tiny_voc_original, "train"), "square")
    file = folder / "circles.safetensors"
    (state,) = (folder / "work").glob("circles-svms-*")
    stored = load_file(state)
    record = add_class(file, "square", data, folder / "both.safetensors", folder / "work")
    assert record["added"][0]["old_negatives"] == len(stored["positives"]) + len(stored["cache.features"]) > 0
    assert record["svm_states"][0] == state.name
    assert (folder / "work" / record["svm_states"][1]).exists()

    named = DetectionData(("ring",), data.images, data.split)
    third = add_class(folder / "both.safetensors", "ring", named, folder / "three.safetensors", folder / "work")
    assert third["added"][1]["old_negatives"] > third["added"][0]["old_negatives"], "those of the class before too"
    assert load(folder / "three.safetensors").architecture.names == ("circle", "square", "ring")

    state.write_bytes(b"damaged")
    again = add_class(file, "square", data, folder / "again.safetensors", folder / "work")
    assert again["added"][0]["old_negatives"] == 0


def test_the_whole_image_is_asked_as_a_window(folder: Path, tiny_voc_original: Path) -> None:
    data = read_voc(tiny_voc_original, "train")
    add_class(folder / "circles.safetensors", "square", data, folder / "both.safetensors", folder / "work")
    model = load(folder / "both.safetensors")
    weights = model.svms.weights[1] * model.svms.scale
    torch.testing.assert_close(model.image_logits.weight[1], weights, atol=1e-3, rtol=1e-2)  # half precision
    assert detect(data.images[0].path, model, score_threshold=-1.2).score_kind == "decision"


def test_a_model_without_svms_says_what_to_do(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_model(tiny_detector, file, {})
    with pytest.raises(UserError, match=r"has no SVMs.*--model .*m\.safetensors --classifier svm --output NEW"):
        add_class(file, "circle", read_voc(tiny_voc, "train"), tmp_path / "n.safetensors", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_what_cannot_be_added(folder: Path, tiny_voc_original: Path) -> None:
    data, file = read_voc(tiny_voc_original, "train"), folder / "circles.safetensors"

    def refuse(name: str, given: DetectionData, message: str) -> None:
        with pytest.raises(UserError, match=message):
            add_class(file, name, given, folder / "both.safetensors", folder / "work")

    refuse("circle", data, "has the class 'circle' already")
    refuse("star", data, "the data has no class 'star', only circle, square")
    none = dataclasses.replace(only(data, "circle"), names=("circle", "square"))
    refuse("square", none, r"split 'train' holds no object of class 'square' \(8 images\)")
    assert not (folder / "both.safetensors").exists()
