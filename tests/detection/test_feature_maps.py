"""The maps of one image at one scale or several, and that every window is pooled from the map of its scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sppnet.detection.feature_maps import FeatureMaps, choose_scale, compute_feature_maps
from sppnet.models.geometry import boxes_to_windows, window_residuals
from sppnet.models.sppnet import SPPNet

SIDES = (128, 64, 256)
BOXES = torch.tensor([[0.0, 0, 150, 100], [20, 10, 60, 70], [100, 50, 110, 60], [0, 0, 149, 30]])


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def maps(tiny_detector: SPPNet, image: np.ndarray) -> FeatureMaps:
    return compute_feature_maps(tiny_detector, image, SIDES)


def cells_of(features: torch.Tensor) -> tuple[int, int]:
    return features.shape[2], features.shape[3]


def test_each_map_is_the_one_that_its_scale_gives_alone(
    tiny_detector: SPPNet, image: np.ndarray, maps: FeatureMaps
) -> None:
    assert [cells_of(features) for features in maps.features] == [(4, 6), (2, 3), (8, 12)]
    assert maps.size == (100, 150)
    for index, side in enumerate(SIDES):
        alone = compute_feature_maps(tiny_detector, image, (side,))
        assert torch.equal(maps.features[index], alone.features[0])
        assert maps.scales[index] == alone.scales[0]
        assert maps.features[index].dtype == torch.float16
        assert maps.features[index].is_contiguous(memory_format=torch.channels_last)


def test_a_model_says_at_which_scales(tiny_detector: SPPNet, image: np.ndarray, maps: FeatureMaps) -> None:
    alone = compute_feature_maps(tiny_detector, image)
    assert [cells_of(features) for features in alone.features] == [(2, 3)]  # 64, its short side
    several = compute_feature_maps(tiny_detector.at_scales(SIDES), image)
    for ours, theirs in zip(several.features, maps.features, strict=True):
        assert torch.equal(ours, theirs)


def test_whole_images_are_asked_about_at_the_short_side(tiny_detector: SPPNet, maps: FeatureMaps) -> None:
    assert maps.whole == 1  # 64
    assert torch.equal(maps.whole_map, maps.features[1])
    assert maps.whole_window().tolist() == [[1, 0, 0, 3, 2]]
    pooled = maps.pool(tiny_detector, maps.whole_window())
    assert torch.equal(pooled, tiny_detector.pool(maps.features[1], torch.tensor([[0, 0, 0, 3, 2]])))


def test_every_window_is_pooled_from_the_map_of_its_scale(tiny_detector: SPPNet, maps: FeatureMaps) -> None:
    windows, residuals = maps.windows(tiny_detector, BOXES)
    which = choose_scale(BOXES, maps.scales)
    assert windows[:, 0].tolist() == which.tolist()
    assert len(set(which.tolist())) > 1
    pooled = maps.pool(tiny_detector, windows)
    for row, index in enumerate(which.tolist()):
        features, scale, box = maps.features[index], maps.scales[index], BOXES[row : row + 1]
        window = boxes_to_windows(box, tiny_detector.geometry, cells_of(features), scale)
        assert torch.equal(pooled[row], tiny_detector.pool(features, F.pad(window, (1, 0)))[0])
        assert torch.equal(residuals[row], window_residuals(box, window, tiny_detector.geometry, scale)[0])


def test_the_scale_of_a_box_can_be_given(tiny_detector: SPPNet, maps: FeatureMaps) -> None:
    given = torch.tensor([2, 0, 1, 2])
    windows, _ = maps.windows(tiny_detector, BOXES, given)
    assert windows[:, 0].tolist() == given.tolist()
    pooled = maps.pool(tiny_detector, windows)
    for order in ([3, 2, 1, 0], [1, 2, 0, 3]):
        assert torch.equal(maps.pool(tiny_detector, windows[order]), pooled[order])


def test_the_gradient_reaches_every_map_that_was_asked(tiny_detector: SPPNet, maps: FeatureMaps) -> None:
    features = tuple(part.float().requires_grad_() for part in maps.features)
    learning = dataclasses.replace(maps, features=features)
    windows, _ = learning.windows(tiny_detector, BOXES[:2], torch.tensor([2, 0]))
    learning.pool(tiny_detector, windows).sum().backward()
    assert [part.grad is not None and bool(part.grad.any()) for part in features] == [True, False, True]


def test_long_images_do_not_grow_without_end(tiny_detector: SPPNet) -> None:
    maps = compute_feature_maps(tiny_detector, np.zeros((100, 400, 3), np.uint8), (64, 128))
    long = tiny_detector.preprocess.sides(128)[1]
    assert maps.scales[1] == pytest.approx((long / 400, long / 400), abs=0.01)
    assert long == 2 * tiny_detector.preprocess.long_side


def test_no_boxes(tiny_detector: SPPNet, maps: FeatureMaps) -> None:
    windows, residuals = maps.windows(tiny_detector, torch.zeros(0, 4))
    assert (windows.shape, residuals.shape) == ((0, 5), (0, 4))
    assert maps.pool(tiny_detector, windows).shape[0] == 0


def test_features_beyond_half_precision_are_cut_not_infinite(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet]
) -> None:
    loud = variant(tiny_detector)
    loud.feature_scale.fill_(1e9)
    assert compute_feature_maps(loud, np.full((40, 40, 3), 255, np.uint8)).whole_map.isfinite().all()


def test_pooling_is_the_same_within_autocast(tiny_detector: SPPNet, maps: FeatureMaps) -> None:
    windows, _ = maps.windows(tiny_detector, BOXES)
    expected = maps.pool(tiny_detector, windows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(maps.pool(tiny_detector, windows), expected)


def test_boxes_are_embedded_as_the_fully_connected_layers_see_them(
    tiny_detector: SPPNet, maps: FeatureMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = torch.cat([BOXES, BOXES[:2]])  # those on the same cells are computed once
    embedded = maps.embed(tiny_detector, boxes)
    assert embedded.dtype == torch.float16
    with tiny_detector.inference():
        alone = tiny_detector.fully_connected(maps.pool(tiny_detector, maps.windows(tiny_detector, boxes)[0]))
    torch.testing.assert_close(embedded.float(), alone.float(), atol=2e-2, rtol=2e-2)  # bfloat16
    assert torch.equal(embedded[:2], embedded[4:])
    monkeypatch.setattr("sppnet.detection.feature_maps.WINDOW_CHUNK", 2)
    torch.testing.assert_close(maps.embed(tiny_detector, boxes), embedded, atol=2e-2, rtol=2e-2)


# At which scale a box is pooled


VOC = [(side / 375, side / 375) for side in (480, 576, 688, 864, 1200)]  # of a photo of 500 x 375 pixels


def square(side: float) -> torch.Tensor:
    return torch.tensor([[10.0, 20, 10 + side, 20 + side]])


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (100, 3),  # scaled: 128, 154, 183, 230, 320; in area nearest to 224: 230
        (375, 0),  # the larger, the smaller the scale
        (20, 4),
        (85, 3),  # 109, 131, 156, 196, 272: areas from 50176: 11799 at 196, 23808 at 272
        (140, 1),  # 179, 215, 257: areas 18059, 3936, 15799 off
        (78, 4),  # 180 or 250: areas 17880, 12124 off, so the larger
    ],
)
def test_worked_cases(side: float, expected: int) -> None:
    assert choose_scale(square(side), VOC).tolist() == [expected]


@given(st.lists(st.floats(1, 400), min_size=2, max_size=6))
def test_a_larger_box_never_gets_a_larger_scale(sides: list[float]) -> None:
    boxes = torch.cat([square(side) for side in sorted(sides)])
    assert (choose_scale(boxes, VOC).diff() <= 0).all()


@given(st.floats(2, 400), st.floats(2, 400), st.permutations(range(5)))
def test_no_scale_brings_the_area_nearer(width: float, height: float, order: list[int]) -> None:
    scales = [VOC[index] for index in order]
    box = torch.tensor([[0.0, 0, width, height]], dtype=torch.float64)
    off = [abs(width * height * vertical * horizontal - 224**2) for vertical, horizontal in scales]
    assert off[int(choose_scale(box, scales))] == pytest.approx(min(off))
