"""A photo in, the classes of the whole photo out; or its embedding: the feature map, pooled once as a single window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.classification.views import Views, view_scores, views_for
from sppnet.data.images import read_ahead, read_image
from sppnet.models.sppnet import SPPNet
from sppnet.ops.bins import whole_windows
from sppnet.results import Classification


def classify(source: Any, model: SPPNet, *, views: Views | str = "single") -> Classification:
    """Say what is in one image of any size.

    Args:
        source: what `sppnet.data.images.read_image` takes: a path, bytes, an open file, a PIL image, an array, a tensor. EXIF rotation
            is applied.
        model: any model, such as ``load("voc")``.
        views: how the image is looked at; by name, it is that `sppnet.classification.views.view_set` with windows as large as the
            model's own short side, so that things are seen at about the size that they had in training.

    Returns:
        `Classification`: for every class a probability, the mean over all views. Those of a multi-label model are independent of
        one another; those of a single-label model add up to 1.

    Raises:
        ImageError: no such file, or not an image.
        SettingsError: no views of that name.

    Source: arXiv:1406.4729, sections 3.1 (several views) and 3.2 (the full image in one view).

    Example:
        >>> from skimage.data import chelsea
        >>> classify(chelsea(), sppnet.load("voc")).label
        'cat'
    """
    scores = view_scores(read_image(source), model, views_for(model, views)).mean(0)
    return Classification(scores.numpy(), model.class_names, model.architecture.multi_label)


def classify_each(sources: Iterable[Any], model: SPPNet, *, views: Views | str = "single") -> Iterator[Classification]:
    """`classify` for many images, in order, in bounded memory: threads decode a few ahead, whatever the iterator's length."""
    for image in read_ahead(sources, read_image):
        yield classify(image, model, views=views)


def classify_map(model: SPPNet, features: Tensor) -> Classification:
    """`classify` where the feature map [1, C, h, w] of the image is computed already, because something else needs it too.

    Example:
        >>> model = sppnet.load("voc")
        >>> prepared, _ = model.preprocess(np.zeros((60, 80, 3), np.uint8))
        >>> classify_map(model, model.features(prepared)).scores.shape
        (20,)
    """
    with model.inference():
        pooled = model.pool(features, whole_windows(features))
        logits = model.image_classifier(model.fully_connected(pooled))[0]
        scores = model.image_classifier.probabilities(logits)
    return Classification(scores.cpu().numpy(), model.class_names, model.architecture.multi_label)


def embed(source: Any, model: SPPNet, boxes: Any = None) -> np.ndarray:
    """Vectors of one length for images of any size, or for boxes of one image: what stands before the last layer.

    Args:
        source: one image, as `classify` takes it; or a list or an iterator of them, which are read a few at a time.
        model: any model.
        boxes: [R, 4] in pixels of the one image; None: the whole of each.

    Returns:
        [N, D] float32, a row for each image; or [R, D], a row for each box.

    Raises:
        ImageError: no such file, or not an image.
        ValueError: boxes of another shape, or boxes of several images.

    Example:
        >>> model, photo = sppnet.load("voc"), np.zeros((60, 80, 3), np.uint8)
        >>> embed([photo, photo[:, :30]], model).shape, embed(photo, model, boxes=[[0, 0, 40, 30]]).shape
        ((2, 512), (1, 512))
    """
    one = hasattr(source, "read") or not isinstance(source, (list, tuple, Iterator))
    if boxes is not None:
        boxes = np.asarray(boxes, np.float32)
        if not one or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"expected one image and boxes [R, 4] of it in pixels: got boxes {list(boxes.shape)}")
        return _embed(model, read_image(source), torch.from_numpy(boxes))
    rows = [_embed(model, image)[0] for image in read_ahead([source] if one else source, read_image)]
    return np.stack(rows) if rows else np.zeros((0, model.fully_connected.width), np.float32)


def _embed(model: SPPNet, image: np.ndarray, boxes: Tensor | None = None) -> np.ndarray:
    prepared, scale = model.preprocess(image)
    with model.inference():
        features = model.features(prepared.to(model.device).contiguous(memory_format=torch.channels_last))
        if boxes is None:
            windows = whole_windows(features)
        else:
            windows, _ = model.windows(boxes, (features.shape[2], features.shape[3]), scale)
            windows = F.pad(windows, (1, 0)).to(features.device)
        embedded: np.ndarray = model.fully_connected(model.pool(features, windows)).float().cpu().numpy()
    return embedded
