"""The public pooling functions: check, choose an implementation, call it.

features [N, C, H, W] -> [N, M, C], and with windows [R, 5] -> [R, M, C]; M = sum of n * n over the levels. The only file
that knows every implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sppnet.ops import _reference, _torch
from sppnet.ops.bins import bin_count, check_levels

IMPLEMENTATIONS = ("auto", "reference", "torch", "numba")


def pyramid_pool(features: Tensor, levels: Sequence[int]) -> Tensor:
    """Max-pool feature maps of any size into vectors of one fixed length.

    Level n lays an n x n grid over the map and keeps, for every channel, the largest response in each bin.
    Bin (i, j), counted from 0, covers rows ``i*H // n`` up to, not including, ``ceil((i+1)*H / n)``, and columns
    likewise. Neighbouring bins may share a row or column; no bin is ever empty, even when H < n.

    Args:
        features: [N, C, H, W], floating point; H and W in feature cells, both at least 1; N may be 0. Not modified.
        levels: bins per side of each grid, each at least 1, such as ``(6, 3, 2, 1)``. The result keeps this order.

    Returns:
        [N, M, C] with M = sum(n * n for n in levels), in the dtype and on the device of ``features``; bins of a
        level in row order. M and C do not depend on H or W.

    Raises:
        ValueError: not four-dimensional, no cells, no levels, or a level below 1. The message shows which.
        TypeError: not floating point.

    Gradient: each bin's goes to its first largest cell in row order; a cell that wins in several bins gets the sum.
    NaN in a bin gives NaN.

    Source: He, Zhang, Ren, Sun, arXiv:1406.4729, section 2.2 and appendix A. The authors' C++ starts every maximum at
    0, so it differs where a whole bin is negative, which cannot happen after a ReLU.

    Example:
        >>> pyramid_pool(torch.rand(2, 256, 13, 17), levels=(6, 3, 2, 1)).shape
        torch.Size([2, 50, 256])
    """
    _check_features(features)
    levels = check_levels(levels)
    if not len(features):
        return features.new_zeros(0, bin_count(levels), features.shape[1])
    return _torch.pyramid_pool(features, levels)


def region_pyramid_pool(
    features: Tensor, windows: Tensor, levels: Sequence[int], *, implementation: str = "auto"
) -> Tensor:
    """Max-pool many windows of feature maps, each into a vector of the same fixed length.

    Window r is treated as a map of its own: the result equals `pyramid_pool` of the crop
    ``features[n, :, y0:y1, x0:x1]``.

    Args:
        features: [N, C, H, W], floating point, in cells. Not modified. Channels-last memory is fastest on the CPU.
        windows: [R, 5] int64: map index n, x0, y0, x1, y1 in cells, half-open, 0 <= x0 < x1 <= W, 0 <= y0 < y1 <= H.
            R may be 0.
        levels: bins per side of each grid, each at least 1.
        implementation: ``"auto"`` takes the compiled kernel for maps on the CPU that need no gradient, PyTorch
            otherwise; ``"reference"``, ``"torch"`` and ``"numba"`` ask for one by name. All give the same bits.

    Returns:
        [R, M, C] with M = sum(n * n for n in levels), in the dtype and on the device of ``features``.

    Raises:
        ValueError: wrong shapes or levels, a window that is empty or outside its map (the message shows the first), or
            an implementation that does not exist or does not take these features.
        TypeError: features not floating point, windows not int64.

    Gradient: each bin's goes to its first largest cell in row order; overlapping windows add up. NaN in a bin gives NaN.

    Source: arXiv:1406.4729, section 4 and appendix A.

    Example:
        >>> features = torch.arange(12.0).reshape(1, 1, 3, 4)
        >>> windows = torch.tensor([[0, 0, 0, 4, 3], [0, 1, 0, 2, 2]])
        >>> region_pyramid_pool(features, windows, levels=(1,)).flatten()
        tensor([11.,  5.])
    """
    _check_features(features)
    levels = check_levels(levels)
    _check_windows(windows, features)
    chosen = _choose(features) if implementation == "auto" else implementation
    if chosen == "numba":
        from sppnet.ops import _numba  # numba takes half a second to import

        if not _numba.supports(features):
            raise ValueError(
                "implementation 'numba' takes CPU maps of 16, 32 or 64 bit floats that need no gradient: got "
                f"{features.dtype} on {features.device}, requires_grad={features.requires_grad}; use 'torch'"
            )
        return _numba.region_pyramid_pool(features, windows, levels)
    if chosen == "torch":
        return _torch.region_pyramid_pool(features, windows, levels)
    if chosen == "reference":
        return _reference.region_pyramid_pool(features, windows, levels)
    raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}: got {implementation!r}")


def _choose(features: Tensor) -> str:
    from sppnet.ops import _numba

    return "numba" if _numba.supports(features) else "torch"


def _check_features(features: Tensor) -> None:
    if features.ndim != 4:
        raise ValueError(f"features must be [N, C, H, W]: got shape {list(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point: got {features.dtype}; convert with .float()")
    if 0 in features.shape[1:]:
        raise ValueError(f"features must have at least one channel, row and column: got {list(features.shape)}")


def _check_windows(windows: Tensor, features: Tensor) -> None:
    if windows.ndim != 2 or windows.shape[1] != 5:
        raise ValueError(f"windows must be [R, 5] (map, x0, y0, x1, y1): got shape {list(windows.shape)}")
    if windows.dtype != torch.int64:
        raise TypeError(f"windows must be int64, in cells: got {windows.dtype}; see boxes_to_windows")
    count, _, height, width = features.shape
    n, x0, y0, x1, y1 = windows.unbind(1)
    inside = (n >= 0) & (n < count) & (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    if not inside.all():
        r = int((~inside).nonzero()[0])
        raise ValueError(
            f"window {r} is empty or outside the maps: got (map, x0, y0, x1, y1) = {tuple(windows[r].tolist())} "
            f"for {count} maps of {height} x {width} cells"
        )
