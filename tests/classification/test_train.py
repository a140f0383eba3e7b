"""Training a classifier: it learns, keeps what was best on held-out images, and goes on exactly where it was stopped.

Also run as a script, by tests that need a process of their own: ``python test_train.py killed|devices FOLDER ...``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sppnet.classification import kept
from sppnet.classification.evaluate import evaluate_classifier
from sppnet.classification.loop import BEST, LAST
from sppnet.classification.module import ClassifierModule
from sppnet.classification.readable import Report
from sppnet.classification.schedule import TrainingSizes
from sppnet.classification.settings import ClassifierSettings
from sppnet.classification.train import TrainedClassifier, train_classifier
from sppnet.data.formats.folder import read_folder
from sppnet.data.images import resize_image
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import UserError
from sppnet.models.sppnet import Architecture, SPPNet

EPOCHS, STEPS = 3, 5  # of `settings_of`, with the 18 photos that are not held out
KILLED_AFTER = (
    1,
    4,
    7,
    13,
)  # steps, of 15 with a checkpoint every 3: before the first, in the midst, in the last epoch
WAYS = ("svm", "head", "native", "single", "multi", "random", "random-batch")


def write_photos(folder: Path) -> LabelledImages:
    """24 photos of many sizes, red or blue with noise; a folder of class folders."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("red", "blue")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            height, width = rng.integers(36, 60, 2)
            pixels = rng.integers(0, 150, (height, width, 3), dtype=np.uint8)
            pixels[:, :, 2 * label] += 100
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return read_folder(folder, class_names=("red", "blue"))


def tiny_model(*, norm: bool = True, hidden: tuple[int, ...] = (16,), **changes: Any) -> SPPNet:
    """32 channels, a cell every 4 pixels; the same weights every time."""
    settings = {"levels": (2, 1), "detects": False, "multi_label": False, "short_side": 32, "long_side": 64} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 32, 4, 4), *([nn.BatchNorm2d(32)] if norm else []), nn.ReLU()]
        return SPPNet(Architecture(("red", "blue"), hidden=hidden, **settings), nn.Sequential(*layers)).eval()


def settings_of(way: str, **changes: Any) -> ClassifierSettings:
    """A few steps of one of `WAYS`: "svm", "head", or one of the training sizes."""
    head = way in ("svm", "head")
    sizes = TrainingSizes() if head else TrainingSizes(way, (32, 24))  # type: ignore[arg-type]
    settings: dict[str, Any] = {
        "learn": "head" if head else "all", "sizes": sizes, "epochs": EPOCHS, "batch_size": 4,
        "checkpoint_every": 3, "learning_rate": 3e-3, "backbone_rate": 1.0, "precision": "float32",
    }  # fmt: skip
    return ClassifierSettings(**(settings | changes))


def trained(
    photos: LabelledImages, folder: Path, way: str, report: Report | None = None, **changes: Any
) -> TrainedClassifier:
    train, held_out = split_off(photos, 0.25, seed=0)
    model = tiny_model(hidden=(), classifier="svm") if way == "svm" else tiny_model()
    return train_classifier(model, train, held_out, settings_of(way, **changes), checkpoints=folder, report=report)


def same(first: SPPNet, second: SPPNet) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over another number of threads differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What it comes to


@pytest.mark.parametrize("way", ["head", "native", "multi"])
def test_a_tiny_run_learns(photos: LabelledImages, tmp_path: Path, way: str) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def report(stage: str, done: int, total: int) -> None:
        stages[stage] = (done, total)

    result = trained(photos, tmp_path, way, report, epochs=8)
    images = {"checking images": (18, 18), "checking held-out images": (6, 6)}
    features = {"features": (24, 24)} if way == "head" else {}
    assert stages == {**images, **features, "training": (40, 40)}
    assert not result.model.training
    evaluation = evaluate_classifier(result.model, photos)
    assert evaluation.top1 > 0.9
    figures = json.loads(json.dumps(result.figures))
    assert figures["held_out"]["accuracy"] == 1.0
    assert figures["held_out"]["interval"][1] == 1.0
    assert figures["data"] == {"train": 18, "held_out": 6, "held_out_were": "given", "classes": 2, "skipped": []}
    assert figures["settings"]["epochs"] == 8
    assert figures["steps"] == 40
    losses = [loss for loss in result.log["train_loss"] if not math.isnan(loss)]
    assert losses[-1] < losses[0]
    assert len([loss for loss in result.log["val_loss"] if not math.isnan(loss)]) == 8  # after every epoch


