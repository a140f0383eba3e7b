"""`SPPNet`: one network for whole images and for windows of them, at any size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.errors import UserError
from sppnet.models.compact import compact_resnet
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.ops.bins import whole_windows


@pytest.fixture(scope="module")
def net() -> SPPNet:
    torch.manual_seed(0)
    return SPPNet(Architecture(names=("cat", "dog", "owl"), levels=(3, 1), hidden=(24, 16), short_side=128)).eval()


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 500), (97, 64)])
def test_any_size_gives_one_length(net: SPPNet, size: tuple[int, int]) -> None:
    assert net(torch.rand(2, 3, *size)).shape == (2, 3)


def test_a_list_of_sizes_is_each_alone(net: SPPNet) -> None:
    images = [torch.rand(3, 40, 90), torch.rand(3, 70, 33)]
    alone = torch.cat([net(image[None]) for image in images])
    assert (net(images) - alone).abs().max() <= 1e-5 * alone.abs().max()
    assert net([]).shape == (0, 3)


def test_a_whole_image_is_just_one_more_window(net: SPPNet) -> None:
    images = torch.rand(2, 3, 100, 150)
    features = net.features(images)
    described = net.fully_connected(net.pool(features, whole_windows(features)))
    assert torch.equal(net.image_classifier(described), net(images))
    logits, deltas = net.window_outputs(described)
    assert logits.shape == (2, 4)
    assert deltas.shape == (2, 3, 4)


def test_windows_of_several_maps_in_one_call(net: SPPNet) -> None:
    features = net.features(torch.rand(2, 3, 128, 160))
    windows = torch.tensor([[0, 0, 0, 2, 3], [1, 1, 0, 5, 4], [0, 4, 3, 5, 4]])
    together = net.fully_connected(net.pool(features, windows))
    apart = [net.fully_connected(net.pool(features[n : n + 1], window[None] * torch.tensor([0, 1, 1, 1, 1])))
             for n, window in zip(windows[:, 0].tolist(), windows, strict=True)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(apart))


def test_prepare_resizes_by_the_short_side_and_says_by_how_much(net: SPPNet) -> None:
    prepared, scale = net.prepare(np.zeros((64, 96, 3), np.uint8))
    assert prepared.shape == (1, 3, 128, 192)
    assert scale == (2.0, 2.0)
    expected = -torch.tensor(net.architecture.mean) / torch.tensor(net.architecture.std)
    torch.testing.assert_close(prepared[0, :, 5, 5], expected)


def test_calibrate_brings_the_mean_square_to_one() -> None:
    net = SPPNet(Architecture(names=("cat",), levels=(1,), hidden=(4,))).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        net.calibrate(float(net.features(images).square().mean()))
        assert float(net.features(images).square().mean()) == pytest.approx(1, rel=2e-2)


def test_a_classifier_has_no_outputs_for_windows() -> None:
    net = SPPNet(Architecture(names=("cat", "dog"), hidden=(8,), detects=False))
    assert not hasattr(net, "window_logits")


@pytest.mark.parametrize("images", [torch.rand(3, 10, 10), torch.rand(1, 1, 10, 10), [torch.rand(1, 3, 10, 10)]])
def test_wrong_images(net: SPPNet, images: object) -> None:
    with pytest.raises(ValueError, match="images must be"):
        net(images)


def test_gradients_reach_the_backbone() -> None:
    net = SPPNet(Architecture(names=("cat", "dog"), levels=(2, 1), hidden=(8,)))
    net(torch.rand(1, 3, 64, 96)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())


def test_a_network_without_a_pyramid_takes_one_size() -> None:
    architecture = Architecture(
        ("cat", "dog"), "alexnet", (6,), (8,), detects=False, fit="crop", short_side=224, fixed_size=True
    )
    net = SPPNet(architecture).eval()
    prepared, _ = net.prepare(np.zeros((300, 400, 3), np.uint8))
    assert net(prepared).shape == (1, 2)
    with pytest.raises(UserError, match="takes images of 224 x 224 alone: got 224 x 300"):
        net(torch.zeros(1, 3, 224, 300))
    with pytest.raises(UserError, match="one fixed input size cannot take images at their own"):
        SPPNet(dataclasses.replace(architecture, fit="native"))


def test_a_backbone_cut_to_a_stride() -> None:
    net = SPPNet(Architecture(("cat", "dog"), "resnet18", (1,), (8,), detects=False, backbone_stride=16))
    assert (net.geometry.stride, net.image_classifier.out_features) == (16, 2)
    assert net.features(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize("backbone", ["alexnet", "zf5", "squeezenet1_0"])
def test_thin_images_are_made_large_enough_for_a_map(backbone: str) -> None:
    net = SPPNet(Architecture(("cat",), backbone, (1,), (8,), detects=False, short_side=100, long_side=200)).eval()
    prepared, _ = net.prepare(np.zeros((4, 2000, 3), np.uint8))
    assert net(prepared).shape == (1, 1)


def test_a_backbone_that_is_to_learn_may_be_in_training_mode() -> None:
    backbone = compact_resnet((16, 32), (1,), folded=False).train()
    net = SPPNet(Architecture(("cat", "dog"), levels=(2, 1), hidden=(), detects=False), backbone)
    assert (net.geometry.stride, net.smallest_side) == (4, 4)
    assert backbone.training


def test_svms_of_whole_images_see_vectors_of_length_one() -> None:
    """So that a brighter map says the same, and one of nothing gives the bias; in half precision, too."""
    net = SPPNet(Architecture(("a", "b"), levels=(2, 1), hidden=(), detects=False, classifier="svm")).eval()
    pooled = torch.rand(3, net.pool.bins, net.image_classifier.in_features // net.pool.bins)
    pooled[2] = 0
    described = net.fully_connected(pooled)
    assert torch.allclose(described.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert torch.allclose(net.fully_connected(1000 * pooled), described, atol=1e-6)
    large = net.fully_connected((60000 * pooled).half())
    assert large.dtype == torch.float16
    assert torch.allclose(large.float(), described, atol=1e-3)
    with pytest.raises(ValueError, match=r"expected no fully connected layers, got \(8,\)"):
        SPPNet(Architecture(("a", "b"), hidden=(8,), detects=False, classifier="svm"))
    SPPNet(Architecture(("a", "b"), levels=(1,), hidden=(8,), classifier="svm"))  # a detector's are another matter


def test_other_scales_are_another_look_of_the_same_weights(net: SPPNet) -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    several = net.at_scales([64, 128, 256])
    assert (several.architecture.short_sides, net.architecture.short_sides) == ((64, 128, 256), (128,))
    assert several.image_classifier.weight is net.image_classifier.weight
    assert [part.shape[2] for part in compute_feature_maps(several, image).features] == [
        compute_feature_maps(net.at_scales([side]), image).features[0].shape[2] for side in (64, 128, 256)
    ]
    assert several.at_scales(()).architecture == net.architecture
    with pytest.raises(ValueError, match=r"at least 1 pixel: got \(64, 0\)"):
        net.at_scales((64, 0))
