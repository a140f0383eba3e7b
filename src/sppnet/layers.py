"""The pooling functions as modules, for anyone's network, and what a network of many image sizes needs on CPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor, nn

from sppnet.ops.bins import bin_count, check_levels
from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool


class _Pool(nn.Module):
    def __init__(self, levels: Sequence[int], reduce: str = "max") -> None:
        super().__init__()
        self.reduce = reduce
        self.levels = check_levels(levels)
        self.bins = bin_count(self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}" + ("" if self.reduce == "max" else f", reduce={self.reduce!r}")


class PyramidPool(_Pool):
    """See :func:`sppnet.pyramid_pool`: [N, C, H, W] -> [N, M, C], for a map of any size.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), PyramidPool((2, 1)), torch.nn.Flatten())
        >>> net(torch.rand(1, 3, 20, 31)).shape, net(torch.rand(1, 3, 57, 9)).shape
        (torch.Size([1, 40]), torch.Size([1, 40]))
    """

    def forward(self, features: Tensor) -> Tensor:
        return pyramid_pool(features, self.levels, reduce=self.reduce)


class RegionPyramidPool(_Pool):
    """See :func:`sppnet.region_pyramid_pool`: [N, C, H, W] and windows [R, 5] -> [R, M, C].

    Example:
        >>> pool = RegionPyramidPool((3, 1))
        >>> pool(torch.rand(1, 8, 20, 31), torch.tensor([[0, 4, 5, 6, 7]])).shape
        torch.Size([1, 10, 8])
    """

    def forward(self, features: Tensor, windows: Tensor) -> Tensor:
        return region_pyramid_pool(features, windows, self.levels, reduce=self.reduce)


# One pass of EfficientNet-Lite0 needs about 100 of the first, so two image sizes in turn stay prepared. Smaller values are
# slower, larger ones no faster on photos of all sizes.
_CPU_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "8"}


def bound_cpu_caches() -> None:
    """Bound the memory that PyTorch's CPU library keeps for image sizes that come again.

    It prepares every convolution for the size it meets and keeps the last 1024, some hundred MB, of which photos of all
    sizes use few again. It reads the bounds once, at the process's first convolution: where one ran before, they stay as
    they were. A bound that the user has set in the environment (``ONEDNN_PRIMITIVE_CACHE_CAPACITY``,
    ``LRU_CACHE_CAPACITY``) stays too.

    Example:
        >>> bound_cpu_caches()
    """
    for name, entries in _CPU_CACHES.items():
        os.environ.setdefault(name, entries)
