"""Which numbers to compute in: bfloat16 where the processor is fast at it, float32 elsewhere."""

from __future__ import annotations

import torch


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
