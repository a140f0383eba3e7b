"""At which sizes training sees the images: the paper's two in turn, and the variants."""

from __future__ import annotations

import numpy as np
import pytest

from sppnet.classification.schedule import SIZE_RULES, TrainingSizes
from sppnet.data.images import resize_image
from sppnet.errors import UserError


def sides(sizes: TrainingSizes, epochs: int, batches: int = 1, seed: int = 0) -> list[int | None]:
    return [sizes.side(seed, epoch, batch) for epoch in range(epochs) for batch in range(batches)]


def test_single_is_always_the_largest() -> None:
    assert sides(TrainingSizes("single", (180, 224)), 3, 2) == [224] * 6


def test_multi_takes_whole_epochs_in_turn() -> None:
    assert sides(TrainingSizes("multi"), 4, 2) == [224, 224, 180, 180, 224, 224, 180, 180]
    assert sides(TrainingSizes("multi", (96, 64, 80)), 4) == [96, 64, 80, 96]


def test_random_draws_one_for_an_epoch() -> None:
    drawn = np.array(sides(TrainingSizes("random"), 300, 2)).reshape(300, 2)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert set(drawn[:, 0]) == set(range(180, 225))  # both ends included
    assert drawn[:, 0].mean() == pytest.approx(202, abs=3)


def test_random_batch_draws_one_for_every_batch() -> None:
    drawn = np.array(sides(TrainingSizes("random-batch"), 2, 300)).reshape(2, 300)
    assert set(drawn[0]) == set(range(180, 225))
    assert (drawn[0] != drawn[1]).mean() > 0.9


def test_native_gives_no_side() -> None:
    assert sides(TrainingSizes(), 2) == [None, None]


@pytest.mark.parametrize("rule", SIZE_RULES)
def test_a_side_depends_on_seed_epoch_and_batch_alone(rule: str) -> None:
    """So every rank, and a run that goes on, has the same; nothing is asked in order."""
    sizes, again = TrainingSizes(rule), TrainingSizes(rule)  # type: ignore[arg-type]
    again.side(7, 9, 9)
    assert sides(sizes, 5, 5, seed=7) == sides(again, 5, 5, seed=7)
    if rule.startswith("random"):
        assert sides(sizes, 5, 5, seed=7) != sides(sizes, 5, 5, seed=8)


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
    assert len(regions) == 5  # the centre and the corners


def test_the_region_is_224_of_256() -> None:
    """A grey image of 256 x 256 with white edges of 16 pixels: what the centre of 224 just does not show."""
    image = np.full((512, 512, 3), 255, np.uint8)
    image[32:-32, 32:-32] = 100
    squares = [TrainingSizes("single").square(image, 224, np.random.default_rng(seed)) for seed in range(30)]
    assert any((square == 100).all() for square in squares)  # the centre
    assert any((square[0] == 255).all() for square in squares)  # a corner above


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (3, 4000), (50, 40)])
def test_images_of_any_shape_become_squares(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert TrainingSizes("multi", (64, 48)).square(image, 48, np.random.default_rng(0)).shape == (48, 48, 3)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="expected one of native, single, multi, random, random-batch, got 'both'"):
        TrainingSizes("both")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"sides of at least 1 pixel, got \[\]"):
        TrainingSizes("single", ())
    with pytest.raises(UserError, match=r"sides of at least 1 pixel, got \[224, 0\]"):
        TrainingSizes("multi", (224, 0))
    for rule in ("multi", "random", "random-batch"):
        with pytest.raises(UserError, match="at least two different sides"):
            TrainingSizes(rule, (224, 224))  # type: ignore[arg-type]
