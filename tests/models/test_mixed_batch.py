"""Images of different sizes in one batch: each as if alone, whatever the layers; what cannot be so is refused."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import UserError
from sppnet.models import mixed_batch
from sppnet.models.backbones import build_backbone
from sppnet.models.compact import compact_resnet
from sppnet.models.mixed_batch import MixedBatch, mixed_features, own_windows
from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool

NETS = ("squeezenet1_0", "mobilenet_v2", "resnet18", "compact", "mobilenet_v3_small", "shufflenet_v2_x0_5", "zf5")
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


@pytest.fixture(scope="module")
def nets() -> Callable[[str], nn.Module]:
    made: dict[str, nn.Module] = {}

    def net(name: str) -> nn.Module:
        if name not in made:
            made[name] = lively(backbone_of(name))
        return made[name]

    return net


def backbone_of(name: str) -> nn.Module:
    """With its BatchNorms, not folded into convolutions."""
    return build_backbone(name, fold=False)


def lively(backbone: nn.Module) -> nn.Module:
    """Biases and statistics other than zero, as training leaves them: without, padding would hide every mistake."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d) and name == "weight":
                nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
            elif name == "bias":
                nn.init.normal_(parameter, std=0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return backbone.eval()


def images_of(sizes: Sequence[Size], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator, dtype=dtype) for size in sizes]


@torch.no_grad()
def largest_difference(backbone: nn.Module, images: Sequence[Tensor]) -> float:
    """Over the images: max |mixed - alone| / max |alone|. Checks sizes, and zeros beyond the edges, on the way."""
    features, sizes = mixed_features(backbone, images)
    assert features.isfinite().all()
    differences = []
    for own, image, (rows, columns) in zip(features, images, sizes, strict=True):
        alone = backbone(image[None])[0]
        assert alone.shape[1:] == (rows, columns)
        assert alone.abs().max() > 0
        assert not own[:, rows:].any()
        assert not own[:, :, columns:].any()
        differences.append(float((own[:, :rows, :columns] - alone).abs().max() / alone.abs().max()))
    return max(differences)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(33, 97), st.integers(33, 97)), min_size=2, max_size=4), st.integers(0, 99))
def test_every_image_gets_what_it_gets_alone(
    nets: Callable[[str], nn.Module], name: str, sizes: list[Size], seed: int
) -> None:
    assert largest_difference(nets(name), images_of(sizes, seed)) <= ALLOWED


@pytest.mark.parametrize("name", NETS)
def test_the_difference_is_rounding_alone(nets: Callable[[str], nn.Module], name: str) -> None:
    """In float64 it is a million times smaller than in float32."""
    images = images_of([(33, 97), (64, 50), (97, 71)], dtype=torch.float64)
    assert largest_difference(copy.deepcopy(nets(name)).double(), images) <= 1e-13


