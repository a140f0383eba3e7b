"""Where classifiers are cut, before their pooling; maps of a smaller stride by dilation; and BatchNorm folded: the same outputs, fewer layers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone
from sppnet.models.cut import convolutional_part, dilate_to_stride, fold_batch_norm
from sppnet.models.geometry import backbone_geometry
from sppnet.models.networks import compact_resnet


def seen_by_the_pooling(model: nn.Module, images: Tensor) -> Tensor:
    """What goes into a classifier's global pooling, wherever that is called."""
    seen: list[Tensor] = []
    pool = torch.nn.functional.adaptive_avg_pool2d

    def spy(features: Tensor, size: object) -> Tensor:
        seen.append(features.clone())
        return pool(features, size)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "adaptive_avg_pool2d", spy)
        model(images)
    return seen[-1]


@pytest.mark.parametrize(
    "name", ["densenet121", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "googlenet", "convnext_tiny"]
)
def test_the_part_before_the_pooling(name: str) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    part = convolutional_part(model)
    assert part is not None
    images = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        assert torch.equal(part(images), seen_by_the_pooling(model, images))


@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5"])  # pooled by a mean
def test_the_part_before_a_mean(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    part = convolutional_part(model)
    assert part is not None
    images = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        (classifier,) = (layer for layer_name, layer in model.named_children() if layer_name in ("classifier", "fc"))
        torch.testing.assert_close(classifier(part(images).mean((2, 3))), model(images))


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0"])
def test_keys_are_those_of_the_features(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    part = convolutional_part(model)
    assert part is not None
    assert part.state_dict().keys() == model.features.state_dict().keys()
    assert not isinstance(part[-1], nn.MaxPool2d)  # the pyramid replaces it


class Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3))
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        logits: Tensor = self.head((self.left(features) + self.right(features)).mean((2, 3)))
        return logits


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.stem(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


@pytest.mark.parametrize("model", [Fork(), Tokens(), torchvision.models.vit_b_32, nn.Conv2d(3, 4, 3)])
def test_what_is_no_row_of_layers_is_not_cut_in_its_middle(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        with torch.device("meta"):
            model = model(weights=None)
    assert convolutional_part(model) is None


# At a stride


def whole_and_dilated(name: str, stride: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    whole = build_backbone(name)
    torch.manual_seed(0)
    return whole, build_backbone(name, stride=stride)


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("efficientnet_lite0", 16),
        ("efficientnet_lite0", 8),
        ("resnet18", 16),
        ("resnet18", 8),
        ("mobilenet_v2", 16),
        ("mobilenet_v3_small", 16),  # squeeze-and-excite takes the mean of other cells: names and geometry alone
        ("squeezenet1_0", 8),  # poolings that round up
        ("shufflenet_v2_x0_5", 16),
        ("convnext_tiny", 16),
    ],
)
def test_every_nth_cell_is_a_cell_of_the_whole_net(name: str, stride: int) -> None:
    whole, dilated = whole_and_dilated(name, stride)
    before, after = backbone_geometry(whole), backbone_geometry(dilated)
    assert (after.stride, after.channels) == (stride, before.channels)
    assert dilated.state_dict().keys() == whole.state_dict().keys()
    if name == "mobilenet_v3_small":
        return
    apart, images = before.stride // stride, torch.rand(1, 3, 192, 256)
    first = round((before.offset - after.offset) / stride)  # the cell that looks where the whole net's first does
    with torch.inference_mode():
        expected, features = whole(images), dilated(images)[..., first::apart, first::apart]
    rows, columns = expected.shape[2] - 1, expected.shape[3] - 1
    torch.testing.assert_close(
        features[..., :rows, :columns], expected[..., :rows, :columns], rtol=0, atol=1e-5 * float(expected.abs().max())
    )


def test_a_dilated_map_covers_the_image() -> None:
    """As many cells as the stride divides the sides; where TensorFlow pads behind alone, they move to the middle."""
    _, dilated = whole_and_dilated("efficientnet_lite0", 16)
    with torch.inference_mode():
        assert dilated(torch.rand(1, 3, 96, 160)).shape == (1, 320, 6, 10)
    assert backbone_geometry(dilated).offset == 15.5


@pytest.mark.parametrize(
    ("name", "stride", "known"),
    [("vgg11", 32, "1, 2, 4, 8, 16"), ("resnet18", 12, "1, 2, 4, 8, 16, 32")],
)
def test_a_stride_that_the_net_has_not(name: str, stride: int, known: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=rf"{name} has no map with a cell every {stride} pixels: .* strides {known}"),
    ):
        build_backbone(name, stride=stride)


