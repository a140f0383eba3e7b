"""Which numbers to compute in: bfloat16 where the processor is fast at it, float32 elsewhere; half precision to store.

`fast_backward` mends what bfloat16 is slow at. PyTorch's CPU library has a fast kernel for the gradient of the input of strided
depthwise convolutions in float32 and, as it seems, none in bfloat16: 37 ms against 3.6 ms for 96 channels of 240 x 320 (torch 2.15,
one core). MobileNets have one such layer at the start of every stage, on the largest maps; together they took more than a third of
a training step. There that one gradient is computed in float32, from the same bfloat16 numbers, and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from sppnet.errors import SettingsError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one. A `SettingsError` where it is not there.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available.get(name.partition(":")[0], False):
        raise SettingsError(f"device {name!r} is not available here; use 'cpu'")
    return torch.device(name)


def autocast(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """A context in which matrix products and convolutions run in bfloat16, if ``device`` is fast at that.

    CPUs with AVX-512-BF16 or AMX gain two to four times; on others, and on Apple's GPUs, it changes nothing.

    Example:
        >>> with autocast(torch.device("cpu"), enabled=False):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and precision_of(device) == "bfloat16")


def precision_of(device: torch.device) -> str:
    """What is computed in within `autocast` of a device: ``"bfloat16"`` or ``"float32"``.

    Example:
        >>> precision_of(torch.device("mps"))
        'float32'
    """
    if device.type == "cpu":
        # PyTorch's public query answers yes where bfloat16 is emulated, and slow; these two do not.
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if fast else "float32"


def to_half(values: Tensor) -> Tensor:
    """Values in half precision, those beyond its range at its limit.

    Example:
        >>> to_half(torch.tensor([0.5, 1e9]))
        tensor([5.0000e-01, 6.5504e+04], dtype=torch.float16)
    """
    limit = torch.finfo(torch.float16).max
    return values.float().clamp(-limit, limit).half()


@contextmanager
def fast_backward(backbone: nn.Module) -> Iterator[None]:
    """Within it, strided depthwise convolutions of ``backbone`` that run in bfloat16 on the CPU have the fast gradient.

    Forward passes give the very same bits as without. Only what runs within counts; the way back may come later.

    Args:
        backbone: any module. Left as it was.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(32, 32, 3, stride=2, groups=32))
        >>> images = torch.rand(1, 32, 8, 8, requires_grad=True)
        >>> with fast_backward(net), torch.autocast("cpu", torch.bfloat16):
        ...     net(images).sum().backward()
        >>> images.grad.shape
        torch.Size([1, 32, 8, 8])
    """
    convolutions = [each for each in backbone.modules() if _is_slow(each) and "forward" not in vars(each)]
    for module in convolutions:
        vars(module)["forward"] = partial(_forward, module)
    try:
        yield
    finally:
        for module in convolutions:
            del vars(module)["forward"]


def _is_slow(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d:  # nor anything derived from it, which may do more
        return False
    depthwise, strided = module.groups == module.in_channels > 1, max(module.stride) > 1
    return depthwise and strided and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _forward(module: Any, features: Tensor) -> Tensor:
    kind = features.device.type
    if kind != "cpu" or not features.requires_grad or not torch.is_autocast_enabled(kind):
        return type(module).forward(module, features)
    dtype = torch.get_autocast_dtype(kind)
    bias = None if module.bias is None else module.bias.to(dtype)
    settings = (module.stride, module.padding, module.dilation, module.groups)
    return cast(Tensor, _Convolution.apply(features.to(dtype), module.weight.to(dtype), bias, settings))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.settings = settings
        return F.conv2d(features, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        to_features, to_weight, to_bias, _ = ctx.needs_input_grad
        found: list[Tensor | None] = [None, None, None]
        if to_features:
            found[0] = conv2d_input(features.shape, weight.float(), gradient.float(), *ctx.settings).to(features.dtype)
        if to_weight:
            found[1] = conv2d_weight(features, weight.shape, gradient, *ctx.settings)
        if to_bias:
            found[2] = gradient.sum((0, 2, 3))
        return *found, None
