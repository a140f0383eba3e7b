"""Region pyramid pooling as one PyTorch operator: what autograd, `torch.compile` and `torch.export` see.

``sppnet::region_pyramid_pool`` runs a compiled implementation (`_numba` on the CPU, `_triton` on CUDA) and has a gradient,
itself an operator: ``sppnet::region_pyramid_pool_backward``. Both know the shapes of their results without computing them.
Arguments have been checked by `sppnet.ops.pyramid_pool`, but for what the windows hold: that is known only when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sppnet.ops.bins import bin_count, check_windows, whole_windows

INTEGERS = {  # dtypes that compiled implementations take, and the integers whose bits they read them as
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
NO_WINNERS = (0, 0, 0)  # the shape of the second result where it is not wanted


def channels_last(features: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C]; no copy where it is channels last in memory."""
    return features.detach().permute(0, 2, 3, 1).contiguous()


@cache
def infinity_and_nan(dtype: torch.dtype) -> tuple[int, int]:
    """Their bits: whatever is larger than infinity in magnitude is NaN, of which one stands for all.

    Example:
        >>> [hex(bits) for bits in infinity_and_nan(torch.float16)]
        ['0x7c00', '0x7e00']
    """
    infinity, nan = torch.tensor([torch.inf, torch.nan], dtype=dtype).view(INTEGERS[dtype]).tolist()
    return infinity, nan


def forward(
    features: Tensor, windows: Tensor | None, levels: Sequence[int], reduce: str, keep_winners: bool
) -> tuple[Tensor, Tensor]:
    """Pooled windows [R, M, C], and what a compiled CPU gradient needs to know: the cell that won each, or nothing.

    Without windows, every map is one: [N, M, C].
    """
    if windows is None:
        windows = whole_windows(features)
    else:
        check_windows(windows, features)
    if features.is_cuda:
        from sppnet.ops import _triton

        pooled = _triton.forward(features, windows, tuple(levels), reduce)
        return pooled, windows.new_empty(NO_WINNERS, dtype=torch.int32)
    from sppnet.ops import _numba  # numba takes half a second to import

    return _numba.forward(features, windows, levels, reduce, keep_winners=keep_winners)


# Its first call imports PyTorch's compiler, which takes seconds: who wants no gradient calls `forward`.
region_pyramid_pool = torch.library.custom_op(
    "sppnet::region_pyramid_pool", forward, mutates_args=(), device_types=("cpu", "cuda")
)


@region_pyramid_pool.register_fake
def _(features: Tensor, windows: Tensor | None, levels: Sequence[int], reduce: str, keep_winners: bool) -> Any:
    rows = features.shape[0] if windows is None else windows.shape[0]
    shape = (rows, bin_count(levels), features.shape[1])
    kept = keep_winners and reduce == "max" and features.device.type == "cpu"
    return features.new_empty(shape), features.new_empty(shape if kept else NO_WINNERS, dtype=torch.int32)


@torch.library.custom_op("sppnet::region_pyramid_pool_backward", mutates_args=(), device_types=("cpu", "cuda"))
def region_pyramid_pool_backward(
    gradient: Tensor,
    features: Tensor,
    windows: Tensor | None,
    pooled: Tensor,
    winners: Tensor,
    levels: Sequence[int],
    reduce: str,
) -> Tensor:
    """The gradient [N, C, H, W] of the features, from that of the pooled windows [R, M, C]."""
    if windows is None:
        windows = whole_windows(features)
    if features.is_cuda:
        from sppnet.ops import _triton

        return _triton.backward(gradient, features, windows, pooled, tuple(levels), reduce)
    from sppnet.ops import _numba

    if reduce == "max" and not winners.numel() and gradient.numel():  # a gradient nobody announced
        _, winners = _numba.forward(features, windows, levels, reduce, keep_winners=True)
    return _numba.backward(gradient, features.shape, windows, winners, levels, reduce)


@region_pyramid_pool_backward.register_fake
def _(gradient: Tensor, features: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, windows, ctx.levels, ctx.reduce, _ = inputs
    ctx.save_for_backward(features, windows, *output)
    ctx.set_materialize_grads(False)  # of winners: zeros of their size, for nothing


def _gradient(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    features, windows, pooled, winners = ctx.saved_tensors
    arguments = gradient, features, windows, pooled, winners, ctx.levels, ctx.reduce
    return region_pyramid_pool_backward(*arguments), None, None, None, None


region_pyramid_pool.register_autograd(_gradient, setup_context=_keep)
