"""Tiny trainings by each preset, from a folder of annotated photos to a model file; what goes on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sppnet.data.annotations import DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.train import DetectorSettings, train_detector, train_svms_of
from sppnet.errors import ModelError, SettingsError, UserError
from sppnet.models.files import load
from sppnet.models.heads import BoxRegressor, RidgeRegressor, SoftmaxClassifier, SVMClassifier
from sppnet.models.sppnet import SPPNet
from sppnet.training.checkpoints import read_log

SMALL: dict[str, Any] = {"proposals": "grid", "levels": (2, 1), "short_side": 64}
SETTINGS = {
    "quick": DetectorSettings("quick", proposals="grid", levels=(2, 1), short_side=384),
    "standard": DetectorSettings(
        "standard", proposals="grid", levels=(2, 1), hidden=(32,), short_side=192, epochs=8, flip=False
    ),
    "paper": DetectorSettings(
        "paper",
        proposals="grid",
        levels=(2, 1),
        hidden=(64,),
        short_side=384,
        epochs=60,
        learning_rate=2e-3,
        flip=False,
    ),
}


class Trained(NamedTuple):
    model: SPPNet
    file: Path
    cache: Path
    told: dict[str, tuple[int, int]]  # done, total of each stage, at the last


@pytest.fixture(scope="module")
def data(tiny_voc_original: Path) -> DetectionData:
    return read_voc(tiny_voc_original, "train")


@pytest.fixture(scope="module")
def trained(data: DetectionData, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A tiny training by each preset, once; not to be changed."""
    found: dict[str, Trained] = {}
    cache = tmp_path_factory.mktemp("cache")

    def of(preset: str) -> Trained:
        if preset not in found:
            told: dict[str, tuple[int, int]] = {}
            file = cache / f"{preset}.safetensors"
            model = train_detector(
                data,
                output=file,
                cache=cache,
                settings=SETTINGS[preset],
                progress=lambda stage, *done: told.__setitem__(stage, done),  # type: ignore[misc]
            )
            found[preset] = Trained(model, file, cache, told)
        return found[preset]

    return of


@pytest.mark.parametrize(
    ("preset", "stages", "least"),
    [
        ("quick", {"SVMs": 16, "box regression": 8, "image classifier": 8, "feature maps": 8}, 0.2),
        ("standard", {"fine-tuning": 8, "end to end": 32, "feature maps": 8}, 0.1),
        ("paper", {"fine-tuning": 60, "SVMs": 16, "box regression": 8, "feature maps": 8}, 0.2),
    ],
)
def test_a_tiny_run_of_each_preset_learns(
    trained: Callable[[str], Trained], data: DetectionData, preset: str, stages: dict[str, int], least: float
) -> None:
    model, _, cache, told = trained(preset)
    assert {stage: total for stage, (_, total) in told.items()} == stages | {"proposals": 8}
    assert all(done == total for done, total in told.values())
    answer = evaluate_detector(model, data, cache=cache)
    assert answer.result.map07 > least  # of random heads: about .01
    assert answer.whole_images.map07 > 0.7
    assert answer.score_kind == ("probability" if preset == "standard" else "decision")
    heads = (type(model.window_classifier), type(model.box_regressor))
    assert heads == ((SoftmaxClassifier, BoxRegressor) if preset == "standard" else (SVMClassifier, RidgeRegressor))
    assert (model.architecture.hidden == ()) == (preset == "quick")


@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_what_is_returned_is_what_the_file_holds(trained: Callable[[str], Trained], preset: str) -> None:
    model, file, _, _ = trained(preset)
    stored = load(file)
    assert not model.training
    assert (stored.architecture, stored.preprocess, stored.detection) == (
        model.architecture,
        model.preprocess,
        model.detection,
    )
    for name, value in stored.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    record = stored.record
    assert record == json.loads(json.dumps(model.record))
    assert record["data"] == {"split": "train", "images": 8, "objects": 16}
    assert record["settings"]["preset"] == preset
    assert record["started_from"] is None
    parts = {"quick": {"SVMs", "box regression", "image classifier"}, "standard": {"fine-tuning", "end to end"}}
    assert set(record["seconds"]) == {"proposals", "feature maps"} | parts[preset]
    assert {"sppnet", "commit"} <= set(record)


