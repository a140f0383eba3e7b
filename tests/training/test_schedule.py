"""Learning rates: by layer, and over the steps."""

from __future__ import annotations

import pytest
from torch import nn

from sppnet.training.loop import adamw, cosine, milestones, parameter_groups, sgd


def rates(**settings: float) -> list[tuple[float, float]]:
    heads, backbone = nn.Linear(2048, 3), nn.Conv2d(3, 8, 3)
    groups = parameter_groups(heads.parameters(), backbone.parameters(), learning_rate=0.01, **settings)  # type: ignore[arg-type]
    return [(group["lr"], group["weight_decay"]) for group in groups]


def test_each_layer_has_its_rate() -> None:
    """Adam moves every weight by about the learning rate: summed over a wide input, that is a large step."""
    found = rates(backbone_rate=0.1, weight_decay=0.1)
    assert [rate for rate, _ in found] == pytest.approx([0.005, 0.01, 0.001, 0.001])
    assert [decay for _, decay in found] == [0.1, 0, 0.1, 0]  # no decay of biases
    assert [rate for rate, _ in rates(by_width=False)] == [0.01] * 4


def test_a_frozen_layer_has_no_group() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    assert [
        group["params"][0] is layers[1].weight for group in parameter_groups(layers.parameters(), learning_rate=1)
    ] == [True, False]


def test_the_rate_over_the_steps() -> None:
    curve = [cosine(step, 100) for step in range(100)]
    assert curve[0] == pytest.approx(0.2)  # a warm-up of five steps
    assert curve[4] == max(curve) > 0.99
    assert curve[4:] == sorted(curve[4:], reverse=True)
    assert curve[99] < 0.001
    assert [milestones(step, 100) for step in range(100)] == pytest.approx([1.0] * 60 + [0.1] * 25 + [0.01] * 15)


def test_the_papers_optimizer_and_ours() -> None:
    groups = parameter_groups(nn.Linear(2, 2).parameters(), learning_rate=1)
    (first, cosine_of), (second, milestones_of) = adamw(groups, 100), sgd(groups, 100)
    assert (type(first).__name__, type(second).__name__) == ("AdamW", "SGD")
    assert second.param_groups[0]["momentum"] == 0.9
    assert (cosine_of(50), milestones_of(60)) == (cosine(50, 100), milestones(60, 100))
