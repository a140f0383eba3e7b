"""The definition of region pyramid pooling, written as loops. The truth that every implementation is held against.

features [N, C, H, W], windows [R, 5] (map, x0, y0, x1, y1 in cells, half-open) -> [R, M, C]. Slow on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sppnet.ops.bins import bin_count, bin_edges


def region_pyramid_pool(features: Tensor, windows: Tensor, levels: Sequence[int], reduce: str) -> Tensor:
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
