"""A class more, in seconds: what it learns from, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sppnet.data.annotations import DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.linear_heads import add_class, train_linear_heads
from sppnet.detection.predict import detect
from sppnet.detection.svm import SVMSettings
from sppnet.detection.windows_of_images import WindowsOfImages
from sppnet.errors import ModelError, UserError
from sppnet.models.files import load, round_to_stored, save_model
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import proposals_of


def only(data: DetectionData, name: str) -> DetectionData:
    """The same images with the objects of one class alone."""
    label = data.class_names.index(name) + 1
    images = []
    for image in data.images:
        own = image.gt_labels == label
        boxes, labels, difficult = image.gt_boxes[own], image.gt_labels[own], image.difficult[own]
        images.append(dataclasses.replace(image, gt_boxes=boxes, gt_labels=labels * 0 + 1, difficult=difficult))
    return DetectionData((name,), tuple(images), data.split)


@pytest.fixture(scope="module")
def data(tiny_voc_original: Path) -> DetectionData:
    whole = read_voc(tiny_voc_original, "train")
    return dataclasses.replace(whole, images=whole.images[:6])


@pytest.fixture(scope="module")
def trained(
    tiny_detector: SPPNet,
    variant: Callable[..., SPPNet],
    data: DetectionData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with ``circles.safetensors``, a detector of circles with an SVM, and its ``cache``. Not to be changed."""
    folder = tmp_path_factory.mktemp("circles")
    net = variant(tiny_detector, class_names=("circle",))
    round_to_stored(net)
    circles = only(data, "circle")
    proposals = proposals_of(circles, "grid", folder / "cache")
    windows = WindowsOfImages(FeatureMapCache(net, folder / "cache" / "feature-maps"), circles.images, proposals)
    ridge = BoxRegressionSettings(ridge=10, min_iou=0.4)
    record = train_linear_heads(net, windows, folder / "cache", svm=SVMSettings(cost=0.01), ridge=ridge)
    net.record = {"settings": {"steps": 40}, **record}
    save_model(net, folder / "circles.safetensors")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def test_the_other_classes_stay_bit_for_bit(folder: Path, data: DetectionData) -> None:
    model = load(folder / "circles.safetensors")
    told: set[str] = set()
    grown = add_class(
        model, "square", data, cache=folder / "cache", output=folder / "both.safetensors", old_negatives=False,
        progress=lambda stage, done, total: told.add(stage),
    )  # fmt: skip
    assert told == {"proposals", "feature maps", "SVMs", "box regression"}
    before, after = load_file(folder / "circles.safetensors"), load_file(folder / "both.safetensors")
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        assert torch.equal(new[: len(old)] if old.ndim else new, old), name
        grew = name.startswith(("window_classifier.", "box_regressor.", "image_classifier.")) and old.ndim
        assert (new.numel() > old.numel()) == bool(grew), name

    assert model.class_names == ("circle",), "the model that was given stays as it is"
    assert grown.class_names == load(folder / "both.safetensors").class_names == ("circle", "square")
    weights = grown.window_classifier.weights
    assert weights[1].any()
    assert not torch.equal(weights[0], weights[1])
    (added,) = load(folder / "both.safetensors").record["added"]
    assert (added["class"], added["images"], added["old_negatives"]) == ("square", 6, 0)
    assert added["objects"] == sum(int((image.gt_labels == 2).sum()) for image in data.images)
    assert added["seconds"].keys() == {"proposals and maps", "SVM and box regression"}
    assert grown.record["settings"]["steps"] == 40


def test_what_the_other_svms_ended_with_is_to_be_told_apart_too(folder: Path, data: DetectionData) -> None:
    model, cache = load(folder / "circles.safetensors"), folder / "cache"
    (state,) = cache.glob("svms-*")
    stored = load_file(state)
    squares = only(data, "square")
    both = add_class(model, "square", squares, cache=cache)
    assert both.record["added"][0]["old_negatives"] == len(stored["positives"]) + len(stored["cache.features"]) > 0
    assert both.record["svm_states"][0] == state.name
    assert (cache / both.record["svm_states"][1]).exists()

    three = add_class(both, "ring", DetectionData(("ring",), squares.images, squares.split), cache=cache)
    counts = [added["old_negatives"] for added in three.record["added"]]
    assert counts[1] > counts[0], "those of the class before too"
    assert three.class_names == ("circle", "square", "ring")

    state.write_bytes(b"damaged")
    assert add_class(model, "square", squares, cache=cache).record["added"][0]["old_negatives"] == 0


def test_the_whole_image_is_asked_as_a_window(folder: Path, data: DetectionData) -> None:
    model = add_class(load(folder / "circles.safetensors"), "square", data, cache=folder / "cache")
    svms = model.window_classifier
    torch.testing.assert_close(model.image_classifier.weight[1], svms.weights[1] * svms.scale)
    assert detect(data.images[0].path, model, score_threshold=-1.2).score_kind == "decision"


def test_the_networks_own_box_regression_moves_the_new_class_by_what_all_share(
    folder: Path, tiny_detector: SPPNet, variant: Callable[..., SPPNet], data: DetectionData
) -> None:
    svms = load(folder / "circles.safetensors")
    model = variant(tiny_detector, class_names=("circle",), window_classifier="svm")
    model.window_classifier = svms.window_classifier
    model.record = {"svm": {"cost": 0.01, "hard_margin": -1.0, "solver": "compiled"}}  # of an earlier version
    grown = add_class(model, "square", data, cache=folder / "cache")
    features, residuals = torch.rand(3, 16), torch.zeros(3, 4)
    deltas = grown.box_regressor(features, residuals)
    torch.testing.assert_close(deltas[:, 0], model.box_regressor(features, residuals)[:, 0])
    torch.testing.assert_close(deltas[:, 1], model.box_regressor.shared(features))


def test_what_cannot_be_added(folder: Path, data: DetectionData, tiny_detector: SPPNet) -> None:
    circles = load(folder / "circles.safetensors")

    def refuse(model: SPPNet, name: str, given: DetectionData, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            add_class(model, name, given, cache=folder / "new", output=folder / "both.safetensors")

    refuse(tiny_detector, "circle", data, ModelError, r"has no SVMs.*sppnet train svm MODEL DATA --output NEW")
    refuse(circles, "circle", data, ModelError, "has the class 'circle' already")
    refuse(circles, "star", data, UserError, "the data has no class 'star', only circle, square")
    none = dataclasses.replace(only(data, "circle"), class_names=("circle", "square"))
    refuse(circles, "square", none, UserError, r"split 'train' holds no object of class 'square' \(6 images\)")
    assert not (folder / "new").exists()
    assert not (folder / "both.safetensors").exists()
