"""The windows of one image: objects first, difficult ones left out, embedded on demand; the scale of their features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.data.annotations import AnnotatedImage
from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import read_image
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.windows_of_images import ImageWindows, WindowsOfImages, feature_scale
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import propose


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


def test_features_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="infinities"):
        of_vectors(torch.full((2, 3), torch.inf)).features(torch.tensor([0]))


def test_scaled_features_have_the_mean_length_of_the_release() -> None:
    images = [of_vectors(torch.randn(n, 8, generator=torch.Generator().manual_seed(n))) for n in (5, 0, 9)]
    lengths = torch.cat([image.features(torch.arange(len(image.labels))) for image in images]).norm(dim=1)
    scale = feature_scale(images)
    assert float(lengths.mean()) * scale == pytest.approx(20, rel=1e-3)
    assert scale == feature_scale(images)


def test_half_precision_does_not_overflow_the_scale() -> None:
    assert feature_scale([of_vectors(torch.full((1, 4), 6e4).half())]) == pytest.approx(20 / 1.2e5, rel=1e-3)


@pytest.mark.parametrize("images", [[], [of_vectors(torch.zeros(2, 3))]])
def test_nothing_to_scale_is_refused(images: list[ImageWindows]) -> None:
    with pytest.raises(ValueError, match="no length to scale to 20"):
        feature_scale(images)


# The windows of images whose maps are cached


@pytest.fixture(scope="module")
def cached(tiny_detector: SPPNet, tiny_voc_original: Path, tmp_path_factory: pytest.TempPathFactory) -> WindowsOfImages:
    images = read_voc(tiny_voc_original, "train").images
    cache = FeatureMapCache(tiny_detector, tmp_path_factory.mktemp("maps"))
    proposals = [propose(read_image(image.path), "grid")[:40] for image in images]
    return WindowsOfImages(cache, images, proposals)


def test_boxes_are_embedded_as_the_network_does(cached: WindowsOfImages) -> None:
    model, image = cached.model, cached[0]
    maps = compute_feature_maps(model, read_image(cached.images[0].path))
    windows, _ = maps.windows(model, image.boxes)
    with torch.inference_mode():
        expected = model.fully_connected(maps.pool(model, windows).float())
    found = image.features(torch.arange(len(image.boxes)))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_one_class_alone(cached: WindowsOfImages) -> None:
    squares = WindowsOfImages(cached.cache, cached.images, cached.proposals, label=2)
    for index in range(len(cached)):
        both, one = cached[index], squares[index]
        assert one.overlaps.shape[1] == 1
        assert torch.equal(one.overlaps[one.labels == 0, 0], both.overlaps[both.labels == 0, 1])
        assert int((one.labels == 1).sum()) == int((both.labels == 2).sum())


def test_windows_are_named_by_all_that_they_come_from(cached: WindowsOfImages) -> None:
    def named(**changes: Any) -> str:
        parts = {"cache": cached.cache, "images": cached.images, "proposals": cached.proposals}
        return WindowsOfImages(**(parts | changes)).fingerprint

    model = copy.deepcopy(cached.model)
    with torch.no_grad():
        next(model.fully_connected.parameters())[0, 0] += 1
    names = [
        named(),
        named(label=1),
        named(cache=FeatureMapCache(model, cached.cache.folder.parent)),
        named(images=cached.images[1:], proposals=cached.proposals[1:]),
        named(proposals=[boxes + 1 for boxes in cached.proposals]),
    ]
    assert len(set(names)) == len(names)
    assert named(images=list(cached.images)) == names[0]
