"""R-CNN: what a warped box shows, that it is the whole network on a crop, and how the batch is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.rcnn import RcnnSettings, fastest_batch, rcnn_features, rcnn_maps, warp_boxes
from sppnet.models.sppnet import SPPNet


def gradient(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(width), np.arange(height)[:, None]
    return image


def test_the_box_fills_the_middle_and_context_surrounds_it() -> None:
    # 64 pixels of the box become 8 of the square: 8 px each, and 2 more on each side.
    crop = warp_boxes(gradient(200, 200), np.array([[80.0, 64, 144, 128]]), side=12, context=2)[0]
    expected = 80 + 8 * (np.arange(12) - 2) + 4 - 0.5  # centers of 8 px wide steps
    assert np.abs(crop[:, :, 0] - expected).max() <= 1
    assert np.abs(crop[:, :, 1] - (expected - 16)[:, None]).max() <= 1


def test_both_sides_are_warped_to_one() -> None:
    crop = warp_boxes(gradient(200, 200), np.array([[0.0, 0, 200, 40]]), side=20, context=0)[0]
    assert np.ptp(crop[0, :, 0]) == pytest.approx(190, abs=2)
    assert np.ptp(crop[:, 0, 1]) == pytest.approx(38, abs=2)


def test_outside_the_image_is_the_fill() -> None:
    crop = warp_boxes(np.full((50, 50, 3), 200, np.uint8), np.array([[0.0, 0, 50, 50]]), 60, 5, fill=(1, 2, 3))[0]
    assert (crop[:4] == (1, 2, 3)).all()
    assert (crop[:, -4:] == (1, 2, 3)).all()
    assert (crop[6:-6, 6:-6] == 200).all()


def test_a_whole_image_without_context_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert (warp_boxes(image, np.array([[0.0, 0, 32, 32]]), side=32, context=0)[0] == image).all()


@pytest.mark.parametrize(
    ("boxes", "side", "context", "message"),
    [
        ([[0, 0, 0, 10]], 8, 0, r"boxes must be \[R, 4\] xyxy with sides above 0"),
        ([0, 0, 10, 10], 8, 0, r"got shape \[4\]"),
        ([[0, 0, 5, 5]], 8, 4, "expected 0 <= 2 \\* context < side: got context 4 and side 8"),
    ],
)
def test_what_is_refused(boxes: list[object], side: int, context: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warp_boxes(np.zeros((20, 20, 3), np.uint8), np.array(boxes, np.float32), side, context)


def test_each_box_is_an_image_to_the_network(tiny_detector: SPPNet) -> None:
    """And the size of the batch changes nothing but rounding."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 60, 40], [30, 20, 120, 90], [5, 50, 50, 85]], np.float32)
    settings = RcnnSettings(at_once=2, side=64, context=8, bfloat16=False)
    found = rcnn_features(image, boxes, tiny_detector, settings)
    maps = rcnn_maps(image, boxes, tiny_detector, settings)
    for row, crop in enumerate(warp_boxes(image, boxes, 64, 8, tiny_detector.preprocess.fill)):
        with torch.inference_mode():
            features = tiny_detector.features(tiny_detector.preprocess.normalize(crop))
            whole = torch.tensor([[0, 0, 0, features.shape[3], features.shape[2]]])
            expected = tiny_detector.fully_connected(tiny_detector.pool(features, whole))
        assert torch.allclose(found[row], expected[0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(maps[row], features[0], rtol=1e-4, atol=1e-5)


def test_no_boxes(tiny_detector: SPPNet) -> None:
    none = np.zeros((0, 4), np.float32)
    assert rcnn_features(np.zeros((20, 20, 3), np.uint8), none, tiny_detector).shape == (0, 16)


def test_the_fastest_batch_is_the_one_with_least_time_for_a_crop() -> None:
    costs = {1: 1.0, 4: 2.0, 8: 8.0}
    now = 0.0

    def run(size: int) -> None:
        nonlocal now
        now += costs[size]

    assert fastest_batch(run, (1, 4, 8), clock=lambda: now) == (4, {1: 1.0, 4: 0.5, 8: 1.0})
