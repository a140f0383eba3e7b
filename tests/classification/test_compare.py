"""Which way of feeding serves: found where the truth is known, and not found where there is nothing to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sppnet.data.fit import FITS
from torch import nn

from sppnet.classification import features
from sppnet.classification.compare import Comparison, FitResult, _differences, compare_fits, native_short_side
from sppnet.classification.features import LARGEST_ASPECT
from sppnet.data.formats.folder import read_folder
from sppnet.data.images import scaled_size
from sppnet.data.labelled import LabelledImages
from sppnet.errors import UserError
from sppnet.models.sppnet import Architecture, SPPNet

QUICK = {"side": 32, "folds": 4, "repeats": 2}


@pytest.fixture(scope="module")
def model() -> SPPNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 32, 5, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU())
    return SPPNet(Architecture(("a", "b"), levels=(2, 1), hidden=(), detects=False), backbone).eval()


def write(folder: Path, of_class: Callable[[int, np.random.Generator], np.ndarray], each: int = 20) -> LabelledImages:
    """A folder of two classes; pictures [h, w] of grey levels, with noise of their own."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for place in range(each):
            picture = of_class(label, rng)
            noisy = picture[..., None] + rng.normal(0, 20, (*picture.shape, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{place}.png")
    return read_folder(folder)


def stripes(label: int, rng: np.random.Generator) -> np.ndarray:
    """Eight stripes, across a square or across one twice as wide: squashed, they are the same."""
    width = (64, 128)[label]
    phase = rng.uniform(0, 2 * np.pi)
    return np.tile(128 + 90 * np.sin(np.arange(width) * 2 * np.pi * 8 / width + phase), (64, 1))


def border(label: int, rng: np.random.Generator) -> np.ndarray:
    """The outer eighths of a wide picture are light or dark: cropped, they are gone."""
    picture = np.full((48, 96), 128.0)
    picture[:, :12] = picture[:, -12:] = (60, 200)[label]
    return picture


def squares(label: int, rng: np.random.Generator) -> np.ndarray:
    return np.full((40, 40), (110.0, 140.0)[label])


def nothing(label: int, rng: np.random.Generator) -> np.ndarray:
    return np.full(rng.integers(30, 90, 2), 128.0)


# Where the truth is known


@pytest.mark.parametrize(("of_class", "loser"), [(stripes, "squash"), (border, "crop")])
def test_where_a_way_loses_what_the_classes_differ_in_native_is_better(
    tmp_path: Path, model: SPPNet, of_class: Callable[[int, np.random.Generator], np.ndarray], loser: str
) -> None:
    found = compare_fits(write(tmp_path, of_class), model, **QUICK)
    shares = {result.fit: result.accuracy for result in found.fits}
    assert shares["native"] > 0.95
    assert shares[loser] < 0.75
    assert found.difference("native", loser).shown
    assert f"better than {loser} (by " in found.advice
    assert found.advice.startswith("Use ")
    assert "native" in found.advice.partition(" better than ")[0]


def test_squares_are_the_same_in_every_way(tmp_path: Path, model: SPPNet) -> None:
    found = compare_fits(write(tmp_path, squares), model, **QUICK)
    assert len({result.accuracies.tobytes() for result in found.fits}) == 1
    assert [(result.short_side, result.pixels) for result in found.fits] == [(32, 1024)] * 4
    assert not any(each.shown for each in found.differences)
    assert found.advice.startswith("No difference between native, squash, crop and pad is shown (40 images ")


def test_classes_that_do_not_differ(tmp_path: Path, model: SPPNet) -> None:
    found = compare_fits(write(tmp_path, nothing), model, **QUICK)
    for result in found.fits:
        assert result.interval[0] <= 0.5 <= result.interval[1]
        assert result.pixels == pytest.approx(32 * 32, rel=0.1)
    assert not any(each.shown for each in found.differences)


# The same again


def test_the_same_seed_gives_the_same_and_kept_features_are_used(
    tmp_path: Path, model: SPPNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write(tmp_path / "photos", nothing)
    computed: list[int] = []
    original = features._compute

    def counting(given: list[Path], *arguments: object) -> object:
        computed.append(len(given))
        return original(given, *arguments)

    monkeypatch.setattr(features, "_compute", counting)
    calls: list[tuple[str, int, int]] = []
    first, again, other = (
        compare_fits(
            images, model, **QUICK, seed=seed, cache=tmp_path / "kept", report=lambda *call: calls.append(call)
        )
        for seed in (0, 0, 1)
    )
    assert computed == [40] * 4 + [0] * 8
    assert first.to_dict() == again.to_dict()
    assert any((one.accuracies != two.accuracies).any() for one, two in zip(first.fits, other.fits, strict=True))
    assert compare_fits(images, model, **QUICK).to_dict() == first.to_dict()  # nothing kept
    assert ("checking images", 40, 40) in calls
    assert ("features, pad", 40, 40) in calls
    assert ("folds, pad", 8, 8) in calls


def test_of_more_images_each_class_has_its_share(tmp_path: Path, model: SPPNet) -> None:
    found = compare_fits(write(tmp_path, squares), model, **QUICK, at_most=24)
    assert (found.images, found.left_out) == (24, 16)
    assert "24 images, drawn at random from 40, of 2 classes; 4 folds, 2 times over" in found.table()


# The size of native images


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=8),
    side=st.integers(1, 300),
    minimum=st.sampled_from([1, 16, 32]),
)
def test_native_images_have_as_many_pixels_as_the_squares(
    sizes: list[tuple[int, int]], side: int, minimum: int
) -> None:
    def miss(short: int) -> float:
        long_side = max(LARGEST_ASPECT * short, minimum)
        areas = [np.prod(scaled_size(size, short, long_side, minimum=minimum)) for size in sizes]
        return abs(float(np.mean(areas)) - side * side)

    short = native_short_side(sizes, side, minimum)
    assert short >= 1
    assert miss(short) <= miss(short + 1)
    assert short == 1 or miss(short) <= miss(short - 1)


@given(side=st.integers(1, 300), sizes=st.lists(st.integers(1, 900), min_size=1, max_size=5))
def test_native_squares_are_the_squares(side: int, sizes: list[int]) -> None:
    assert native_short_side([(each, each) for each in sizes], side) == side


# What is said


def compared(**shares: float) -> Comparison:
    """Accuracies of the four ways on 10 folds, each a hair off its mean, so that a difference of a point shows."""
    off = np.array([0.001, -0.001] * 5)
    results = [
        FitResult(fit, 224, 50176.0, shares[fit] + off * (place + 1), (shares[fit] - 0.01, shares[fit] + 0.01))
        for place, fit in enumerate(FITS)
    ]
    return Comparison(tuple(results), _differences(results, 5), 100, 2, 5, 2, 0, ())


@pytest.mark.parametrize(
    ("shares", "advice"),
    [
        (
            {"native": 0.9, "squash": 0.8, "crop": 0.7, "pad": 0.85},
            "Use native: it is better than squash (by 10.0 points), crop (by 20.0 points) and pad (by 5.0 points).",
        ),
        (
            {"native": 0.9, "squash": 0.9001, "crop": 0.7, "pad": 0.85},
            "Use native or squash, between which no difference is shown (100 images show differences from about 0.",
        ),
        (
            {"native": 0.8, "squash": 0.9, "crop": 0.7, "pad": 0.7},
            "Use squash: it is better than native (by 10.0 points), crop (by 20.0 points) and pad (by 20.0 points).",
        ),
        (
            {"native": 0.9, "squash": 0.9, "crop": 0.9, "pad": 0.9},
            "No difference between native, squash, crop and pad is shown (100 images show differences from about 0.",
        ),
    ],
)
def test_the_advice(shares: dict[str, float], advice: str) -> None:
    found = compared(**shares)
    assert found.advice.startswith(advice)
    assert found.advice.endswith(".")
    json.dumps(found.to_dict(), allow_nan=False)


def test_differences_go_both_ways() -> None:
    found = compared(native=0.9, squash=0.8, crop=0.7, pad=0.85)
    one, other = found.difference("native", "crop"), found.difference("crop", "native")
    assert one.mean == pytest.approx(0.2)
    assert (other.mean, other.interval) == (-one.mean, (-one.interval[1], -one.interval[0]))
    assert one.shown
    assert other.shown
    with pytest.raises(ValueError, match="expected two of native, squash, crop, pad: got native, warp"):
        found.difference("native", "warp")


def test_the_table() -> None:
    lines = compared(native=0.9, squash=0.8, crop=0.7, pad=0.85).table().splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["fit", "native", "squash", "crop", "pad"]
    assert "90.0 %" in lines[1]
    assert "-10.0 (-" in lines[2]


def test_what_cannot_be_compared_is_said(tmp_path: Path, model: SPPNet) -> None:
    images = write(tmp_path, squares, each=3)
    with pytest.raises(UserError, match="6 images of 2 classes; expected two classes or more, and 8 images or more"):
        compare_fits(images, model, **QUICK)
    with pytest.raises(UserError, match="of 1 classes"):
        compare_fits(images.subset([0, 1, 2]), model, side=32, folds=2)
    with pytest.raises(UserError, match="at least two images of every class, got one of b"):
        compare_fits(images.subset([0, 1, 2, 3]), model, side=32, folds=2)
    with pytest.raises(UserError, match="at least 9 pixels with this backbone: got 8"):
        compare_fits(images, model, side=8, folds=2)
    with pytest.raises(ValueError, match="folds >= 2"):
        compare_fits(images, model, side=32, folds=1)


def test_a_file_that_cannot_be_read(tmp_path: Path, model: SPPNet) -> None:
    images = write(tmp_path, squares)
    bad = images.paths[3]
    bad.write_text("this is text")
    with pytest.raises(UserError, match=f"1 of 40 images cannot be read: {bad}"):
        compare_fits(images, model, **QUICK)
    found = compare_fits(images, model, **QUICK, skip_bad=True)
    assert found.images == 39
    assert [path for path, _ in found.broken] == [bad]
    assert found.to_dict()["broken"][0]["path"] == str(bad)
