"""Maps and windows that several tests of pooling draw at random."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LEVELS = ((6, 3, 2, 1), (6, 4, 3, 2, 1), (5, 1), (7, 3), (1, 2, 3, 6), (3, 3), (1,))


def random_maps(
    seed: int, dtype: torch.dtype = torch.float32, *, channels: int = 5, count: int = 16, largest: int = 24
) -> tuple[Tensor, Tensor]:
    """Two odd-sized maps with ties and negatives, and windows of all sizes down to one cell."""
    random = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, largest, (2,), generator=random).tolist()
    features = torch.randint(-9, 9, (2, channels, height, width), generator=random).to(dtype)
    return features, random_windows(count, features, random)


def random_windows(count: int, features: Tensor, random: torch.Generator) -> Tensor:
    maps, _, height, width = features.shape
    corners = []
    for side in (width, height):
        start = torch.randint(0, side, (count,), generator=random)
        stop = start + 1 + (torch.rand(count, generator=random) * (side - start)).long()
        corners.append((start, stop.clamp(max=side)))
    (x0, x1), (y0, y1) = corners
    return torch.stack([torch.randint(0, maps, (count,), generator=random), x0, y0, x1, y1], dim=1)
