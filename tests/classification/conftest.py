"""Photos of two colors, and a backbone so small that training takes moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from sppnet.data.labelled import LabelledImages
from sppnet.models import backbones
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model


def write_photos(folder: Path, each: int = 12) -> LabelledImages:
    """Photos of many sizes, red or blue with noise: class folders."""
    rng = np.random.default_rng(0)
    paths = []
    for label, name in enumerate(("red", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 150, (*rng.integers(36, 60, 2), 3), dtype=np.uint8)
            pixels[:, :, 2 * label] += 100
            paths.append(folder / name / f"{number:02}.png")
            Image.fromarray(pixels).save(paths[-1])
    return LabelledImages(tuple(paths), np.repeat(np.arange(2), each), ("red", "blue"))


def tiny_backbone() -> nn.Sequential:
    """32 channels, a cell every 4 pixels; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.BatchNorm2d(32), nn.ReLU()).eval()


def tiny_model(preprocess: Preprocess = Preprocess(32, 64), **changes: object) -> SPPNet:
    """A classifier of red and blue on that backbone, without its BatchNorm."""
    fields = {"levels": (2, 1), "hidden": (), "detects": False, "multi_label": False, **changes}
    net = tiny_backbone()
    return build_model(
        Architecture(("red", "blue"), **fields), preprocess, backbone=nn.Sequential(net[0], net[2])
    ).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """24 photos. Not to be changed."""
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="session", autouse=True)
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A backbone named "tiny", and a file of its weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(tiny_backbone().state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.OWN_NETS, "tiny", tiny_backbone)
        yield path


@pytest.fixture
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, so that what is compared does not depend on whether this processor is fast at bfloat16."""
    monkeypatch.setattr("sppnet.models.precision.precision_of", lambda device: "float32")
