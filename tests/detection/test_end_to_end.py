"""Training end to end: what a batch holds, which layers are trained, where the gradient goes, and that a stopped run ends the same."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sppnet.detection import end_to_end
from sppnet.detection.end_to_end import (
    EndToEndSettings,
    Photo,
    PhotoBatches,
    train_end_to_end,
    trainable_layers,
)
from sppnet.detection.targets import TrainingImage
from sppnet.errors import SettingsError
from sppnet.models.sppnet import SPPNet
from sppnet.training.checkpoints import read_log

SETTINGS = EndToEndSettings(epochs=3, windows_per_image=8, checkpoint_interval=3, seed=3)  # 5 images: 8 steps


# Batches


def batches(
    model: SPPNet, photos: Sequence[TrainingImage], side_shares: tuple[float, ...] = (1.0,), **settings: Any
) -> PhotoBatches:
    return PhotoBatches(photos, model, replace(SETTINGS, windows_per_image=4, side_shares=side_shares, **settings))


def test_what_a_batch_holds(tiny_detector: SPPNet, photos: list[TrainingImage]) -> None:
    for photo in batches(tiny_detector, photos)[0]:
        assert photo.pixels.shape == (64, 128, 3)
        assert photo.size == (64, 128)
        assert photo.windows.labels.tolist() == [1, 0, 0, 0]  # a quarter is foreground
        assert photo.windows.image_labels.tolist() == [1, 0]


def test_in_a_flipped_image_everything_is_flipped(tiny_detector: SPPNet, photos: list[TrainingImage]) -> None:
    seen = set()
    for step in range(8):
        for photo in batches(tiny_detector, photos)[step]:
            flipped = bool(photo.pixels[:, 64:].float().mean() > photo.pixels[:, :64].float().mean())
            assert photo.windows.boxes[0].tolist() == ([64, 0, 128, 64] if flipped else [0, 0, 64, 64])
            assert photo.windows.deltas[0].tolist() == pytest.approx([-0.5 if flipped else 0.5, -0.25, 0.1, 0.2])
            seen.add(flipped)
    assert seen == {True, False}
    unflipped = [photo for step in range(8) for photo in batches(tiny_detector, photos, flip=False)[step]]
    assert all(photo.windows.boxes[0, 0] == 0 for photo in unflipped)


def test_short_sides_are_drawn_for_each_image_and_the_limit_of_the_long_side_follows(
    tiny_detector: SPPNet, photos: list[TrainingImage]
) -> None:
    drawn = [photo for step in range(12) for photo in batches(tiny_detector, photos, side_shares=(0.5, 1.0, 2.0))[step]]
    assert {photo.pixels.shape[:2] for photo in drawn} == {(32, 64), (64, 128), (128, 256)}


def test_the_same_seed_and_number_give_the_same_batch(tiny_detector: SPPNet, photos: list[TrainingImage]) -> None:
    def of(n: int, **settings: Any) -> list[tuple[list[Any], list[Any]]]:
        found = batches(tiny_detector, photos, **settings)
        found[3]  # what was asked for before does not matter
        return [(photo.pixels.tolist(), photo.windows.boxes.tolist()) for photo in found[n]]

    assert of(5) == of(5)
    assert [of(n) for n in range(5)] != [of(n, seed=4) for n in range(5)]


# Which layers are trained


@pytest.fixture
def net() -> nn.Sequential:
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(8, 8, 1, bias=False))
    block.add_module("norm", nn.BatchNorm2d(8))
    block.add_module("last", nn.Conv2d(8, 8, 1, bias=False))
    whole = nn.Sequential()
    whole.add_module("stem", nn.Conv2d(3, 8, 3, bias=False))
    whole.add_module("relu", nn.ReLU())
    whole.add_module("stage", block)
    return whole


@pytest.mark.parametrize(
    ("train_layers", "expected"),
    [
        ("none", []),
        ("all", ["stem.weight", "stage.conv.weight", "stage.last.weight"]),
        ("stem", ["stem.weight", "stage.conv.weight", "stage.last.weight"]),
        ("0", ["stem.weight", "stage.conv.weight", "stage.last.weight"]),
        ("relu", ["stage.conv.weight", "stage.last.weight"]),  # a layer without weights: those after it
        ("-1", ["stage.conv.weight", "stage.last.weight"]),
        ("stage.norm", ["stage.last.weight"]),
        ("stage.last", ["stage.last.weight"]),
    ],
)
def test_trainable_layers(net: nn.Sequential, train_layers: str, expected: list[str]) -> None:
    trainable_layers(net, "stage.last")  # a second choice replaces the first
    trained = trainable_layers(net, train_layers)
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == expected
    assert len(trained) == len(expected)


def test_what_comes_before_keeps_no_activations(net: nn.Sequential) -> None:
    trainable_layers(net, "stage")
    seen: list[Tensor] = []
    net.stem.register_forward_hook(lambda _, __, result: seen.append(result))
    assert net.eval()(torch.zeros(1, 3, 8, 8)).requires_grad
    assert not seen[0].requires_grad


@pytest.mark.parametrize("train_layers", ["some", "", "stage.nothing", "3", "from:1"])
def test_layers_that_are_not_there(net: nn.Sequential, train_layers: str) -> None:
    message = f"train_layers is {train_layers!r}: no such layer; expected all, none, a name out of stem, relu, stage, .* index below 3"
    with pytest.raises(SettingsError, match=message):
        trainable_layers(net, train_layers)


def test_nothing_left_to_train() -> None:
    with pytest.raises(SettingsError, match="train_layers is '1': no layer from there on has weights"):
        trainable_layers(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), "1")


# Training


def trained(model: SPPNet, photos: list[TrainingImage], folder: Path, **settings: Any) -> dict[str, Tensor]:
    net = copy.deepcopy(model)
    net.backbone.to(memory_format=torch.channels_last)  # as in use
    assert train_end_to_end(net, photos, replace(SETTINGS, **settings), folder) == 0
    assert not net.training
    return net.state_dict()


def test_the_loss_of_windows_reaches_the_convolutions(
    tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient is that of finite differences, through pooling and all (float32, so roughly)."""
    net = copy.deepcopy(tiny_detector)
    weight = list(net.backbone.parameters())[-2]

    def differences(trainable: nn.Module, batches: PhotoBatches, loss: Any, *_: Any, **__: Any) -> Any:
        batch = batches[0]

        def total() -> Tensor:
            return torch.as_tensor(loss(batch, 0)["loss"].double())

        trainable.eval()  # without dropout
        total().backward()
        assert weight.grad is not None
        direction, step = weight.grad / weight.grad.norm(), 1e-2
        with torch.no_grad():
            weight.add_(step * direction)
            above = total()
            weight.sub_(2 * step * direction)
            below = total()
        assert float((above - below) / (2 * step)) == pytest.approx(float(weight.grad.norm()), rel=0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(end_to_end, "fit", differences)
    with pytest.raises(KeyboardInterrupt):
        train_end_to_end(net, photos, SETTINGS, tmp_path)


@pytest.mark.parametrize(
    ("train_layers", "convolutions"), [("none", set[str]()), ("-1", {"last"}), ("all", {"first", "last"})]
)
def test_what_is_trained_and_what_stays(
    tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path: Path, train_layers: str, convolutions: set[str]
) -> None:
    before = tiny_detector.state_dict()
    after = trained(tiny_detector, photos, tmp_path, train_layers=train_layers, epochs=1)
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    names = [*tiny_detector.backbone.state_dict()]
    ends = {"first": names[0], "last": names[-2]}
    assert {word for word, name in ends.items() if f"backbone.{name}" in changed} == convolutions
    heads = {"fully_connected", "window_classifier", "box_regressor", "image_classifier"}
    assert {name.split(".")[0] for name in changed} - {"backbone"} == heads
    checkpoint = load_file(max(tmp_path.glob("end-to-end-*/step-*.safetensors")))
    held = {name for name in checkpoint if name.startswith("trained/backbone.")}
    assert held == {f"trained/{name}" for name in changed if name.startswith("backbone.")}


def test_it_learns(tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path: Path) -> None:
    trained(tiny_detector, photos, tmp_path, epochs=24, learning_rate=2e-3, backbone_rate=0.1, checkpoint_interval=100)
    losses = read_log(next(tmp_path.glob("end-to-end-*/log.csv")))["train_windows"]
    assert np.mean(losses[-2:]) < 0.7 * losses[0]


def test_an_interrupted_run_ends_with_the_same_weights(
    tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = PhotoBatches.__getitem__
    asked: list[int] = []
    interrupted = False

    def noting(self: PhotoBatches, n: int) -> list[Photo]:
        asked.append(n)
        if interrupted and n == 5:
            raise KeyboardInterrupt
        return batch(self, n)

    monkeypatch.setattr(PhotoBatches, "__getitem__", noting)
    unbroken = trained(tiny_detector, photos, tmp_path / "unbroken")
    assert asked == list(range(8))
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_detector, photos, tmp_path / "broken")
    interrupted = False
    for taken_up in ([3, 4, 5, 6, 7], []):  # then there is nothing left to do
        asked.clear()
        again = trained(tiny_detector, photos, tmp_path / "broken")
        assert asked == taken_up
        assert all(torch.equal(value, again[name]) for name, value in unbroken.items())


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path: Path
) -> None:
    net = copy.deepcopy(tiny_detector)
    assert net.window_classifier is not None
    with torch.no_grad():
        net.window_classifier.weight[0, 0] = torch.inf
    with pytest.raises(SettingsError, match=r"training diverged at step 1: .*; take a smaller learning rate"):
        train_end_to_end(net, photos, SETTINGS, tmp_path)


