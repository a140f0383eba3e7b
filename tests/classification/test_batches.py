"""Batches that depend on the seed and their number alone, at the paper's two sizes in turn, and the variants."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.classification import batches as module
from sppnet.classification.batches import (
    FeatureBatches,
    ImageBatches,
    SizeRule,
    TrainingSizes,
    stack,
)
from sppnet.classification.features import pooled_features, readable_images
from sppnet.data.images import read_image, resize_image
from sppnet.data.labelled import LabelledImages
from sppnet.data.samplers import SizeBuckets
from sppnet.errors import SettingsError
from sppnet.models.preprocess import Preprocess

from .conftest import tiny_model

PREPROCESS, NATIVE = Preprocess(32, 64, smallest_side=4), TrainingSizes()

# Which images go together


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_every_image_once_an_epoch(devices: int) -> None:
    sizes = np.random.default_rng(0).integers(50, 100, (41, 2))
    order = SizeBuckets(sizes, 6, ranks=devices)
    of_epoch: list[Counter[int]] = [Counter(), Counter()]
    for n in range(2 * len(order) * devices):
        epoch, indices = order.batch(n)
        assert epoch == n // devices // len(order)
        of_epoch[epoch].update(indices)
    assert of_epoch == [Counter(range(41))] * 2
    again = SizeBuckets(sizes, 6, ranks=devices)
    assert [again.batch(n) for n in (7, 2, 11)] == [order.batch(n) for n in (7, 2, 11)]  # whatever was asked for before
    assert [order.batch(devices * step)[1] for step in range(len(order))] == order.batches(0)
    assert 0 < order.padding_share() < 0.2


# What they hold


def image_batches(
    photos: LabelledImages,
    sizes: TrainingSizes = NATIVE,
    preprocess: Preprocess = PREPROCESS,
    *,
    seed: int = 0,
) -> ImageBatches:
    images = readable_images(photos)
    seen = np.array([preprocess.input_size((int(height), int(width))) for height, width in images.sizes])
    order = SizeBuckets(seen if sizes.rule == "native" else np.ones_like(seen), 5, seed=seed, smallest_batch=1)
    return ImageBatches(images, order, preprocess, sizes, seed)


def equal(first: Tensor | list[Tensor], second: Tensor | list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("rule", ["native", "multi"])
def test_a_batch_depends_on_the_seed_and_its_number_alone(photos: LabelledImages, rule: str) -> None:
    sizes = TrainingSizes(rule, (32, 24))  # type: ignore[arg-type]
    batches, again = image_batches(photos, sizes), pickle.loads(pickle.dumps(image_batches(photos, sizes)))
    again[3]
    images, labels = batches[1]
    assert equal(images, again[1][0])
    assert labels.dtype == torch.int64
    assert labels.tolist() == photos.labels[batches.order.batch(1)[1]].tolist()
    assert not equal(images, batches[1 + len(batches.order)][0])
    assert not equal(images, image_batches(photos, sizes, seed=1)[1][0])


def test_images_of_their_own_size_have_the_size_of_use(photos: LabelledImages) -> None:
    batches = image_batches(photos)
    for image, index in zip(batches[0][0], batches.order.batch(0)[1], strict=True):
        assert image.shape[1:] == PREPROCESS.resize(read_image(photos.paths[index])).shape[:2]


@pytest.mark.parametrize("mode", ["keep-aspect", "warp", "crop", "letterbox"])
def test_a_whole_image_is_shown_as_in_use(photos: LabelledImages, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to its flip and its light, it is what the model sees in use."""
    monkeypatch.setattr(module, "LEAST_REGION", 1.0)
    monkeypatch.setattr(module, "vary_light", lambda image, rng: image)
    preprocess = Preprocess(32, 64, mode, smallest_side=4)
    batches = image_batches(photos, preprocess=preprocess)
    for image, index in zip(batches[0][0], batches.order.batch(0)[1], strict=True):
        in_use = preprocess(read_image(photos.paths[index]))[0][0]
        torch.testing.assert_close(image if torch.allclose(image, in_use) else image.flip(2), in_use)


def test_all_images_of_a_batch_have_one_side(photos: LabelledImages) -> None:
    batches = image_batches(photos, TrainingSizes("random", (64, 48)), seed=3)
    shapes = [batches[n][0].shape[2:] for n in range(0, 20, 5)]  # type: ignore[union-attr]
    assert all(height == width for height, width in shapes)
    assert len(set(shapes)) > 1


