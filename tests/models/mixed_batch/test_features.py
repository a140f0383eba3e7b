"""Images of different sizes in one batch: each as if alone, in whole nets; and what is called, and with what."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import UserError
from sppnet.models.mixed_batch import MixedBatch, mixed_features, own_windows
from sppnet.models.mixed_batch.padded_batch import PaddedBatch
from sppnet.models.networks import compact_resnet
from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool

NETS = (
    "efficientnet_lite0",
    "squeezenet1_0",
    "mobilenet_v2",
    "resnet18",
    "compact",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "zf5",
)
LARGER = ("squeezenet1_0", "mobilenet_v2", "resnet18", "zf5", "mobilenet_v3_small", "efficientnet_b0", "densenet121",
          "regnet_y_400mf", "convnext_tiny")  # fmt: skip
ALLOWED = 1e-5  # max |a - b| / max |b| over an image's map, in float32

Size = tuple[int, int]


# A drawn example


def test_a_drawn_example() -> None:
    """One pixel beside a 3 x 3 image; sums over 3 x 3 neighbours, plus one, twice.

    Alone the pixel gives 1 + 1 = 2, then 2 + 1 = 3: around it there is padding, which is 0. In a plain padded batch the
    first layer writes what it sees, and its bias, beyond the pixel's edge:

        1 0 0      2 2 1             2+2+2+2+1
        0 0 0  ->  2 2 1  ->  first: = 8 + 1 = 9
        0 0 0      1 1 1

    and the second layer reads that.
    """
    backbone = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 1, 3, padding=1))
    for layer, weight in zip(backbone, (1.0, 1 / 3), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.ones_(layer.bias)
    pixel, other = torch.ones(3, 1, 1), torch.zeros(3, 3, 3)
    padded = torch.stack([F.pad(pixel, (0, 2, 0, 2)), other])
    assert backbone(pixel[None]).flatten().tolist() == pytest.approx([3])
    assert backbone(padded)[0, 0, 0, 0].item() == pytest.approx(9)
    features, sizes = mixed_features(backbone, [pixel, other])
    assert sizes == [(1, 1), (3, 3)]
    torch.testing.assert_close(features[0, 0], torch.tensor([[3.0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    torch.testing.assert_close(features[1, 0], backbone(other[None])[0, 0])


# Each image as if alone


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(33, 97), st.integers(33, 97)), min_size=2, max_size=4), st.integers(0, 99))
def test_every_image_gets_what_it_gets_alone(
    nets: Callable[[str], nn.Module],
    images_of: Callable[..., list[Tensor]],
    largest_difference: Callable[..., float],
    name: str,
    sizes: list[Size],
    seed: int,
) -> None:
    assert largest_difference(nets(name), images_of(sizes, seed)) <= ALLOWED


@pytest.mark.parametrize("name", NETS)
def test_the_difference_is_rounding_alone(
    nets: Callable[[str], nn.Module],
    name: str,
    images_of: Callable[..., list[Tensor]],
    largest_difference: Callable[..., float],
) -> None:
    """In float64 it is a million times smaller than in float32."""
    images = images_of([(33, 97), (64, 50), (97, 71)], dtype=torch.float64)
    assert largest_difference(copy.deepcopy(nets(name)).double(), images) <= 1e-13


@pytest.mark.parametrize("name", NETS)
def test_without_setting_back_the_padding_it_would_not(
    nets: Callable[[str], nn.Module], name: str, monkeypatch: pytest.MonkeyPatch, images_of: Callable[..., list[Tensor]]
) -> None:
    """The test above can fail: a plain padded batch differs a thousand times more than is allowed."""
    images, differences = images_of([(97, 130), (123, 98)]), {}
    for reset in (True, False):
        if not reset:
            monkeypatch.setattr(PaddedBatch, "reset", lambda self, features, *_: features)
        with torch.no_grad():
            features, sizes = mixed_features(nets(name), images)
            differences[reset] = max(
                float((own[:, :rows, :columns] - alone[0]).abs().max() / alone.abs().max())
                for own, (rows, columns), alone in zip(
                    features, sizes, [nets(name)(image[None]) for image in images], strict=True
                )
            )
    assert differences[True] <= ALLOWED < 1000 * ALLOWED < differences[False]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LARGER)
def test_200_random_combinations_at_larger_sizes(
    nets: Callable[[str], nn.Module],
    name: str,
    images_of: Callable[..., list[Tensor]],
    largest_difference: Callable[..., float],
) -> None:
    draw, net = random.Random(0), nets(name)
    worst = 0.0
    for combination in range(200):
        sizes = [(draw.randint(100, 330), draw.randint(100, 330)) for _ in range(draw.randint(2, 4))]
        worst = max(worst, largest_difference(net, images_of(sizes, combination)))
    assert worst <= ALLOWED


# Precision, memory, devices


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_autocast(nets: Callable[[str], nn.Module], name: str, images_of: Callable[..., list[Tensor]]) -> None:
    images = images_of([(64, 40), (33, 70), (64, 96)])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features, sizes = mixed_features(nets(name), images)
        for own, image, (rows, columns) in zip(features, images, sizes, strict=True):
            alone = nets(name)(image[None])[0]
            assert own.dtype == alone.dtype
            assert (own[:, :rows, :columns] - alone).abs().max() <= 2e-2 * alone.abs().max()


def test_autocast_while_training(lively: Callable[..., nn.Module], images_of: Callable[..., list[Tensor]]) -> None:
    net = lively(compact_resnet(folded=False)).train()
    images = images_of([(64, 40), (33, 70)])
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = mixed_features(net, images)
    features.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_channels_last_images_make_a_channels_last_batch(
    nets: Callable[[str], nn.Module], images_of: Callable[..., list[Tensor]], largest_difference: Callable[..., float]
) -> None:
    images = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images_of([(64, 40), (33, 70)])]
    with torch.no_grad():
        features, _ = mixed_features(nets("resnet18"), images)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert largest_difference(nets("resnet18"), images) <= ALLOWED


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETS)
def test_on_a_gpu(
    name: str,
    nets: Callable[[str], nn.Module],
    images_of: Callable[..., list[Tensor]],
    largest_difference: Callable[..., float],
    check_gradients: Callable[..., None],
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    backbone = copy.deepcopy(nets(name)).double().cuda()
    images = [image.cuda() for image in images_of([(97, 130), (163, 98), (97, 130)], dtype=torch.float64)]
    assert largest_difference(backbone, images) <= 1e-11
    check_gradients(backbone, images, 1e-8)


# What is called


def test_whole_windows_of_the_own_parts_pool_as_the_maps_alone(
    nets: Callable[[str], nn.Module], images_of: Callable[..., list[Tensor]]
) -> None:
    net, images = nets("squeezenet1_0"), images_of([(64, 90), (97, 41)])
    with torch.no_grad():
        features, sizes = mixed_features(net, images)
        pooled = region_pyramid_pool(features, own_windows(sizes, features.device), (3, 2, 1))
        alone = torch.cat([pyramid_pool(net(image[None]), (3, 2, 1)) for image in images])
    assert (pooled - alone).abs().max() <= ALLOWED * alone.abs().max()
    assert own_windows([]).shape == (0, 5)


def test_images_of_one_size_go_straight_through_the_backbone(
    nets: Callable[[str], nn.Module], images_of: Callable[..., list[Tensor]]
) -> None:
    images = images_of([(40, 50)] * 3)
    with torch.no_grad():
        features, sizes = mixed_features(nets("resnet18"), images)
        assert torch.equal(features, nets("resnet18")(torch.stack(images)))
    assert sizes == [(2, 2)] * 3


def test_images_are_not_modified(nets: Callable[[str], nn.Module], images_of: Callable[..., list[Tensor]]) -> None:
    images = images_of([(40, 50), (60, 33)])
    before = [image.clone() for image in images]
    with torch.no_grad():
        mixed_features(nets("squeezenet1_0"), images)
    assert all(torch.equal(image, old) for image, old in zip(images, before, strict=True))


class WithConstants(nn.Module):
    """For which tracing leaves tensors of its own in the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4, 3, 3))

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features + torch.ones(4, 1, 1), self.weight)


