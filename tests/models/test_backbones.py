"""Backbones by name, their weights, and the shape of their maps."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone, check_not_random, pretrained_weights
from sppnet.models.files import save_model
from sppnet.models.geometry import backbone_geometry
from sppnet.models.networks import compact_resnet
from sppnet.models.sppnet import Architecture, SPPNet, build_model


@pytest.mark.parametrize(
    ("name", "channels", "stride", "side"),
    [
        ("efficientnet_lite0", 320, 32, 32),
        ("compact", 384, 32, 1),
        ("alexnet", 256, 16, 31),  # the max pooling at its end is left out: the pyramid replaces it
        ("squeezenet1_0", 512, 16, 21),
        ("mobilenet_v2", 1280, 32, 1),
        ("resnet18", 512, 32, 1),
        ("convnext_tiny", 768, 32, 32),
        ("zf5", 256, 16, 31),
        ("convnet5", 256, 16, 19),
        ("overfeat5", 512, 12, 11),
        ("overfeat7", 512, 12, 11),
    ],
)
def test_the_map_of_any_size_down_to_the_smallest(name: str, channels: int, stride: int, side: int) -> None:
    with torch.inference_mode(), torch.device("meta"):  # shapes alone: no weights are drawn
        backbone = build_backbone(name)
        geometry = backbone_geometry(backbone)
        assert not backbone.training
        assert (geometry.channels, geometry.stride, geometry.smallest_side) == (channels, stride, side)
        for size in ((97, 200), (65, 130)):
            features = backbone(torch.rand(1, 3, *size))
            assert features.shape[1] == channels
            assert all(abs(side / stride - cells) <= 2 for side, cells in zip(size, features.shape[2:], strict=True))
        assert backbone(torch.rand(1, 3, side, side)).shape[2:] == (1, 1)
        if side > 1:
            with pytest.raises(RuntimeError):
                backbone(torch.rand(1, 3, side - 1, side))


@pytest.mark.parametrize("name", ["resnet", "compactt", "", "fasterrcnn_resnet50_fpn", "../compact"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(
        UserError,
        match=f"no backbone named '{name}': expected 'efficientnet_lite0', 'compact', 'zf5', .* or a torchvision",
    ):
        build_backbone(name)


def test_a_net_without_a_plain_convolutional_part() -> None:
    with torch.device("meta"), pytest.raises(UserError, match="vit_b_32 has no plain convolutional part"):
        build_backbone("vit_b_32")


def test_a_net_whose_cells_cannot_be_placed() -> None:
    with pytest.raises(
        UserError, match=r"backbone 'swin_t' cannot be used: operation 'pad' in layer .*\(ShiftedWindowAttention\)"
    ):
        build_model(Architecture(("cat",), "swin_t", hidden=(8,)))


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_weights_of_a_local_file(tmp_path: Path, ending: str) -> None:
    whole = torchvision.models.squeezenet1_0(weights=None).eval()
    path = tmp_path / f"w{ending}"
    if ending == ".pth":
        torch.save(whole.state_dict(), path)
    else:
        save_file({name: value.half() for name, value in whole.state_dict().items()}, path)
    image = torch.rand(1, 3, 64, 80)
    with torch.inference_mode():
        torch.testing.assert_close(
            build_backbone("squeezenet1_0", path)(image), whole.features(image), rtol=1e-2, atol=1e-2
        )
        assert build_backbone("squeezenet1_0", str(path))(image).dtype == torch.float32


def test_compact_takes_a_model_files_backbone(tiny_detector: SPPNet, tiny_model_file: Path) -> None:
    backbone = build_backbone("compact", tiny_model_file)
    for name, value in tiny_detector.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value.half().float())


def test_compact_takes_a_state_dict_of_its_own(tmp_path: Path) -> None:
    taught = compact_resnet()
    save_file(taught.state_dict(), tmp_path / "b.safetensors")
    backbone = build_backbone("compact", tmp_path / "b.safetensors")
    assert all(torch.equal(backbone.state_dict()[name], value) for name, value in taught.state_dict().items())


@pytest.mark.parametrize("name", ["compact", "squeezenet1_0"])
def test_a_weights_file_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=r"no such weights file: none\.safetensors"):
        build_backbone(name, "none.safetensors")


def test_an_unknown_name_of_weights() -> None:
    with pytest.raises(UserError, match="no weights named 'IMAGENET': torchvision knows DEFAULT, IMAGENET1K_V1"):
        build_backbone("squeezenet1_0", "IMAGENET")


@pytest.mark.parametrize("name", ["compact", "squeezenet1_0"])
def test_weights_of_another_net(tmp_path: Path, name: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=rf"other\.safetensors does not fit {name}: expected ") as caught:
        build_backbone(name, path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"this is text"], ids=repr)
def test_a_file_that_holds_no_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not a") as caught:
        build_backbone("squeezenet1_0", tmp_path / name)
    assert "\n" not in str(caught.value)


class Trap:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, writer: str) -> None:
    content = {"weight": Trap(tmp_path / "ran")}
    path = tmp_path / "w.pth"
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"w\.pth is not a") as caught:
        build_backbone("squeezenet1_0", path)
    assert not (tmp_path / "ran").exists()
    assert "weights_only=False" not in str(caught.value)  # PyTorch's own advice


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2)], ids=["list", "numbers", "tensor"])
def test_a_file_that_holds_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth does not hold a state dict"):
        build_backbone("squeezenet1_0", tmp_path / "w.pth")


# Of torchvision

SLOW = pytest.mark.slow  # VGG's fully connected layers, 120 million weights, are drawn first and thrown away then
OF_TORCHVISION = {  # stride and channels of the map
    "alexnet": (16, 256),
    "vgg11": (16, 512),
    "resnet18": (32, 512),
    "mobilenet_v2": (32, 1280),
    "mobilenet_v3_small": (32, 576),  # squeeze-and-excite
    "squeezenet1_0": (16, 512),
    "efficientnet_b0": (32, 1280),  # and stochastic depth
    "densenet121": (32, 1024),
    "shufflenet_v2_x0_5": (32, 1024),
    "regnet_y_400mf": (32, 440),
    "convnext_tiny": (32, 768),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) if name == "vgg11" else name for name in OF_TORCHVISION]
)
def test_torchvisions_families(name: str) -> None:
    """Each gives its map, learns where it is not folded, and knows where its cells look."""
    torch.manual_seed(0)
    backbone = build_backbone(name, fold=False)
    geometry = backbone_geometry(backbone)
    assert (geometry.stride, geometry.channels) == OF_TORCHVISION[name]
    features = backbone.train()(torch.rand(2, 3, 96, 64))  # dropout, stochastic depth and BatchNorm as they learn
    assert geometry.stride == 16 or features.shape == (2, geometry.channels, 3, 2)
    features.square().mean().backward()
    assert all(
        torch.isfinite(parameter.grad).all() for parameter in backbone.parameters() if parameter.grad is not None
    )
    assert any(bool(parameter.grad.any()) for parameter in backbone.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", [name for name, (stride, _) in OF_TORCHVISION.items() if stride == 32])
def test_torchvisions_families_at_stride_16(name: str) -> None:
    if name == "densenet121":
        with pytest.raises(UserError, match="densenet121 cannot be brought to a stride of 16: it has a AvgPool2d"):
            build_backbone(name, stride=16)
        return
    with torch.inference_mode(), torch.device("cpu" if "regnet" in name else "meta"):
        backbone = build_backbone(name, stride=16)
        assert backbone(torch.rand(1, 3, 96, 64)).shape[1] == OF_TORCHVISION[name][1]
    assert backbone_geometry(backbone).stride == 16


def test_a_stride_that_a_net_has_not() -> None:
    with pytest.raises(
        UserError, match="alexnet has no map with a cell every 32 pixels: expected one of the strides 1, 4, 8"
    ):
        build_backbone("alexnet", stride=32)


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=SLOW)])
def test_nets_that_learned_from_pixels_of_another_kind(tmp_path: Path, name: str) -> None:
    """GoogLeNet and Inception turn ImageNet's normalisation into their own; published weights need it."""
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone, image = build_backbone(name, tmp_path / "w.pth"), torch.randn(1, 3, 96, 128)
    seen: list[torch.Tensor] = []
    whole.avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        whole(image)
        torch.testing.assert_close(backbone(image), seen[0], rtol=1e-3, atol=1e-4)


