"""`SPPNet`: one network for whole images and for windows of them, at any size, in any mode and precision."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sppnet.boxes import decode_boxes
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.errors import ModelError, SettingsError
from sppnet.models.heads import RidgeRegressor, SVMClassifier
from sppnet.models.networks import compact_resnet
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, SPPNet, build_model
from sppnet.ops.bins import whole_windows

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8)
BOXES = np.array([[0, 0, 60, 50], [20, 10, 125, 85], [3, 3, 9, 9]], np.float32)


@pytest.fixture(scope="module")
def net() -> SPPNet:
    torch.manual_seed(0)
    return build_model(
        Architecture(("cat", "dog", "owl"), "compact", levels=(3, 1), hidden=(24, 16)), Preprocess(128)
    ).eval()


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
    head_features = net.fully_connected(net.pool(features, whole_windows(features)))
    assert torch.equal(net.image_classifier(head_features), net(images))
    logits, deltas = net.heads(head_features, torch.zeros(2, 4))
    assert (logits.shape, deltas.shape) == ((2, 4), (2, 3, 4))


def test_boxes_of_several_images_in_one_call(net: SPPNet) -> None:
    images = [torch.rand(3, 128, 160), torch.rand(3, 70, 99)]
    boxes = [torch.tensor([[0.0, 0, 90, 64], [10, 20, 160, 128]]), torch.tensor([[5.0, 5, 60, 60]])]
    together = net(images, boxes)
    alone = [net(image[None], part) for image, part in zip(images, boxes, strict=True)]
    for number in (0, 1):
        torch.testing.assert_close(together[number], torch.cat([each[number] for each in alone]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"expected boxes \[R, 4\] for each of 2 images: got 1 sets"):
        net(images, boxes[0])


def test_detect_says_what_the_tensors_do(net: SPPNet) -> None:
    """On an image that keeps its size, in float32: the same scores and boxes by either way, but for half precision."""
    size = (128, 170)
    image = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    boxes = torch.tensor([[0.0, 0, 100, 90]])
    logits, deltas = net(net.preprocess(image)[0], boxes)
    scores = net.window_classifier.scores(logits)[0, 1:]
    moved = decode_boxes(boxes, deltas * torch.tensor(net.box_regressor.delta_scale))[0]
    found = net.detect(image, proposals=boxes.numpy(), score_threshold=0.0, vote_iou=0.0)
    order = [net.class_names.index(name) for name in found.class_names]
    np.testing.assert_allclose(found.scores, scores.detach()[order], atol=5e-3)
    np.testing.assert_allclose(found.boxes, moved.detach()[order].clamp(min=0), atol=1.0)


def test_set_feature_scale_brings_the_mean_square_to_one() -> None:
    net = build_model(Architecture(("cat",), "compact", levels=(1,), hidden=(4,))).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        net.set_feature_scale(float(net.features(images).square().mean()))
        assert float(net.features(images).square().mean()) == pytest.approx(1, rel=2e-2)


def test_a_classifier_has_no_heads_for_windows() -> None:
    net = build_model(Architecture(("cat", "dog"), hidden=(8,), detects=False))
    assert (net.window_classifier, net.box_regressor) == (None, None)
    with pytest.raises(ModelError, match="this model classifies only: give a detector"):
        net(torch.rand(1, 3, 64, 64), torch.tensor([[0.0, 0, 9, 9]]))


@pytest.mark.parametrize("images", [torch.rand(3, 10, 10), torch.rand(1, 1, 10, 10), [torch.rand(1, 3, 10, 10)]])
def test_wrong_images(net: SPPNet, images: object) -> None:
    with pytest.raises(ValueError, match="images must be"):
        net(images)


def test_gradients_reach_the_backbone() -> None:
    net = build_model(Architecture(("cat", "dog"), "compact", levels=(2, 1), hidden=(8,)))
    logits, deltas = net(torch.rand(1, 3, 64, 96), torch.tensor([[0.0, 0, 50, 60]]))
    (logits.sum() + deltas.sum()).backward()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())


def test_narrow_maps_are_computed_in_single_precision(net: SPPNet) -> None:
    """In bfloat16 some processors read beyond them."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net.features(torch.rand(1, 3, 640, 32)).dtype == torch.float32
        assert net.features(torch.rand(1, 3, 640, 64)).dtype == net.backbone(torch.rand(1, 3, 640, 64)).dtype
        assert net.backbone(torch.rand(1, 3, 640, 32)).dtype == torch.bfloat16  # as it would be without


# Modes, precisions, copies


@pytest.mark.parametrize(
    ("changed", "atol"),
    [
        (lambda net: net.half(), 5e-3),
        (lambda net: net.double(), 5e-3),  # against bfloat16 where the device is fast at it
        (lambda net: net.bfloat16(), 5e-2),
        (lambda net: net.train(), 0),
        (lambda net: pickle.loads(pickle.dumps(net)), 0),
    ],
    ids=["half", "double", "bfloat16", "training", "pickled"],
)
@pytest.mark.parametrize("kind", ["softmax", "svm", "no hidden layers"])
def test_answers_in_any_mode_and_precision(kind: str, changed: Callable[[SPPNet], SPPNet], atol: float) -> None:
    architecture = Architecture(
        ("cat", "dog"), "compact", levels=(2, 1), hidden=() if kind == "no hidden layers" else (16,)
    )
    if kind == "svm":
        architecture = dataclasses.replace(architecture, window_classifier="svm", box_regressor="ridge")
    torch.manual_seed(0)
    net = build_model(architecture, Preprocess(64, 128), DetectionSettings("grid", scales=(64, 96))).eval()
    if isinstance(net.window_classifier, SVMClassifier):
        net.window_classifier.weights.normal_(std=0.1)
    threshold = -1000.0 if kind == "svm" else 0.0
    other = changed(copy.deepcopy(net))
    training = other.training

    def answers(model: SPPNet) -> list[np.ndarray]:
        found = model.detect(IMAGE, proposals=BOXES, score_threshold=threshold, nms_iou=1.0)
        return [np.sort(found.scores), model.classify(IMAGE).scores, model.embed(IMAGE), model.embed(IMAGE, BOXES)]

    for ours, theirs in zip(answers(other), answers(net), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol * max(1, np.abs(theirs).max()), rtol=0)
    assert other.training == training
    assert all(module.training == training for module in other.modules())
    images = [torch.rand(3, 70, 90), torch.rand(3, 64, 99)]
    assert other(images).dtype == other.image_classifier.weight.dtype  # what one's own loop sees, without autocast
    assert other(images, [torch.from_numpy(BOXES)] * 2)[0].shape == (6, 3)


