"""Region pyramid pooling in plain PyTorch: the definition, and an implementation for any device, dtype and derivative.

features [N, C, H, W], windows [R, 5] -> [R, M, C]. The definition is written as loops: the truth that every implementation
is held against. In the other, a window's crop goes through PyTorch's adaptive pooling once per level: its bins are the bins
of `sppnet.ops.bins`, and the gradient of a maximum goes to a bin's first largest cell in row order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from sppnet.ops.bins import bin_count, bin_edges


def definition(features: Tensor, windows: Tensor, levels: Sequence[int], reduce: str) -> Tensor:
    """Slow on purpose."""
    pooled = features.new_empty(len(windows), bin_count(levels), features.shape[1])
    for r, (n, x0, y0, x1, y1) in enumerate(windows.tolist()):
        m = 0
        for level in levels:
            for top, bottom in bin_edges(y1 - y0, level):
                for left, right in bin_edges(x1 - x0, level):
                    cells = features[n, :, y0 + top : y0 + bottom, x0 + left : x0 + right]  # [C, h, w]
                    pooled[r, m] = torch.amax(cells, (1, 2)) if reduce == "max" else torch.mean(cells, (1, 2))
                    m += 1
    return pooled


def pyramid_pool(features: Tensor, levels: Sequence[int], reduce: str) -> Tensor:
    pool = adaptive_max_pool2d if reduce == "max" else adaptive_avg_pool2d
    grids = [pool(features, (level, level)).flatten(2) for level in levels]  # [N, C, n*n] each
    return torch.cat(grids, dim=2).transpose(1, 2).contiguous()  # [N, M, C]


def region_pyramid_pool(features: Tensor, windows: Tensor, levels: Sequence[int], reduce: str) -> Tensor:
    if not len(windows):
        # The product keeps the result in the autograd graph, as any other result is.
        return features.new_zeros(0, bin_count(levels), features.shape[1]) * features.sum()
    crops = (features[n : n + 1, :, y0:y1, x0:x1] for n, x0, y0, x1, y1 in windows.tolist())
    return torch.cat([pyramid_pool(crop, levels, reduce) for crop in crops])