def test_svms_learn(photos: LabelledImages, tmp_path: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def report(stage: str, done: int, total: int) -> None:
        stages[stage] = (done, total)

    result = trained(photos, tmp_path, "svm", report)
    images = {"checking images": (18, 18), "checking held-out images": (6, 6)}
    assert stages == {**images, "features": (24, 24), "training": (21, 21)}
    assert not result.model.training
    assert evaluate_classifier(result.model, photos).top1 > 0.9
    figures = json.loads(json.dumps(result.figures))
    assert figures["classifier"] == "svm"
    assert figures["settings"] == {"learn": "head", "held_out_share": 0.15, "seed": 0, "devices": 1}
    assert figures["svm"]["cost"] in (0.3, 1, 3, 10)
    assert figures["svm"]["images"] == 18
    assert (figures["held_out"]["accuracy"], figures["held_out"]["epoch"]) == (1.0, None)
    assert figures["held_out"]["loss"] < 0.5
    assert result.log == {}
    assert not list(tmp_path.glob("run-*"))


def test_the_backbone_stays_while_the_head_learns(photos: LabelledImages, tmp_path: Path) -> None:
    before, result = tiny_model(), trained(photos, tmp_path, "head")
    after = result.model
    assert same(before.backbone, after.backbone)  # type: ignore[arg-type]
    assert not torch.equal(before.image_classifier.weight, after.image_classifier.weight)
    assert not torch.equal(before.fully_connected[1].weight, after.fully_connected[1].weight)
    (last,) = tmp_path.glob(f"run-*/{LAST}")
    assert not any("backbone" in name for name in torch.load(last, weights_only=True)["state_dict"])


def test_the_whole_network_learns_and_its_batch_norm_is_folded(photos: LabelledImages, tmp_path: Path) -> None:
    result = trained(photos, tmp_path, "native")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.model.modules())
    assert not torch.allclose(tiny_model().backbone[0].weight, result.model.backbone[0].weight)  # type: ignore[index, union-attr]
    measured = evaluate_classifier(result.model, result.held_out).top1  # folded, one by one: what was measured before
    assert measured == pytest.approx(result.figures["held_out"]["accuracy"], abs=1e-4)


def test_the_best_epoch_is_kept(photos: LabelledImages, tmp_path: Path) -> None:
    """Fewest mistakes on the held-out images; of as many, the smallest loss. Here they are mislabelled: the more is
    learned, the worse."""
    train, right = split_off(photos, 0.25, seed=0)
    held_out = LabelledImages(right.paths, 1 - right.labels, right.names)
    result = train_classifier(
        tiny_model(), train, held_out, settings_of("head", epochs=6, learning_rate=0.03), checkpoints=tmp_path
    )
    rows = [
        (accuracy, loss)
        for accuracy, loss in zip(result.log["val_accuracy"], result.log["val_loss"], strict=True)
        if not math.isnan(loss)
    ]
    assert len(rows) == 6
    best = max(range(6), key=lambda epoch: (round(rows[epoch][0], 4), -rows[epoch][1]))
    figures = result.figures["held_out"]
    assert figures["epoch"] == best + 1 < 6
    assert (figures["accuracy"], figures["loss"]) == pytest.approx(rows[best], abs=1e-4)
    assert evaluate_classifier(result.model, held_out).top1 == pytest.approx(rows[best][0], abs=1e-4)


