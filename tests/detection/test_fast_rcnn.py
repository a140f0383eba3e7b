"""Learning end to end: where the gradient goes, what stays, that it learns, and that a stopped run ends the same."""

from __future__ import annotations

import copy
import csv
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sppnet.detection.fast_rcnn import LAST, FastRcnn, FastRcnnSettings, learn_end_to_end
from sppnet.detection.image_batches import ImageBatches, LearningImage
from sppnet.detection.targets import Candidates
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet

SETTINGS = FastRcnnSettings(epochs=3, windows_per_image=8, checkpoint_every=3, seed=3)  # 5 images: 8 steps


@pytest.fixture
def images(tmp_path: Path) -> list[LearningImage]:
    """Five pictures of 128 x 64 px and one of another size, a bright square on the left."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(5):
        width = 128 if index else 96
        pixels = rng.integers(0, 100, (64, width, 3), dtype=np.uint8)
        pixels[:, : width // 2] += 120
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(path)
        left, right = [0.0, 0, width / 2, 64], [width / 2, 0, width, 64]
        candidates = Candidates(
            torch.tensor([left, right, right]), torch.tensor([1, 0, 0]), torch.zeros(3, 4), 1, torch.tensor([1.0, 0])
        )
        made.append(LearningImage(path, candidates))
    return made


def trained(
    model: SPPNet, images: list[LearningImage], folder: Path, settings: FastRcnnSettings = SETTINGS
) -> dict[str, Tensor]:
    net = copy.deepcopy(model)
    assert learn_end_to_end(net, images, settings, folder) == 0
    assert not net.training
    return net.state_dict()


def test_the_loss_of_windows_reaches_the_convolutions(tiny_detector: SPPNet, images: list[LearningImage]) -> None:
    """Its gradient is that of finite differences, through pooling and all (float32, so roughly)."""
    net = copy.deepcopy(tiny_detector)
    module = FastRcnn(net, images, SETTINGS, 8)
    batch = ImageBatches(
        images, net.architecture, net.smallest_side, images_per_step=2, windows_per_image=3, foreground_share=0.25,
        short_sides=(), mirrored=False, seed=0,
    )[0]  # fmt: skip
    with torch.autocast("cpu", enabled=False), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sppnet.detection.fast_rcnn.autocast", lambda _: torch.autocast("cpu", enabled=False))

        def loss() -> Tensor:
            return torch.stack([*module.losses(batch).values()]).double().sum()

        loss().backward()
        weight = list(net.backbone.parameters())[-2]
        assert weight.grad is not None
        direction = weight.grad / weight.grad.norm()
        step = 1e-2
        with torch.no_grad():
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
    assert float((above - below) / (2 * step)) == pytest.approx(float(weight.grad.norm()), rel=0.05)


@pytest.mark.parametrize(
    ("learn", "learns"), [("fc_only", set[str]()), ("from:-1", {"last"}), ("all", {"first", "last"})]
)
def test_what_learns_and_what_stays(
    tiny_detector: SPPNet, images: list[LearningImage], tmp_path: Path, learn: str, learns: set[str]
) -> None:
    before = tiny_detector.state_dict()
    after = trained(tiny_detector, images, tmp_path / "run", dataclasses.replace(SETTINGS, learn=learn, epochs=1))
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    first, last = (list(tiny_detector.backbone.state_dict())[place] for place in (0, -2))
    assert {word for word, name in (("first", first), ("last", last)) if f"backbone.{name}" in changed} == learns
    assert {name.split(".")[0] for name in changed} - {"backbone"} == {
        "fully_connected", "window_logits", "shared_deltas", "class_deltas", "residual_deltas", "image_logits",
    }  # fmt: skip
    kept = torch.load(tmp_path / "run" / LAST, weights_only=True)["state_dict"]
    convolutions = [name for name in kept if name.startswith("convolutions.")]
    assert len(convolutions) == sum(name.startswith("backbone.") for name in changed)  # and no others


def test_it_learns(tiny_detector: SPPNet, images: list[LearningImage], tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=24, learning_rate=2e-3, backbone_rate=0.1, checkpoint_every=100)
    trained(tiny_detector, images, tmp_path / "run", settings)
    losses = [
        float(row["loss_windows"]) for file in (tmp_path / "run" / "log").glob("*/metrics.csv") for row in read(file)
    ]
    assert np.mean(losses[-2:]) < 0.7 * losses[0]


def read(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize(("interrupted_at", "taken_up_at"), [(5, 3), pytest.param(1, 0, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_the_same_weights(
    tiny_detector: SPPNet,
    images: list[LearningImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted_at: int,
    taken_up_at: int,
) -> None:
    batch = ImageBatches.__getitem__
    asked: list[int] = []
    interrupted = False

    def noting(self: ImageBatches, step: int) -> object:
        asked.append(step)
        if interrupted and step == interrupted_at:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(ImageBatches, "__getitem__", noting)
    unbroken = trained(tiny_detector, images, tmp_path / "unbroken")
    assert asked == list(range(8))
    at_interrupt = signal.getsignal(signal.SIGINT)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_detector, images, tmp_path / "broken")
    assert signal.getsignal(signal.SIGINT) == at_interrupt  # a second Ctrl-C works as the first
    interrupted = False
    asked.clear()
    again = trained(tiny_detector, images, tmp_path / "broken")
    assert asked == list(range(taken_up_at, 8))
    assert all(torch.equal(value, again[name]) for name, value in unbroken.items())
    asked.clear()
    finished = trained(tiny_detector, images, tmp_path / "broken")
    assert asked == []  # there was nothing left to do
    assert all(torch.equal(value, finished[name]) for name, value in unbroken.items())


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_detector: SPPNet, images: list[LearningImage], tmp_path: Path
) -> None:
    net = copy.deepcopy(tiny_detector)
    with torch.no_grad():
        net.window_classifier.weight[0, 0] = torch.inf
    with pytest.raises(UserError, match="training went astray at step 0: the gradient is nan; take a smaller learning"):
        learn_end_to_end(net, images, SETTINGS, tmp_path / "run")


def test_long_gradients_are_shortened(tiny_detector: SPPNet, images: list[LearningImage], tmp_path: Path) -> None:
    def moved(limit: float) -> float:
        settings = dataclasses.replace(SETTINGS, epochs=1, gradient_norm=limit, checkpoint_every=1)
        trained(tiny_detector, images, tmp_path / f"{limit}", settings)
        state = torch.load(tmp_path / f"{limit}" / LAST, weights_only=True)["optimizer_states"][0]["state"]
        return float(torch.stack([each["exp_avg"].norm() for each in state.values()]).norm())

    assert moved(1e-3) < 1.1e-3 < moved(40.0)  # Adam's own steps do not grow with the gradient: look at its mean


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1: got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and at most 1: got 0.0"),
        ({"background_iou": 0.5}, "expected 0 <= background_iou < foreground_iou <= 1: got 0.5 and 0.5"),
        ({"gradient_norm": 0.0}, "gradient_norm must be above 0"),
        ({"short_sides": (400, 0)}, r"short_sides must be at least 1 pixel: got \[400, 0\]"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_settings_out_of_range(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FastRcnnSettings(**setting)  # type: ignore[arg-type]


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.end_to_end import train_end_to_end
from sppnet.detection.fast_rcnn import FastRcnnSettings

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, start, output, work, devices, stop = sys.argv[1:]

    def report(stage, done, total):
        if stage == "end to end" and done == int(stop):
            os.kill(os.getpid(), signal.SIGKILL)

    settings = FastRcnnSettings(epochs=2, windows_per_image=8, checkpoint_every=3, images_per_step=2 // int(devices))
    train_end_to_end(
        read_voc(Path(folder), "train"), Path(start), Path(output), Path(work), settings=settings, devices=int(devices),
        report=report,
    )
"""