def test_long_gradients_are_shortened(tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path: Path) -> None:
    def moved(limit: float) -> float:
        trained(tiny_detector, photos, tmp_path / f"{limit}", epochs=1, gradient_norm=limit, checkpoint_interval=1)
        state = load_file(max((tmp_path / f"{limit}").glob("end-to-end-*/step-*.safetensors")))
        return float(torch.stack([value.norm() for name, value in state.items() if name.endswith("/exp_avg")]).norm())

    assert moved(1e-3) < 1.1e-3 < moved(40.0)  # Adam's own steps do not grow with the gradient: look at its mean


SCRIPT = """
import sys
from pathlib import Path
import torch
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.end_to_end import EndToEndSettings, train_end_to_end
from sppnet.detection.targets import training_images
from sppnet.models.files import load
from sppnet.proposals.compute import proposals_of

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, start, output, cache = map(Path, sys.argv[1:])
    model, data = load(start), read_voc(folder, "train")
    images = training_images(data.images, proposals_of(data, "grid", cache), 2)
    settings = EndToEndSettings(epochs=2, windows_per_image=8, images_per_step=1)
    if train_end_to_end(model, images, settings, cache, devices=2) == 0:
        model.save(output)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_together(tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    """Each takes one image of every two, so there are as many steps as one process makes with two images a step."""
    script, output = tmp_path / "script.py", tmp_path / "m.safetensors"
    script.write_text(SCRIPT)
    words = [str(script), str(tiny_voc), str(tiny_model_file), str(output), str(tmp_path / "cache")]
    # Threads of one BLAS call, and of two processes on one machine, are no business of this test.
    subprocess.run([sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=280)
    before, after = load_file(tiny_model_file), load_file(output)
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert any(name.startswith("backbone.") and not torch.equal(value, before[name]) for name, value in after.items())
    assert (next((tmp_path / "cache").glob("end-to-end-*")) / "step-00000008.safetensors").is_file()
