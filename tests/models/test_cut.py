"""Where classifiers are cut, before their pooling and at a stride; and BatchNorm folded: the same outputs, fewer layers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.cut import convolutional_part, cut_at_stride, fold_batch_norm
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


def part_of(name: str) -> nn.Sequential:
    with torch.device("meta"):
        part = convolutional_part(torchvision.models.get_model(name, weights=None).eval())
    assert part is not None
    return part


@pytest.mark.parametrize(
    ("name", "stride", "channels", "last"),
    [
        ("resnet18", 16, 256, "layer3.1.bn2"),
        ("resnet18", 8, 128, "layer2.1.bn2"),
        ("mobilenet_v2", 16, 576, "14.conv.0.2"),  # the widening at the start of the next block
        ("mobilenet_v3_small", 16, 288, "9.block.0.2"),
        ("efficientnet_b0", 16, 672, "6.0.block.0.2"),
        ("densenet121", 16, 1024, "transition3.relu"),  # before the transition narrows the map
        ("squeezenet1_0", 8, 512, "10.expand3x3_activation"),
        ("alexnet", 8, 192, "4"),
        ("shufflenet_v2_x0_5", 16, 96, "stage3.7.branch2.7"),
        ("convnext_tiny", 16, 384, "6.0"),
    ],
)
def test_cuts_of_torchvisions_nets(name: str, stride: int, channels: int, last: str) -> None:
    whole = part_of(name)
    cut = cut_at_stride(whole, stride, name)
    assert backbone_geometry(cut).stride == stride
    assert cut(torch.empty(1, 3, 128, 128, device="meta")).shape[1] == channels
    assert [*dict(cut.named_modules())][-1] == last
    assert cut.state_dict().keys() < whole.state_dict().keys()  # names stay


def test_the_cut_net_computes_what_the_whole_one_does_on_the_way() -> None:
    torch.manual_seed(0)
    features = torchvision.models.mobilenet_v2(weights=None).eval().features
    images = torch.rand(1, 3, 70, 64)
    with torch.inference_mode():
        expected = features[14].conv[0](features[:14](images))
        assert torch.equal(cut_at_stride(features, 16, "net")(images), expected)


def test_a_net_of_that_stride_is_left_whole() -> None:
    net = part_of("mobilenet_v3_small")
    assert cut_at_stride(net, 32, "mobilenet_v3_small") is net


@pytest.mark.parametrize(
    ("name", "stride", "known"),
    [("vgg11", 32, "1, 2, 4, 8, 16"), ("resnet18", 12, "2, 4, 8, 16, 32"), ("resnet18", 1, "2, 4, 8, 16, 32")],
)
def test_a_stride_that_the_net_has_not(name: str, stride: int, known: str) -> None:
    with pytest.raises(UserError, match=rf"{name} has no map with a cell every {stride} pixels: .* strides {known}"):
        cut_at_stride(part_of(name), stride, name)


def test_a_net_that_cannot_be_placed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, 4))
    with pytest.raises(UserError, match=r"backbone 'net' cannot be used: layer '0' \(Upsample\)"):
        cut_at_stride(net, 4, "net")


class Twice(nn.Module):
    """Calls a layer twice: nothing may be cut in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.relu(self.conv(self.relu(self.conv(images))))
        return features


def test_a_layer_called_twice() -> None:
    with pytest.raises(UserError, match="expected one of the strides 4"):
        cut_at_stride(Twice(), 2, "net")


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
