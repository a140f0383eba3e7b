"""Layer by layer, in float64, where a difference is a mistake and no rounding; and the layers that are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import UserError
from sppnet.models.mixed_batch import MixedBatch

Size = tuple[int, int]

BEFORE = nn.Conv2d(3, 4, 1)  # makes what lies beyond the edges other than zero
layer_sizes = st.lists(st.tuples(st.integers(5, 14), st.integers(5, 14)), min_size=2, max_size=4)


@pytest.fixture(scope="session")
def check_layer(
    lively: Callable[..., nn.Module],
    images_of: Callable[..., list[Tensor]],
    largest_difference: Callable[..., float],
    check_gradients: Callable[..., None],
) -> Callable[[nn.Module, Sequence[Size]], None]:
    """Holds a layer between two others to what it gives each image alone, and its gradients too."""

    def check(layer: nn.Module, sizes: Sequence[Size]) -> None:
        backbone = lively(nn.Sequential(copy.deepcopy(BEFORE), layer, nn.Conv2d(4, 2, 3, padding=1))).double()
        images = images_of(sizes, dtype=torch.float64)
        assert largest_difference(backbone, images) <= 1e-12
        check_gradients(backbone, images, 1e-11)

    return check


@given(
    layer_sizes,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=25)
def test_convolutions(
    check_layer: Callable[..., None], sizes: list[Size], kernel: Size, stride: Size, padding: Size, dilation: Size
) -> None:
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
    check_layer: Callable[..., None],
    sizes: list[Size],
    kind: type[nn.Module],
    kernel: Size,
    stride: int,
    padding: Size,
    ceil: bool,
    include: bool,
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
def test_layers_that_need_something(layer: nn.Module, check_layer: Callable[..., None]) -> None:
    check_layer(layer, [(7, 12), (12, 6), (9, 9), (7, 12)])


# What is refused


def unseen(features: Tensor) -> Tensor:
    """What cannot be followed, as a TorchScript function cannot."""
    with torch._C.DisableTorchFunction():
        return features + 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.Softmax(-1),
            r"layer '1.0' \(Softmax\) .*what it needs is not known; use images of one size, or one at a time",
        ),
        (nn.MaxPool2d(2, return_indices=True), r"layer '1.0' \(MaxPool2d\) .*what it needs is not known"),
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
        (
            Lambda(lambda x: x * x.sum((2, 3), keepdim=True, dtype=x.dtype)),
            r"operation 'sum' .*not all of its arguments",
        ),
        (Lambda(lambda x: x * x.mean(axis=(2, 3), keepdim=True)), r"operation 'mean' .*not all of its arguments"),
        (Lambda(lambda x: x - x.mean()), r"operation 'mean' .*does not say along which axes"),
        (
            Lambda(lambda x: F.avg_pool2d(x, x.shape[2:])),
            r"operation 'avg_pool2d' .*height or width of the padded batch",
        ),
        (
            Lambda(lambda x: x / (x.shape[2] * x.shape[3])),
            r"operation 'shape' .*height or width of the padded batch",
        ),
        (Lambda(lambda x: x[:, :, : int(0.5 * x.size(2))]), r"operation 'size' .*height or width of the padded batch"),
        (Lambda(lambda x: x if x.shape[3] > 9 else -x), r"operation 'shape' .*height or width of the padded batch"),
        (Lambda(lambda x: x + unseen(x)), r"operation 'add' .*made by something that cannot be followed"),
        (Lambda(lambda x: unseen(x).mean((2, 3), True) * x), r"operation 'mean' .*cannot be followed"),
        (Lambda(unseen), r"must end in one feature map"),
        (Lambda(lambda x: x * torch.ones(x.shape[-1])), r"operation 'ones' .*height or width of the padded batch"),
        (Lambda(lambda x: torch.cat([x, x], 3)), r"operation 'cat' .*mixes cells or images"),
        (Lambda(lambda x: x.transpose(2, 3)), r"operation 'transpose' .*parts rows from columns"),
        (Lambda(lambda x: x[:, :, 1:]), r"operation 'getitem' .*mixes cells or images"),
        (Lambda(lambda x: x[:, 0]), r"operation 'getitem' .*only slices of channels"),
        (Lambda(lambda x: x * x.norm(float("inf"), (2, 3), True)), r"operation 'norm' .*of order inf"),
        (Lambda(lambda x: x.abs().add_(1).sqrt_()), r"operation 'sqrt' .*changes a map in place"),
        (Lambda(lambda x: F.max_pool2d(x, 2) if x.sum() > 0 else x), r"operation 'sum' .*along which axes"),
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