def test_features_are_of_the_image_or_of_its_flip(photos: LabelledImages, tmp_path: Path) -> None:
    features = pooled_features(tiny_model(), photos.paths, tmp_path, flip=True)
    batches = FeatureBatches(features, photos.labels, SizeBuckets(np.ones((24, 2), np.int64), 4), seed=0)
    flips = []
    for n in range(6):
        pooled, labels = batches[n]
        indices = batches.order.batch(n)[1]
        assert labels.tolist() == photos.labels[indices].tolist()
        for row, index in zip(pooled, indices, strict=True):
            flips.append(torch.equal(row, features.read(index, flip=True)))
            assert flips[-1] or torch.equal(row, features.read(index))
    assert 4 < sum(flips) < 20


def test_images_are_a_tensor_where_sizes_agree_and_a_list_where_not() -> None:
    small, large = torch.zeros(3, 4, 5), torch.zeros(3, 6, 5)
    alike, mixed = stack([small, small]), stack([small, large])
    assert isinstance(alike, Tensor)
    assert [image.shape for image in mixed] == [small.shape, large.shape]


# At which sizes


def sides(sizes: TrainingSizes, epochs: int, seed: int = 0) -> list[int | None]:
    return [sizes.side(seed, epoch) for epoch in range(epochs)]


def test_single_is_always_the_largest() -> None:
    assert sides(TrainingSizes("single", (180, 224)), 3) == [224] * 3


def test_multi_takes_whole_epochs_in_turn() -> None:
    assert sides(TrainingSizes("multi"), 4) == [224, 180, 224, 180]
    assert sides(TrainingSizes("multi", (96, 64, 80)), 4) == [96, 64, 80, 96]


def test_random_draws_one_for_an_epoch() -> None:
    drawn = np.array(sides(TrainingSizes("random"), 300))
    assert set(drawn) == set(range(180, 225))  # both ends included
    assert drawn.mean() == pytest.approx(202, abs=3)


def test_native_gives_no_side() -> None:
    assert sides(TrainingSizes(), 2) == [None, None]


@pytest.mark.parametrize("rule", get_args(SizeRule))
def test_a_side_depends_on_seed_and_epoch_alone(rule: str) -> None:
    """So every rank, and a run that goes on, has the same; nothing is asked in order."""
    sizes, again = TrainingSizes(rule), TrainingSizes(rule)  # type: ignore[arg-type]
    again.side(7, 9)
    assert sides(sizes, 5, seed=7) == sides(again, 5, seed=7)
    if rule == "random":
        assert sides(sizes, 5, seed=7) != sides(sizes, 5, seed=8)


def test_both_sizes_show_the_same_region() -> None:
    """Section 2.3: they differ in resolution, not in content or layout."""
    image = resize_image(np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8), (280, 420))  # smooth
    sizes = TrainingSizes("multi")
    for seed in range(5):
        large, small = (sizes.square(image, side, np.random.default_rng(seed)) for side in (224, 180))
        assert (large.shape, small.shape) == ((224, 224, 3), (180, 180, 3))
        shrunk = resize_image(large, (180, 180))
        assert np.abs(shrunk.astype(int) - small).mean() < 0.5
    regions = {sizes.square(image, 16, np.random.default_rng(seed)).tobytes() for seed in range(40)}
    assert len(regions) == 5  # the center and the corners


def test_the_region_is_224_of_256() -> None:
    """A gray image of 256 x 256 with white edges of 16 pixels: what the center of 224 just does not show."""
    image = np.full((512, 512, 3), 255, np.uint8)
    image[32:-32, 32:-32] = 100
    squares = [TrainingSizes("single").square(image, 224, np.random.default_rng(seed)) for seed in range(30)]
    assert any((square == 100).all() for square in squares)  # the center
    assert any((square[0] == 255).all() for square in squares)  # a corner above


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (3, 4000), (50, 40)])
def test_images_of_any_shape_become_squares(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert TrainingSizes("multi", (64, 48)).square(image, 48, np.random.default_rng(0)).shape == (48, 48, 3)


def test_what_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"sides of at least 1 pixel, got \[\]"):
        TrainingSizes("single", ())
    with pytest.raises(SettingsError, match=r"sides of at least 1 pixel, got \[224, 0\]"):
        TrainingSizes("multi", (224, 0))
    for rule in ("multi", "random"):
        with pytest.raises(SettingsError, match="two different sides"):
            TrainingSizes(rule, (224, 224))  # type: ignore[arg-type]