# Weights again


def test_a_file_with_a_classifier_of_other_classes(tmp_path: Path) -> None:
    whole = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone, image = build_backbone("resnet18", tmp_path / "w.pth", fold=False), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone(image), whole.layer4(whole.layer3(whole.layer2(whole.layer1(
            whole.maxpool(whole.relu(whole.bn1(whole.conv1(image)))))))))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer3.0.conv1.weight"), r"layer3\.0\.conv1\.weight is missing"),
        (lambda state: state.update({"neck.weight": torch.zeros(2)}), r"neck\.weight is unknown"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"\[64, 1, 7, 7\], expected \[64, 3, 7, 7\]",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_file_that_fits_in_part(tmp_path: Path, change: object, message: str) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    change(state)  # type: ignore[operator]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth does not fit resnet18: .*{message}"):
        build_backbone("resnet18", tmp_path / "w.pth")


@pytest.mark.parametrize(("name", "stride"), [("mobilenet_v3_small", 16), ("zf5", None), ("resnet18", 16)])
def test_a_model_files_backbone(tmp_path: Path, name: str, stride: int | None) -> None:
    torch.manual_seed(0)
    made = build_backbone(name, stride=stride)
    net = build_model(Architecture(("cat",), name, (1,), (4,), detects=False), backbone=made)
    save_model(net, tmp_path / "m.safetensors")
    again = build_backbone(name, tmp_path / "m.safetensors", stride)
    assert again.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(value, made.state_dict()[key].half().float()) for key, value in again.state_dict().items())


