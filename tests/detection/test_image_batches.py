"""What a step learns from: which images, which windows of them, at which sides, mirrored or not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.detection.image_batches import ImageBatches, LearningImage, Sample
from sppnet.detection.targets import Candidates
from sppnet.models.sppnet import Architecture

ARCHITECTURE = Architecture(("circle", "square"), short_side=64, long_side=100)
LEFT, RIGHT = [0.0, 0, 48, 64], [60.0, 4, 96, 60]  # of images 96 px wide and 64 px high


@pytest.fixture
def images(tmp_path: Path) -> list[LearningImage]:
    """Five pictures, black on the left and white on the right; an object on the left, background on the right."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 48:] = 255
    candidates = Candidates(
        boxes=torch.tensor([LEFT, RIGHT, RIGHT, RIGHT]),
        labels=torch.tensor([1, 0, 0, 0]),
        deltas=torch.tensor([[0.5, -0.25, 0.1, 0.2], [0.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 0, 0]]),
        foreground=1,
        image_labels=torch.tensor([1.0, 0]),
    )
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return [LearningImage(path, candidates) for path in paths]


def batches(images: list[LearningImage], **other: Any) -> ImageBatches:
    usual: dict[str, Any] = {
        "images_per_step": 2, "windows_per_image": 4, "foreground_share": 0.25, "short_sides": (), "mirrored": True, "seed": 3,
    }  # fmt: skip
    return ImageBatches(images, ARCHITECTURE, 32, **(usual | other))


def test_what_a_batch_holds(images: list[LearningImage]) -> None:
    batch = batches(images)[0]
    assert [sample.image.shape for sample in batch] == [(64, 96, 3)] * 2
    for sample in batch:
        assert sample.scale == (1, 1)
        assert sample.labels.tolist().count(1) == 1  # a quarter of 4
        assert sample.boxes.shape == sample.deltas.shape == (4, 4)
        assert sample.image_labels.tolist() == [1, 0]


def test_in_a_mirror_image_everything_is_mirrored(images: list[LearningImage]) -> None:
    seen = set()
    for step in range(8):
        for sample in batches(images)[step]:
            mirrored = bool(sample.image[0, 0, 0])  # white on the left
            object_ = int(sample.labels.argmax())
            assert sample.boxes[object_].tolist() == ([48, 0, 96, 64] if mirrored else LEFT)
            assert sample.deltas[object_].tolist() == pytest.approx([-0.5 if mirrored else 0.5, -0.25, 0.1, 0.2])
            x0, y0, x1, y1 = sample.boxes[object_].int().tolist()
            assert not sample.image[y0:y1, x0:x1].any()  # the object is the black part
            seen.add(mirrored)
    assert seen == {True, False}
    assert not any(sample.image[0, 0, 0] for step in range(8) for sample in batches(images, mirrored=False)[step])


def test_sides_are_drawn_for_each_image_and_the_limit_of_the_long_side_follows(images: list[LearningImage]) -> None:
    shapes = Counter(
        sample.image.shape[:2] for step in range(12) for sample in batches(images, short_sides=(32, 64, 128))[step]
    )
    # 96 x 64 px at short side 128 would be 192 px long; at most 2 * 100 = 200 are allowed
    assert set(shapes) == {(32, 48), (64, 96), (128, 192)}
    scales = {s.image.shape[0]: s.scale for step in range(12) for s in batches(images, short_sides=(32, 128))[step]}
    assert scales == {32: (0.5, 0.5), 128: (2, 2)}


def same(one: Sample, other: Sample) -> bool:
    return all(
        np.array_equal(a, b)
        if isinstance(a, np.ndarray)
        else torch.equal(a, b)
        if isinstance(a, torch.Tensor)
        else a == b
        for a, b in zip(one, other, strict=True)
    )


def test_the_same_seed_and_step_give_the_same_batch(images: list[LearningImage]) -> None:
    one, again = batches(images), batches(images)
    again[3]  # what was asked for before does not matter
    assert all(same(a, b) for a, b in zip(one[5], again[5], strict=True))
    others = batches(images, seed=4)
    assert not all(same(a, b) for step in range(5) for a, b in zip(one[step], others[step], strict=True))


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_image_once_before_any_twice(images: list[LearningImage], ranks: int) -> None:
    parts = [batches(images, rank=rank, ranks=ranks) for rank in range(ranks)]
    shown = [
        parts[rank].place((step * ranks + rank) * 2 + within)
        for step in range(10 // ranks)
        for rank in range(ranks)
        for within in range(2)
    ]
    rounds = [shown[start : start + 5] for start in range(0, 20, 5)]
    assert all(Counter(each) == Counter(range(5)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
