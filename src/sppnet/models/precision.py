"""Which numbers to compute in: bfloat16 where the processor is fast at it, float32 elsewhere; half precision to store.

`fast_backward` mends what bfloat16 is slow at. PyTorch's CPU library has fast kernels for the gradients of depthwise convolutions in
float32 and, as it seems, none in bfloat16: 65 ms against 18 ms for 1152 channels of 30 x 40, 5 x 5, dilated (torch 2.15, two cores).
MobileNets and EfficientNets have one in every block; together they took most of a training step. There the gradients are computed
in float32, from the same bfloat16 numbers, and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Within it, depthwise convolutions of ``backbone`` that run in bfloat16 on the CPU have the fast gradients.

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
    convolutions = [each for each in backbone.modules() if _is_depthwise(each) and "forward" not in vars(each)]
    for module in convolutions:
        vars(module)["forward"] = partial(_forward, module)
    try:
        yield
    finally:
        for module in convolutions:
            del vars(module)["forward"]


def _is_depthwise(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d:  # nor anything derived from it, which may do more
        return False
    return (
        module.groups == module.in_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


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
        stride, padding, dilation, groups = ctx.settings
        to_features, to_weight, to_bias, _ = ctx.needs_input_grad
        order, apart = torch.channels_last, dilation[0]  # in another order it takes three times as long
        given, cells = (values.float().contiguous(memory_format=order) for values in (features, gradient))
        # Dilated by n it is n * n convolutions that are not, each of every n-th cell: these have the faster kernels.
        splits = apart > 1 and stride == (1, 1) and padding == tuple(apart * (side // 2) for side in weight.shape[2:])
        if splits:
            given, cells, dilation = _split(given, apart), _split(cells, apart), (1, 1)
            padding = tuple(side // apart for side in padding)
        found: list[Tensor | None] = list(
            torch.ops.aten.convolution_backward(
                cells, given, weight.float(), None, stride, padding, dilation, False, (0, 0), groups,
                (to_features, to_weight, False),
            )
        )  # fmt: skip
        if splits and found[0] is not None:
            found[0] = _joined(found[0], apart, features.shape)
        found[2] = gradient.sum((0, 2, 3)) if to_bias else None
        to = (features.dtype, weight.dtype, weight.dtype)
        return *(value if value is None else value.to(dtype) for value, dtype in zip(found, to, strict=True)), None


def _split(features: Tensor, apart: int) -> Tensor:
    """[N, C, h, w] -> [apart * apart * N, C, h / apart, w / apart], rounded up: of every so many cells one."""
    height, width = features.shape[2:]
    padded = F.pad(features, (0, -width % apart, 0, -height % apart))
    parts = padded.unflatten(3, (-1, apart)).unflatten(2, (-1, apart)).permute(3, 5, 0, 1, 2, 4)
    return parts.flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _joined(parts: Tensor, apart: int, shape: Sequence[int]) -> Tensor:
    """The way back of `_split`."""
    cells = parts.unflatten(0, (apart, apart, -1)).permute(2, 3, 4, 0, 5, 1)
    return cells.flatten(4, 5).flatten(2, 3)[..., : shape[2], : shape[3]]
