"""Which layers learn: by name, by index, none, all; and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sppnet.detection.learning_layers import choose_layers
from sppnet.errors import UserError


@pytest.fixture
def net() -> nn.Sequential:
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(8, 8, 1, bias=False))
    block.add_module("norm", nn.BatchNorm2d(8))
    block.add_module("last", nn.Conv2d(8, 8, 1, bias=False))
    whole = nn.Sequential()
    whole.add_module("stem", nn.Conv2d(3, 8, 3, bias=False))
    whole.add_module("relu", nn.ReLU())
    whole.add_module("stage", block)
    return whole


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        ("fc_only", []),
        ("all", ["stem.weight", "stage.conv.weight", "stage.last.weight"]),
        ("from:stem", ["stem.weight", "stage.conv.weight", "stage.last.weight"]),
        ("from:0", ["stem.weight", "stage.conv.weight", "stage.last.weight"]),
        ("from:relu", ["stage.conv.weight", "stage.last.weight"]),  # a layer without weights: those after it
        ("from:stage", ["stage.conv.weight", "stage.last.weight"]),
        ("from:-1", ["stage.conv.weight", "stage.last.weight"]),
        ("from:stage.norm", ["stage.last.weight"]),
        ("from:stage.last", ["stage.last.weight"]),
    ],
)
def test_what_learns(net: nn.Sequential, learn: str, expected: list[str]) -> None:
    assert list(choose_layers(net, learn)) == expected
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == expected


def test_a_second_choice_replaces_the_first(net: nn.Sequential) -> None:
    choose_layers(net, "from:stage.last")
    assert len(choose_layers(net, "all")) == 3


def test_what_comes_before_keeps_no_activations(net: nn.Sequential) -> None:
    choose_layers(net, "from:stage")
    seen: list[torch.Tensor] = []
    net.stem.register_forward_hook(lambda _, __, result: seen.append(result))
    assert net.eval()(torch.zeros(1, 3, 8, 8)).requires_grad
    assert not seen[0].requires_grad


@pytest.mark.parametrize(
    ("learn", "message"),
    [
        ("some", "learn must be 'fc_only', 'all' or 'from:LAYER': got 'some'"),
        ("from:", "'from:': no such layer; expected a name out of stem, relu, stage, .* or an index below 3"),
        ("from:stage.nothing", "'from:stage.nothing': no such layer"),
        ("from:3", "'from:3': no such layer"),
    ],
)
def test_what_is_refused(net: nn.Sequential, learn: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_layers(net, learn)


def test_nothing_left_to_learn() -> None:
    with pytest.raises(UserError, match="'from:1': no layer from there on has weights that learn"):
        choose_layers(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), "from:1")
