"""Training in epochs: the best epoch is kept, and a stopped run ends with the very same weights.

Also run as a script, by a test that needs processes of its own: ``python test_epochs.py PHOTOS FOLDER``.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sppnet.classification.batches import TrainingSizes
from sppnet.classification.epochs import EpochSettings, TrainedEpochs, train_epochs
from sppnet.classification.features import ReadableImages, readable_images
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import ImageError, SettingsError
from sppnet.models.cut import fold_batch_norm
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model
from sppnet.progress import Progress, no_progress

EPOCHS, STEPS = 3, 5  # of `settings_of`, with 18 photos
WAYS = ("head", "native", "multi")


def network(way: str, *, norm: bool = True, hidden: tuple[int, ...] = (16,)) -> SPPNet:
    """32 channels, a cell every 4 pixels; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 32, 4, 4), *([nn.BatchNorm2d(32)] if norm else []), nn.ReLU()]
        architecture = Architecture(("red", "blue"), "", (2, 1), hidden, detects=False, multi_label=False)
        model = build_model(architecture, Preprocess(32, 64), backbone=nn.Sequential(*layers)).eval()
    if way == "head":
        fold_batch_norm(model.backbone)
    return model


def settings_of(way: str, **changes: Any) -> EpochSettings:
    """A few steps of the head alone, or of all layers at one of the training sizes."""
    sizes = TrainingSizes() if way == "head" else TrainingSizes(way, (32, 24))  # type: ignore[arg-type]
    settings = {
        "train_backbone": way != "head", "sizes": sizes, "epochs": EPOCHS, "batch_size": 4, "checkpoint_interval": 3,
        "learning_rate": 3e-3, "backbone_rate": 1.0, "precision": "float32",
    }  # fmt: skip
    return EpochSettings(**{**settings, **changes})


@pytest.fixture(scope="session")
def parts(photos: LabelledImages) -> tuple[ReadableImages, ReadableImages]:
    """18 photos to train on, 6 for validation."""
    train, validation = split_off(photos, 0.25, seed=0)
    return readable_images(train), readable_images(validation)


def run(
    parts: tuple[ReadableImages, ReadableImages], folder: Path, way: str, progress: Progress = no_progress, **changes: Any
) -> tuple[SPPNet, TrainedEpochs]:  # fmt: skip
    model = network(way)
    return model, train_epochs(model, *parts, settings_of(way, **changes), folder, progress=progress)


@pytest.fixture(scope="module")
def unbroken(
    parts: tuple[ReadableImages, ReadableImages], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[SPPNet, TrainedEpochs, Path]]:
    """Each way, trained in one go."""
    found = {}
    for way in WAYS:
        folder = tmp_path_factory.mktemp(f"unbroken-{way}")
        found[way] = (*run(parts, folder, way), folder)
    return found


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums over another number of threads differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(first: SPPNet, second: SPPNet) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def values(log: dict[str, list[float]], name: str) -> list[float]:
    return [value for value in log[name] if not math.isnan(value)]


# What it comes to


@pytest.mark.parametrize("way", WAYS)
def test_the_log_holds_every_epoch(unbroken: dict[str, tuple[SPPNet, TrainedEpochs, Path]], way: str) -> None:
    model, trained, _ = unbroken[way]
    assert not model.training
    assert trained.figures["steps"] == EPOCHS * STEPS
    assert trained.rank == 0
    assert len(values(trained.log, "val_accuracy")) == EPOCHS
    losses = values(trained.log, "train_loss")
    assert losses[-1] < losses[0]
    assert (trained.figures["padding_share"] > 0) == (way == "native")


def test_the_best_epoch_is_kept(parts: tuple[ReadableImages, ReadableImages], tmp_path: Path) -> None:
    """Fewest mistakes on the validation images; of as many, the smallest loss. Here they are mislabelled: the longer it trains,
    the worse."""
    train, validation = parts
    wrong = LabelledImages(validation.images.paths, 1 - validation.images.labels, validation.images.class_names)
    model, trained = run(
        (train, ReadableImages(wrong, validation.sizes)), tmp_path, "head", epochs=6, learning_rate=0.03
    )
    rows = list(zip(values(trained.log, "val_accuracy"), values(trained.log, "val_loss"), strict=True))
    best = max(range(6), key=lambda epoch: (rows[epoch][0], -rows[epoch][1]))
    assert trained.figures["best_epoch"] == best + 1 < 6
    alone, _ = run((train, ReadableImages(wrong, validation.sizes)), tmp_path, "head", epochs=6, learning_rate=0.03)
    assert same(model, alone)  # also where the run was finished before


def test_without_validation_images_the_last_epoch_is_kept(
    parts: tuple[ReadableImages, ReadableImages], tmp_path: Path
) -> None:
    none = ReadableImages(parts[0].images.subset([]), np.zeros((0, 2), np.int64))
    model, trained = run((parts[0], none), tmp_path, "head")
    assert trained.figures["best_epoch"] is None
    assert not torch.equal(model.image_classifier.weight, network("head").image_classifier.weight)
    assert same(model, run((parts[0], none), tmp_path, "head")[0])


def test_in_bfloat16_it_learns_too(parts: tuple[ReadableImages, ReadableImages], tmp_path: Path) -> None:
    model, trained = run(parts, tmp_path, "native", epochs=8, precision="bfloat16")
    assert max(values(trained.log, "val_accuracy")) == 1.0
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


