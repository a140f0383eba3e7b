"""The same forward bits, the same gradients up to bfloat16's rounding, and a module left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sppnet.models.precision import fast_backward


def gradients(net: nn.Module, images: Tensor, quick: bool) -> list[Tensor]:
    """The result, and the gradients of the images and of every parameter."""
    images = images.clone().requires_grad_()
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if quick:
            with fast_backward(net):
                result = net(images)
        else:
            result = net(images)
    (result.float() * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
    assert images.grad is not None
    return [result.detach(), images.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32),
        nn.Conv2d(32, 32, 5, stride=2, padding=2, groups=32, bias=False),
        nn.Conv2d(32, 64, 3, stride=(2, 1), groups=32),
        nn.Conv2d(32, 32, 3, stride=2, padding=2, dilation=2, groups=32),
    ],
    ids=str,
)
def test_gradients_are_the_same_up_to_rounding(convolution: nn.Conv2d, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 32, *size).contiguous(memory_format=torch.channels_last)
    usual, quick = gradients(convolution, images, quick=False), gradients(convolution, images, quick=True)
    assert torch.equal(usual[0], quick[0])
    assert len(usual) == len(quick) == 2 + sum(1 for _ in convolution.parameters())
    for one, other in zip(usual, quick, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.float(), other.float(), rtol=2e-2, atol=2e-2 * float(one.abs().max()))


def test_what_does_not_learn_gets_no_gradient() -> None:
    net = nn.Conv2d(32, 32, 3, stride=2, groups=32)
    net.weight.requires_grad_(False)
    assert len(gradients(net, torch.rand(1, 32, 9, 9), quick=True)) == 3  # result, images, bias


def test_in_float32_and_without_gradients_nothing_changes() -> None:
    net = nn.Sequential(nn.Conv2d(32, 32, 3, stride=2, groups=32))
    images = torch.rand(1, 32, 9, 9)
    with fast_backward(net):
        assert torch.equal(net(images), nn.Conv2d.forward(net[0], images))
        assert net(images).dtype == torch.float32


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(32, 32, 3, stride=2, groups=32), nn.Conv2d(32, 32, 3, stride=2), nn.Conv2d(32, 32, 3))

    def use() -> None:
        with fast_backward(net):
            assert ["forward" in vars(layer) for layer in net] == [True, False, False]
            with fast_backward(net):  # within itself
                pass
            assert "forward" in vars(net[0])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        use()
    assert not any("forward" in vars(layer) for layer in net)
