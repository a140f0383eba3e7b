"""Stride and offset computed from a backbone's operations, against a probe."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from sppnet.models.backbones import build_backbone
from sppnet.models.geometry import Geometry, backbone_geometry, without_data
from sppnet.models.networks import WithinChannelLRN


def placed(backbone: nn.Module) -> Geometry:
    """Stride and offset alone."""
    geometry = backbone_geometry(backbone)
    return Geometry(geometry.stride, geometry.offset)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squeezenet1_0", Geometry(16, 17.5)),  # no padding in its first layers
        ("mobilenet_v2", Geometry(32, 0.5)),
        ("vgg11", Geometry(16, 8.0)),
        ("resnet18", Geometry(32, 0.5)),
        ("alexnet", Geometry(16, 15.5)),
        ("densenet121", Geometry(32, 14.5)),
        ("efficientnet_b0", Geometry(32, 0.5)),  # squeeze-and-excite: a gate for the whole map
        ("compact", Geometry(32, 0.5)),
        ("efficientnet_lite0", Geometry(32, 31.5)),  # padded as TensorFlow does
        ("mobilenet_v3_small", Geometry(32, 0.5)),
        ("shufflenet_v2_x0_5", Geometry(32, 0.5)),  # channel shuffles
        ("regnet_y_400mf", Geometry(32, 0.5)),
        ("convnext_tiny", Geometry(32, 16.0)),  # linear layers over channels
        ("inception_v3", Geometry(32, 37.5)),  # kernels of 1 x 7, poolings that are functions
        ("zf5", Geometry(16, 20.5)),
    ],
)
def test_known_backbones(name: str, expected: Geometry) -> None:
    with torch.device(
        "cpu" if "regnet" in name else "meta"
    ):  # no weights are drawn; RegNet computes with tensors there
        assert placed(build_backbone(name)) == expected


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("squeezenet1_0", None),
        ("resnet18", None),
        ("mobilenet_v2", 16),
        ("efficientnet_lite0", None),
        ("efficientnet_lite0", 16),
    ],
)
def test_one_lit_pixel_lights_the_cells_that_the_geometry_says(name: str, stride: int | None) -> None:
    """Where every weight is positive and nothing saturates, the cells a pixel reaches are centred on it."""
    backbone = linear_copy(name, stride)
    geometry = placed(backbone)
    probed = probe_geometry(backbone, width=1920 if name == "efficientnet_lite0" else 960, height=64)
    assert probed.stride == geometry.stride
    assert abs(probed.offset - geometry.offset) <= geometry.stride / 2


def probe_geometry(backbone: Callable[[Tensor], Tensor], width: int = 512, height: int = 96) -> Geometry:
    """Measured instead: the middle of the pixels that move one cell, for two neighboring cells; exact where reach is symmetric."""
    image = torch.rand(1, 3, height, width, requires_grad=True)
    features = backbone(image)
    row, middle = features.shape[-2] // 2, features.shape[-1] // 2
    centers = []
    for cell in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(features[0, :, row, cell].sum(), image, retain_graph=True)
        columns = gradient[0].abs().sum((0, 1)).nonzero().flatten()
        centers.append((float(columns.min()) + float(columns.max()) + 1) / 2)
    stride = round(centers[1] - centers[0])
    return Geometry(stride, centers[0] - stride * middle)


def linear_copy(name: str, stride: int | None = None) -> nn.Module:
    """The backbone with positive weights, and averages for maxima: every influence shows in the gradient."""
    backbone = build_backbone(name, stride=stride)
    for module in list(backbone.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for child_name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                average = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, child_name, average)
            elif isinstance(child, nn.BatchNorm2d | nn.ReLU | nn.ReLU6 | WithinChannelLRN):
                setattr(module, child_name, nn.Identity())
    return backbone


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squeezenet1_0", Geometry(16, 17.5)),
        ("zf5", Geometry(16, 20.5)),
        ("convnet5", Geometry(16, 15.5)),
        ("overfeat7", Geometry(12, 8.5)),
    ],
)
def test_symmetric_layers_are_probed_exactly(name: str, expected: Geometry) -> None:
    backbone = linear_copy(name)
    assert probe_geometry(backbone, width=512, height=96) == placed(backbone) == expected


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), Geometry(1, 0.5)),
        (nn.Conv2d(3, 4, 3, padding="same"), Geometry(1, 0.5)),
        (nn.Conv2d(3, 4, 3, padding="valid"), Geometry(1, 1.5)),
        (nn.Conv2d(3, 4, 3, dilation=2), Geometry(1, 2.5)),
        (nn.Conv2d(3, 4, 4, stride=4), Geometry(4, 2.0)),  # patches: the centre lies between pixels
        (nn.Conv2d(3, 4, 4, padding="same"), Geometry(1, 1.0)),  # one row of zeros before, two after
        (nn.AvgPool2d(2), Geometry(2, 1.0)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), Geometry(2, 1.5)),
        (nn.Conv2d(3, 4, (1, 7), padding=(0, 3)), Geometry(1, 0.5)),  # not square, but centred along both axes
        (nn.Sequential(WithinChannelLRN(), nn.MaxPool2d(2)), Geometry(2, 1.0)),
    ],
)
def test_single_layers(layer: nn.Module, expected: Geometry) -> None:
    assert placed(nn.Sequential(layer)) == expected
    assert placed(layer) == expected


class Calls(nn.Module):
    """A function as a backbone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(4, 3, 5, 5))

    def forward(self, images: Tensor) -> Tensor:
        return self.function(functional.conv2d(images, self.weight, stride=2, padding=2))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (functional.relu, Geometry(2, 0.5)),
        (lambda features: functional.max_pool2d(features, 3, 2), Geometry(4, 2.5)),
        (lambda features: torch.max_pool2d(features, 3, 2, 1), Geometry(4, 0.5)),
        (lambda features: functional.avg_pool2d(features, kernel_size=2), Geometry(4, 1.5)),
        (lambda features: functional.pad(features, (1, 1, 1, 1)), Geometry(2, -1.5)),
        (lambda features: features * features.mean((2, 3), keepdim=True).sigmoid(), Geometry(2, 0.5)),
        (lambda features: features.chunk(2, dim=1)[1], Geometry(2, 0.5)),
        (lambda features: features.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2), Geometry(2, 0.5)),
    ],
)
def test_functions(function: Callable[[Tensor], Tensor], expected: Geometry) -> None:
    assert placed(Calls(function)) == expected


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda features: features[:, :, ::2, ::2], r"operation 'getitem' in layer '0' \(Calls\) is not known"),
        (
            lambda features: functional.interpolate(features, scale_factor=2),
            r"operation 'interpolate' in layer '0' \(Calls\) is not known",
        ),
        (
            lambda features: functional.pixel_unshuffle(features, 2),
            r"operation 'pixel_unshuffle' in layer '0' \(Calls\) is not known",
        ),
        (lambda features: features.permute(0, 2, 3, 1), "must end in a feature map"),
        (lambda features: features.flatten(2), "must end in a feature map"),
        (lambda features: features.mean((2, 3)), "must end in a feature map"),
        (lambda features: [features, features], "must end in a feature map"),
        (lambda features: features.view(1, 4, 7, 9), r"operation 'view' in layer '0' \(Calls\) cannot be run"),
        (lambda features: features if features.sum() > 0 else -features, r"operation 'sum' .*is not known"),
    ],
)
def test_functions_that_lose_a_cells_place(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placed(Calls(function))


class Branches(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.left(images), self.right(images)], 1)