def test_the_loss_is_logged_and_falls(trained: Callable[[str], Trained]) -> None:
    logs = [read_log(path)["train_loss"] for path in trained("paper").cache.glob("fine-tuning-*/log.csv")]
    losses = max(logs, key=len)
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


def test_what_was_finished_is_not_done_again(trained: Callable[[str], Trained], data: DetectionData) -> None:
    before = trained("standard")
    told: list[str] = []
    again = train_detector(
        data, cache=before.cache, settings=SETTINGS["standard"], progress=lambda stage, *_: told.append(stage)
    )
    assert set(told) == {"proposals", "feature maps"}  # which are looked for
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in before.model.state_dict().items())


def test_the_same_seed_gives_the_same_model(data: DetectionData, tmp_path: Path) -> None:
    few = dataclasses.replace(data, images=data.images[:4])
    settings = DetectorSettings("standard", hidden=(8,), train_layers="-1", epochs=1, **SMALL)
    first, second = (train_detector(few, settings=settings).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = train_detector(few, settings=settings, seed=1).state_dict()
    assert not torch.equal(first["fully_connected.1.weight"], other["fully_connected.1.weight"])


# Going on from a model


def test_standard_goes_on_end_to_end(tiny_model_file: Path, data: DetectionData, tmp_path: Path) -> None:
    told: set[str] = set()
    model = train_detector(
        data,
        model=tiny_model_file,
        cache=tmp_path,
        epochs=1,
        train_layers="-1",
        progress=lambda stage, *_: told.add(stage),
    )
    assert told == {"proposals", "end to end"}
    assert not list(tmp_path.rglob("feature-maps/*/*"))
    before, after = load(tiny_model_file), model
    assert model.record["started_from"] == before.record
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert "fully_connected.1.weight" in changed
    assert any(name.startswith("backbone.") for name in changed)
    assert after.detection == before.detection


def test_with_other_scales_and_proposals(tiny_detector: SPPNet, data: DetectionData) -> None:
    before = {name: value.clone() for name, value in tiny_detector.state_dict().items()}
    model = train_detector(
        data, model=tiny_detector, train_layers="none", epochs=1, scales=(48, 64), proposals="edge-boxes", flip=False
    )
    assert (model.detection.scales, model.detection.proposals) == ((48, 64), "edge-boxes")
    assert (tiny_detector.detection.scales, tiny_detector.detection.proposals) == ((), "grid")  # it stays as it is
    assert all(torch.equal(value, tiny_detector.state_dict()[name]) for name, value in before.items())
    assert torch.equal(model.backbone.state_dict()["0.conv.weight"], before["backbone.0.conv.weight"].half().float())


def test_the_paper_s_last_stages_on_a_detector(tiny_detector: SPPNet, data: DetectionData, tmp_path: Path) -> None:
    model = train_svms_of(tiny_detector, data, ridge=False, cache=tmp_path)
    assert isinstance(model.window_classifier, SVMClassifier)
    assert isinstance(model.box_regressor, BoxRegressor)
    assert torch.equal(model.image_classifier.weight, tiny_detector.image_classifier.weight.half().float())
    assert (tmp_path / model.record["svm_states"][0]).is_file()
    assert isinstance(train_svms_of(tiny_detector, data, cache=tmp_path).box_regressor, RidgeRegressor)


def test_the_order_of_the_classes_is_the_models(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], data: DetectionData
) -> None:
    turned = variant(tiny_detector, class_names=("square", "circle"))
    model = train_detector(data, model=turned, train_layers="none", epochs=1)
    assert model.class_names == ("square", "circle")