def test_the_module_shares_the_weights_and_leaves_the_backbone_as_it_was() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), WithConstants())
    state, attributes = list(backbone.state_dict()), set(vars(backbone))
    mixed = MixedBatch(backbone)
    assert [*mixed.parameters()] == [*backbone.parameters()]
    assert [f"backbone.{name}" for name in state] == list(mixed.state_dict())
    assert list(backbone.state_dict()) == state
    assert set(vars(backbone)) == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())
    assert type(pickle.loads(pickle.dumps(mixed))) is MixedBatch
    copied = copy.deepcopy(mixed)
    assert copied.backbone is not backbone


def test_a_changed_backbone_is_seen(
    nets: Callable[[str], nn.Module], images_of: Callable[..., list[Tensor]], largest_difference: Callable[..., float]
) -> None:
    """Another layer in place of one, and dropout that works in training alone, though functions are traced as they stood."""

    class Drops(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return F.dropout(features, 0.5, self.training)

    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Drops()).eval()
    images = images_of([(9, 5), (6, 8)])
    assert largest_difference(backbone, images) <= ALLOWED
    dropped, _ = mixed_features(backbone.train(), images)
    assert 0.3 < float((dropped[0, :, :9, :5] == 0).float().mean()) < 0.7
    backbone[0] = nn.Conv2d(3, 5, 7, stride=2, padding=1)
    assert largest_difference(backbone.eval(), images) <= ALLOWED