@pytest.mark.parametrize("name", NETS)
def test_without_setting_back_the_padding_it_would_not(
    nets: Callable[[str], nn.Module], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: a plain padded batch differs a thousand times more than is allowed."""
    images, differences = images_of([(97, 130), (123, 98)]), {}
    for reset in (True, False):
        if not reset:
            monkeypatch.setattr(mixed_batch._PaddedBatch, "reset", lambda self, features, *_: features)
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
def test_200_random_combinations_at_larger_sizes(nets: Callable[[str], nn.Module], name: str) -> None:
    draw, net = random.Random(0), nets(name)
    worst = 0.0
    for combination in range(200):
        sizes = [(draw.randint(100, 330), draw.randint(100, 330)) for _ in range(draw.randint(2, 4))]
        worst = max(worst, largest_difference(net, images_of(sizes, combination)))
    assert worst <= ALLOWED


# Layer by layer, in float64, where a difference is a mistake and no rounding


BEFORE = nn.Conv2d(3, 4, 1)  # makes what lies beyond the edges other than zero
layer_sizes = st.lists(st.tuples(st.integers(5, 14), st.integers(5, 14)), min_size=2, max_size=4)


def check_layer(layer: nn.Module, sizes: Sequence[Size]) -> None:
    backbone = lively(nn.Sequential(copy.deepcopy(BEFORE), layer, nn.Conv2d(4, 2, 3, padding=1))).double()
    images = images_of(sizes, dtype=torch.float64)
    assert largest_difference(backbone, images) <= 1e-12
    check_gradients(backbone, images, 1e-11)


def check_gradients(backbone: nn.Module, images: Sequence[Tensor], allowed: float) -> None:
    """Of weights and images, by a loss that is not symmetric in the cells."""
    images = [image.clone().requires_grad_() for image in images]
    wanted = [*backbone.parameters(), *images]

    def loss(features: Tensor) -> Tensor:
        return (features * torch.arange(1, features.numel() + 1, dtype=features.dtype).view_as(features).cos()).sum()

    alone = sum(loss(backbone(image[None])[0]) for image in images)
    expected = torch.autograd.grad(alone, wanted)
    features, sizes = mixed_features(backbone, images)
    together = sum(loss(own[:, :rows, :columns]) for own, (rows, columns) in zip(features, sizes, strict=True))
    for ours, theirs in zip(torch.autograd.grad(together, wanted), expected, strict=True):
        assert ours.isfinite().all()
        assert float((ours - theirs).abs().max()) <= allowed * max(1.0, float(theirs.abs().max()))


@given(
    layer_sizes,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=25)
def test_convolutions(sizes: list[Size], kernel: Size, stride: Size, padding: Size, dilation: Size) -> None:
    dilation = tuple(1 if side == 4 else step for side, step in zip(kernel, dilation, strict=True))
    check_layer(nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups=2), sizes)


@given(
    layer_sizes,
    st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
    st.tuples(st.integers(2, 4), st.integers(2, 4)),
    st.integers(1, 4),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=50)
def test_pools(
    sizes: list[Size], kind: type[nn.Module], kernel: Size, stride: int, padding: Size, ceil: bool, include: bool
) -> None:
    options = {} if kind is nn.MaxPool2d else {"count_include_pad": include}
    check_layer(kind(kernel, stride, padding, ceil_mode=ceil, **options), sizes)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features)


class SqueezeAndExcite(nn.Module):
    """As it is often written: by shapes and views."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool, self.gate = pool, nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        count, channels, _, _ = features.size()
        gate = self.gate(self.pool(features).view(count, channels)).view(count, channels, 1, 1)
        return features * gate.expand_as(features)


class ByMean(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        spread = (features - features.mean((2, 3), keepdim=True)).square().sum(dim=(-2, -1)).sqrt()
        return features / (1 + features.amax((-1, -2), True).abs()) + spread[:, :, None, None]


class ChannelShuffle(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        count, channels, height, width = features.shape
        shuffled = features.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        first, second = shuffled.view(count, -1, height, width).chunk(2, dim=1)
        return torch.cat([second, first.relu()], dim=1)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.scale = nn.LayerNorm(4), nn.Linear(4, 4), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        normalised = self.linear(self.norm(features.permute(0, 2, 3, 1)))
        gated = normalised * normalised.mean(dim=(1, 2), keepdim=True)
        return features + self.scale * gated.permute(0, 3, 1, 2)


class WithinChannelNorm(nn.Module):
    """Divides by the squares around each cell, as ZF-5 does; NaN where the sum beyond an edge is not above zero."""

    def forward(self, features: Tensor) -> Tensor:
        squares = F.avg_pool2d(features * features, 3, stride=1, padding=1)
        return features / (1 + 0.5 * squares) ** 0.75 - F.max_pool2d(features, 3, 1, padding=1) * 0.1


class ResponseNorm(nn.Module):
    """Global response normalisation, and cheap features beside the first: only some of the channels go on."""

    def forward(self, features: Tensor) -> Tensor:
        size = features.norm(p=2, dim=(2, 3), keepdim=True)
        features = torch.addcmul(features, features, size / (size.mean(1, keepdim=True) + 1e-6))
        return torch.cat([features, features.relu()], 1)[:, 2:6, :, :]


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4, 2, 3))
        self.register_buffer("constant", torch.ones(4, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        standard = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        features = F.conv2d(F.pad(features, (1, 2, 0, 1), value=0.5), standard, padding="same", dilation=1)
        features += torch.ones(4, 1, 1) + self.constant.type_as(features)
        features = F.adaptive_avg_pool2d(features, 1) - F.gelu(features)
        return F.interpolate(F.group_norm(features, 2), scale_factor=2) * torch.sigmoid(F.adaptive_max_pool2d(input=features, output_size=1))  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, (2, 4), padding="same"),
        nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Sequential(nn.ConstantPad2d((1, 2, 3, 0), 7.0), nn.MaxPool2d(3)),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 2), nn.Conv2d(4, 4, 1)),
        nn.ReplicationPad2d(1),
        nn.AvgPool2d(3, 2, 1, divisor_override=5),
        nn.LPPool2d(2, 3, 2),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.LocalResponseNorm(3),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Sequential(nn.Conv2d(4, 16, 1), nn.PixelShuffle(2)),
        SqueezeAndExcite(nn.AdaptiveAvgPool2d(1)),
        SqueezeAndExcite(nn.AdaptiveMaxPool2d((1, 1))),
        SqueezeAndExcite(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(4, 4, 3))),
        Lambda(lambda x: x + F.max_pool2d(x.amax((2, 3), True).expand_as(x), 3, 1, 1)),
        ByMean(),
        ChannelShuffle(),
        ChannelsLast(),
        WithinChannelNorm(),
        ResponseNorm(),
        Functions(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_need_something(layer: nn.Module) -> None:
    check_layer(layer, [(7, 12), (12, 6), (9, 9), (7, 12)])


# Training


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_gradients_are_the_sum_of_those_of_the_images(nets: Callable[[str], nn.Module], name: str) -> None:
    """BatchNorm in evaluation mode, the rest training. Images of one size get theirs from the same path."""
    backbone = copy.deepcopy(nets(name)).double()
    check_gradients(backbone, images_of([(64, 40), (33, 70), (64, 40)], dtype=torch.float64), 1e-9)


def over_all_cells(net: nn.Sequential, images: Sequence[Tensor]) -> list[Tensor]:
    """Layer by layer, image by image; every BatchNorm over all cells of all maps laid side by side."""
    maps = [image[None] for image in images]
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            normalised = layer(torch.cat([each.flatten(2) for each in maps], 2)[:, :, None])[0, :, 0]
            parts = normalised.split([each[0, 0].numel() for each in maps], 1)
            maps = [part.reshape(each.shape) for part, each in zip(parts, maps, strict=True)]
        else:
            maps = [layer(each) for each in maps]
    return [each[0] for each in maps]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@given(layer_sizes)
@settings(max_examples=10)
def test_batch_norm_learns_from_the_valid_cells_alone(memory_format: torch.memory_format, sizes: list[Size]) -> None:
    ours = lively(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4, momentum=0.3),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6, momentum=None),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.Conv2d(6, 2, 3, padding=1),
        )
    ).double()
    ours = ours.to(memory_format=memory_format).train()
    theirs = copy.deepcopy(ours)
    images = images_of(sizes, dtype=torch.float64)
    for _ in range(2):
        expected = over_all_cells(theirs, images)
        features, own_sizes = mixed_features(ours, images)
        parts = [own[:, :rows, :columns] for own, (rows, columns) in zip(features, own_sizes, strict=True)]
        for part, alone in zip(parts, expected, strict=True):
            torch.testing.assert_close(part, alone)
    sum(part.cos().sum() for part in parts).backward()
    sum(part.cos().sum() for part in expected).backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, one), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(
            one, other, msg=lambda text, name=name: f"{name}: {text}"
        )  # running mean and variance, number of batches
    assert ours[1].num_batches_tracked == 2


