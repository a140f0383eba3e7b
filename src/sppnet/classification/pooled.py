"""Whole images through a backbone that stays as it is: each becomes one pooled vector, computed once.

images [3, h_i, w_i] of any sizes -> features of a mixed batch [N, C, h', w'] -> pooled [N, M, C] in half precision. What
training a head on a frozen backbone, and comparing ways of feeding it, start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sppnet.errors import UserError
from sppnet.models.mixed_batch import MixedBatch, mixed_features, own_windows
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet

BATCH = 16  # images through the backbone together: more gains little, even on a GPU
CALIBRATION_IMAGES = 32  # whose features set the scale


def pool_images(model: SPPNet, images: Sequence[Tensor]) -> Tensor:
    """Pool the maps of images, each as if alone.

    Args:
        model: whose backbone and pyramid to use; in evaluation mode.
        images: [3, h, w] each, normalised, of any sizes, on the model's device: `SPPNet.prepare` gives [1, 3, h, w].

    Returns:
        [N, M, C] float16 on the CPU, in the order of ``images``.

    Example:
        >>> model = sppnet.load("voc")
        >>> pool_images(model, [torch.zeros(3, 64, 96), torch.zeros(3, 96, 64)]).shape
        torch.Size([2, 14, 384])
    """
    channels_last = [image[None].contiguous(memory_format=torch.channels_last)[0] for image in images]
    result: Tensor | None = None
    limit = torch.finfo(torch.float16).max
    with torch.inference_mode(), autocast(model.device):
        for part in _batches(model, channels_last):
            features, cells = mixed_features(model.backbone, [channels_last[place] for place in part])
            pooled = model.pool(features * model.feature_scale, own_windows(cells, features.device))
            if result is None:
                result = torch.empty(len(images), *pooled.shape[1:], dtype=torch.float16)
            result[part] = pooled.float().clamp(-limit, limit).half().cpu()
    if result is None:
        raise ValueError("pool_images: expected at least one image")
    return result


def calibrate(model: SPPNet, images: Sequence[np.ndarray]) -> None:
    """Scale the features so that their mean square over these images is about 1, if they were never scaled.

    Args:
        model: its ``feature_scale`` is set.
        images: [H, W, 3] uint8 each.
    """
    if float(model.feature_scale) != 1:
        return
    squares = []
    for image in images:
        prepared, _ = model.prepare(image)
        with torch.inference_mode(), autocast(model.device):
            features = model.features(prepared.contiguous(memory_format=torch.channels_last))
        squares.append(float(features.float().square().mean()))
    model.calibrate(float(np.mean(squares)))


def spread(count: int, wanted: int = CALIBRATION_IMAGES) -> list[int]:
    """Up to ``wanted`` of ``count`` places, evenly spread.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, min(wanted, count))})


def _batches(model: SPPNet, images: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of images that go together: of like sizes; of one size, where the backbone cannot mix them."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    order = sorted(range(len(images)), key=lambda place: (sizes[place][0] / sizes[place][1], sizes[place]))
    mixes = len(set(sizes)) > 1 and _can_mix(model)
    part: list[int] = []
    for place in order:
        if part and (len(part) == BATCH or not (mixes or sizes[place] == sizes[part[0]])):
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def _can_mix(model: SPPNet) -> bool:
    try:
        MixedBatch(model.backbone)
    except UserError:
        return False
    return True
