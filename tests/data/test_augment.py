"""Random changes to training images: in form, in bounds, and what their names say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.samplers import corner_crop, random_flip, random_region, vary_light

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
CHANGES: dict[str, Change] = {
    "mirror": random_flip,
    "crop": lambda image, rng: corner_crop(image, rng, side=1),
    "region": random_region,
    "light": vary_light,
}


def photo(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Fixed:
    """Stands for a generator that draws what a test wants."""

    def __init__(self, value: object) -> None:
        self.value = value

    def random(self) -> object:
        return self.value

    def integers(self, *_: int) -> object:
        return self.value

    def normal(self, **_: object) -> object:
        return self.value


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_form_and_source_of_chance(change: Change, height: int, width: int, seed: int) -> None:
    image = photo(height, width)
    image.flags.writeable = False  # whoever writes into it fails
    changed = change(image, np.random.default_rng(seed))
    assert changed.ndim == 3
    assert changed.shape[2] == 3
    assert changed.dtype == np.uint8
    assert changed.flags.c_contiguous
    assert min(changed.shape) >= 1
    np.random.seed(seed + 1)  # noqa: NPY002  the global generator has no say
    assert (change(image, np.random.default_rng(seed)) == changed).all()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_other_forms_are_refused(change: Change, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[H, W, 3\] uint8"):
        change(image, np.random.default_rng(0))


def test_mirrored_half_of_the_time() -> None:
    image, rng = photo(2, 3), np.random.default_rng(0)
    outcomes = [random_flip(image, rng) for _ in range(400)]
    mirrored = [(outcome == image[:, ::-1]).all() for outcome in outcomes]
    assert all(flip or (outcome == image).all() for flip, outcome in zip(mirrored, outcomes, strict=True))
    assert 150 < sum(mirrored) < 250
    assert (random_flip(image, rng, share=0) == image).all()


def test_the_five_crops_of_the_paper() -> None:
    image, rng = photo(9, 12), np.random.default_rng(0)
    seen = {corner_crop(image, rng, side=5).tobytes() for _ in range(200)}
    expected = [image[2:7, 3:8], image[:5, :5], image[:5, 7:], image[4:, :5], image[4:, 7:]]  # centre first
    assert seen == {crop.tobytes() for crop in expected}
    assert (corner_crop(image[:, :9], rng, side=9) == image[:, :9]).all()
    for side in (10, 0):
        with pytest.raises(ValueError, match="corner_crop: expected sides"):
            corner_crop(image, rng, side=side)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_region_keeps_the_shape_and_its_share(height: int, width: int, most: float, spread: float, seed: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    least = max(most * (1 - spread), 0.005)
    region = random_region(image, np.random.default_rng(seed), (least, most))
    h, w = region.shape[:2]
    assert (
        abs(h / height - w / width) <= 1 / height + 1 / width
    )  # half a pixel of rounding on each side, or a lone pixel
    assert least**0.5 * height - 0.51 <= h <= max(most**0.5 * height + 0.51, 1)


def test_regions_come_from_everywhere() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[:10, :10]
    rng = np.random.default_rng(0)
    corners = {tuple(random_region(image, rng, (0.25, 0.25))[0, 0, :2].tolist()) for _ in range(1000)}
    assert corners == {(y, x) for y in range(6) for x in range(6)}
    for shares in ((0, 1), (0.5, 0.4), (0.5, 1.1)):
        with pytest.raises(ValueError, match="shares"):
            random_region(image, rng, shares)


def test_light_shifts_all_pixels_alike() -> None:
    image = np.full((2, 3, 3), 100, np.uint8)
    brighter = vary_light(image, Fixed(np.array([0.5, 0, 0])))  # type: ignore[arg-type]
    assert len(np.unique(brighter.reshape(-1, 3), axis=0)) == 1
    assert brighter[0, 0].tolist() == [113, 114, 114]  # 255 * 0.5 * 0.1882 * (0.5586, 0.5827, 0.5903) more
    rng = np.random.default_rng(0)
    shifts = np.array([vary_light(image, rng)[0, 0].astype(int) - 100 for _ in range(500)])
    assert abs(shifts.mean(axis=0)).max() < 0.5
    assert 2 < shifts.std(axis=0).mean() < 4  # 255 * 0.1 * 0.1882 * 0.58 = 2.8
    assert vary_light(np.full((1, 1, 3), 255, np.uint8), Fixed(np.ones(3))).max() == 255  # type: ignore[arg-type]
