"""What the tests of batches of mixed sizes share: nets whose padding matters, and a comparison with each image alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from sppnet.models.backbones import build_backbone
from sppnet.models.mixed_batch import mixed_features

Size = tuple[int, int]


@pytest.fixture(scope="session")
def nets() -> Callable[[str], nn.Module]:
    """Backbones by name, with their BatchNorms not folded into convolutions. Not to be changed."""
    made: dict[str, nn.Module] = {}

    def net(name: str) -> nn.Module:
        if name not in made:
            made[name] = _lively(build_backbone(name, fold=False))
        return made[name]

    return net


@pytest.fixture(scope="session")
def lively() -> Callable[..., nn.Module]:
    return _lively


def _lively(backbone: nn.Module) -> nn.Module:
    """Biases and statistics other than zero, as training leaves them: without, padding would hide every mistake."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d) and name == "weight":
                nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
            elif name == "bias":
                nn.init.normal_(parameter, std=0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return backbone.eval()


@pytest.fixture(scope="session")
def images_of() -> Callable[..., list[Tensor]]:
    return _images_of


def _images_of(sizes: Sequence[Size], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator, dtype=dtype) for size in sizes]


@pytest.fixture(scope="session")
def largest_difference() -> Callable[..., float]:
    return _largest_difference


@torch.no_grad()
def _largest_difference(backbone: nn.Module, images: Sequence[Tensor]) -> float:
    """Over the images: max |mixed - alone| / max |alone|. Checks sizes, and zeros beyond the edges, on the way."""
    features, sizes = mixed_features(backbone, images)
    assert features.isfinite().all()
    differences = []
    for own, image, (rows, columns) in zip(features, images, sizes, strict=True):
        alone = backbone(image[None])[0]
        assert alone.shape[1:] == (rows, columns)
        assert alone.abs().max() > 0
        assert not own[:, rows:].any()
        assert not own[:, :, columns:].any()
        differences.append(float((own[:, :rows, :columns] - alone).abs().max() / alone.abs().max()))
    return max(differences)


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., None]:
    return _check_gradients


def _check_gradients(backbone: nn.Module, images: Sequence[Tensor], allowed: float) -> None:
    """Of weights and images, by a loss that is not symmetric in the cells."""
    images = [image.clone().requires_grad_() for image in images]
    wanted = [*backbone.parameters(), *images]

    def loss(features: Tensor) -> Tensor:
        return (features * torch.arange(1, features.numel() + 1, dtype=features.dtype).view_as(features).cos()).sum()

    alone = sum(loss(backbone(image[None])[0]) for image in images)
    expected = torch.autograd.grad(alone, wanted)
    features, sizes = mixed_features(backbone, images)
    together = sum(loss(own[:, :rows, :columns]) for own, (rows, columns) in zip(features, sizes, strict=True))
    for ours, theirs in zip(torch.autograd.grad(together, wanted), expected, strict=True):
        assert ours.isfinite().all()
        assert float((ours - theirs).abs().max()) <= allowed * max(1.0, float(theirs.abs().max()))
