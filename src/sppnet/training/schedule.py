"""Learning rates: which layer learns how fast, and how the rate goes over the steps, as pure functions step -> factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

REFERENCE_WIDTH = 1024  # of a layer's input; wider layers take smaller steps, as Adam's add up over it
WARM_UP = 0.05  # of all steps
MILESTONES = (0.6, 0.85)  # shares of all steps after which the rate is a tenth (paper: when the error stops falling)
MOMENTUM = 0.9  # Krizhevsky et al., 2012, whom the paper follows

Schedule = Callable[[int], float]


def parameter_groups(
    heads: Iterable[nn.Parameter], backbone: Iterable[nn.Parameter] = (), *,
    learning_rate: float, backbone_rate: float = 1.0, weight_decay: float = 0.0, by_width: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """A group for each parameter that requires a gradient, of the heads, then of the backbone.

    Args:
        heads: fully connected layers and classifiers, at ``learning_rate``; with ``by_width``, those whose input is wider than
            `REFERENCE_WIDTH` in proportion slower.
        backbone: convolutions, at ``learning_rate * backbone_rate``.
        weight_decay: of matrices and kernels; biases and norms have none.

    Example:
        >>> layer = nn.Linear(2048, 3)
        >>> [(group["lr"], group["weight_decay"]) for group in parameter_groups(layer.parameters(), learning_rate=0.1, weight_decay=0.01)]
        [(0.05, 0.01), (0.1, 0.0)]
    """

    rates = [(each, min(1.0, REFERENCE_WIDTH / each.shape[-1]) if by_width else 1.0) for each in heads]
    rates += [(each, backbone_rate) for each in backbone]
    return [
        {"params": [each], "lr": learning_rate * rate, "weight_decay": weight_decay * (each.ndim > 1)}
        for each, rate in rates
        if each.requires_grad
    ]


def adamw(groups: list[dict[str, Any]], steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW along a cosine, after a warm-up."""
    return torch.optim.AdamW(groups, fused=True), partial(cosine, steps=steps)


def sgd(groups: list[dict[str, Any]], steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    """SGD with momentum and milestones. Source: arXiv:1406.4729, section 3.1."""
    return torch.optim.SGD(groups, momentum=MOMENTUM), partial(milestones, steps=steps)


def cosine(step: int, steps: int) -> float:
    """Rise to 1 over the first 5 % of all steps, then fall along half a cosine.

    Example:
        >>> [round(cosine(step, 40), 2) for step in (0, 1, 2, 20, 40)]
        [0.5, 1.0, 0.99, 0.5, 0.0]
    """
    warm = max(1, round(WARM_UP * steps))
    return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def milestones(step: int, steps: int) -> float:
    """Fall by ten at each of `MILESTONES`.

    Example:
        >>> [milestones(step, 100) for step in (0, 59, 60, 85)]
        [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    return float(0.1 ** sum(step >= share * steps for share in MILESTONES))
