"""An image's windows as the last stages of the paper's detector see them: what each holds, and how to describe it.

`sppnet.detection.svm` and `sppnet.detection.box_regression` learn from these. Both ask for few of an image's windows, so
features are computed when asked for, from the cached map: nothing but maps lies on disk, and no image's features stay in
memory. An image's objects come first among its windows, then its proposals:

boxes [R, 4], labels [R], overlaps [R, K]; rows of them [n] -> features [n, D].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from sppnet.boxes import box_iou
from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.feature_maps import FeatureMaps
from sppnet.models.precision import autocast
from sppnet.models.sppnet import WINDOW_CHUNK, SPPNet

SAMPLE_IMAGES, SAMPLE_WINDOWS = 200, 200  # from as many images, as many windows each: the release's sample for the norm


@dataclass(frozen=True, eq=False)
class ImageWindows:
    """The windows of one image.

    Args:
        boxes: [R, 4] float32, pixels of the original image.
        labels: [R] int64: 1..K where the window is an object's own box, 0 elsewhere.
        overlaps: [R, K] float32: the largest IoU with an object of each class.
        describe: rows [n] int64 -> features [n, D], floating point, on any device.

    Raises:
        ValueError: shapes that do not fit each other.

    Example:
        >>> vectors = torch.eye(2)
        >>> windows = ImageWindows(torch.tensor([[0., 0, 9, 9], [3, 0, 9, 9]]), torch.tensor([1, 0]),
        ...                        torch.tensor([[1.], [.67]]), lambda rows: vectors[rows])
        >>> windows.features(torch.tensor([1]))
        tensor([[0., 1.]])
    """

    boxes: Tensor
    labels: Tensor
    overlaps: Tensor
    describe: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        count = len(self.labels)
        shapes = [list(part.shape) for part in (self.boxes, self.labels, self.overlaps)]
        if shapes[:2] != [[count, 4], [count]] or self.overlaps.ndim != 2 or len(self.overlaps) != count:
            raise ValueError(f"expected boxes [R, 4], labels [R] and overlaps [R, K], got shapes {shapes}")

    @classmethod
    def of(
        cls, image: AnnotatedImage, proposals: np.ndarray, classes: int, describe: Callable[[Tensor], Tensor]
    ) -> ImageWindows:
        """The objects of an image, then its proposals.

        Difficult objects are no examples to learn from, but what overlaps one is not background either: they count in
        ``overlaps`` and are not among the windows.

        Args:
            image: the image and its objects.
            proposals: [R, 4] float32, pixels of the original image.
            classes: K.
            describe: boxes [n, 4] -> features [n, D], such as `describe_boxes` with a map that is read in it.
        """
        easy = ~image.difficult
        boxes = torch.from_numpy(np.concatenate([image.gt_boxes[easy], proposals]).astype(np.float32))
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        labels[: int(easy.sum())] = torch.from_numpy(image.gt_labels[easy])
        overlaps = torch.zeros(len(boxes), classes)
        iou = box_iou(boxes, torch.from_numpy(image.gt_boxes))
        for object_, label in enumerate(image.gt_labels.tolist()):
            overlaps[:, label - 1] = overlaps[:, label - 1].maximum(iou[:, object_])
        return cls(boxes, labels, overlaps, lambda rows: describe(boxes[rows]))

    def features(self, rows: Tensor) -> Tensor:
        """rows [n] int64 -> features [n, D] on the CPU, in the precision that they were computed in.

        Raises:
            ValueError: ``describe`` returned anything but one vector of finite numbers for each row.
        """
        features = self.describe(rows).detach().cpu()
        if features.ndim != 2 or len(features) != len(rows) or not features.is_floating_point():
            raise ValueError(
                f"expected floating-point features [{len(rows)}, D] of {len(rows)} windows, "
                f"got {features.dtype} of shape {list(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError("features hold infinities or NaN: describe the windows in float32, or mend the map")
        return features


class WindowsOfImages(Sequence[ImageWindows]):
    """The windows of many images, made when they are asked for: what SVMs and box regressors learn from.

    Args:
        images: the images and their objects.
    """

    def __init__(self, images: Sequence[AnnotatedImage]) -> None:
        self.images = images

    @abstractmethod
    def windows_of(self, index: int) -> ImageWindows:
        """The windows of one image, 0 to N - 1."""

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> ImageWindows: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageWindows]: ...

    def __getitem__(self, index: int | slice) -> ImageWindows | Sequence[ImageWindows]:
        places = range(len(self))[index]
        return self.windows_of(places) if isinstance(places, int) else [self.windows_of(place) for place in places]


def describe_boxes(model: SPPNet, maps: FeatureMaps, boxes: Tensor, *, pooled: bool = False) -> Tensor:
    """Windows of one image as vectors, in half precision.

    Boxes that fall on the same cells are described once.

    Args:
        model: gives the geometry, the pyramid and the fully connected layers.
        maps: of the image, on the model's device.
        boxes: [R, 4] in pixels of the original image.
        pooled: the pooled window itself, D = M * C, and not what the fully connected layers make of it.

    Returns:
        [R, D] float16 on the device of the maps.
    """
    windows, _ = maps.windows(model, boxes)
    unique, which = windows.unique(dim=0, return_inverse=True)
    limit = torch.finfo(torch.float16).max
    parts = []
    with torch.inference_mode(), autocast(model.device):
        for part in unique.split(WINDOW_CHUNK):
            vectors = maps.pool(model, part)
            vectors = vectors.flatten(1) if pooled else model.fully_connected(vectors)
            parts.append(vectors.float().clamp(-limit, limit).half())
    described = torch.cat(parts)
    return described[which.to(described.device)]


def feature_scale(images: Sequence[ImageWindows], norm: float, seed: int) -> float:
    """The factor that brings features to a mean length of ``norm``, from a sample of windows.

    Cost and ridge are meant for vectors of one length, whatever the layer that they come from: with it, the paper's values
    serve any network.

    Raises:
        ValueError: no windows, or features that are all 0.

    Example:
        >>> vectors = torch.tensor([[3., 4.]])
        >>> image = ImageWindows(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1),
        ...                      lambda rows: vectors[rows])
        >>> feature_scale([image], norm=20, seed=0)
        4.0
    """
    rng = np.random.default_rng([seed, 0])
    total, count = 0.0, 0
    for index in rng.permutation(len(images))[:SAMPLE_IMAGES].tolist():
        image = images[index]
        rows = torch.from_numpy(rng.permutation(len(image.labels))[:SAMPLE_WINDOWS])
        if len(rows):
            total += float(image.features(rows).double().norm(dim=1).sum())
            count += len(rows)
    if total == 0:
        raise ValueError(f"no length to scale to {norm:g}: {count} windows in {len(images)} images, features all 0")
    return float(f"{norm * count / total:.4g}")  # rounded, so that another machine gets the very same