def run_script(folder: Path, start: Path, output: Path, devices: int = 1, stop: int = -1) -> int:
    script = output.parent / "script.py"
    output.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPT)
    words = [folder, start, output, output.parent / "work", devices, stop]
    # Threads of one BLAS call, and of two processes on one machine, are no business of this test.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script), *map(str, words)], env=environment, check=False, timeout=280)
    return done.returncode


@pytest.mark.slow
@pytest.mark.timeout(600)  # three processes, each of which loads Lightning
def test_a_run_that_is_killed_ends_with_the_same_file(tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "a" / "m.safetensors", tmp_path / "b" / "m.safetensors"
    assert run_script(tiny_voc, tiny_model_file, unbroken) == 0
    assert run_script(tiny_voc, tiny_model_file, broken, stop=5) == -signal.SIGKILL
    assert not broken.exists()
    assert run_script(tiny_voc, tiny_model_file, broken) == 0
    assert weights(broken) == weights(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_together(tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    """Each takes one image of every two, so there are as many steps as one process makes with two images a step."""
    from safetensors.torch import load_file

    output = tmp_path / "two" / "m.safetensors"
    assert run_script(tiny_voc, tiny_model_file, output, devices=2) == 0
    before, after = load_file(tiny_model_file), load_file(output)
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert any(name.startswith("backbone.") for name in moved)
    assert (
        torch.load(next((tmp_path / "two" / "work").glob("end-to-end-m-*")) / LAST, weights_only=True)["global_step"]
        == 8
    )


def weights(file: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: value.numpy().tobytes() for name, value in load_file(file).items()}
