"""Batches that depend on seed, epoch and place alone, and that hold every sample once an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sppnet.classification.loader import (
    HeldOutViews,
    Sample,
    Stretch,
    TrainingViews,
    image_batch,
    own_sizes,
    pooled_batch,
)
from sppnet.classification.schedule import TrainingSizes
from sppnet.data.images import image_size, read_image
from sppnet.data.labelled import LabelledImages
from sppnet.data.samplers import SizeBuckets
from sppnet.models.sppnet import Architecture, SPPNet

NATIVE = Architecture(("a", "b"), short_side=48, long_side=96)


@pytest.fixture
def photos(tmp_path: Path) -> LabelledImages:
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(6))
    for path in paths:
        height, width = rng.integers(60, 120, 2)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return LabelledImages(paths, np.array([0, 1] * 3), NATIVE.names)


def views(photos: LabelledImages, sizes: TrainingSizes, seed: int = 0, least_region: float = 0.4) -> TrainingViews:
    return TrainingViews(photos, NATIVE, sizes, minimum=8, least_region=least_region, light=0.1, seed=seed)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_every_sample_once_an_epoch_in_stretches_of_any_length(ranks: int, length: int) -> None:
    sizes = np.random.default_rng(0).integers(50, 100, (41, 2))
    of_epoch: list[Counter[int]] = [Counter(), Counter()]
    for rank in range(ranks):
        buckets = SizeBuckets(sizes, 6, ranks=ranks, rank=rank, smallest_batch=1)
        done = 0
        stretch = Stretch(buckets, TrainingSizes(), 0, length, lambda: done)  # noqa: B023
        while done < 2 * len(buckets):
            batches = list(stretch)
            assert 1 <= len(batches) <= length
            for batch in batches:
                of_epoch[done // len(buckets)].update(sample.place for sample in batch)
                assert {sample.epoch for sample in batch} == {done // len(buckets)}
                done += 1
    assert of_epoch == [Counter(range(41))] * 2


def test_all_images_of_a_batch_have_one_side_and_all_ranks_the_same() -> None:
    sizes = TrainingSizes("random-batch", (64, 48))
    ranks = [SizeBuckets([(1, 1)] * 40, 5, ranks=2, rank=rank) for rank in range(2)]
    first, second = (
        [[sample.side for sample in batch] for batch in Stretch(each, sizes, 3, 100, lambda: 0)] for each in ranks
    )
    assert all(len(set(batch)) == 1 for batch in first)
    assert [batch[0] for batch in first] == [batch[0] for batch in second]
    assert len({batch[0] for batch in first}) > 1


@pytest.mark.parametrize("side", [None, 40])
def test_a_view_depends_on_seed_epoch_and_image_alone(photos: LabelledImages, side: int | None) -> None:
    sizes = TrainingSizes("native" if side is None else "multi", (48, 40))
    training, again = views(photos, sizes), views(photos, sizes)
    again[Sample(3, 0, side)]  # what was asked for before does not matter
    image, label = training[Sample(1, 2, side)]
    assert torch.equal(image, again[Sample(1, 2, side)][0])
    assert label == 1
    assert (image.dtype, image.shape[0]) == (torch.uint8, 3)
    others = [training[Sample(1, 3, side)], views(photos, sizes, seed=1)[Sample(1, 2, side)]]
    assert not any(torch.equal(image, other) for other, _ in others)


def test_native_views_have_the_size_of_use(photos: LabelledImages) -> None:
    sizes = np.array([image_size(path) for path in photos.paths])
    expected = own_sizes(sizes, NATIVE, 8).tolist()
    for place in range(6):
        assert list(views(photos, TrainingSizes())[Sample(place, 0, None)][0].shape[1:]) == expected[place]
        assert list(HeldOutViews(photos, NATIVE, 8)[place][0].shape[1:]) == expected[place]
    assert all(min(size) == 48 for size in expected)


def test_held_out_views_are_what_the_model_prepares(photos: LabelledImages) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.ReLU())
    for fit in ("native", "squash", "crop", "pad"):
        model = SPPNet(Architecture(("a", "b"), levels=(1,), hidden=(), short_side=48, long_side=96, fit=fit), backbone)
        image, _ = HeldOutViews(photos, model.architecture, model.smallest_side)[0]
        prepared, _ = model.prepare(read_image(photos.paths[0]))
        assert torch.equal(model.normalise(image.permute(1, 2, 0).numpy()), prepared)


def test_a_whole_image_may_be_asked_for(photos: LabelledImages) -> None:
    """Up to its mirror image and the light, it is what the model sees in use."""
    training = TrainingViews(photos, NATIVE, TrainingSizes(), minimum=8, least_region=1, light=0, seed=0)
    image, _ = training[Sample(0, 0, None)]
    held_out, _ = HeldOutViews(photos, NATIVE, 8)[0]
    assert torch.equal(image, held_out) or torch.equal(image, held_out.flip(2))


def test_a_batch_is_a_tensor_where_sizes_agree_and_a_list_where_not() -> None:
    small, large = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(3, 6, 5, dtype=torch.uint8)
    alike = image_batch([(small, 1), (small, 0)])
    assert alike["images"].shape == (2, 3, 4, 5)
    assert alike["labels"].tolist() == [1, 0]
    mixed = image_batch([(small, 1), (large, 0)])
    assert [image.shape for image in mixed["images"]] == [small.shape, large.shape]
    assert pooled_batch([(torch.zeros(5, 8), 2)] * 3)["pooled"].shape == (3, 5, 8)