def test_a_model_file_of_another_backbone(tiny_model_file: Path) -> None:
    with pytest.raises(UserError, match=r"tiny\.safetensors does not fit zf5: .* is unknown"):
        build_backbone("zf5", tiny_model_file)


# Of timm


def test_a_net_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet").eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")  # with its classifier
    image = torch.rand(1, 3, 64, 96)
    for name in ("test_resnet", "timm:test_resnet", "test_resnet.r160_in1k"):
        backbone = build_backbone(name, tmp_path / "w.safetensors")
        with torch.inference_mode():
            expected = whole.forward_features(image)
            torch.testing.assert_close(backbone(image), expected, rtol=1e-3, atol=1e-4)
    assert backbone_geometry(build_backbone("timm:resnet18", stride=16)).stride == 16
    with pytest.raises(UserError, match="test_resnet cannot be brought to a stride of 16: it has a AvgPool2d"):
        build_backbone("test_resnet", stride=16)


def test_a_pooling_that_cannot_be_dilated() -> None:
    with pytest.raises(UserError, match="googlenet cannot be brought to a stride of 16: it has a MaxPool2d"):
        build_backbone("googlenet", stride=16)


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_byobnet", "test_vit"])
def test_what_timm_has(name: str) -> None:
    pytest.importorskip("timm")
    if name == "test_vit":
        with pytest.raises(UserError, match="test_vit has no plain convolutional part"):
            build_backbone(name)
        return
    backbone = build_backbone(name)
    geometry = backbone_geometry(backbone)
    assert geometry.stride == 32
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 96, 160)).shape == (1, geometry.channels, 3, 5)


def test_the_prefix_tells_two_packages_apart() -> None:
    pytest.importorskip("timm")
    ours, theirs = build_backbone("resnet18"), build_backbone("timm:resnet18")
    assert "relu" in dict(ours.named_children())
    assert "act1" in dict(theirs.named_children())
    assert backbone_geometry(ours) == backbone_geometry(theirs)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "r160_in1"])
def test_weights_that_timm_has_not(weights: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=f"test_resnet has no weights named '{weights}': timm knows DEFAULT, r160_in1k"):
        build_backbone("test_resnet", weights)


def test_weights_of_timm_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no\nconnection")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=r"weights DEFAULT of test_resnet could not be downloaded \(no connection\)"):
        build_backbone("test_resnet", "DEFAULT")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:resnet50d needs timm, .*: pip install 'sppnet\[timm\]'"):
        build_backbone("timm:resnet50d")
    with pytest.raises(UserError, match=r"no backbone named 'resnet50d': .*sppnet\[timm\]"):
        build_backbone("resnet50d")


# Which weights, where nothing is said


def test_a_backbone_has_the_weights_that_somebody_published() -> None:
    assert pretrained_weights("resnet18") == "DEFAULT"
    assert pretrained_weights("efficientnet_lite0") == "DEFAULT"
    with pytest.raises(UserError, match="zf5 has no pretrained weights, and random ones are never frozen"):
        pretrained_weights("zf5")


def test_random_weights_are_not_frozen() -> None:
    check_not_random("mobilenet_v2", "DEFAULT")
    with pytest.raises(UserError, match="mobilenet_v2 with random weights cannot be frozen: leave --weights out"):
        check_not_random("mobilenet_v2", "random")