def test_branches_must_agree() -> None:
    agreeing = Branches(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1))
    assert placed(agreeing) == Geometry(1, 0.5)
    with pytest.raises(ValueError, match=r"'cat' .*branches together that disagree"):
        placed(Branches(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3)))


def test_branches_half_a_cell_apart_meet_in_the_middle() -> None:
    """ResNet-D: a 3 x 3 convolution beside a shortcut that averages 2 x 2 cells."""
    block = Branches(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1)))
    assert placed(block) == Geometry(2, 0.75)  # between 0.5 and 1
    assert placed(nn.Sequential(block, nn.Conv2d(8, 4, 1, stride=2))) == Geometry(4, 0.75)


def test_the_net_itself_is_not_touched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    placed(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}


def test_a_run_without_data_copies_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    shapes = without_data(net)
    assert {value.device.type for value in shapes.state_dict().values()} == {"meta"}
    assert shapes.state_dict().keys() == net.state_dict().keys()
    assert shapes(torch.empty(1, 3, 9, 9, device="meta")).shape == net(torch.rand(1, 3, 9, 9)).shape


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (torchvision.models.squeezenet1_0(), "must end in a feature map"),
        (nn.Sequential(nn.Conv2d(3, 4, (3, 5))), r"layer '0' \(Conv2d\) is not square"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2)), r"layer '1' \(Upsample\)"),
    ],
)
def test_what_has_no_geometry_is_refused_by_name(backbone: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placed(backbone)


def test_hooks_are_not_called_without_data() -> None:
    called = []
    layer = nn.Conv2d(3, 4, 3)
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    backbone_geometry(layer)
    assert not called
    layer(torch.zeros(1, 3, 5, 5))
    assert called == ["before", "after"]
