"""Box regression: windows that move onto their objects, in a stream, in little memory, stopped and gone on with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sppnet.boxes import box_iou, decode_boxes, encode_boxes
from sppnet.detection.box_regression import BoxRegressionSettings, train_box_regression
from sppnet.detection.windows_of_images import ImageWindows
from sppnet.errors import UserError


def shifted(count: int, seed: int, label: int = 1) -> tuple[ImageWindows, Tensor]:
    """An image with one object, and windows whose features say how far they are off; and the vectors."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.tensor([[50.0, 50, 110, 90]])
    boxes = gt + 4 * torch.randn(count, 4, generator=generator)
    boxes = torch.cat([gt, boxes, gt + 200])  # the object itself, near it, far from it
    offsets = encode_boxes(boxes, gt.expand(len(boxes), 4))
    vectors = torch.cat([10 * offsets, torch.ones(len(boxes), 1)], dim=1)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    labels[0] = label
    overlaps = torch.zeros(len(boxes), max(2, label))
    overlaps[:, label - 1] = box_iou(boxes, gt)[:, 0]
    return ImageWindows(boxes, labels, overlaps, lambda rows: vectors[rows]), vectors


def test_windows_move_onto_the_object() -> None:
    images = [shifted(30, seed)[0] for seed in range(5)]
    fitted = train_box_regression(images, 2, BoxRegressionSettings(ridge=0.01), scale=1.0)
    unseen, vectors = shifted(30, seed=9)
    near = unseen.overlaps[:, 0] > 0.6
    moved = decode_boxes(unseen.boxes[near], fitted(vectors[near])[:, 0])
    assert float(unseen.overlaps[near, 0][1:].max()) < 0.98
    assert float(box_iou(moved, unseen.boxes[:1])[:, 0].min()) > 0.99
    assert not fitted(vectors)[:, 1].any(), "a class without examples moves nothing"


def test_only_windows_near_an_object_are_learned_from_and_embedded() -> None:
    asked: list[int] = []
    image, vectors = shifted(30, 0)

    def embed(rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return vectors[rows]

    watched = dataclasses.replace(image, embed=embed)
    train_box_regression([watched], 1, BoxRegressionSettings(min_iou=0.8), scale=1.0)
    expected = (image.overlaps[:, 0] >= 0.8).nonzero().flatten().tolist()
    assert asked == [0, *expected]  # the first only to see how long its vector is
    assert 1 < len(expected) < 31


def test_the_fit_is_that_of_scikit_learn_on_scaled_features() -> None:
    from sklearn.linear_model import Ridge

    images = [shifted(8, seed) for seed in range(6)]
    fitted = train_box_regression([image for image, _ in images], 1, BoxRegressionSettings(ridge=3.0), scale=2.0)
    near = [image.overlaps[:, 0] >= 0.6 for image, _ in images]
    features = torch.cat([vectors[rows] for (_, vectors), rows in zip(images, near, strict=True)])
    expected = Ridge(alpha=3.0).fit(2 * features, features[:, :4] / 10)
    deltas = torch.from_numpy(expected.predict(2 * features)).float()
    torch.testing.assert_close(fitted(features)[:, 0], deltas, rtol=1e-3, atol=1e-5)


def test_little_memory_takes_more_rounds_to_the_same_result() -> None:
    images = [shifted(8, seed, label=1 + seed % 3)[0] for seed in range(9)]
    rounds = []

    class Watched(list[ImageWindows]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            rounds[-1] += index == 0
            return super().__getitem__(index)

    fitted = []
    for memory in (1000, 1 << 30):  # one class's sums take 800 bytes
        rounds.append(0)
        told = BoxRegressionSettings(memory_bytes=memory)
        fitted.append(train_box_regression(Watched(images), 3, told, scale=1.0))
    assert rounds[0] == rounds[1] + 2, "three classes, each in a round of its own"
    assert torch.equal(fitted[0].weights, fitted[1].weights)


class Stopped(Exception):
    pass


def stop_after(steps: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == steps:
            raise Stopped

    return progress


@pytest.mark.parametrize("steps", [4, 6, 9])
def test_a_training_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path, steps: int) -> None:
    images = [shifted(8, seed, label=1 + seed % 2)[0] for seed in range(6)]
    told = BoxRegressionSettings(memory_bytes=1000, checkpoint_interval=2)
    unbroken = train_box_regression(images, 2, told, scale=1.0)
    state = tmp_path / "ridge.safetensors"
    with pytest.raises(Stopped):
        train_box_regression(images, 2, told, scale=1.0, state=state, progress=stop_after(steps))
    seen: list[int] = []
    resumed = train_box_regression(
        images, 2, told, scale=1.0, state=state, progress=lambda stage, done, total: seen.append(done)
    )
    assert torch.equal(resumed.weights, unbroken.weights)
    assert torch.equal(resumed.biases, unbroken.biases)
    assert seen == list(range(steps // 2 * 2 + 1, 13))
    with pytest.raises(UserError, match="another training"):
        train_box_regression(images, 2, told, scale=2.0, state=state)


def test_what_decides_a_training_is_named_field_by_field() -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(BoxRegressionSettings):
        new: int = 1

    assert Later(checkpoint_interval=7).key() == BoxRegressionSettings().key()
    assert json.dumps(BoxRegressionSettings().key()) == '{"ridge": 1000.0, "min_iou": 0.6, "memory_bytes": 1073741824}'
