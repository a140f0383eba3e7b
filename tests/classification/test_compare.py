"""Which way of feeding serves: found where the truth is known, and not found where there is nothing to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from sppnet.classification.compare import (
    LARGEST_ASPECT,
    CompareSettings,
    Comparison,
    ModeResult,
    compare_resize_modes,
    equal_short_side,
)
from sppnet.data.images import scaled_size
from sppnet.data.labelled import LabelledImages
from sppnet.errors import ImageError, SettingsError
from sppnet.models.preprocess import RESIZE_MODES, Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model

QUICK = CompareSettings(side=32, folds=4, repeats=2)


@pytest.fixture(scope="module")
def model() -> SPPNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 32, 5, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU())
    return build_model(Architecture(("a", "b"), "", (2, 1), (), detects=False), backbone=backbone).eval()


def write(folder: Path, of_class: Callable[[int, np.random.Generator], np.ndarray], each: int = 20) -> LabelledImages:
    """Two classes; pictures [h, w] of gray levels, with noise of their own."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = []
    for index in range(2 * each):
        picture = of_class(index // each, rng)
        noisy = picture[..., None] + rng.normal(0, 20, (*picture.shape, 3))
        paths.append(folder / f"{index:02}.png")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return LabelledImages(tuple(paths), np.repeat(np.arange(2), each), ("a", "b"))


def stripes(label: int, rng: np.random.Generator) -> np.ndarray:
    """Eight stripes, across a square or across one twice as wide: warped, they are the same."""
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


@pytest.mark.parametrize(("of_class", "loser"), [(stripes, "warp"), (border, "crop")])
def test_where_a_mode_loses_what_the_classes_differ_in_own_shapes_are_better(
    tmp_path: Path, model: SPPNet, of_class: Callable[[int, np.random.Generator], np.ndarray], loser: str
) -> None:
    found = compare_resize_modes(write(tmp_path, of_class), QUICK, model=model)
    shares = {result.resize_mode: result.accuracy for result in found.modes}
    assert shares["keep-aspect"] > 0.95
    assert shares[loser] < 0.75
    assert found.difference("keep-aspect", loser).shown
    assert f"better than {loser} (by " in found.advice
    assert found.advice.startswith("Use ")
    assert "keep-aspect" in found.advice.partition(" better than ")[0]


def test_squares_are_the_same_in_every_mode(tmp_path: Path, model: SPPNet) -> None:
    found = compare_resize_modes(write(tmp_path, squares), QUICK, model=model)
    assert len({result.accuracies.tobytes() for result in found.modes}) == 1
    assert [(result.short_side, result.pixels) for result in found.modes] == [(32, 1024)] * 4
    assert not any(each.shown for each in found.differences)
    assert found.advice.startswith("No difference between keep-aspect, warp, crop and letterbox is shown (40 images ")


def test_classes_that_do_not_differ(tmp_path: Path, model: SPPNet) -> None:
    found = compare_resize_modes(write(tmp_path, nothing), QUICK, model=model)
    for result in found.modes:
        assert result.interval[0] <= 0.5 <= result.interval[1]
        assert result.pixels == pytest.approx(32 * 32, rel=0.1)
    assert not any(each.shown for each in found.differences)


# The same again


def test_the_same_seed_gives_the_same_and_cached_features_are_used(tmp_path: Path, model: SPPNet) -> None:
    images, calls = write(tmp_path / "photos", nothing), []
    images_seen: list[int] = []
    hook = model.backbone.register_forward_hook(lambda *_: images_seen.append(1))
    first, again, other = (
        compare_resize_modes(
            images, replace(QUICK, seed=seed), model=model, cache=tmp_path / "cache", progress=lambda *call: calls.append(call)
        )
        for seed in (0, 0, 1)
    )  # fmt: skip
    assert len(images_seen) == 4 * 40
    hook.remove()
    assert first.to_dict() == again.to_dict()
    assert any((one.accuracies != two.accuracies).any() for one, two in zip(first.modes, other.modes, strict=True))
    assert compare_resize_modes(images, QUICK, model=model).to_dict() == first.to_dict()  # nothing cached
    for call in (("checking images", 40, 40), ("features, letterbox", 40, 40), ("folds, letterbox", 8, 8)):
        assert call in calls


def test_of_more_images_each_class_has_its_share(tmp_path: Path, model: SPPNet) -> None:
    found = compare_resize_modes(write(tmp_path, squares), replace(QUICK, limit=24), model=model)
    assert (found.images, found.left_out) == (24, 16)
    assert "24 images, drawn at random from 40, of 2 classes; 4 folds, 2 times over" in found.table()


# The size of images at their own shape


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=8),
    side=st.integers(1, 300),
    minimum=st.sampled_from([1, 16, 32]),
)
def test_images_at_their_own_shape_have_as_many_pixels_as_the_squares(
    sizes: list[tuple[int, int]], side: int, minimum: int
) -> None:
    def miss(short: int) -> float:
        long_side = max(LARGEST_ASPECT * short, minimum)
        areas = [np.prod(scaled_size(size, short, long_side, minimum=minimum)) for size in sizes]
        return abs(float(np.mean(areas)) - side * side)

    short = equal_short_side(sizes, side, Preprocess(smallest_side=minimum))
    assert short >= 1
    assert miss(short) <= miss(short + 1)
    assert short == 1 or miss(short) <= miss(short - 1)


