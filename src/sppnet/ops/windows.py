"""Windows of feature maps: [R, 5] int64 (map, x0, y0, x1, y1), in cells, half-open."""

from __future__ import annotations

import torch
from torch import Tensor


def whole_windows(features: Tensor) -> Tensor:
    """One window per map, the whole of it: [N, 5].

    Example:
        >>> whole_windows(torch.zeros(2, 8, 3, 5))
        tensor([[0, 0, 0, 5, 3],
                [1, 0, 0, 5, 3]])
    """
    count, _, height, width = features.shape
    windows = torch.tensor([[0, 0, 0, width, height]], device=features.device).repeat(count, 1)
    windows[:, 0] = torch.arange(count, device=features.device)
    return windows


def check_windows(windows: Tensor, features: Tensor) -> None:
    """A ValueError that shows the first window that is empty or not inside its map.

    Example:
        >>> check_windows(torch.tensor([[0, 2, 0, 9, 3]]), torch.zeros(1, 8, 3, 5))
        Traceback (most recent call last):
        ValueError: window 0 is empty or outside the maps: got (map, x0, y0, x1, y1) = (0, 2, 0, 9, 3) for 1 maps of 3 x 5 cells
    """
    count, _, height, width = features.shape
    n, x0, y0, x1, y1 = windows.unbind(1)
    inside = (n >= 0) & (n < count) & (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    if not inside.all():
        r = int((~inside).nonzero()[0])
        raise ValueError(
            f"window {r} is empty or outside the maps: got (map, x0, y0, x1, y1) = {tuple(windows[r].tolist())} "
            f"for {count} maps of {height} x {width} cells"
        )