def test_models_that_are_refused(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], data: DetectionData, tmp_path: Path
) -> None:
    def refused(error: type[UserError], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            train_detector(data, model=variant(tiny_detector, **changes), cache=tmp_path / "cache")

    refused(
        UserError,
        r"only in the model \['triangle'\], only in the data \['square'\]",
        class_names=("circle", "triangle"),
    )
    refused(ModelError, "the model classifies only: give a detector", detects=False)
    refused(ModelError, "the model has SVMs or box regressors already", window_classifier="svm")
    with pytest.raises(ModelError, match="no such model: nothing"):
        train_detector(data, model="nothing")
    assert not (tmp_path / "cache").exists()


# What is refused before the work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "fast"}, "preset must be one of quick, standard, paper: got 'fast'"),
        ({"epochs": 0}, "epochs must be at least 1: got 0"),
        ({"short_side": 0}, "short_side must be at least 1: got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and at most 1: got 0.0"),
        ({"seed": -1}, "seed must be a whole number"),
        (
            {"preset": "quick", "hidden": (8,)},
            "hidden is not used by preset quick, which fine-tunes nothing: leave it out",
        ),
        ({"preset": "quick", "train_layers": "all"}, "train_layers is not used by preset quick"),
        ({"preset": "quick", "learning_rate": 0.1}, "learning_rate is not used by preset quick"),
        (
            {"preset": "paper", "train_layers": "-1"},
            "train_layers is not used by preset paper, which freezes the backbone",
        ),
        ({"preset": "standard", "ridge": True}, "ridge is not used by preset standard"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DetectorSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": (0,)}, "levels and hidden must be at least 1"),
        ({"scales": (480, 0)}, "scales must be short sides of 1 to 20000 pixels"),
        ({"train_layers": "nowhere"}, "train_layers is 'nowhere': no such layer; expected all, none, a name"),
        ({"backbone": "zf5"}, "zf5 has no pretrained weights"),
        ({"weights": "random", "train_layers": "none"}, "efficientnet_lite0 with random weights cannot be frozen"),
        ({"preset": "quick", "weights": "random"}, "efficientnet_lite0 with random weights cannot be frozen"),
        ({"weights": "none.pth"}, "no such weights file: none.pth"),
        ({"preset": "quick", "ridge": False}, "ridge cannot be off for a new detector of preset quick"),
        ({"proposals": "guess"}, "no proposals called 'guess'"),
        ({"model": "voc", "backbone": "compact"}, "backbone is not used by a training that starts from a model"),
        ({"model": "voc", "short_side": 500}, "short_side is not used by a training that starts from a model"),
    ],
)
def test_trainings_that_are_refused(
    data: DetectionData, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_detector(data, cache=tmp_path / "cache", **settings)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_random_weights_are_never_frozen_but_may_be_trained(data: DetectionData) -> None:
    few = dataclasses.replace(data, images=data.images[:2])
    settings = DetectorSettings(weights="random", hidden=(8,), epochs=1, **SMALL)
    told: set[str] = set()
    model = train_detector(few, settings=settings, progress=lambda stage, *_: told.add(stage))
    assert told == {"proposals", "end to end"}  # nothing is fine-tuned on random features
    assert model.record["stages"] == ["end to end"]


def test_unreadable_images_are_named_all_of_them(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train")
    for image in data.images[:2]:
        image.path.write_bytes(image.path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"2 of 8 images cannot be used: .*000000\.jpg: .*; .*000001\.jpg: "):
        train_detector(data, settings=SETTINGS["quick"], output=tmp_path / "m.safetensors", cache=tmp_path / "cache")
    assert not (tmp_path / "m.safetensors").exists()


def test_nothing_to_train_on(data: DetectionData) -> None:
    images = tuple(dataclasses.replace(image, difficult=np.ones(2, bool)) for image in data.images)
    with pytest.raises(UserError, match=r"split 'train' holds no object to train on \(8 images\)"):
        train_detector(dataclasses.replace(data, images=images))


def test_an_output_that_cannot_be_written_is_said_before_the_work(data: DetectionData, tmp_path: Path) -> None:
    foreign, file = tmp_path / "theirs.safetensors", tmp_path / "file"
    foreign.write_text("of somebody else")
    file.write_text("")
    for output, message in (
        (tmp_path / "model.pth", r"ends in \.safetensors: got .*model\.pth"),
        (foreign, "is there and was not written by sppnet"),
        (file / "m.safetensors", "file: cannot be a folder"),
    ):
        with pytest.raises(UserError, match=message):
            train_detector(data, output=output, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
