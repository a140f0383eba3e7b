"""Folding BatchNorm: the same outputs, fewer layers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from sppnet.models.compact import compact_resnet
from sppnet.models.cut import convolutional_part, fold_batch_norm


def give_statistics(net: nn.Module) -> None:
    """Statistics that a fold must not forget."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)


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


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "densenet121"])
def test_torchvisions_nets(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    give_statistics(model)
    part, image = convolutional_part(model), torch.rand(1, 3, 64, 96)
    assert part is not None
    with torch.inference_mode():
        before = part(image)
    fold_batch_norm(part)
    left = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(left) == (name == "densenet121")  # whose BatchNorms come before the convolutions
    with torch.inference_mode():
        torch.testing.assert_close(part(image), before, rtol=1e-3, atol=1e-4)


def test_timms_norm_with_an_activation() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet").eval()
    give_statistics(model)
    part, image = convolutional_part(model), torch.rand(1, 3, 64, 96)
    assert part is not None
    with torch.inference_mode():
        before = part(image)
        fold_batch_norm(part)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in part.modules())
        torch.testing.assert_close(part(image), before, rtol=1e-3, atol=1e-4)


def test_a_norm_that_cannot_be_folded_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()  # fmt: skip
    fold_batch_norm(net)
    assert [type(layer).__name__ for layer in net] == ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "BatchNorm2d"]


class Twice(nn.Module):
    """One convolution, read by two BatchNorms; and one BatchNorm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.norms[1](self.conv(self.norms[0](self.conv(features))))
        return self.norms[2](self.other(self.norms[2](features)))


def test_what_is_called_twice_is_not_folded() -> None:
    torch.manual_seed(0)
    net, image = Twice().eval(), torch.rand(1, 3, 5, 7)
    give_statistics(net)
    with torch.inference_mode():
        before = net(image)
        fold_batch_norm(net)
        torch.testing.assert_close(net(image), before)


def test_statistics_that_still_change_are_not_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"BatchNorm '1' is in training mode: call eval\(\)"):
        fold_batch_norm(net)