def test_linear_heads_and_the_scale_of_features_keep_their_precision() -> None:
    architecture = Architecture(
        ("cat", "dog"), "compact", levels=(1,), hidden=(8,), window_classifier="svm", box_regressor="ridge"
    )
    net = build_model(architecture)
    net.feature_scale.fill_(1e-7)
    net.half()
    assert isinstance(net.window_classifier, SVMClassifier)
    assert isinstance(net.box_regressor, RidgeRegressor)
    kept = [net.feature_scale, *net.window_classifier.buffers(), *net.box_regressor.buffers()]
    assert {value.dtype for value in kept} == {torch.float32}
    assert float(net.feature_scale) == pytest.approx(1e-7)
    assert net.image_classifier.weight.dtype == torch.float16


# Forms of networks


def test_a_network_without_a_pyramid_takes_one_size() -> None:
    architecture = Architecture(("cat", "dog"), "alexnet", (6,), (8,), detects=False)
    net = build_model(architecture, Preprocess(224, resize_mode="crop", fixed_size=True)).eval()
    prepared, _ = net.preprocess(np.zeros((300, 400, 3), np.uint8))
    assert net(prepared).shape == (1, 2)
    assert net([prepared[0], prepared[0]]).shape == (2, 2)
    with pytest.raises(SettingsError, match="takes images of 224 x 224 alone: got 224 x 300"):
        net(torch.zeros(1, 3, 224, 300))


def test_a_backbone_at_a_stride() -> None:
    net = build_model(Architecture(("cat", "dog"), "resnet18", (1,), (8,), detects=False, backbone_stride=16))
    assert (net.geometry.stride, net.image_classifier.out_features) == (16, 2)
    assert net.features(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize("backbone", ["alexnet", "zf5", "squeezenet1_0"])
def test_thin_images_are_made_large_enough_for_a_map(backbone: str) -> None:
    net = build_model(Architecture(("cat",), backbone, (1,), (8,), detects=False), Preprocess(100, 200)).eval()
    prepared, _ = net.preprocess(np.zeros((4, 2000, 3), np.uint8))
    assert net(prepared).shape == (1, 1)


def test_a_backbone_that_is_to_be_trained_may_be_in_training_mode() -> None:
    backbone = compact_resnet((16, 32), (1,), folded=False).train()
    net = build_model(
        Architecture(("cat", "dog"), "compact", levels=(2, 1), hidden=(), detects=False), backbone=backbone
    )
    assert (net.geometry.stride, net.preprocess.smallest_side) == (4, 4)
    assert backbone.training


def test_linear_svms_of_whole_images_see_vectors_of_length_one() -> None:
    """So that a brighter map says the same, and one of nothing gives the bias; in half precision, too."""
    net = build_model(
        Architecture(("a", "b"), "compact", levels=(2, 1), hidden=(), detects=False, unit_length=True)
    ).eval()
    pooled = torch.rand(3, net.pool.bins, net.image_classifier.in_features // net.pool.bins)
    pooled[2] = 0
    vectors = net.fully_connected(pooled)
    assert torch.allclose(vectors.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert torch.allclose(net.fully_connected(1000 * pooled), vectors, atol=1e-6)
    large = net.fully_connected((60000 * pooled).half())
    assert large.dtype == torch.float16
    assert torch.allclose(large.float(), vectors, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_classifier": "forest"}, "window_classifier must be one of softmax, svm: got 'forest'"),
        ({"box_regressor": "ridge-pooled"}, "box_regressor must be one of network, ridge: got 'ridge-pooled'"),
        ({"levels": ()}, "levels and hidden must be at least 1"),
        ({"hidden": (8, 0)}, "levels and hidden must be at least 1"),
        ({"hidden": (8, 8), "ranks": (4,)}, "expected a rank for each of 2 fully connected layers, got (4,)"),
    ],
)
def test_an_architecture_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Architecture(("cat",), **fields)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_other_scales_are_another_look_of_the_same_weights(net: SPPNet) -> None:
    several = net.at_scales([64, 128, 256])
    assert (several.short_sides, net.short_sides) == ((64, 128, 256), (128,))
    assert several.image_classifier.weight is net.image_classifier.weight
    assert [part.shape[2] for part in compute_feature_maps(several, IMAGE).features] == [
        compute_feature_maps(net.at_scales([side]), IMAGE).features[0].shape[2] for side in (64, 128, 256)
    ]
    assert several.at_scales(()).detection == net.detection
    with pytest.raises(SettingsError, match=r"1 to 20000 pixels: got \(64, 0\)"):
        net.at_scales((64, 0))
