"""Batches of mixed sizes in training: gradients, BatchNorm's statistics, and nothing from beyond an image's edge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sppnet.models.mixed_batch import MixedBatch, mixed_features, own_windows
from sppnet.models.networks import compact_resnet
from sppnet.ops.pyramid_pool import region_pyramid_pool

Size = tuple[int, int]
layer_sizes = st.lists(st.tuples(st.integers(5, 14), st.integers(5, 14)), min_size=2, max_size=4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_gradients_are_the_sum_of_those_of_the_images(
    nets: Callable[[str], nn.Module],
    name: str,
    images_of: Callable[..., list[Tensor]],
    check_gradients: Callable[..., None],
) -> None:
    """BatchNorm in evaluation mode, the rest training. Images of one size get theirs from the same path."""
    backbone = copy.deepcopy(nets(name)).double()
    check_gradients(backbone, images_of([(64, 40), (33, 70), (64, 40)], dtype=torch.float64), 1e-9)


def over_all_cells(net: nn.Sequential, images: Sequence[Tensor]) -> list[Tensor]:
    """Layer by layer, image by image; every BatchNorm over all cells of all maps laid side by side."""
    maps = [image[None] for image in images]
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            normalised = layer(torch.cat([each.flatten(2) for each in maps], 2)[:, :, None])[0, :, 0]
            parts = normalised.split([each[0, 0].numel() for each in maps], 1)
            maps = [part.reshape(each.shape) for part, each in zip(parts, maps, strict=True)]
        else:
            maps = [layer(each) for each in maps]
    return [each[0] for each in maps]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@given(layer_sizes)
@settings(max_examples=10)
def test_batch_norm_learns_from_the_valid_cells_alone(
    lively: Callable[..., nn.Module],
    images_of: Callable[..., list[Tensor]],
    memory_format: torch.memory_format,
    sizes: list[Size],
) -> None:
    ours = lively(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4, momentum=0.3),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6, momentum=None),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.Conv2d(6, 2, 3, padding=1),
        )
    ).double()
    ours = ours.to(memory_format=memory_format).train()
    theirs = copy.deepcopy(ours)
    images = images_of(sizes, dtype=torch.float64)
    for _ in range(2):
        expected = over_all_cells(theirs, images)
        features, own_sizes = mixed_features(ours, images)
        parts = [own[:, :rows, :columns] for own, (rows, columns) in zip(features, own_sizes, strict=True)]
        for part, alone in zip(parts, expected, strict=True):
            torch.testing.assert_close(part, alone)
    sum(part.cos().sum() for part in parts).backward()
    sum(part.cos().sum() for part in expected).backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")
    for (name, one), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(
            one, other, msg=lambda text, name=name: f"{name}: {text}"
        )  # running mean and variance, number of batches
    assert ours[1].num_batches_tracked == 2


def test_a_batch_norm_without_statistics_of_its_own_takes_those_of_the_batch_in_evaluation_too(
    images_of: Callable[..., list[Tensor]],
) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    images = images_of([(5, 9), (8, 4)])
    features, _ = mixed_features(net, images)
    torch.testing.assert_close(features[1, :, :8, :4], over_all_cells(net, images)[1])


def test_a_whole_net_learns(images_of: Callable[..., list[Tensor]]) -> None:
    torch.manual_seed(0)
    mixed = MixedBatch(compact_resnet((8, 12, 16), (1, 1), folded=False)).train()
    optimiser = torch.optim.SGD(mixed.parameters(), 0.05)
    images, losses = images_of([(40, 56), (64, 33), (40, 56)]), []
    for _ in range(8):
        features, sizes = mixed(images)
        pooled = region_pyramid_pool(features, own_windows(sizes), (1,)).mean((1, 2))
        loss = (pooled - torch.tensor([0.0, 1.0, 2.0])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class UnitLength(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features / features.square().sum(1, keepdim=True).sqrt()


class Logarithm(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.abs().log()


@pytest.mark.parametrize(
    "layers",
    [
        # a maximum over nothing but padding is -inf, and 0 times that is NaN
        (nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(3, 1), nn.Conv2d(4, 2, 1)),
        # vectors of nothing but zeros have no direction, and a root has no slope at 0
        (nn.Conv2d(3, 4, 1, bias=False), UnitLength()),
        (nn.Conv2d(3, 4, 1, bias=False), Logarithm(), nn.Conv2d(4, 2, 3, padding=1)),
    ],
    ids=["maximum", "unit length", "logarithm"],
)
def test_nothing_beyond_the_edges_reaches_a_gradient_not_even_as_infinity_times_zero(
    layers: Sequence[nn.Module], lively: Callable[..., nn.Module], images_of: Callable[..., list[Tensor]]
) -> None:
    net = lively(nn.Sequential(*layers))
    images = [image.requires_grad_() for image in images_of([(4, 30), (30, 5)])]
    features, _ = mixed_features(net, images)
    features.sum().backward()
    assert features.isfinite().all()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (*net.parameters(), *images))


@torch.no_grad()
def test_what_lies_beyond_stays_finite_for_whoever_else_uses_a_map(
    lively: Callable[..., nn.Module], images_of: Callable[..., list[Tensor]]
) -> None:
    """A fast convolution may add what it does not need, and take it off again: infinity would not come off."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 2, 1)

        def forward(self, features: Tensor) -> Tensor:
            return torch.cat([self.pool(features), self.conv(features)], 1) + features.amax((2, 3)).sum()

    seen = []
    net = nn.Sequential(Branches(), nn.Conv2d(5, 2, 3))
    for module in (net[0].conv, net[1]):
        module.register_forward_hook(lambda module, inputs, result: seen.extend([*inputs, result]))
    mixed_features(lively(net), images_of([(4, 30), (30, 5)]))
    assert len(seen) == 4
    assert all(value.isfinite().all() for value in seen)