def test_a_net_that_cannot_be_placed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, 4))
    with pytest.raises(UserError, match=r"backbone 'net' cannot be used: layer '1' \(Upsample\)"):
        dilate_to_stride(net, 4, "net")


class Twice(nn.Module):
    """Calls a layer twice: it cannot be dilated for one of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.relu(self.conv(self.relu(self.conv(images))))
        return features


def test_a_layer_called_twice() -> None:
    with pytest.raises(UserError, match="net cannot be brought to a stride of 2: it calls a layer twice"):
        dilate_to_stride(Twice(), 2, "net")


# BatchNorm folded


def give_statistics(net: nn.Module) -> None:
    """Statistics that a fold must not forget."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)


def test_folding_keeps_the_outputs() -> None:
    torch.manual_seed(0)
    net = compact_resnet((8, 8, 16), (1, 2), folded=False).double()
    for _ in range(3):  # gives the BatchNorms running statistics
        net(torch.randn(4, 3, 32, 40, dtype=torch.float64))
    net.eval()
    image = torch.randn(1, 3, 45, 33, dtype=torch.float64)
    with torch.inference_mode():
        before = net(image)
    fold_batch_norm(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    with torch.inference_mode():
        torch.testing.assert_close(net(image), before)
    # and it is the form that ships
    assert net.state_dict().keys() == compact_resnet((8, 8, 16), (1, 2)).state_dict().keys()


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "densenet121"])
def test_torchvisions_nets(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    give_statistics(model)
    part, image = convolutional_part(model), torch.rand(1, 3, 64, 96)
    assert part is not None
    with torch.inference_mode():
        before = part(image)
    fold_batch_norm(part)
    left = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(left) == (name == "densenet121")  # whose BatchNorms come before the convolutions
    with torch.inference_mode():
        torch.testing.assert_close(part(image), before, rtol=1e-3, atol=1e-4)


def test_timms_norm_with_an_activation() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet").eval()
    give_statistics(model)
    part, image = convolutional_part(model), torch.rand(1, 3, 64, 96)
    assert part is not None
    with torch.inference_mode():
        before = part(image)
        fold_batch_norm(part)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in part.modules())
        torch.testing.assert_close(part(image), before, rtol=1e-3, atol=1e-4)


def test_a_norm_that_cannot_be_folded_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()  # fmt: skip
    fold_batch_norm(net)
    assert [type(layer).__name__ for layer in net] == ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "BatchNorm2d"]


class Shared(nn.Module):
    """One convolution, read by two BatchNorms; and one BatchNorm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.norms[1](self.conv(self.norms[0](self.conv(features))))
        return self.norms[2](self.other(self.norms[2](features)))


def test_what_is_called_twice_is_not_folded() -> None:
    torch.manual_seed(0)
    net, image = Shared().eval(), torch.rand(1, 3, 5, 7)
    give_statistics(net)
    with torch.inference_mode():
        before = net(image)
        fold_batch_norm(net)
        torch.testing.assert_close(net(image), before)


def test_statistics_that_still_change_are_not_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"BatchNorm '1' is in training mode: call eval\(\)"):
        fold_batch_norm(net)