def test_a_batch_norm_without_statistics_of_its_own_takes_those_of_the_batch_in_evaluation_too() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    images = images_of([(5, 9), (8, 4)])
    features, _ = mixed_features(net, images)
    torch.testing.assert_close(features[1, :, :8, :4], over_all_cells(net, images)[1])


def test_a_whole_net_learns() -> None:
    torch.manual_seed(0)
    mixed = MixedBatch(compact_resnet((8, 12, 16), (1, 1), folded=False)).train()
    optimiser = torch.optim.SGD(mixed.parameters(), 0.05)
    images, losses = images_of([(40, 56), (64, 33), (40, 56)]), []
    for _ in range(8):
        features, sizes = mixed(images)
        pooled = region_pyramid_pool(features, own_windows(sizes), (1,)).mean((1, 2))
        loss = (pooled - torch.tensor([0.0, 1.0, 2.0])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "layers",
    [
        # a maximum over nothing but padding is -inf, and 0 times that is NaN
        (nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(3, 1), nn.Conv2d(4, 2, 1)),
        # vectors of nothing but zeros have no direction, and a root has no slope at 0
        (nn.Conv2d(3, 4, 1, bias=False), Lambda(lambda x: x / x.square().sum(1, keepdim=True).sqrt())),
        (nn.Conv2d(3, 4, 1, bias=False), Lambda(lambda x: x.abs().log()), nn.Conv2d(4, 2, 3, padding=1)),
    ],
    ids=["maximum", "unit length", "logarithm"],
)
def test_nothing_beyond_the_edges_reaches_a_gradient_not_even_as_infinity_times_zero(
    layers: Sequence[nn.Module],
) -> None:
    net = lively(nn.Sequential(*layers))
    images = [image.requires_grad_() for image in images_of([(4, 30), (30, 5)])]
    features, _ = mixed_features(net, images)
    features.sum().backward()
    assert features.isfinite().all()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (*net.parameters(), *images))


