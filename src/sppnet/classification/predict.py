"""A photo in, the classes of the whole photo out; or its embedding: the feature map, pooled once as a single window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppnet.data.images import read_image
from sppnet.models.sppnet import SPPNet
from sppnet.ops.bins import whole_windows
from sppnet.results import Classification


def classify(source: Any, model: SPPNet) -> Classification:
    """Say what is in one image of any size.

    Args:
        source: what `sppnet.data.images.read_image` takes: a path, bytes, an open file, a PIL image, an array, a tensor. EXIF rotation
            is applied.
        model: any model, such as ``load("voc")``.

    Returns:
        `Classification`: a probability for every class. Those of a multi-label model are independent of one another;
        those of a single-label model add up to 1.

    Raises:
        ImageError: no such file, or not an image.

    Source: arXiv:1406.4729, section 3.2 (the full image in one view).

    Example:
        >>> from skimage.data import chelsea
        >>> classify(chelsea(), sppnet.load("voc")).label
        'cat'
    """
    return classify_map(model, _features(model, read_image(source)))


def classify_each(sources: Iterable[Any], model: SPPNet) -> Iterator[Classification]:
    """`classify` for many images, in order, one at a time."""
    for source in sources:
        yield classify(source, model)


def classify_map(model: SPPNet, features: Tensor) -> Classification:
    """`classify` where the feature map [1, C, h, w] of the image is computed already, because something else needs it too.

    Example:
        >>> model = sppnet.load("voc")
        >>> prepared, _ = model.preprocess(np.zeros((60, 80, 3), np.uint8))
        >>> classify_map(model, model.features(prepared)).scores.shape
        (20,)
    """
    with model.inference():
        logits = model.image_classifier(_head_features(model, features))[0]
        scores = model.image_classifier.probabilities(logits)
    return Classification(scores.cpu().numpy(), model.class_names, model.architecture.multi_label)


def embed(source: Any, model: SPPNet, boxes: Any = None) -> np.ndarray:
    """Vectors of one length for images of any size, or for boxes of one image: what stands before the last layer.

    Args:
        source: one image, as `classify` takes it; or a list or an iterator of them.
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
    if boxes is None:
        rows = [_embedding(model, each) for each in ([source] if one else source)]
        return np.stack(rows) if rows else np.zeros((0, model.fully_connected.width), np.float32)
    boxes = np.asarray(boxes, np.float32)
    if not one or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected one image and boxes [R, 4] of it in pixels: got boxes {list(boxes.shape)}")
    image = read_image(source)
    prepared, scale = model.preprocess(image)
    with model.inference():
        features = model.features(prepared.to(model.device).contiguous(memory_format=torch.channels_last))
        size = (features.shape[2], features.shape[3])
        windows, _ = model.windows(torch.from_numpy(boxes), size, scale)
        pooled = model.pool(features, torch.nn.functional.pad(windows, (1, 0)).to(features.device))
        embedded: np.ndarray = model.fully_connected(pooled).float().cpu().numpy()
    return embedded


def _embedding(model: SPPNet, source: Any) -> np.ndarray:
    features = _features(model, read_image(source))
    with model.inference():
        embedded: np.ndarray = _head_features(model, features)[0].float().cpu().numpy()
    return embedded


def _features(model: SPPNet, image: np.ndarray) -> Tensor:
    prepared, _ = model.preprocess(image)
    with model.inference():
        return model.features(prepared.to(model.device).contiguous(memory_format=torch.channels_last))


def _head_features(model: SPPNet, features: Tensor) -> Tensor:
    return model.fully_connected(model.pool(features, whole_windows(features)))
