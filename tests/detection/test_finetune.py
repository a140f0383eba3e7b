"""Fine-tuning the fully connected layers: its batches, its losses, and that a resumed run equals an unbroken one."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.finetune import CachedBatches, FinetuneSettings, WindowBatch, detection_losses, finetune
from sppnet.detection.targets import TrainingImage
from sppnet.models.sppnet import SPPNet

SETTINGS = FinetuneSettings(
    steps=12, images_per_step=2, windows_per_image=2, foreground_share=0.5, checkpoint_interval=4, seed=3
)
LEFT, RIGHT = torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([[64.0, 0, 128, 64]])


@pytest.fixture(scope="module")
def maps(
    tiny_detector: SPPNet, photos: list[TrainingImage], tmp_path_factory: pytest.TempPathFactory
) -> FeatureMapCache:
    cache = FeatureMapCache(tiny_detector, tmp_path_factory.mktemp("maps"))
    cache.fill([photo.path for photo in photos], flip=True)
    return cache


# Losses


def losses_of(logits: Tensor, deltas: Tensor, image_logits: Tensor, batch: WindowBatch) -> dict[str, Tensor]:
    """Of a network that says just that."""
    net = SimpleNamespace(
        fully_connected=lambda pooled: pooled,
        heads=lambda *_: (logits, deltas),
        image_classifier=lambda _: image_logits,
    )
    return detection_losses(cast(SPPNet, net), batch, image_weight=0.5)


def test_losses_worked_by_hand() -> None:
    # Two windows: the first is an object of class 2, the second background. K = 2.
    window_logits = torch.tensor([[0.0, 0, math.log(2)], [math.log(2), 0, 0]])  # each gives the truth 2 of 4 parts
    deltas = torch.tensor([[[9.0, 9, 9, 9], [0.5, 2, 0, 0]], [[9.0, 9, 9, 9], [9, 9, 9, 9]]])
    image_logits = torch.tensor([[0.0, math.log(3)]])
    truth = torch.tensor([[0.0, 0, 0, 0], [7, 7, 7, 7]])
    batch = WindowBatch(torch.zeros(3, 1), torch.zeros(2, 4), torch.tensor([2, 0]), truth, torch.tensor([[0.0, 1]]))
    losses = losses_of(window_logits, deltas, image_logits, batch)
    assert losses["windows"].item() == pytest.approx(math.log(2))
    # smooth L1 of the true class's deltas alone: .5 * .5 ** 2 + (2 - .5), over both windows
    assert losses["boxes"].item() == pytest.approx((0.125 + 1.5) / 2)
    assert losses["images"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert losses["loss"].item() == pytest.approx(float(losses["windows"] + losses["boxes"] + losses["images"] / 2))


def test_a_batch_without_foreground_has_no_box_loss() -> None:
    batch = WindowBatch(torch.zeros(2, 1), torch.zeros(1, 4), torch.tensor([0]), torch.zeros(1, 4), torch.zeros(1, 2))
    losses = losses_of(torch.zeros(1, 3), torch.ones(1, 2, 4, requires_grad=True), torch.zeros(1, 2), batch)
    assert losses["boxes"].item() == 0
    losses["boxes"].backward()  # and its gradient is no NaN


# Batches


def test_what_a_batch_holds(maps: FeatureMapCache, photos: list[TrainingImage]) -> None:
    batch = CachedBatches(photos, maps, SETTINGS)[0]
    assert {name: list(value.shape) for name, value in batch._asdict().items()} == {
        "pooled": [2 + 4, 5, 384],  # 2 whole images, then 2 windows of each; levels (2, 1)
        "residuals": [4, 4],
        "labels": [4],
        "deltas": [4, 4],
        "image_labels": [2, 2],
    }
    assert batch.pooled.dtype == torch.float16
    assert batch.labels.tolist() == [1, 0, 1, 0]


def test_the_same_seed_and_number_give_the_same_batch(maps: FeatureMapCache, photos: list[TrainingImage]) -> None:
    batches, again = (CachedBatches(photos, maps, SETTINGS) for _ in range(2))
    again[3]  # what was asked for before does not matter
    assert all(torch.equal(one, other) for one, other in zip(batches[5], again[5], strict=True))
    assert not torch.equal(batches[5].pooled, batches[6].pooled)


def test_flipped_images_have_flipped_boxes(
    tiny_detector: SPPNet, photos: list[TrainingImage], maps: FeatureMapCache
) -> None:
    seen = set()
    batches = CachedBatches(photos[:1], maps, replace(SETTINGS, images_per_step=1))
    for step in range(8):
        batch = batches[step]
        flipped = batch.deltas[0].tolist() == pytest.approx([-0.5, -0.25, 0.1, 0.2])
        assert flipped or batch.deltas[0].tolist() == pytest.approx([0.5, -0.25, 0.1, 0.2])
        features = maps.read(photos[0].path, flip=flipped).whole_map
        x0 = 2 if flipped else 0  # cells are centered at 0.5, 32.5, 64.5, 96.5 px: two in each half
        assert torch.equal(batch.pooled[1], tiny_detector.pool(features, torch.tensor([[0, x0, 0, x0 + 2, 2]]))[0])
        seen.add(flipped)
    assert seen == {True, False}
    assert all(CachedBatches(photos, maps, replace(SETTINGS, flip=False))[step].deltas[0, 0] > 0 for step in range(8))


def test_of_several_scales_every_window_gets_any(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], photos: list[TrainingImage], tmp_path: Path
) -> None:
    model = variant(tiny_detector, scales=(64, 128, 256))
    several = FeatureMapCache(model, tmp_path)
    maps = several.read(photos[0].path)

    def pooled_at(box: Tensor, scale: int) -> Tensor:
        return maps.pool(model, maps.windows(model, box, torch.tensor([scale]))[0])[0]

    seen = Counter[tuple[int, ...]]()
    batches = CachedBatches(photos[:1], several, replace(SETTINGS, images_per_step=1, flip=False))
    for step in range(60):
        whole, *windows = batches[step].pooled
        assert torch.equal(whole, maps.pool(model, maps.whole_window())[0])
        found = [
            [scale for scale in range(3) if torch.equal(window, pooled_at(box, scale))]
            for window, box in zip(windows, (LEFT, RIGHT), strict=True)
        ]
        seen[tuple(scale for (scale,) in found)] += 1
    assert len(seen) == 9, "each window draws by itself"


# Training


def trained(
    model: SPPNet, photos: list[TrainingImage], maps: FeatureMapCache, folder: Path, **settings: Any
) -> dict[str, Tensor]:
    net = copy.deepcopy(model)
    finetune(net, photos, maps, replace(SETTINGS, **settings), folder)
    assert not net.training
    return net.state_dict()


@pytest.mark.parametrize(
    ("steps", "interrupted_at", "taken_up_at"),
    [(12, 6, 4), (12, 2, 0), (10, 9, 8)],  # checkpoints every 4 steps; the last interval may be shorter
)
def test_an_interrupted_run_ends_with_the_same_weights(
    tiny_detector: SPPNet,
    maps: FeatureMapCache,
    photos: list[TrainingImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    interrupted_at: int,
    taken_up_at: int,
) -> None:
    batch = CachedBatches.__getitem__
    asked: list[int] = []
    interrupted = False

    def noting(self: CachedBatches, n: int) -> WindowBatch:
        asked.append(n)
        if interrupted and n == interrupted_at:
            raise KeyboardInterrupt
        return batch(self, n)

    monkeypatch.setattr(CachedBatches, "__getitem__", noting)
    unbroken = trained(tiny_detector, photos, maps, tmp_path / "unbroken", steps=steps)
    assert asked == list(range(steps))
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        trained(tiny_detector, photos, maps, tmp_path / "broken", steps=steps)

    interrupted = False
    asked.clear()
    told: list[tuple[str, int, int]] = []
    net = copy.deepcopy(tiny_detector)
    settings = replace(SETTINGS, steps=steps)
    finetune(net, photos, maps, settings, tmp_path / "broken", progress=lambda *done: told.append(done))
    assert asked == list(range(taken_up_at, steps))
    assert told == [("fine-tuning", step + 1, steps) for step in asked]
    for name, value in net.state_dict().items():
        assert torch.equal(value, unbroken[name]), name


def test_the_backbone_stays_and_the_rest_is_trained(
    tiny_detector: SPPNet, maps: FeatureMapCache, photos: list[TrainingImage], tmp_path: Path
) -> None:
    before = tiny_detector.state_dict()
    after = trained(tiny_detector, photos, maps, tmp_path, steps=5, checkpoint_interval=3)
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"fully_connected", "window_classifier", "box_regressor", "image_classifier"}
    (checkpoint,) = tmp_path.glob("fine-tuning-*/step-00000005.safetensors")  # 5 does not divide by 3
    assert sum(value.shape[:1] == (384,) for value in load_file(checkpoint).values()) == 0  # no convolution's


def test_only_a_run_of_the_same_kind_is_taken_up(
    tiny_detector: SPPNet, maps: FeatureMapCache, photos: list[TrainingImage], tmp_path: Path
) -> None:
    def steps_done(images: list[TrainingImage], **settings: Any) -> int:
        done: list[int] = []
        how = replace(SETTINGS, steps=2, **settings)
        finetune(
            copy.deepcopy(tiny_detector), images, maps, how, tmp_path, progress=lambda _, step, __: done.append(step)
        )
        return len(done)

    assert steps_done(photos) == 2
    assert steps_done(photos) == 0  # it was finished
    assert steps_done(photos, checkpoint_interval=1) == 0  # which changes nothing
    assert steps_done(photos, learning_rate=2e-3) == 2
    assert steps_done(photos[:4]) == 2
