"""Training a classifier: what comes of it in each way, what is cached and reported, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sppnet.classification.evaluate import evaluate_classifier
from sppnet.classification.train import ClassifierSettings, report_folder, train_classifier
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import ImageError, ModelError, OutputError, SettingsError, UserError
from sppnet.models.files import load
from sppnet.models.sppnet import SPPNet

from .conftest import tiny_backbone, write_photos

SMALL: dict[str, Any] = {"backbone": "tiny", "short_side": 32, "levels": (2, 1)}
# Learning rates for a handful of steps.
WAYS: dict[str, dict[str, Any]] = {
    "svm": {},
    "head": {"classifier": "softmax", "hidden": (16,), "epochs": 8, "batch_size": 4, "learning_rate": 3e-3},
    "all": {"train_layers": "all", "hidden": (16,), "epochs": 8, "batch_size": 4, "learning_rate": 3e-3},
    "multi-size": {"train_layers": "all", "sides": (32, 24), "epochs": 8, "batch_size": 4, "learning_rate": 3e-3},
    "random": {"train_layers": "all", "weights": "random", "epochs": 8, "batch_size": 4, "learning_rate": 3e-3},
}


class Ran(NamedTuple):
    """A training, and what came of it."""

    model: SPPNet
    output: Path
    cache: Path
    calls: list[tuple[str, int, int]]

    @property
    def record(self) -> dict[str, Any]:
        return self.model.record


@pytest.fixture(scope="session")
def trained(
    photos: LabelledImages, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Ran]:
    """Each of `WAYS`, trained once on 18 of the photos, with 6 for validation."""
    runs: dict[str, Ran] = {}

    def run(way: str) -> Ran:
        if way not in runs:
            folder, calls = tmp_path_factory.mktemp(way), []
            options = {"weights": str(tiny_weights), **SMALL, **WAYS[way], "validation_share": 0.25}
            model = train_classifier(
                photos, output=folder / "model.safetensors", cache=folder / "cache", progress=lambda *call: calls.append(call),
                **options,
            )  # fmt: skip
            runs[way] = Ran(model, folder / "model.safetensors", folder / "cache", calls)
        return runs[way]

    return run


@pytest.fixture
def frozen(tiny_weights: Path) -> dict[str, Any]:
    """Options of the quickest training: SVMs on a frozen backbone."""
    return {**SMALL, "weights": str(tiny_weights)}


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def counted_features(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of any backbone takes, from now on."""
    counts: list[int] = []
    features = SPPNet.features

    def counting(self: SPPNet, images: Tensor) -> Tensor:
        counts.append(len(images))
        return features(self, images)

    monkeypatch.setattr(SPPNet, "features", counting)
    return counts


# What comes of it


@pytest.mark.parametrize("way", WAYS)
def test_a_tiny_run_learns_and_its_file_answers_the_same(
    photos: LabelledImages, trained: Callable[[str], Ran], way: str
) -> None:
    run = trained(way)
    record = json.loads(json.dumps(run.record))
    assert not run.model.training
    assert record["evaluation"]["top1"] == 1.0
    assert record["evaluation"]["images"] == 6
    assert record["evaluation"]["loss"] < 0.6
    assert evaluate_classifier(run.model, photos).top1 > 0.9
    loaded = load(run.output)
    assert same(loaded, run.model)
    assert loaded.record == {name: value for name, value in record.items() if name != "skipped"}
    validation = split_off(photos, 0.25, seed=0)[1]
    evaluation = evaluate_classifier(loaded, validation).to_dict()
    assert {name: evaluation[name] for name in ("top1", "mean_class")} == {"top1": 1.0, "mean_class": 1.0}


@pytest.mark.parametrize("way", WAYS)
def test_the_record_says_how_it_was_trained(trained: Callable[[str], Ran], way: str) -> None:
    record = trained(way).record
    assert record["data"] == {
        "train": 18,
        "validation": 6,
        "validation_images": "split off",
        "classes": 2,
        "skipped": 0,
    }
    assert record["skipped"] == []
    assert record["classifier"] == ("svm" if way == "svm" else "softmax")
    assert record["settings"]["weights"] == ("random" if way == "random" else "tiny.safetensors")  # of a file, its name
    assert record["settings"].get("epochs") == (None if way == "svm" else 8)
    if way == "svm":
        assert record["svm"]["cost"] in (0.3, 1, 3, 10)
        assert record["svm"]["images"] == 18
    else:
        assert record["steps"] == 40


