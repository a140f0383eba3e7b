"""Backbones by name, their weights, and the shape of their maps."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone, fold_batch_norm, map_shape
from sppnet.models.compact import compact_resnet
from sppnet.models.sppnet import Architecture, SPPNet


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        ("compact", 384, 32),
        ("alexnet", 256, 16),  # the max pooling at its end is left out: the pyramid replaces it
        ("squeezenet1_0", 512, 16),
        ("mobilenet_v2", 1280, 32),
        ("resnet18", 512, 32),
    ],
)
@pytest.mark.parametrize("size", [(97, 200), (224, 224), (65, 300)])
def test_map_shape_agrees_with_a_real_run(name: str, channels: int, stride: int, size: tuple[int, int]) -> None:
    backbone = build_backbone(name)
    assert not backbone.training
    with torch.inference_mode():
        features = backbone(torch.rand(1, 3, *size))
    assert map_shape(backbone, size) == features.shape[1:]
    assert features.shape[1] == channels
    assert all(abs(side / stride - cells) <= 2 for side, cells in zip(size, features.shape[2:], strict=True))


def test_map_shape_leaves_the_backbone_where_it_is() -> None:
    backbone = build_backbone("compact")
    map_shape(backbone, (64, 64))
    assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["resnet", "compactt", "", "fasterrcnn_resnet50_fpn", "../compact"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(UserError, match=f"no backbone named '{name}': expected 'compact' or a torchvision"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["vit_b_16", "googlenet"])
def test_a_net_without_a_plain_convolutional_part(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} has no plain convolutional part"):
        build_backbone(name)


def test_a_net_whose_cells_cannot_be_placed() -> None:
    with pytest.raises(UserError, match=r"backbone 'swin_t' cannot be used: .*Linear"):
        SPPNet(Architecture(("cat",), "swin_t", hidden=(8,)))


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


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_a_torchvision_net_comes_folded(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name, weights=None)
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a fold must not forget
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone, image = build_backbone(name, tmp_path / "w.pth"), torch.rand(1, 3, 64, 96)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    plain = nn.Sequential(*list(whole.eval().children())[: 1 if name == "mobilenet_v2" else -2])
    with torch.inference_mode():
        torch.testing.assert_close(backbone(image), plain(image), rtol=1e-3, atol=1e-4)


def test_widths_and_blocks_must_agree() -> None:
    with pytest.raises(ValueError, match="got 3 blocks for 3 widths"):
        compact_resnet((8, 8, 16), (1, 2, 2))