def test_a_backbone_first_used_in_inference_mode_can_still_learn(
    lively: Callable[..., nn.Module], images_of: Callable[..., list[Tensor]]
) -> None:
    backbone, images = (
        lively(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))),
        images_of([(9, 5), (6, 8)]),
    )
    with torch.inference_mode():
        mixed_features(backbone, images)
    features, _ = mixed_features(backbone, images)
    features.sum().backward()
    assert backbone[0].weight.grad is not None


# What is refused


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([torch.rand(1, 3, 8, 8)], ValueError, r"image 0 has shape \[1, 3, 8, 8\]"),
        ([torch.rand(3, 8, 8), torch.rand(3, 0, 8)], ValueError, r"image 1 has shape \[3, 0, 8\]"),
        ([torch.rand(3, 8, 8), torch.rand(1, 9, 8)], ValueError, r"image 1 has shape \[1, 9, 8\]"),
        ([torch.rand(3, 8, 8), torch.rand(3, 9, 8).double()], ValueError, "image 1 is torch.float64 on cpu, image 0"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], TypeError, "image 0 is torch.uint8"),
        (["photo.jpg"], TypeError, "image 0 is str"),
    ],
)
def test_wrong_images(images: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mixed_features(nn.Conv2d(3, 2, 1), images)


def test_a_backbone_that_needs_more_than_images_is_refused() -> None:
    class Guided(nn.Module):
        def forward(self, images: Tensor, guide: Tensor, strength: float = 1.0) -> Tensor:
            return images + strength * guide

    with pytest.raises(UserError, match=r"cannot take an image of 352 x 544 pixels: .*'guide'"):
        MixedBatch(Guided())


def test_an_image_that_is_too_small_is_refused_as_alone(images_of: Callable[..., list[Tensor]]) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 2, 7), nn.ReLU())
    with pytest.raises(UserError, match="cannot take an image of 5 x 30 pixels"):
        mixed_features(backbone, images_of([(20, 20), (5, 30)]))
