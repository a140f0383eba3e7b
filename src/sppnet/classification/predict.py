"""A photo in, the classes of the whole photo out: the map, pooled once as a single window."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.data.images import read_image
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.ops.windows import whole_windows
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
        features = model.features(prepared.contiguous(memory_format=torch.channels_last))
    return classify_map(model, features)


def classify_map(model: SPPNet, features: Tensor) -> Classification:
    """`classify` where the map is at hand, because something else needs it too.

    Args:
        model: any model.
        features: [1, C, h, w], of the whole image, in any precision.

    Example:
        >>> model = sppnet.load("voc")
        >>> prepared, _ = model.prepare(np.zeros((60, 80, 3), np.uint8))
        >>> classify_map(model, model.features(prepared)).scores.shape
        (20,)
    """
    with torch.inference_mode(), autocast(model.device):
        pooled = model.pool(features, whole_windows(features))
        logits = model.image_logits(model.describe(pooled))[0].float()
    multi_label = model.architecture.multi_label
    scores = logits.sigmoid() if multi_label else logits.softmax(0)
    return Classification(scores.cpu().numpy(), model.architecture.names, multi_label)
