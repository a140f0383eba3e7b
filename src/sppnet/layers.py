"""The pooling functions as modules, for anyone's network. No parameters; everything is in `sppnet.ops`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sppnet.ops.bins import bin_count, check_levels
from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool


class PyramidPool(nn.Module):
    """See :func:`sppnet.pyramid_pool`: [N, C, H, W] -> [N, M, C], for a map of any size.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), PyramidPool((2, 1)), torch.nn.Flatten())
        >>> net(torch.rand(1, 3, 20, 31)).shape, net(torch.rand(1, 3, 57, 9)).shape
        (torch.Size([1, 40]), torch.Size([1, 40]))
    """

    def __init__(self, levels: Sequence[int], reduce: str = "max") -> None:
        super().__init__()
        self.reduce = reduce
        self.levels = check_levels(levels)
        self.bins = bin_count(self.levels)

    def forward(self, features: Tensor) -> Tensor:
        return pyramid_pool(features, self.levels, reduce=self.reduce)

    def extra_repr(self) -> str:
        return f"levels={self.levels}" + ("" if self.reduce == "max" else f", reduce={self.reduce!r}")


class RegionPyramidPool(nn.Module):
    """See :func:`sppnet.region_pyramid_pool`: [N, C, H, W] and windows [R, 5] -> [R, M, C].

    Example:
        >>> pool = RegionPyramidPool((3, 1))
        >>> pool(torch.rand(1, 8, 20, 31), torch.tensor([[0, 4, 5, 6, 7]])).shape
        torch.Size([1, 10, 8])
    """

    def __init__(self, levels: Sequence[int], reduce: str = "max") -> None:
        super().__init__()
        self.reduce = reduce
        self.levels = check_levels(levels)
        self.bins = bin_count(self.levels)

    def forward(self, features: Tensor, windows: Tensor) -> Tensor:
        return region_pyramid_pool(features, windows, self.levels, reduce=self.reduce)

    def extra_repr(self) -> str:
        return f"levels={self.levels}" + ("" if self.reduce == "max" else f", reduce={self.reduce!r}")
