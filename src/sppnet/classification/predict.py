"""A photo in, the classes of the whole photo out: the map, pooled once as a single window."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image

from sppnet.data.images import read_image
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.results import Classification


def classify(source: str | os.PathLike[str] | Image.Image | np.ndarray, model: SPPNet) -> Classification:
    """Say what is in one image of any size.

    Args:
        source: path, PIL image, or [H, W, 3] uint8 array. EXIF rotation is applied to files and PIL images.
        model: any model, such as ``load("voc")``.

    Returns:
        `Classification`: a probability for every class. Those of a multi-label model are independent of one another;
        those of a single-label model add up to 1.

    Raises:
        UserError: no such file, or not an image.

    Source: arXiv:1406.4729, section 3.2 (the full image in one view).

    Example:
        >>> from skimage.data import chelsea
        >>> classify(chelsea(), sppnet.load("voc")).label
        'cat'
    """
    prepared, _ = model.prepare(read_image(source))
    with torch.inference_mode(), autocast(model.device):
        logits = model(prepared.contiguous(memory_format=torch.channels_last))[0].float()
    multi_label = model.architecture.multi_label
    scores = logits.sigmoid() if multi_label else logits.softmax(0)
    return Classification(scores.cpu().numpy(), model.architecture.names, multi_label)