@torch.no_grad()
def test_what_lies_beyond_stays_finite_for_whoever_else_uses_a_map() -> None:
    """A fast convolution may add what it does not need, and take it off again: infinity would not come off."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 2, 1)

        def forward(self, features: Tensor) -> Tensor:
            return torch.cat([self.pool(features), self.conv(features)], 1) + features.amax((2, 3)).sum()

    seen = []
    net = nn.Sequential(Branches(), nn.Conv2d(5, 2, 3))
    for module in (net[0].conv, net[1]):
        module.register_forward_hook(lambda module, inputs, result: seen.extend([*inputs, result]))
    mixed_features(lively(net), images_of([(4, 30), (30, 5)]))
    assert len(seen) == 4
    assert all(value.isfinite().all() for value in seen)


# Precision, memory, devices


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_autocast(nets: Callable[[str], nn.Module], name: str) -> None:
    images = images_of([(64, 40), (33, 70), (64, 96)])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features, sizes = mixed_features(nets(name), images)
        for own, image, (rows, columns) in zip(features, images, sizes, strict=True):
            alone = nets(name)(image[None])[0]
            assert own.dtype == alone.dtype
            assert (own[:, :rows, :columns] - alone).abs().max() <= 2e-2 * alone.abs().max()


def test_autocast_while_training() -> None:
    net = lively(backbone_of("compact")).train()
    images = images_of([(64, 40), (33, 70)])
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = mixed_features(net, images)
    features.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_channels_last_images_make_a_channels_last_batch(nets: Callable[[str], nn.Module]) -> None:
    images = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images_of([(64, 40), (33, 70)])]
    with torch.no_grad():
        features, _ = mixed_features(nets("resnet18"), images)
    assert features.is_contiguous(memory_format=torch.channels_last)
    assert largest_difference(nets("resnet18"), images) <= ALLOWED


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETS)
def test_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    backbone = lively(backbone_of(name)).double().cuda()
    images = [image.cuda() for image in images_of([(97, 130), (163, 98), (97, 130)], dtype=torch.float64)]
    assert largest_difference(backbone, images) <= 1e-11
    check_gradients(backbone, images, 1e-8)


# What is called


def test_whole_windows_of_the_own_parts_pool_as_the_maps_alone(nets: Callable[[str], nn.Module]) -> None:
    net, images = nets("squeezenet1_0"), images_of([(64, 90), (97, 41)])
    with torch.no_grad():
        features, sizes = mixed_features(net, images)
        pooled = region_pyramid_pool(features, own_windows(sizes, features.device), (3, 2, 1))
        alone = torch.cat([pyramid_pool(net(image[None]), (3, 2, 1)) for image in images])
    assert (pooled - alone).abs().max() <= ALLOWED * alone.abs().max()
    assert own_windows([]).shape == (0, 5)


def test_images_of_one_size_go_straight_through_the_backbone(nets: Callable[[str], nn.Module]) -> None:
    images = images_of([(40, 50)] * 3)
    with torch.no_grad():
        features, sizes = mixed_features(nets("resnet18"), images)
        assert torch.equal(features, nets("resnet18")(torch.stack(images)))
    assert sizes == [(2, 2)] * 3


def test_images_are_not_modified(nets: Callable[[str], nn.Module]) -> None:
    images = images_of([(40, 50), (60, 33)])
    before = [image.clone() for image in images]
    with torch.no_grad():
        mixed_features(nets("squeezenet1_0"), images)
    assert all(torch.equal(image, old) for image, old in zip(images, before, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_module_shares_the_weights_and_leaves_the_backbone_as_it_was() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), Functions())
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


def test_a_changed_backbone_is_seen(nets: Callable[[str], nn.Module]) -> None:
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


def test_a_backbone_is_let_go() -> None:
    backbone = lively(backbone_of("compact"))
    mixed_features(backbone, images_of([(40, 50), (60, 33)]))
    gone = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert gone() is None


def test_a_backbone_first_used_in_inference_mode_can_still_learn() -> None:
    backbone, images = (
        lively(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))),
        images_of([(9, 5), (6, 8)]),
    )
    with torch.inference_mode():
        mixed_features(backbone, images)
    features, _ = mixed_features(backbone, images)
    features.sum().backward()
    assert backbone[0].weight.grad is not None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_batch, "SIDES", 3)
    backbone = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.MaxPool2d(2, 2)).eval()
    for side in range(5, 25):
        assert largest_difference(backbone, images_of([(side, side + 3), (side + 2, side)])) <= ALLOWED
    plan = mixed_batch._plan_of(backbone)
    assert all(len(known) <= 3 for known in plan._known)


# What is refused


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.Softmax(-1),
            r"layer '1.0' \(Softmax\) .*what it needs is not known; use images of one size, or one at a time",
        ),
        (nn.MaxPool2d(2, return_indices=True), r"layer '1.0' \(MaxPool2d\) .*indices count"),
        (nn.FractionalMaxPool2d(2, 9), r"layer '1.0' \(FractionalMaxPool2d\) .*what it needs is not known"),
        (nn.InstanceNorm2d(4, track_running_stats=True), r"layer '1.0' \(InstanceNorm2d\)"),
        (nn.Flatten(2), r"layer '1.0' \(Flatten\)"),
        (nn.Linear(544, 4), r"layer '1.0' \(Linear\) .*mixes cells or images"),
        (nn.LayerNorm([352, 544]), r"layer '1.0' \(LayerNorm\) .*mixes cells or images"),
        (nn.AdaptiveAvgPool2d((None, 3)), r"layer '1.0' \(AdaptiveAvgPool2d\)"),
        (Lambda(lambda x: x.flip(-1)), r"operation 'flip' in layer '1.0' \(Lambda\) .*not known"),
        (Lambda(lambda x: x.flatten(2)), r"operation 'flatten' .*mixes cells or images"),
        (Lambda(lambda x: x.mean((0, 2, 3), keepdim=True) + x), r"operation 'mean' .*mixes cells or images"),
        (Lambda(lambda x: x.mean(-1, keepdim=True) + x), r"operation 'mean' .*mixes cells or images"),
        (Lambda(lambda x: x - x.mean()), r"operation 'mean' .*does not say along which axes"),
        (
            Lambda(lambda x: F.avg_pool2d(x, x.shape[2:])),
            r"operation 'avg_pool2d' .*height or width of the padded batch",
        ),
        (
            Lambda(lambda x: x / (x.shape[2] * x.shape[3])),
            r"operation 'truediv' .*height or width of the padded batch",
        ),
        (Lambda(lambda x: x * torch.ones(x.shape[-1])), r"operation 'ones' .*height or width of the padded batch"),
        (Lambda(lambda x: torch.cat([x, x], 3)), r"operation 'cat' .*mixes cells or images"),
        (Lambda(lambda x: x.transpose(2, 3)), r"operation 'transpose' .*parts rows from columns"),
        (Lambda(lambda x: x[:, :, 1:]), r"operation 'getitem' .*mixes cells or images"),
        (Lambda(lambda x: x[:, 0]), r"operation 'getitem' .*only slices of channels"),
        (Lambda(lambda x: x * x.norm(float("inf"), (2, 3), True)), r"operation 'norm' .*of order inf"),
        (Lambda(lambda x: x.abs().add_(1).sqrt_()), r"operation 'sqrt' .*changes a map in place"),
        (Lambda(lambda x: F.max_pool2d(x, 2) if x.sum() > 0 else x), r"graph cannot be traced"),
        (Lambda(lambda x: x.mean((2, 3))), r"must end in one feature map"),
        (Lambda(lambda x: (x, x)), r"must end in one feature map|several"),
        (nn.Conv2d(5, 4, 1), r"cannot take an image of 352 x 544 pixels: .*channel.* \(in layer '1.0' \(Conv2d\)\)"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name_before_there_are_images(layer: nn.Module, message: str) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(layer)).eval()
    with pytest.raises(UserError, match=message) as raised:
        MixedBatch(backbone)
    assert "\n" not in str(raised.value)


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

    with pytest.raises(UserError, match="nothing else that it needs"):
        MixedBatch(Guided())


def test_an_image_that_is_too_small_is_refused_as_alone() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 2, 7), nn.ReLU())
    with pytest.raises(UserError, match="cannot take an image of 5 x 30 pixels"):
        mixed_features(backbone, images_of([(20, 20), (5, 30)]))
