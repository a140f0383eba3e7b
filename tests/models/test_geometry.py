"""Stride and offset computed from modules, against a probe; boxes to windows, never empty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from sppnet.models.backbones import build_backbone
from sppnet.models.geometry import (
    Geometry,
    backbone_geometry,
    boxes_to_windows,
    probe_geometry,
    window_residuals,
    without_data,
)
from sppnet.models.paper_networks import WithinChannelLRN


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
        ("mobilenet_v3_small", Geometry(32, 0.5)),
        ("shufflenet_v2_x0_5", Geometry(32, 0.5)),  # channel shuffles
        ("regnet_y_400mf", Geometry(32, 0.5)),
        ("convnext_tiny", Geometry(32, 16.0)),  # linear layers over channels
        ("inception_v3", Geometry(32, 37.5)),  # kernels of 1 x 7, poolings that are functions
        ("zf5", Geometry(16, 20.5)),
    ],
)
def test_known_backbones(name: str, expected: Geometry) -> None:
    assert backbone_geometry(build_backbone(name)) == expected


@pytest.mark.parametrize(
    ("name", "stride"), [("squeezenet1_0", None), ("resnet18", None), ("mobilenet_v2", 16), ("densenet121", 16)]
)
def test_one_lit_pixel_lights_the_cells_that_the_geometry_says(name: str, stride: int | None) -> None:
    """Where every weight is positive and nothing saturates, the cells a pixel reaches are centred on it."""
    backbone = linear_copy(name, stride)
    geometry = backbone_geometry(backbone)
    probed = probe_geometry(backbone, width=960, height=64)
    assert probed.stride == geometry.stride
    assert abs(probed.offset - geometry.offset) <= geometry.stride / 2


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
    assert probe_geometry(backbone, width=512, height=96) == backbone_geometry(backbone) == expected


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
    assert backbone_geometry(nn.Sequential(layer)) == expected
    assert backbone_geometry(layer) == expected


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
    assert backbone_geometry(Calls(function)) == expected


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda features: features[:, :, ::2, ::2], "operation 'getitem' is not known"),
        (lambda features: functional.interpolate(features, scale_factor=2), "operation 'interpolate' is not known"),
        (lambda features: functional.pixel_unshuffle(features, 2), "operation 'pixel_unshuffle' is not known"),
        (lambda features: features.permute(0, 2, 3, 1), "must end in a feature map"),
        (lambda features: features.flatten(2), "must end in a feature map"),
        (lambda features: features.mean((2, 3)), "must end in a feature map"),
        (lambda features: [features, features], "must end in a feature map"),
        (lambda features: features.view(1, 4, 7, 9), "operation 'view' cannot be run"),
        (lambda features: features if features.sum() > 0 else -features, "graph cannot be traced"),
    ],
)
def test_functions_that_lose_a_cells_place(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone_geometry(Calls(function))


class Branches(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.left(images), self.right(images)], 1)


def test_branches_must_agree() -> None:
    agreeing = Branches(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1))
    assert backbone_geometry(agreeing) == Geometry(1, 0.5)
    with pytest.raises(ValueError, match="branches that meet at 'cat' disagree"):
        backbone_geometry(Branches(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3)))


def test_branches_half_a_cell_apart_meet_in_the_middle() -> None:
    """ResNet-D: a 3 x 3 convolution beside a shortcut that averages 2 x 2 cells."""
    block = Branches(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1)))
    assert backbone_geometry(block) == Geometry(2, 0.75)  # between 0.5 and 1
    assert backbone_geometry(nn.Sequential(block, nn.Conv2d(8, 4, 1, stride=2))) == Geometry(4, 0.75)


def test_the_net_itself_is_not_touched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    backbone_geometry(net)
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
        backbone_geometry(backbone)


# Boxes to windows


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((0, 0, 160, 160), (0, 0, 10, 10)),  # the whole image, the whole map
        ((16, 32, 48, 64), (1, 2, 3, 4)),  # centres at 24, 40 and 40, 56
        ((8, 8, 9, 9), (0, 0, 1, 1)),  # just the centre of cell 0
        ((9, 9, 23, 23), (0, 0, 1, 1)),  # between two centres: the nearest cell (16 is as near to both: the even one)
        ((-50, -50, -40, -40), (0, 0, 1, 1)),  # outside: the nearest cell
        ((500, 0, 600, 160), (9, 0, 10, 10)),
    ],
)
def test_hand_drawn_windows(box: tuple[int, ...], window: tuple[int, ...]) -> None:
    boxes = torch.tensor([box], dtype=torch.float32)
    assert tuple(boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0))[0].tolist()) == window


coordinates = st.floats(-1e4, 1e4, allow_nan=False)


@given(
    st.tuples(coordinates, coordinates, coordinates, coordinates),
    st.integers(1, 64),
    st.floats(0, 40),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.tuples(st.floats(0.01, 20), st.floats(0.01, 20)),
)
def test_no_window_is_empty_or_outside(
    box: tuple[float, ...], stride: int, offset: float, size: tuple[int, int], scale: tuple[float, float]
) -> None:
    windows = boxes_to_windows(torch.tensor([box]), Geometry(stride, offset), size, scale)
    x0, y0, x1, y1 = windows[0].tolist()
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]


def test_windows_are_on_the_device_of_the_boxes() -> None:
    boxes = torch.empty(3, 4, device="meta")
    assert boxes_to_windows(boxes, Geometry(16, 8.0), (10, 10), (1.0, 1.0)).device.type == "meta"


@pytest.mark.parametrize(("shape", "map_size"), [((3, 5), (10, 10)), ((4,), (10, 10)), ((2, 4), (0, 10))])
def test_boxes_and_maps_of_another_shape(shape: tuple[int, ...], map_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected boxes \[R, 4\] and a map of at least one cell: got boxes \["):
        boxes_to_windows(torch.zeros(shape), Geometry(16, 8.0), map_size, (1.0, 1.0))


def test_hooks_are_not_called_without_data() -> None:
    called = []
    layer = nn.Conv2d(3, 4, 3)
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    backbone_geometry(layer)
    assert not called
    layer(torch.zeros(1, 3, 5, 5))
    assert called == ["before", "after"]


def test_scale_is_vertical_then_horizontal() -> None:
    box = torch.tensor([[0.0, 0, 80, 80]])
    assert boxes_to_windows(box, Geometry(16, 8.0), (10, 10), (1.0, 2.0)).tolist() == [[0, 0, 10, 5]]


def test_residuals_say_what_rounding_to_cells_lost() -> None:
    """Cells of 16 px: the window of a box from 4 to 60 covers the cells from 0 to 64, 4 px more on either side."""
    geometry, boxes = Geometry(16, 8.0), torch.tensor([[4.0, 4, 60, 60], [0, 0, 64, 64]])
    windows = boxes_to_windows(boxes, geometry, (10, 10), (1.0, 1.0))
    lost = 4 / 56
    expected = torch.tensor([[-lost, -lost, lost, lost], [0, 0, 0, 0]])
    torch.testing.assert_close(window_residuals(boxes, windows, geometry, (1.0, 1.0)), expected)
    twice = window_residuals(boxes / 2, windows, geometry, (2.0, 2.0))  # the same box, seen at twice the size
    torch.testing.assert_close(twice, expected)


def test_residuals_of_boxes_far_outside_are_bounded() -> None:
    geometry, boxes = Geometry(32, 0.5), torch.tensor([[-900.0, -900, -890, -890], [5, 5, 5.1, 5.1]])
    windows = boxes_to_windows(boxes, geometry, (4, 4), (1.0, 1.0))
    assert window_residuals(boxes, windows, geometry, (1.0, 1.0)).abs().max() <= 1