def test_images_are_held_out_where_none_are_given(photos: LabelledImages, tmp_path: Path) -> None:
    settings = settings_of("head", epochs=1, held_out_share=0.25, seed=4)
    result = train_classifier(tiny_model(), photos, settings=settings, checkpoints=tmp_path)
    assert result.held_out.paths == split_off(photos, 0.25, seed=4)[1].paths
    assert result.figures["data"]["held_out_were"] == "split off"


def test_nothing_held_out_keeps_the_last_epoch(photos: LabelledImages, tmp_path: Path) -> None:
    for _ in range(2):  # also where the run was finished before
        result = train_classifier(
            tiny_model(), photos, photos.subset([]), settings_of("head", epochs=2), checkpoints=tmp_path
        )
        assert result.figures["held_out"] is None
        assert not torch.equal(result.model.image_classifier.weight, tiny_model().image_classifier.weight)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_make_no_difference(photos: LabelledImages, tmp_path: Path) -> None:
    train, held_out = split_off(photos, 0.25, seed=0)
    large = resize_image(np.zeros((900, 900, 3), np.uint8), (700, 700))  # OpenCV's threads are at work before
    models = [
        train_classifier(
            tiny_model(),
            train,
            held_out,
            settings_of("random-batch"),
            checkpoints=tmp_path / str(workers),
            workers=workers,
        ).model
        for workers in (0, 1)
    ]
    assert large.shape == (700, 700, 3)
    assert same(*models)


# Going on