# Going on


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [4, 13])
def test_an_interrupted_run_ends_with_the_same_weights(
    parts: tuple[ReadableImages, ReadableImages], unbroken: dict[str, tuple[SPPNet, TrainedEpochs, Path]], tmp_path: Path,
    way: str, stop: int,
) -> None:  # fmt: skip
    steps: list[int] = []

    def stopping(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == stop:
            raise KeyboardInterrupt

    def counting(stage: str, done: int, total: int) -> None:
        if stage == "training":
            steps.append(done)

    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path, way, stopping)
    resumed, trained = run(parts, tmp_path, way, counting)
    assert steps[0] <= stop + 1
    assert steps[-1] == EPOCHS * STEPS
    model, expected, _ = unbroken[way]
    assert same(model, resumed)
    assert trained.figures == expected.figures
    assert trained.log["step"] == expected.log["step"]
    assert np.array_equal(trained.log["val_loss"], expected.log["val_loss"], equal_nan=True)


def test_a_finished_run_is_not_done_again(
    parts: tuple[ReadableImages, ReadableImages], unbroken: dict[str, tuple[SPPNet, TrainedEpochs, Path]]
) -> None:
    model, trained, folder = unbroken["multi"]
    stages: list[str] = []
    again, its = run(parts, folder, "multi", lambda stage, done, total: stages.append(stage))
    assert "training" not in stages
    assert same(model, again)
    assert its.figures == trained.figures
    assert its.log["step"] == trained.log["step"]


def test_another_training_does_not_go_on_from_this_one(
    parts: tuple[ReadableImages, ReadableImages], tmp_path: Path
) -> None:
    run(parts, tmp_path, "head", epochs=1)
    run(parts, tmp_path, "head", epochs=1, checkpoint_interval=2)  # the same training
    run(parts, tmp_path, "head", epochs=1, seed=1)
    run(parts, tmp_path, "head", epochs=2)
    fewer = ReadableImages(parts[0].images.subset(range(17)), parts[0].sizes[:17])
    run((fewer, parts[1]), tmp_path, "head", epochs=1)
    assert len(list(tmp_path.glob("run-*"))) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_make_no_difference(
    parts: tuple[ReadableImages, ReadableImages], unbroken: dict[str, tuple[SPPNet, TrainedEpochs, Path]], tmp_path: Path
) -> None:  # fmt: skip
    assert same(run(parts, tmp_path, "multi", workers=1)[0], unbroken["multi"][0])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_as_one_with_twice_the_batch(photos: LabelledImages, tmp_path: Path) -> None:
    """Without BatchNorm and dropout, which do not see the other half of the batch."""
    model, trained = on_devices(photos, tmp_path / "one", devices=1)
    words = [sys.executable, __file__, photos.paths[0].parents[1], tmp_path / "two"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    two = torch.load(tmp_path / "two" / "model.pt", weights_only=True)
    seen = json.loads((tmp_path / "two" / "figures.json").read_text())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-5)
    assert seen["steps"] == trained.figures["steps"] == 4
    assert seen["val_loss"] == pytest.approx(values(trained.log, "val_loss"), abs=1e-3)


def on_devices(photos: LabelledImages, folder: Path, devices: int) -> tuple[SPPNet, TrainedEpochs]:
    model = network("native", norm=False, hidden=())
    parts = (readable_images(photos.subset(range(2, 18))), readable_images(photos.subset([0, 1, 22, 23])))
    settings = settings_of("native", batch_size=8 // devices, epochs=2, devices=devices)
    return model, train_epochs(model, *parts, settings, folder)


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1: got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"checkpoint_interval": -1}, "checkpoint_interval must be at least 1: got -1"),
        ({"devices": 0}, "devices must be at least 1: got 0"),
        ({"workers": -1}, "workers must be at least 0: got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be between 0 and 1: got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be between 0 and 1: got nan"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        EpochSettings(**wrong)
    assert str(error.value) == message


def test_training_that_diverges(parts: tuple[ReadableImages, ReadableImages], tmp_path: Path) -> None:
    model = network("head")
    nn.init.constant_(model.image_classifier.weight, math.inf)
    with pytest.raises(SettingsError, match=r"training diverged at step 1: .*; take a smaller learning rate"):
        train_epochs(model, *parts, settings_of("head"), tmp_path)


def test_a_file_that_is_bad_at_its_end_is_named_when_it_is_read(
    parts: tuple[ReadableImages, ReadableImages], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(parts[0].images.paths[5].read_bytes()[:-500])
    paths = (*parts[0].images.paths[:5], bad, *parts[0].images.paths[6:])
    images = ReadableImages(LabelledImages(paths, parts[0].images.labels, ("red", "blue")), parts[0].sizes)
    with pytest.raises(ImageError, match=r"bad\.png") as error:
        run((images, parts[1]), tmp_path, "native")
    assert "\n" not in str(error.value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders, folder = (Path(word) for word in sys.argv[1:])
    paths = [*sorted((folders / "red").iterdir()), *sorted((folders / "blue").iterdir())]
    model, trained = on_devices(LabelledImages(tuple(paths), np.repeat([0, 1], 12), ("red", "blue")), folder, devices=2)
    if trained.rank == 0:
        torch.save(model.state_dict(), folder / "model.pt")
        figures = {**trained.figures, "val_loss": values(trained.log, "val_loss")}
        (folder / "figures.json").write_text(json.dumps(figures))
