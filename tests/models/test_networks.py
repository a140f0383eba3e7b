"""This project's networks: the paper's sizes of maps, parameters, within-channel normalization, first weights; and compact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sppnet.models.geometry import Geometry, backbone_geometry, without_data
from sppnet.models.networks import (
    WithinChannelLRN,
    compact_resnet,
    convnet5,
    overfeat5,
    overfeat7,
    zf5,
)
from sppnet.models.sppnet import Architecture, build_model
from sppnet.ops.pyramid_pool import pyramid_pool


def cells(net: nn.Sequential, side: int) -> dict[str, tuple[int, int]]:
    """(channels, cells per side) of the map behind each layer, for a square image."""
    features, found = torch.empty(1, 3, side, side, device="meta"), {}
    for name, layer in without_data(net).named_children():
        features = layer(features)
        assert features.shape[2] == features.shape[3]
        found[name] = (features.shape[1], features.shape[2])
    return found


TABLE_1 = {  # at 224: the map behind the layer's pooling and normalization
    zf5: {"pool1": (96, 55), "pool2": (256, 13), "relu3": (384, 13), "relu4": (384, 13), "relu5": (256, 13)},
    convnet5: {
        "norm1": (96, 55),
        "pool2": (256, 27),
        "pool3": (384, 13),
        "relu4": (384, 13),
        "relu5": (256, 13),
    },
    overfeat5: {"norm1": (96, 36), "pool2": (256, 18), "relu3": (512, 18), "relu4": (512, 18), "relu5": (512, 18)},
    overfeat7: {
        "norm1": (96, 36),
        "pool2": (256, 18),
        **{f"relu{number}": (512, 18) for number in (3, 4, 5, 6, 7)},
    },
}


@pytest.mark.parametrize("build", TABLE_1)
def test_sizes_of_table_1(build: Callable[[], nn.Sequential]) -> None:
    found = cells(build(), 224)
    assert {name: found[name] for name in TABLE_1[build]} == TABLE_1[build]
    assert list(found)[-1] == list(TABLE_1[build])[-1]  # no pooling at the end: the pyramid replaces it


def test_zf5_at_the_sides_between_180_and_224() -> None:
    """13 at 224 and 10 at 180 are the paper's; where it changes in between follows from the release's paddings."""
    net = without_data(zf5())
    found = [net(torch.empty(1, 3, side, side, device="meta")).shape[1:] for side in range(180, 225)]
    expected = [10] * 11 + [11] * 16 + [12] * 16 + [13] * 2  # 180-190, 191-206, 207-222, 223-224
    assert found == [(256, count, count) for count in expected]


def test_zf5_at_the_scales_of_detection() -> None:
    sides = {480: 29, 576: 35, 688: 42, 864: 53, 1200: 74}
    net = without_data(zf5())
    assert {side: net(torch.empty(1, 3, side, side, device="meta")).shape[2] for side in sides} == sides


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (zf5, Geometry(16, 20.5)),  # the release: the centre of the first cell is pixel 21, counted from 1
        (convnet5, Geometry(16, 15.5)),
        (overfeat5, Geometry(12, 8.5)),  # a stride of 12: the paper, appendix A
        (overfeat7, Geometry(12, 8.5)),
    ],
)
def test_where_cells_look(build: Callable[[], nn.Sequential], expected: Geometry) -> None:
    geometry = backbone_geometry(build())
    assert Geometry(geometry.stride, geometry.offset) == expected


@pytest.mark.parametrize(
    ("backbone", "levels", "millions"),
    [
        ("zf5", (6,), 62.4),  # 36 bins: no SPP
        ("zf5", (6, 3, 2, 1), 77.0),  # 50
        ("zf5", (4, 3, 2, 1), 56.1),  # 30, fewer than without SPP
        ("overfeat7", (6,), 107.6),
        ("overfeat7", (6, 3, 2, 1), 137.0),
        ("overfeat7", (4, 3, 2, 1), 95.0),
    ],
)
def test_numbers_of_parameters(backbone: str, levels: tuple[int, ...], millions: float) -> None:
    names = tuple(map(str, range(1000)))
    with torch.device("meta"):
        net = build_model(Architecture(names, backbone, levels, (4096, 4096), detects=False))
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("side", "bins", "kernel", "stride"),
    [
        (13, 6, 3, 2),  # the last pooling of the nets without SPP: 13 x 13 to 6 x 6
        (18, 6, 3, 3),  # and that of Overfeat's, 18 x 18 to 6 x 6
        (13, 3, 5, 4),  # the paper's figure 4
        (13, 2, 7, 6),
        (13, 1, 13, 13),
    ],
)
def test_a_level_is_the_papers_sliding_pooling_at_the_size_of_training(
    side: int, bins: int, kernel: int, stride: int
) -> None:
    features = torch.randn(2, 5, side, side)
    sliding = nn.MaxPool2d(kernel, stride)(features)  # [N, C, bins, bins]
    assert sliding.shape[-2:] == (bins, bins)
    assert torch.equal(pyramid_pool(features, (bins,)), sliding.flatten(2).transpose(1, 2))


# Within-channel normalization


def normalized_by_loops(features: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """The definition: each value, over its own neighbourhood in its own channel."""
    result, reach = torch.empty_like(features), size // 2
    for n, c, y, x in np.ndindex(*features.shape):
        rows = range(max(y - reach, 0), min(y + reach + 1, features.shape[2]))
        columns = range(max(x - reach, 0), min(x + reach + 1, features.shape[3]))
        squares = sum(float(features[n, c, row, column]) ** 2 for row in rows for column in columns)
        result[n, c, y, x] = features[n, c, y, x] / (1 + alpha * squares / size**2) ** beta
    return result


@pytest.mark.parametrize(("size", "alpha", "beta"), [(3, 5e-5, 0.75), (3, 1.0, 0.75), (5, 0.5, 2.0), (1, 1.0, 1.0)])
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 2, 1, 1), (1, 1, 2, 9)])
def test_normalization_against_loops(size: int, alpha: float, beta: float, shape: tuple[int, ...]) -> None:
    features = 10 * torch.randn(*shape, dtype=torch.float64)
    expected = normalized_by_loops(features, size, alpha, beta)
    torch.testing.assert_close(WithinChannelLRN(size, alpha, beta)(features), expected)


def test_channels_do_not_see_each_other() -> None:
    features = torch.rand(1, 4, 6, 6)
    alone = WithinChannelLRN(alpha=1.0)(features[:, 1:2])
    torch.testing.assert_close(WithinChannelLRN(alpha=1.0)(features)[:, 1:2], alone, rtol=1e-6, atol=0)
    assert not torch.allclose(nn.LocalResponseNorm(3, 1.0)(features)[:, 1:2], alone)  # PyTorch's: across channels


def test_the_releases_constants_are_the_default() -> None:
    features = 100 * torch.rand(1, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(WithinChannelLRN()(features), normalized_by_loops(features, 3, 5e-5, 0.75))


def test_gradients_of_the_normalization() -> None:
    features = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WithinChannelLRN(alpha=0.5), features)


def test_an_even_neighbourhood() -> None:
    with pytest.raises(ValueError, match=r"size must be odd, .*: got 4"):
        WithinChannelLRN(4)


# First weights


def test_first_weights_of_the_convolutions() -> None:
    torch.manual_seed(0)
    biases = {}
    for name, layer in overfeat7().requires_grad_(False).named_children():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            assert float(layer.weight.std()) == pytest.approx(0.01, rel=0.03)
            assert abs(float(layer.weight.mean())) < 3e-4
            biases[name] = set(layer.bias.tolist())
    assert biases == {"conv1": {0}, "conv2": {1}, "conv3": {0}, "conv4": {1}, "conv5": {1}, "conv6": {1}, "conv7": {1}}


def test_first_weights_behind_the_pyramid() -> None:
    torch.manual_seed(0)
    net = build_model(Architecture(("cat", "dog"), "zf5", levels=(2, 1), hidden=(64, 64), multi_label=False))
    for name in ("fully_connected.1", "fully_connected.4", "image_classifier", "window_classifier"):
        layer = net.get_submodule(name)
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
        assert set(layer.bias.tolist()) == {1.0}


def test_a_multi_label_model_starts_undecided() -> None:
    net = build_model(Architecture(("cat", "dog"), "zf5", levels=(1,), hidden=(8,), detects=False))
    assert net.image_classifier.bias.tolist() == [0.0, 0.0]


def test_zf5_in_a_network_takes_any_size() -> None:
    net = build_model(Architecture(("cat", "dog"), "zf5", (3, 1), (16,), detects=False)).eval()
    with torch.inference_mode():
        assert net([torch.rand(3, 31, 90), torch.rand(3, 180, 64)]).shape == (2, 2)


# Compact


def test_widths_and_blocks_must_agree() -> None:
    with pytest.raises(ValueError, match="argument 3 is longer"):
        compact_resnet((8, 8, 16), (1, 2, 2))
