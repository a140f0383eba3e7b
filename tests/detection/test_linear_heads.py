"""SVMs and box regression in a detector: trained from cached maps, kept in the model file, used by what detects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sppnet.data.annotations import AnnotatedImage
from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import read_image
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.linear_heads import train_image_classifier, train_linear_heads
from sppnet.detection.predict import detect
from sppnet.detection.svm import SVMSettings
from sppnet.detection.windows_of_images import WindowsOfImages
from sppnet.models.files import load, save_model
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import propose

SVM = SVMSettings(cost=0.01, retrain_after=50, checkpoint_interval=3)
RIDGE = BoxRegressionSettings(ridge=10, min_iou=0.4, checkpoint_interval=3)


class Killed(BaseException):
    """What the test ends a training by."""


@pytest.fixture(scope="module")
def images(tiny_voc_original: Path) -> tuple[AnnotatedImage, ...]:
    return read_voc(tiny_voc_original, "train").images


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("maps")


@pytest.fixture
def trainer(
    tiny_detector: SPPNet, images: tuple[AnnotatedImage, ...], maps: Path, tmp_path: Path
) -> Callable[..., tuple[SPPNet, dict[str, Any]]]:
    """Train the heads of a copy of a detector, with states in ``tmp_path``; the model and the record."""

    def train(
        kill_at: tuple[str, int] | None = None, model: SPPNet = tiny_detector, **settings: Any
    ) -> tuple[SPPNet, dict[str, Any]]:
        def progress(stage: str, done: int, total: int) -> None:
            if (stage, done) == kill_at:
                raise Killed

        net = copy.deepcopy(model)
        proposals = [propose(read_image(image.path), "grid")[:120] for image in images]
        windows = WindowsOfImages(FeatureMapCache(net, maps), images, proposals)
        record = train_linear_heads(
            net, windows, tmp_path, progress=progress, **({"svm": SVM, "ridge": RIDGE} | settings)
        )
        return net, record

    return train


Trainer = Callable[..., tuple[SPPNet, dict[str, Any]]]


def test_the_model_file_holds_them_in_single_precision(trainer: Trainer, tmp_path: Path) -> None:
    net, record = trainer()
    save_model(net, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    heads = {
        name: value for name, value in tensors.items() if name.startswith(("window_classifier.", "box_regressor."))
    }
    assert {name: list(value.shape) for name, value in heads.items()} == {
        "window_classifier.weights": [2, 16], "window_classifier.biases": [2], "window_classifier.scale": [],
        "box_regressor.weights": [2, 4, 16], "box_regressor.biases": [2, 4], "box_regressor.scale": [],
    }  # fmt: skip
    assert all(value.dtype == torch.float32 and value.any() for value in heads.values())
    assert torch.equal(heads["window_classifier.scale"], heads["box_regressor.scale"]), "of one sample of windows"

    (state,) = record["svm_states"]
    assert torch.equal(load_file(tmp_path / state)["weights"], heads["window_classifier.weights"])
    assert record["svm"]["retrain_after"] == 50
    assert record["seconds"].keys() == {"SVMs", "box regression"}
    model = load(tmp_path / "m.safetensors")
    assert (model.architecture.window_classifier, model.architecture.box_regressor) == ("svm", "ridge")
    image = np.full((100, 140, 3), 128, np.uint8)
    assert detect(image, model, score_threshold=-1.2).score_kind == "decision"


@pytest.mark.parametrize("kill_at", [("SVMs", 12), ("SVMs", 16), ("box regression", 5)], ids=str)
def test_a_killed_training_goes_on_to_the_same_numbers(
    trainer: Trainer, tmp_path: Path, kill_at: tuple[str, int]
) -> None:
    with pytest.raises(Killed):
        trainer(kill_at)
    resumed = trainer()[0].state_dict()
    for state in tmp_path.glob("*.safetensors"):
        state.unlink()
    unbroken = trainer()[0].state_dict()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


@pytest.mark.parametrize("stage", ["svms", "ridge"])
def test_a_damaged_state_is_found_and_made_anew(trainer: Trainer, tmp_path: Path, stage: str) -> None:
    first = trainer()[0].state_dict()
    (state,) = tmp_path.glob(f"{stage}-*")
    content = bytearray(state.read_bytes())
    content[-40] ^= 1
    state.write_bytes(content)
    again = trainer()[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert state.read_bytes() != content


def test_other_settings_get_another_state_and_one_head_may_stay(trainer: Trainer, tmp_path: Path) -> None:
    trainer()
    trainer(svm=dataclasses.replace(SVM, cost=0.1), ridge=None)
    net, record = trainer(svm=None)
    assert (net.architecture.window_classifier, net.architecture.box_regressor) == ("softmax", "ridge")
    assert "svm_states" not in record
    assert len(list(tmp_path.glob("svms-*"))) == 2
    assert len(list(tmp_path.glob("ridge-*"))) == 1, "alone it is scaled alike"


def test_with_nothing_fine_tuned_they_take_the_pooled_windows(
    trainer: Trainer, tiny_detector: SPPNet, variant: Callable[..., SPPNet], images: tuple[AnnotatedImage, ...]
) -> None:
    net, _ = trainer(model=variant(tiny_detector, hidden=()))
    width = net.pool.bins * net.geometry.channels
    assert net.window_classifier.weights.shape == (2, width)
    assert net.box_regressor.weights.shape == (2, 4, width)
    found = detect(images[0].path, net, score_threshold=-1.0)
    assert len(found) > 0


# Whole images


def test_of_very_many_images_some_are_drawn_to_learn_what_is_in_them(
    tiny_detector: SPPNet, images: tuple[AnnotatedImage, ...], maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = copy.deepcopy(tiny_detector)
    monkeypatch.setattr("sppnet.detection.linear_heads.MAX_IMAGES", 6)
    assert train_image_classifier(FeatureMapCache(net, maps), images, seed=0).rows == 6
    assert not torch.equal(net.image_classifier.weight, tiny_detector.image_classifier.weight)
