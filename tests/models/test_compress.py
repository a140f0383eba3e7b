"""Fully connected layers of lower rank: exact at full rank, the nearest at any other, smaller on disk, and usable as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sppnet.errors import UserError
from sppnet.models.compress import truncate_layers
from sppnet.models.files import load, save_model
from sppnet.models.sppnet import Architecture, SPPNet, build_model

ARCHITECTURE = Architecture(("cat", "dog"), levels=(2, 1), hidden=(48, 32))


@pytest.fixture(scope="module")
def net() -> SPPNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(ARCHITECTURE).eval()


@pytest.fixture(scope="module")
def pooled(net: SPPNet) -> torch.Tensor:
    return torch.rand(20, 5, net.fully_connected[1].in_features // 5, generator=torch.Generator().manual_seed(0))


def test_full_rank_is_the_same_network(net: SPPNet, pooled: torch.Tensor) -> None:
    small, kept = truncate_layers(net, (48, 32))
    torch.testing.assert_close(small.fully_connected(pooled), net.fully_connected(pooled), rtol=1e-4, atol=1e-5)
    assert kept == pytest.approx([1, 1])
    assert small.architecture.ranks == (48, 32)
    assert not net.architecture.ranks


def test_rank_0_leaves_a_layer_whole(net: SPPNet, pooled: torch.Tensor) -> None:
    small, kept = truncate_layers(net, (0, 0))
    assert torch.equal(small.fully_connected(pooled), net.fully_connected(pooled))
    assert (small.architecture, kept) == (net.architecture, [1.0, 1.0])
    part, _ = truncate_layers(net, (5, 0))
    assert [
        type(layer) for layer in part.fully_connected if not isinstance(layer, (nn.Flatten, nn.ReLU, nn.Dropout))
    ] == [
        nn.Sequential,
        nn.Linear,
    ]


@settings(max_examples=6)
@given(rank=st.integers(1, 31), seed=st.integers(0, 100))
def test_no_matrix_of_the_rank_is_nearer(rank: int, seed: int) -> None:
    """Eckart and Young: what is lost is the sum of the squares of the singular values that were left out."""
    torch.manual_seed(seed)
    whole = build_model(ARCHITECTURE)
    small, kept = truncate_layers(whole, (0, rank))
    layer, thin = whole.fully_connected[4], small.fully_connected[4]
    assert isinstance(layer, nn.Linear)
    assert isinstance(thin, nn.Sequential)
    assert isinstance(thin[0], nn.Linear)
    assert isinstance(thin[1], nn.Linear)
    product = thin[1].weight @ thin[0].weight
    values = torch.linalg.svdvals(layer.weight.detach())
    lost = values[rank:].square().sum()
    torch.testing.assert_close((layer.weight - product).square().sum(), lost, rtol=1e-3, atol=1e-5)
    assert kept[1] == pytest.approx(1 - float(lost / values.square().sum()), abs=1e-5)


def test_of_given_windows_less_is_lost(net: SPPNet) -> None:
    """Windows in a few directions only: a few ranks are enough for them, and not for any others."""
    generator = torch.Generator().manual_seed(0)
    width = net.fully_connected[1].in_features
    windows = (torch.rand(500, 3, generator=generator) @ torch.rand(3, width, generator=generator)).reshape(
        500, 5, -1
    ) / 5
    plain, _ = truncate_layers(net, (4, 8))
    told, kept = truncate_layers(net, (4, 8), pooled=windows)
    wanted = net.fully_connected(windows).detach()

    def error(small: SPPNet) -> float:
        return float((small.fully_connected(windows).detach() - wanted).norm() / wanted.norm())

    assert kept[0] == pytest.approx(1, abs=1e-3)
    assert error(told) < 0.1 * error(plain)
    full, kept = truncate_layers(net, (48, 32), pooled=windows)
    torch.testing.assert_close(full.fully_connected(windows).detach(), wanted, rtol=1e-3, atol=1e-4)
    assert kept == pytest.approx([1, 1])
    assert max(truncate_layers(net, energy=0.99, pooled=windows)[0].architecture.ranks) <= 8
    with pytest.raises(UserError, match=r"at least two pooled windows \[R, M, C\], got shape \[0, 5, 3\]"):
        truncate_layers(net, (1, 1), pooled=torch.zeros(0, 5, 3))


def test_energy_takes_the_smallest_rank_that_keeps_it(net: SPPNet) -> None:
    layer = net.fully_connected[1]
    assert isinstance(layer, nn.Linear)
    values = torch.linalg.svdvals(layer.weight.detach().double()).square()
    small, kept = truncate_layers(net, energy=0.5)
    rank = small.architecture.ranks[0]
    assert float(values[:rank].sum() / values.sum()) == pytest.approx(kept[0])
    assert float(values[: rank - 1].sum() / values.sum()) < 0.5 <= kept[0]
    assert small.architecture.ranks[1] == 0 or kept[1] >= 0.5
    assert truncate_layers(net, energy=1.0)[0].architecture.ranks == (), "no layer would get smaller"


def test_a_file_holds_the_thin_layers_and_is_smaller(net: SPPNet, pooled: torch.Tensor, tmp_path: Path) -> None:
    small, _ = truncate_layers(net, (4, 8))
    save_model(net, tmp_path / "whole.safetensors")
    save_model(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors")
    assert again.architecture == small.architecture
    torch.testing.assert_close(again.fully_connected(pooled), small.fully_connected(pooled), rtol=1e-2, atol=1e-3)
    saved = (tmp_path / "whole.safetensors").stat().st_size - (tmp_path / "small.safetensors").stat().st_size
    inputs = net.fully_connected[1].in_features
    assert saved == pytest.approx(2 * (48 * inputs - 4 * (48 + inputs) + 32 * 48 - 8 * (32 + 48)), abs=600)


def test_it_classifies_as_before(net: SPPNet) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 80, 120), np.float32))
    small, _ = truncate_layers(net, (48, 32))
    torch.testing.assert_close(small(image), net(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "expected either ranks"),
        ({"ranks": (4, 4), "energy": 0.5}, "expected either ranks"),
        ({"ranks": (4,)}, "expected 2 ranks, one for each fully connected layer, got 1"),
        ({"ranks": (4, 33)}, "the rank of fully connected layer 2 must be from 1 to 32, or 0 for whole: got 33"),
        ({"ranks": (-1, 3)}, "fully connected layer 1 must be from 1 to 48"),
        ({"energy": 0.0}, "above 0 and at most 1: got 0"),
        ({"energy": 1.5}, "above 0 and at most 1: got 1.5"),
    ],
)
def test_what_cannot_be(net: SPPNet, told: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        truncate_layers(net, **told)  # type: ignore[arg-type]


def test_only_once(net: SPPNet) -> None:
    with pytest.raises(UserError, match="was truncated before"):
        truncate_layers(truncate_layers(net, (4, 4))[0], (2, 2))