@given(side=st.integers(1, 300), sizes=st.lists(st.integers(1, 900), min_size=1, max_size=5))
def test_squares_at_their_own_shape_are_the_squares(side: int, sizes: list[int]) -> None:
    assert equal_short_side([(each, each) for each in sizes], side) == side


# What is said


def compared(own: float, warp: float, crop: float, letterbox: float) -> Comparison:
    """Accuracies of the four modes on 10 folds, each a hair off its mean, so that a difference of a point shows."""
    off = np.array([0.001, -0.001] * 5)
    results = [
        ModeResult(mode, 224, 50176.0, share + off * (index + 1), (share - 0.01, share + 0.01))
        for index, (mode, share) in enumerate(zip(RESIZE_MODES, (own, warp, crop, letterbox), strict=True))
    ]
    return Comparison(tuple(results), CompareSettings(repeats=2), 100, 2)


@pytest.mark.parametrize(
    ("shares", "advice"),
    [
        (
            (0.9, 0.8, 0.7, 0.85),
            "Use keep-aspect: it is better than warp (by 10.0 points), crop (by 20.0 points) and letterbox (by 5.0 points).",
        ),
        (
            (0.9, 0.9001, 0.7, 0.85),
            "Use keep-aspect or warp, between which no difference is shown (100 images show differences from about 0.",
        ),
        (
            (0.8, 0.9, 0.7, 0.7),
            "Use warp: it is better than keep-aspect (by 10.0 points), crop (by 20.0 points) and letterbox (by 20.0 points).",
        ),
        (
            (0.9, 0.9, 0.9, 0.9),
            "No difference between keep-aspect, warp, crop and letterbox is shown (100 images show differences from about 0.",
        ),
    ],
)
def test_the_advice(shares: tuple[float, float, float, float], advice: str) -> None:
    found = compared(*shares)
    assert found.advice.startswith(advice)
    assert found.advice.endswith(".")
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(document["modes"]) == list(RESIZE_MODES)
    assert len(document["differences"]) == 6
    assert document["folds"] == 5


def test_differences_go_both_ways() -> None:
    found = compared(0.9, 0.8, 0.7, 0.85)
    one, other = found.difference("keep-aspect", "crop"), found.difference("crop", "keep-aspect")
    assert one.mean == pytest.approx(0.2)
    assert other.mean == pytest.approx(-one.mean)
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert one.shown
    assert other.shown


def test_the_table_and_the_chart(tmp_path: Path) -> None:
    found = compared(0.9, 0.8, 0.7, 0.85)
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["mode", "keep-aspect", "warp", "crop", "letterbox"]
    assert "90.0 %" in lines[1]
    assert "-10.0 (-" in lines[2]
    found.plot(tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width > 500


def test_what_cannot_be_compared_is_said(tmp_path: Path, model: SPPNet) -> None:
    images, few = write(tmp_path, squares, each=3), CompareSettings(side=32, folds=2)

    def refused(match: str, images: LabelledImages, settings: CompareSettings) -> None:
        with pytest.raises(SettingsError, match=match):
            compare_resize_modes(images, settings, model=model)

    refused("6 images of 2 classes; expected two classes or more, and 8 images or more", images, QUICK)
    refused("of 1 classes", images.subset([0, 1, 2]), few)
    refused("at least two images of every class, got one of b", images.subset([0, 1, 2, 3]), few)
    refused("at least 9 pixels with this backbone: got 8", images, replace(few, side=8))
    with pytest.raises(SettingsError, match="random weights cannot be frozen"):
        compare_resize_modes(images, CompareSettings("tiny", "random", side=32, folds=2))
    for wrong, message in {
        "folds": "folds must be at least 2: got -1",
        "limit": "limit must be at least 10 with 5 folds: got -1",
        "side": "side must be at least 1: got -1",
        "repeats": "repeats must be at least 1: got -1",
        "seed": "seed must be at least 0: got -1",
    }.items():
        with pytest.raises(SettingsError, match=message):
            CompareSettings(**{wrong: -1})  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read(tmp_path: Path, tiny_weights: Path) -> None:
    """And the backbone that the settings name."""
    images = write(tmp_path, squares)
    bad, settings = images.paths[3], replace(QUICK, backbone="tiny", weights=str(tiny_weights))
    bad.write_text("this is text")
    with pytest.raises(ImageError, match=f"1 of 40 images cannot be read: {bad}"):
        compare_resize_modes(images, settings)
    found = compare_resize_modes(images, settings, skip_bad=True)
    assert found.images == 39
    assert [path for path, _ in found.broken] == [bad]
    document = found.to_dict()
    assert document["broken"][0]["path"] == str(bad)
    assert document["weights"] == tiny_weights.name
