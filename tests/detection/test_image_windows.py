"""The windows of one image: objects first, difficult ones left out, described on demand; the scale of their features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.feature_maps import FeatureMaps
from sppnet.detection.image_windows import ImageWindows, describe_boxes, feature_scale
from sppnet.models.geometry import boxes_to_windows
from sppnet.models.sppnet import Architecture, SPPNet


def of_vectors(vectors: Tensor) -> ImageWindows:
    count = len(vectors)
    labels = torch.zeros(count, dtype=torch.int64)
    return ImageWindows(torch.zeros(count, 4), labels, torch.zeros(count, 1), lambda rows: vectors[rows])


def test_objects_come_first_and_difficult_ones_only_count_as_overlaps() -> None:
    image = AnnotatedImage(
        "1",
        Path("1.jpg"),
        (100, 200),
        np.array([[0, 0, 40, 40], [100, 0, 140, 40], [0, 0, 40, 30]], np.float32),
        np.array([2, 1, 2]),
        np.array([False, True, False]),
    )
    proposals = np.array([[100, 0, 140, 20], [0, 0, 40, 20]], np.float32)
    windows = ImageWindows.of(image, proposals, 3, lambda boxes: boxes[:, 3:])
    assert windows.boxes.tolist() == [[0, 0, 40, 40], [0, 0, 40, 30], [100, 0, 140, 20], [0, 0, 40, 20]]
    assert windows.labels.tolist() == [2, 2, 0, 0]
    expected = [[0, 1, 0], [0, 1, 0], [0.5, 0, 0], [0, 2 / 3, 0]]  # the largest with any object of the class
    assert windows.overlaps.tolist() == [pytest.approx(row) for row in expected]
    assert windows.features(torch.tensor([3, 0])).tolist() == [[20], [40]]


def test_an_image_without_objects_has_proposals_all_the_same() -> None:
    nothing = AnnotatedImage(
        "1", Path("1.jpg"), (9, 9), np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool)
    )
    windows = ImageWindows.of(nothing, np.ones((2, 4), np.float32), 2, lambda boxes: boxes)
    assert windows.labels.tolist() == [0, 0]
    assert windows.overlaps.tolist() == [[0, 0], [0, 0]]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got shapes \[\[2, 4\], \[3\], \[2, 1\]\]"):
        ImageWindows(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1), lambda rows: rows)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (torch.zeros(2, 3), r"expected floating-point features \[1, D\]"),
        (torch.zeros(1, 3, dtype=torch.int64), "got torch.int64"),
        (torch.full((1, 3), torch.inf), "infinities"),
    ],
)
def test_features_that_cannot_be_are_refused(made: Tensor, message: str) -> None:
    windows = ImageWindows(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1), lambda rows: made)
    with pytest.raises(ValueError, match=message):
        windows.features(torch.tensor([0]))


def test_scaled_features_have_the_mean_length_asked_for() -> None:
    images = [of_vectors(torch.randn(n, 8, generator=torch.Generator().manual_seed(n))) for n in (5, 0, 9)]
    lengths = torch.cat([image.features(torch.arange(len(image.labels))) for image in images]).norm(dim=1)
    scale = feature_scale(images, 20, seed=0)
    assert float(lengths.mean()) * scale == pytest.approx(20, rel=1e-3)
    assert scale == feature_scale(images, 20, seed=0)


def test_half_precision_does_not_overflow_the_scale() -> None:
    assert feature_scale([of_vectors(torch.full((1, 4), 6e4).half())], 12, seed=0) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("images", [[], [of_vectors(torch.zeros(2, 3))]])
def test_nothing_to_scale_is_refused(images: list[ImageWindows]) -> None:
    with pytest.raises(ValueError, match="no length to scale to 20"):
        feature_scale(images, 20, seed=0)


@pytest.mark.parametrize("pooled", [True, False])
def test_boxes_are_described_as_the_network_does(pooled: bool) -> None:
    torch.manual_seed(0)
    net = SPPNet(Architecture(names=("a",), levels=(2, 1), hidden=(16,))).eval()
    with torch.inference_mode():
        features = net.features(torch.randn(1, 3, 160, 200))
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100.5, 100], [40, 30, 200, 160]])  # the first two: the same cells
    found = describe_boxes(net, FeatureMaps((features,), ((1.0, 1.0),), (160, 200)), boxes, pooled=pooled)
    windows = boxes_to_windows(boxes, net.geometry, (features.shape[2], features.shape[3]), (1.0, 1.0))
    assert torch.equal(windows[0], windows[1])
    with torch.inference_mode():
        expected = net.pool(features, torch.nn.functional.pad(windows, (1, 0)))
        expected = expected.flatten(1) if pooled else net.fully_connected(expected)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.02)
    assert torch.equal(found[0], found[1])
    assert not found.is_inference()
