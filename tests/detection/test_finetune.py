"""Training the fully connected layers: its batches, its losses, and that a resumed run equals an unbroken one."""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sppnet.detection.finetune import (
    FinetuneSettings,
    TrainingImage,
    WindowBatches,
    _Finetune,
    detection_losses,
    finetune,
)
from sppnet.detection.map_cache import MapCache
from sppnet.detection.targets import Candidates
from sppnet.models.sppnet import SPPNet

SETTINGS = FinetuneSettings(steps=12, images_per_step=2, windows_per_image=8, checkpoint_every=4, seed=3)
LEFT, RIGHT = [0.0, 0, 64, 64], [64.0, 0, 128, 64]  # of images 128 px wide and 64 px high: maps of 4 x 2 cells


@pytest.fixture
def cache(tiny_detector: SPPNet, tmp_path: Path) -> MapCache:
    return MapCache.of(tiny_detector, tmp_path / "maps")


@pytest.fixture
def images(tiny_detector: SPPNet, cache: MapCache, tmp_path: Path) -> list[TrainingImage]:
    """Five photos, each with an object of class 1 on the left and background on the right."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 128, 3), dtype=np.uint8)).save(path)
    candidates = Candidates(
        boxes=torch.tensor([LEFT, RIGHT]),
        labels=torch.tensor([1, 0]),
        deltas=torch.tensor([[0.5, -0.25, 0.1, 0.2], [0.0, 0, 0, 0]]),
        foreground=1,
        image_labels=torch.tensor([1.0, 0]),
    )
    files = cache.fill(tiny_detector, paths)
    return [TrainingImage(candidates, files[path], (64, 128)) for path in paths]


def test_losses_worked_by_hand() -> None:
    # Two windows: the first is an object of class 2, the second background. K = 2.
    window_logits = torch.tensor([[0.0, 0, math.log(2)], [math.log(2), 0, 0]])  # each gives the truth 2 of 4 parts
    deltas = torch.tensor([[[9.0, 9, 9, 9], [0.5, 2, 0, 0]], [[9.0, 9, 9, 9], [9, 9, 9, 9]]])
    image_logits = torch.tensor([[0.0, math.log(3)]])
    batch = {
        "labels": torch.tensor([2, 0]),
        "deltas": torch.tensor([[0.0, 0, 0, 0], [7, 7, 7, 7]]),
        "image_labels": torch.tensor([[0.0, 1]]),
    }
    losses = detection_losses(window_logits, deltas, image_logits, batch)
    assert losses["windows"].item() == pytest.approx(math.log(2))
    # smooth L1 of the true class's deltas alone: .5 * .5 ** 2 + (2 - .5), over both windows
    assert losses["boxes"].item() == pytest.approx((0.125 + 1.5) / 2)
    assert losses["images"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_a_batch_without_foreground_has_no_box_loss() -> None:
    batch = {"labels": torch.tensor([0]), "deltas": torch.zeros(1, 4), "image_labels": torch.zeros(1, 2)}
    losses = detection_losses(torch.zeros(1, 3), torch.ones(1, 2, 4, requires_grad=True), torch.zeros(1, 2), batch)
    assert losses["boxes"].item() == 0
    losses["boxes"].backward()  # and its gradient is no NaN


def test_what_a_batch_holds(tiny_detector: SPPNet, cache: MapCache, images: list[TrainingImage]) -> None:
    batch = WindowBatches(images, tiny_detector, cache, SETTINGS)[0]
    assert {name: list(value.shape) for name, value in batch.items()} == {
        "pooled": [2 + 4, 5, 384],  # 2 whole images, then 2 windows of each (there are no more); levels (2, 1)
        "residuals": [4, 4],
        "labels": [4],
        "deltas": [4, 4],
        "image_labels": [2, 2],
    }
    assert batch["pooled"].dtype == torch.float16
    assert batch["labels"].tolist() == [1, 0, 1, 0]


def test_the_same_seed_and_step_give_the_same_batch(
    tiny_detector: SPPNet, cache: MapCache, images: list[TrainingImage]
) -> None:
    batches, again = (WindowBatches(images, tiny_detector, cache, SETTINGS) for _ in range(2))
    assert len(batches) == 12
    again[3]  # what was asked for before does not matter
    for name, value in batches[5].items():
        assert torch.equal(value, again[5][name])
    assert not torch.equal(batches[5]["pooled"], batches[6]["pooled"])


def test_every_image_once_before_any_twice(tiny_detector: SPPNet, cache: MapCache, images: list[TrainingImage]) -> None:
    batches = WindowBatches(images, tiny_detector, cache, SETTINGS)
    shown = [index for step in range(10) for index in batches._images_of(step)]
    rounds = [shown[start : start + 5] for start in range(0, 20, 5)]
    assert all(Counter(each) == Counter(range(5)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


def test_mirror_images_have_mirrored_boxes(tiny_detector: SPPNet, cache: MapCache, images: list[TrainingImage]) -> None:
    # A pretended mirror image, which is the very same map: its left window must be pooled from the right half.
    twice = [TrainingImage(image.candidates, (image.maps[0],) * 2, image.size) for image in images]
    batches = WindowBatches(twice, tiny_detector, cache, SETTINGS)
    seen = set()
    for step in range(12):
        batch = batches[step]
        for row, index in enumerate(batches._images_of(step)):
            features = cache.read(images[index].maps[0]).whole_map
            left, right = (tiny_detector.pool(features, torch.tensor([[0, x, 0, x + 2, 2]]))[0] for x in (0, 2))
            window, delta = batch["pooled"][2 + 2 * row], batch["deltas"][2 * row].tolist()
            mirrored = delta == pytest.approx([-0.5, -0.25, 0.1, 0.2])
            assert mirrored or delta == pytest.approx([0.5, -0.25, 0.1, 0.2])
            # Cells are centred at 0.5, 32.5, 64.5, 96.5 px: two in each half.
            assert torch.equal(window, right if mirrored else left)
            seen.add(mirrored)
    assert seen == {True, False}


def test_of_several_scales_every_window_gets_any_or_the_one_that_suits_it(
    tiny_detector: SPPNet, images: list[TrainingImage], tmp_path: Path
) -> None:
    scales = (64, 128, 256)
    model = SPPNet(dataclasses.replace(tiny_detector.architecture, scales=scales), tiny_detector.backbone).eval()
    several = MapCache.of(model, tmp_path / "maps")
    files = several.fill(model, [tmp_path / f"{index}.png" for index in range(5)], mirrored=False)
    of_scales = [dataclasses.replace(image, maps=maps) for image, maps in zip(images, files.values(), strict=True)]
    maps = several.read(of_scales[0].maps[0])
    left, right = torch.tensor([LEFT]), torch.tensor([RIGHT])

    def pooled_at(box: torch.Tensor, scale: int) -> torch.Tensor:
        return maps.pool(model, maps.windows(model, box, torch.tensor([scale]))[0])[0]

    seen = Counter[tuple[int, ...]]()
    suited = dataclasses.replace(SETTINGS, images_per_step=1, steps=60, random_scale=False)
    for settings in (suited, dataclasses.replace(suited, random_scale=True)):
        batches = WindowBatches([of_scales[0]], model, several, settings)
        for step in range(settings.steps):
            whole, *windows = batches[step]["pooled"]
            assert torch.equal(whole, maps.pool(model, maps.whole_window())[0])
            found = [
                [scale for scale in range(3) if torch.equal(window, pooled_at(box, scale))]
                for window, box in zip(windows, (left, right), strict=True)
            ]
            if settings.random_scale:
                seen[tuple(scale for (scale,) in found)] += 1
            else:
                assert found == [[2], [2]]  # 64 x 64 px are nearest to 224 x 224 at four times their size
    assert len(seen) == 9, "each window draws by itself"


def test_layers_with_wide_inputs_learn_slower(tiny_detector: SPPNet) -> None:
    """Adam moves every weight by about the learning rate: summed over a wide input, that is a large step."""
    net = copy.deepcopy(tiny_detector)
    module = _Finetune(net, SETTINGS)
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {id(group["params"][0]): group["initial_lr"] for group in groups}
    first = net.fully_connected[1].weight  # [16, 5 bins x 384 channels]
    assert rates[id(first)] == pytest.approx(SETTINGS.learning_rate * 1024 / 1920)
    assert rates[id(net.window_classifier.weight)] == SETTINGS.learning_rate
    assert rates[id(net.residual_deltas.weight)] == SETTINGS.learning_rate
    assert len(rates) == len(list(module.parameters()))


def trained(
    model: SPPNet, images: list[TrainingImage], cache: MapCache, folder: Path, settings: FinetuneSettings = SETTINGS
) -> dict[str, Tensor]:
    net = copy.deepcopy(model)
    assert finetune(net, images, cache, settings, folder) is net
    assert not net.training
    return net.state_dict()


@pytest.mark.parametrize(
    ("steps", "interrupted_at", "taken_up_at"),
    [(12, 6, 4), (12, 2, 0), (12, 11, 8), (10, 9, 8)],  # checkpoints every 4 steps; the last stretch may be shorter
)
def test_an_interrupted_run_ends_with_the_same_weights(
    tiny_detector: SPPNet,
    cache: MapCache,
    images: list[TrainingImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    interrupted_at: int,
    taken_up_at: int,
) -> None:
    settings = dataclasses.replace(SETTINGS, steps=steps)
    batch = WindowBatches.__getitem__
    asked: list[int] = []
    interrupted = False

    def noting(self: WindowBatches, step: int) -> dict[str, Tensor]:
        asked.append(step)
        if interrupted and step == interrupted_at:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(WindowBatches, "__getitem__", noting)
    unbroken = trained(tiny_detector, images, cache, tmp_path / "unbroken", settings)
    assert asked == list(range(steps))

    at_interrupt = signal.getsignal(signal.SIGINT)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_detector, images, cache, tmp_path / "broken", settings)
    assert signal.getsignal(signal.SIGINT) == at_interrupt  # a second Ctrl-C works as the first

    interrupted = False
    asked.clear()
    told: list[tuple[int, int]] = []
    net = copy.deepcopy(tiny_detector)
    finetune(net, images, cache, settings, tmp_path / "broken", lambda done, total: told.append((done, total)))
    assert asked == list(range(taken_up_at, steps))
    assert told == [(step + 1, steps) for step in asked]
    for name, value in net.state_dict().items():
        assert torch.equal(value, unbroken[name]), name


def test_the_backbone_stays_and_the_rest_learns(
    tiny_detector: SPPNet, cache: MapCache, images: list[TrainingImage], tmp_path: Path
) -> None:
    before = tiny_detector.state_dict()
    after = trained(tiny_detector, images, cache, tmp_path / "run")
    learned = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert learned == {
        "fully_connected",
        "window_logits",
        "shared_deltas",
        "class_deltas",
        "residual_deltas",
        "image_logits",
    }
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert not any("backbone" in name for name in checkpoint["state_dict"])


def test_a_run_that_does_not_divide_by_its_checkpoints(
    tiny_detector: SPPNet, cache: MapCache, images: list[TrainingImage], tmp_path: Path
) -> None:
    uneven = FinetuneSettings(steps=5, images_per_step=2, windows_per_image=8, checkpoint_every=3)
    trained(tiny_detector, images, cache, tmp_path / "run", uneven)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 5