@pytest.mark.parametrize("way", ["svm", "head", "all"])
def test_a_report_lies_beside_the_file(trained: Callable[[str], Ran], way: str) -> None:
    run = trained(way)
    log = [] if way == "svm" else ["curves.png", "log.csv"]
    folder = report_folder(run.output)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["confusion.png", "evaluation.json", *log])
    document = json.loads((folder / "evaluation.json").read_text())
    assert document["top1"] == document["training"]["evaluation"]["top1"] == 1.0


def test_progress_is_told_to_its_end(trained: Callable[[str], Ran]) -> None:
    ends = {stage: (done, total) for stage, done, total in trained("svm").calls}
    assert ends == {
        "checking images": (18, 18), "checking validation images": (6, 6), "features": (24, 24), "SVMs": (21, 21),
    }  # fmt: skip
    ends = {stage: (done, total) for stage, done, total in trained("head").calls}
    assert (ends["features"], ends["training"]) == ((24, 24), (40, 40))


@pytest.mark.parametrize("way", ["svm", "head"])
def test_a_frozen_backbone_stays(trained: Callable[[str], Ran], way: str) -> None:
    assert same(trained(way).model.backbone, trained("svm").model.backbone)
    before = tiny_backbone()
    images = torch.rand(1, 3, 32, 40)
    with torch.inference_mode():
        torch.testing.assert_close(trained(way).model.backbone(images), before(images), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("way", ["all", "random"])
def test_the_whole_network_is_trained_and_its_batch_norm_is_folded(trained: Callable[[str], Ran], way: str) -> None:
    model = trained(way).model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not torch.allclose(model.backbone[0].weight, trained("svm").model.backbone[0].weight, atol=1e-3)  # type: ignore[index, union-attr]


# The frozen way


def test_an_image_passes_a_frozen_backbone_once_and_validation_chooses_nothing_of_svms(
    photos: LabelledImages, frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, right = split_off(photos, 0.25, seed=0)
    wrong = LabelledImages(right.paths, 1 - right.labels, right.class_names)
    counts = counted_features(monkeypatch)
    models = [train_classifier(train, validation=each, cache=tmp_path, **frozen) for each in (right, wrong)]
    assert counts == [1] * (18 + 24 + 18)  # those that set the scale, twice; and the features, once
    assert same(*models)
    assert [model.record["evaluation"]["top1"] for model in models] == [1.0, 0.0]
    assert models[0].record["data"]["validation_images"] == "given"
    alone = train_classifier(train, validation=photos.subset([]), **frozen)
    assert same(alone, models[0])
    assert alone.record["evaluation"] is None


@pytest.mark.parametrize("at", [("features", 12), ("SVMs", 7)])
def test_an_interrupted_run_goes_on_with_the_features_that_are_there(
    photos: LabelledImages, frozen: dict[str, Any], trained: Callable[[str], Ran], tmp_path: Path, at: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == at:
            raise KeyboardInterrupt

    counts = counted_features(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(photos, cache=tmp_path, validation_share=0.25, progress=stop, **frozen)
    resumed = train_classifier(photos, cache=tmp_path, validation_share=0.25, **frozen)
    assert len(counts) == 24 + 2 * 18
    assert same(resumed, trained("svm").model)


def test_a_class_without_images_is_not_answered(photos: LabelledImages, frozen: dict[str, Any]) -> None:
    more = LabelledImages(photos.paths, 2 * photos.labels, ("red", "none", "blue"))
    model = train_classifier(more, **frozen)
    assert model.record["evaluation"]["top1"] == 1.0
    assert not model.image_classifier.weight[1].any()


# Files


def test_bad_files_are_named_before_anything_is_computed(frozen: dict[str, Any], tmp_path: Path) -> None:
    images = write_photos(tmp_path / "photos", each=6)
    for index in (3, 8):
        images.paths[index].write_text("no image")
    with pytest.raises(ImageError, match=r"2 of 12 images cannot be read: .*red/03\.png.*; .*blue/02\.png"):
        train_classifier(images, validation=images.subset([]), cache=tmp_path / "cache", **frozen)
    assert not (tmp_path / "cache").exists()


def test_bad_files_are_left_out_on_request_and_listed(frozen: dict[str, Any], tmp_path: Path) -> None:
    images = write_photos(tmp_path / "photos", each=6)
    images.paths[2].write_text("no image")
    images.paths[9].write_bytes(images.paths[9].read_bytes()[:-500])  # bad at its end
    record = train_classifier(images, output=tmp_path / "m.safetensors", skip_bad=True, **frozen).record
    assert {Path(entry["path"]) for entry in record["skipped"]} == {images.paths[2], images.paths[9]}
    assert all(entry["path"] in entry["error"] for entry in record["skipped"])
    assert (record["data"]["train"] + record["data"]["validation"], record["data"]["skipped"]) == (10, 2)
    assert "skipped" not in load(tmp_path / "m.safetensors").record  # paths are nobody else's business


def test_a_file_that_is_bad_at_its_end_is_named_when_it_is_read(frozen: dict[str, Any], tmp_path: Path) -> None:
    images = write_photos(tmp_path / "photos", each=6)
    images.paths[5].write_bytes(images.paths[5].read_bytes()[:-500])
    with pytest.raises(ImageError, match=r"red/05\.png") as error:
        train_classifier(images, validation=images.subset([0, 11]), **frozen)
    assert "\n" not in str(error.value)


def test_somebody_elses_file_is_known_before_the_work(
    photos: LabelledImages, frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = counted_features(monkeypatch)
    for name in ("mine.safetensors", "m.report/confusion.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("not yours")
        output = path if path.suffix == ".safetensors" else tmp_path / "m.safetensors"
        with pytest.raises(OutputError, match="was not written by sppnet"):
            train_classifier(photos, output=output, **frozen)
        assert path.read_text() == "not yours"
    with pytest.raises(SettingsError, match=r"ends in \.safetensors: got .*m\.pth"):
        train_classifier(photos, output=tmp_path / "m.pth", **frozen)
    assert not counts


def test_an_earlier_report_is_replaced(photos: LabelledImages, frozen: dict[str, Any], tmp_path: Path) -> None:
    wrong = LabelledImages(photos.paths, 1 - photos.labels, photos.class_names)
    train, validation = photos.subset(range(0, 24, 2)), wrong.subset(range(1, 24, 2))
    output, report = tmp_path / "m.safetensors", tmp_path / "m.report"
    train_classifier(train, validation=validation, output=output, **frozen)
    assert (report / "mistakes.jpg").exists()
    train_classifier(photos, output=output, **frozen)
    assert sorted(path.name for path in report.iterdir()) == ["confusion.png", "evaluation.json"]


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_layers": "backbone"}, "train_layers must be one of head, all: got 'backbone'"),
        ({"classifier": "boost"}, "classifier must be one of svm, softmax: got 'boost'"),
        ({"epochs": 3, "learning_rate": 0.1}, "epochs, learning_rate: only for layers that are trained in epochs; add classifier"),
        ({"classifier": "svm", "hidden": (8,)}, "hidden: only for layers that are trained in epochs"),
        ({"classifier": "svm", "train_layers": "all"}, "SVMs are trained on a frozen backbone"),
        ({"sides": (40, 32)}, "sides: only where all layers are trained"),
        ({"validation_share": 1.0}, "validation_share must be between 0 and 1: got 1.0"),
        ({"validation_share": 0.0}, "validation_share must be between 0 and 1: got 0.0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295: got -1"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_setting_that_is_wrong_or_unused_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        ClassifierSettings(**wrong)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_hidden_layers_or_a_trained_backbone_want_softmax() -> None:
    assert ClassifierSettings().svm
    assert not ClassifierSettings(hidden=(8,)).svm
    assert not ClassifierSettings(train_layers="all").svm
    assert not ClassifierSettings(classifier="softmax").svm


def test_what_does_not_go_together(
    photos: LabelledImages, frozen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, kind: type = SettingsError, images: LabelledImages = photos, **options: Any) -> None:
        with pytest.raises(kind, match=match) as error:
            train_classifier(images, cache=tmp_path / "cache", **{**frozen, **options})
        assert "\n" not in str(error.value)

    other = LabelledImages(photos.paths, photos.labels, ("cat", "dog"))
    refused("classes are not those of the data: 'cat', 'dog' against 'red', 'blue'", validation=other)
    refused("validation_share: the data holds validation images already", validation=photos, validation_share=0.2)
    refused("at least two classes to train on, got 'red'", images=photos.subset(range(12)))
    refused("got none", images=photos.subset([]))
    refused("devices, workers: only where all layers are trained", devices=2)
    refused("tiny with random weights cannot be frozen", weights="random")
    refused("tiny has no pretrained weights", weights=None)
    refused("no such weights file: none.pth", ModelError, weights="none.pth")
    refused("epochs must be at least 1: got 0", classifier="softmax", epochs=0)
    refused("sides must be at least 4 pixels with tiny: got 3", train_layers="all", sides=(32, 3))
    refused("device 'tpu' is not available here", device="tpu")
    monkeypatch.setattr("sppnet.classification.train.MAX_IMAGES", 19)
    refused("at most 19 images here: got ..; take the softmax classifier", kind=UserError)
    assert not (tmp_path / "cache").exists()