@pytest.mark.parametrize("way", ["head", "native", "multi"])
@pytest.mark.parametrize("stop", KILLED_AFTER[1::2])
def test_an_interrupted_run_ends_with_the_same_weights(
    photos: LabelledImages, tmp_path: Path, way: str, stop: int
) -> None:
    at_interrupt = signal.getsignal(signal.SIGINT)
    trained_steps: list[int] = []

    def stopping(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == stop:
            raise KeyboardInterrupt

    def counting(stage: str, done: int, total: int) -> None:
        if stage == "training":
            trained_steps.append(done)

    unbroken = trained(photos, tmp_path / "unbroken", way)
    with pytest.raises(KeyboardInterrupt):
        trained(photos, tmp_path / "broken", way, stopping)
    assert signal.getsignal(signal.SIGINT) == at_interrupt  # a second Ctrl-C works as the first
    resumed = trained(photos, tmp_path / "broken", way, counting)
    assert trained_steps[-1] == EPOCHS * STEPS
    assert trained_steps[0] <= stop + 1
    assert same(unbroken.model, resumed.model)
    assert unbroken.figures["held_out"] == resumed.figures["held_out"]
    assert unbroken.log["step"] == resumed.log["step"]
    assert np.array_equal(unbroken.log["val_loss"], resumed.log["val_loss"], equal_nan=True)


def test_interrupted_svms_go_on_with_the_features_that_are_there(
    photos: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "AT_ONCE", 4)
    told: list[tuple[str, int]] = []

    def stopping(at: tuple[str, int]) -> Report:
        def report(stage: str, done: int, total: int) -> None:
            told.append((stage, done))
            if (stage, done) == at:
                raise KeyboardInterrupt

        return report

    unbroken = trained(photos, tmp_path / "unbroken", "svm")
    for at in (("features", 12), ("training", 7)):
        with pytest.raises(KeyboardInterrupt):
            trained(photos, tmp_path / "broken", "svm", stopping(at))
    resumed = trained(photos, tmp_path / "broken", "svm", stopping(("never", 0)))
    assert [done for stage, done in told if stage == "features"] == [4, 8, 12, 16, 20, 24]  # each once, in three runs
    assert same(unbroken.model, resumed.model)
    assert unbroken.figures["held_out"] == resumed.figures["held_out"]


def test_a_finished_run_is_not_done_again(photos: LabelledImages, tmp_path: Path) -> None:
    first, stages = trained(photos, tmp_path, "multi"), []
    again = trained(photos, tmp_path, "multi", lambda stage, done, total: stages.append(stage))
    assert "training" not in stages
    assert same(first.model, again.model)
    assert again.figures["held_out"] == first.figures["held_out"]
    assert again.log["step"] == first.log["step"]


def test_another_training_does_not_go_on_from_this_one(photos: LabelledImages, tmp_path: Path) -> None:
    trained(photos, tmp_path, "head", epochs=1)
    trained(photos, tmp_path, "head", epochs=1, seed=1)
    trained(photos, tmp_path, "head", epochs=2)
    trained(photos.subset(range(23)), tmp_path, "head", epochs=1)
    assert len(list(tmp_path.glob("run-*"))) == 4


@pytest.fixture(scope="module")
def killed(photos: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what runs left that were killed: <way>-<step>."""
    folder = tmp_path_factory.mktemp("killed")
    script = [sys.executable, __file__, "killed", photos.paths[0].parents[1], folder]
    ran = subprocess.run(script, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["9"] * (len(WAYS) * len(KILLED_AFTER))  # that signal ended them
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_ends_with_the_same_weights(
    photos: LabelledImages, killed: Path, tmp_path: Path, way: str
) -> None:
    """kill -9: nothing is told, nothing is tidied up."""
    unbroken = trained(photos, tmp_path, way)
    for stop in KILLED_AFTER:
        resumed = trained(photos, killed / f"{way}-{stop}", way)
        assert same(unbroken.model, resumed.model), stop
        assert unbroken.figures["held_out"] == resumed.figures["held_out"]


def run_and_be_killed(photos: Path, folder: Path) -> None:
    """Every way of training, killed after each of `KILLED_AFTER` steps; prints the signals that ended them."""
    torch.set_num_threads(1)
    images = read_folder(photos, class_names=("red", "blue"))
    for way in WAYS:
        for stop in KILLED_AFTER:

            def kill(stage: str, done: int, total: int, last: int = stop) -> None:
                if stage == "training" and done == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            child = os.fork()
            if not child:
                trained(images, folder / f"{way}-{stop}", way, kill)
                os._exit(1)
            print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)


# Several processes


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["native", "random-batch"])
def test_two_processes_learn_as_one_with_twice_the_batch(photos: LabelledImages, tmp_path: Path, way: str) -> None:
    """Without BatchNorm and dropout, which do not see the other half of the batch."""
    even, held_out = photos.subset(range(2, 18)), photos.subset([0, 1, 22, 23])
    settings = settings_of(way, batch_size=4, epochs=2)
    one = train_classifier(
        tiny_model(norm=False, hidden=()), even, held_out, settings_of(way, batch_size=8, epochs=2),
        checkpoints=tmp_path / "one",
    )  # fmt: skip
    words = [sys.executable, __file__, "devices", photos.paths[0].parents[1], tmp_path / "two", way]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    two = torch.load(tmp_path / "two" / "model.pt", weights_only=True)
    seen = json.loads((tmp_path / "two" / "figures.json").read_text())
    for name, value in one.model.state_dict().items():
        assert torch.allclose(value, two[name], rtol=1e-3, atol=1e-5), name
    assert seen["steps"] == one.figures["steps"] == 4
    assert seen["held_out"]["accuracy"] == one.figures["held_out"]["accuracy"]
    assert seen["held_out"]["loss"] == pytest.approx(one.figures["held_out"]["loss"], abs=1e-3)
    assert settings.epochs == 2


def train_on_two(photos: Path, folder: Path, way: str) -> None:
    """What `test_two_processes_learn_as_one_with_twice_the_batch` starts, and Lightning a second time."""
    torch.set_num_threads(1)
    images = read_folder(photos, class_names=("red", "blue"))
    result = train_classifier(
        tiny_model(norm=False, hidden=()),
        images.subset(range(2, 18)),
        images.subset([0, 1, 22, 23]),
        settings_of(way, batch_size=4, epochs=2),
        checkpoints=folder,
        devices=2,
    )
    if result.rank == 0:
        torch.save(result.model.state_dict(), folder / "model.pt")
        (folder / "figures.json").write_text(json.dumps(result.figures))


# Precision and schedule


def logits_of(precision: str, model: SPPNet, batch: dict[str, Any]) -> Tensor:
    module = ClassifierModule(model, settings_of("native", precision=precision), 10, None, None)  # type: ignore[arg-type]
    with torch.no_grad():
        return module.logits(batch)


def test_bfloat16_on_request() -> None:
    model = tiny_model()
    batch = {"images": torch.randint(0, 255, (2, 3, 40, 36), dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    exact, short = (logits_of(precision, model, batch) for precision in ("float32", "bfloat16"))
    assert exact.dtype == short.dtype == torch.float32  # the loss is always computed in it
    assert not torch.equal(exact, short)
    assert torch.allclose(exact, short, atol=0.05)
    assert torch.equal(logits_of("auto", model, batch), exact) or torch.equal(logits_of("auto", model, batch), short)


@pytest.mark.parametrize("way", ["head", "native", "multi"])
def test_a_run_in_bfloat16_learns(photos: LabelledImages, tmp_path: Path, way: str) -> None:
    result = trained(photos, tmp_path, way, epochs=8, precision="bfloat16")
    assert result.figures["held_out"]["accuracy"] == 1.0
    assert {value.dtype for value in result.model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_a_mixed_batch_gives_the_logits_of_its_images() -> None:
    model = tiny_model()
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in ((33, 50), (47, 32), (40, 40))]
    labels = torch.zeros(3, dtype=torch.int64)
    together = logits_of("float32", model, {"images": images, "labels": labels})
    alone = [logits_of("float32", model, {"images": image[None], "labels": labels[:1]}) for image in images]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def rates(settings: ClassifierSettings, model: SPPNet) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of each parameter."""
    module = ClassifierModule(model, settings, 10, None, None)  # type: ignore[arg-type]
    groups = module.configure_optimizers()["optimizer"].param_groups
    return {
        name: (group["initial_lr"], group["weight_decay"])
        for (name, _), group in zip(module.named_parameters(), groups, strict=True)
    }


def test_each_layer_has_its_rate() -> None:
    model = tiny_model(levels=(6, 3, 2, 1))
    found = rates(settings_of("native", learning_rate=1e-2, backbone_rate=0.1), model)
    assert found["backbone.0.weight"] == pytest.approx((1e-3, 0.01))
    assert found["backbone.0.bias"] == found["backbone.1.weight"] == pytest.approx((1e-3, 0.0))  # no decay
    # Adam moves every weight by about the learning rate: summed over a wide input, that is a large step.
    assert found["fully_connected.1.weight"] == pytest.approx((1e-2 * 1024 / (50 * 32), 0.01))
    assert found["image_logits.weight"] == pytest.approx((1e-2, 0.01))
    paper = rates(settings_of("native", optimiser="sgd", learning_rate=1e-2, weight_decay=5e-4), model)
    assert paper["fully_connected.1.weight"] == pytest.approx((1e-2, 5e-4))
    assert not any(name.startswith("backbone") for name in rates(settings_of("head"), model))


def test_the_rate_over_the_steps() -> None:
    def curve(optimiser: str) -> list[float]:
        module = ClassifierModule(tiny_model(), settings_of("native", optimiser=optimiser), 100, None, None)  # type: ignore[arg-type]
        factor = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
        return [factor(step) for step in range(100)]

    cosine, steps = curve("adamw"), curve("sgd")
    assert cosine[0] == pytest.approx(0.2)  # a warm-up of five steps
    assert cosine[4] == max(cosine) > 0.99
    assert cosine[4:] == sorted(cosine[4:], reverse=True)
    assert cosine[99] < 0.001
    assert steps == pytest.approx([1.0] * 60 + [0.1] * 25 + [0.01] * 15)


# What is refused


def test_bad_files_are_named_before_anything_is_computed(photos: LabelledImages, tmp_path: Path) -> None:
    images = write_photos(tmp_path / "photos")
    for number in (3, 20):
        images.paths[number].write_text("no image")
    with pytest.raises(UserError, match=r"2 of 24 images cannot be read: .*red/03\.png.*; .*blue/08\.png"):
        train_classifier(tiny_model(), images, photos.subset([]), settings_of("head"), checkpoints=tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("way", ["head", "native"])
def test_bad_files_are_skipped_on_request_and_listed(tmp_path: Path, way: str) -> None:
    images = write_photos(tmp_path / "photos")
    images.paths[3].write_text("no image")
    images.paths[20].write_bytes(images.paths[20].read_bytes()[:-500])  # bad at its end
    result = train_classifier(
        tiny_model(), images, settings=settings_of(way, epochs=1), checkpoints=tmp_path, skip_bad=True
    )
    data = result.figures["data"]
    assert {Path(entry["path"]) for entry in data["skipped"]} == {images.paths[3], images.paths[20]}
    assert all(entry["path"] in entry["error"] for entry in data["skipped"])
    assert data["train"] + data["held_out"] == 22


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_is_bad_at_its_end_is_named_when_it_is_met(tmp_path: Path, workers: int) -> None:
    images = write_photos(tmp_path / "photos")
    images.paths[5].write_bytes(images.paths[5].read_bytes()[:-500])
    with pytest.raises(UserError, match=r"red/05\.png") as error:
        train_classifier(
            tiny_model(), images, images.subset([0]), settings_of("native"), checkpoints=tmp_path, workers=workers
        )
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_loss_that_is_no_number(photos: LabelledImages, tmp_path: Path) -> None:
    model = tiny_model()
    nn.init.constant_(model.image_classifier.weight, math.inf)
    with pytest.raises(UserError, match=r"astray by step 0: the loss is .*; take a smaller learning rate"):
        train_classifier(model, photos, settings=settings_of("head"), checkpoints=tmp_path)
    assert not list(tmp_path.rglob(BEST))


def test_what_does_not_go_together(photos: LabelledImages, tmp_path: Path) -> None:
    def refused(
        match: str, model: SPPNet, way: str = "head", images: LabelledImages = photos, devices: int = 1
    ) -> None:
        with pytest.raises(UserError, match=match) as error:
            train_classifier(model, images, settings=settings_of(way), checkpoints=tmp_path / "work", devices=devices)
        assert "\n" not in str(error.value)

    other = LabelledImages(photos.paths, photos.labels, ("cat", "dog"))
    refused("classes are not the model's: 'cat', 'dog' against 'red', 'blue'", tiny_model(), images=other)
    refused("at least two classes to learn from, got 'red'", tiny_model(), images=photos.subset(range(12)))
    refused("got none", tiny_model(), images=photos.subset([]))
    refused("devices must be at least 1: got 0", tiny_model(), devices=0)
    refused("the head alone learns on one device", tiny_model(), devices=2)
    svms = tiny_model(hidden=(), classifier="svm")
    refused("SVMs learn on a backbone that stays as it is: take learn='head'", svms, way="native")
    refused("the head alone learns on one device", svms, devices=2)
    fixed = tiny_model(fit="crop", fixed_size=True)
    refused("this network takes images of 32 x 32 alone", fixed, way="multi")
    large = SPPNet(tiny_model().architecture, nn.Sequential(nn.Conv2d(3, 32, 30, 4), nn.ReLU()))
    refused("the sides must be at least 30 pixels with this backbone: got 24", large, way="multi")
    assert not (tmp_path / "work").exists()
    with pytest.raises(ValueError, match="one class an image"):
        train_classifier(tiny_model(multi_label=True), photos, checkpoints=tmp_path / "work")


if __name__ == "__main__":
    todo, *words = sys.argv[1:]
    if todo == "killed":
        run_and_be_killed(*map(Path, words))
    else:
        train_on_two(Path(words[0]), Path(words[1]), words[2])
