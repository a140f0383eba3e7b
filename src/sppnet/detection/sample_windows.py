"""Pooled windows of some photos: what `sppnet.models.compress` needs to know of what goes through a model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sppnet.data.images import read_image
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.proposals.compute import propose

WINDOWS = 6000  # in all; each [M, C] in half precision


def sample_windows(model: SPPNet, photos: Sequence[Path], *, seed: int = 0, progress: Progress = no_progress) -> Tensor:
    """Pool some of the windows that a detector would look at in these photos; of a classifier, the whole images.

    Args:
        model: proposes, computes the feature maps and pools.
        photos: files; some dozens do for a detector, some hundreds for a classifier.
        seed: of the choice among a photo's windows.
        progress: called with "photos", photos done, all.

    Returns:
        [R, M, C] float16, R at most 6000, on the CPU.

    Raises:
        ImageError: a file that is not an image.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (90, 60)).save("photo.png")
        >>> sample_windows(sppnet.load("voc"), [Path("photo.png")])[0].shape
        torch.Size([14, 384])
    """
    each = max(1, WINDOWS // max(1, len(photos)))
    rng = np.random.default_rng(seed)
    parts = []
    for done, photo in enumerate(photos, start=1):
        image = read_image(photo)
        maps = compute_feature_maps(model, image)
        windows = maps.whole_window()
        if model.architecture.detects:
            boxes = propose(image, model.detection.proposals)
            windows, _ = maps.windows(model, torch.from_numpy(boxes[rng.permutation(len(boxes))[:each]]))
        with torch.inference_mode():
            parts.append(maps.pool(model, windows).half().cpu())
        progress("photos", done, len(photos))
    return torch.cat(parts)
