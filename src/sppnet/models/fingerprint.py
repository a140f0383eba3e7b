"""A short name for what a result comes from: equal for equal weights, settings and data, and else another.

What is kept on disk is found again by it, and only for what it was made from: maps and features by the weights of their
backbone, checkpoints by all that a training starts from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

Part = str | np.ndarray | Tensor | Mapping[str, Tensor]


def fingerprint(parts: Iterable[Part], size: int) -> str:
    """Name text, arrays and weights by their content.

    Args:
        parts: text, such as the ``repr`` of settings; values, whose shape and dtype do not count; and weights, as a
            module's ``state_dict()`` gives them, whose names count and whose order does not. Tensors on any device. They
            follow each other with nothing between, and are looked at one after the other, so a generator needs to hold one.
        size: of the name, in bytes, 1 to 64.

    Returns:
        Two hexadecimal digits for each byte (BLAKE2b).

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> name = fingerprint(["learning rate 0.1", layer.state_dict()], size=6)
        >>> len(name), name == fingerprint(["learning rate 0.2", layer.state_dict()], size=6)
        (12, False)
    """
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode("utf-8", "surrogatepass"))  # a file's name may hold bytes that are no text
        elif isinstance(part, np.ndarray):
            digest.update(part.tobytes())
        elif isinstance(part, Tensor):
            digest.update(_bytes(part))
        else:
            for name, value in sorted(part.items()):
                digest.update(name.encode())
                digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    """In row order, whatever the order in memory."""
    flat = values.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data  # NumPy has no bfloat16
