"""The windows of many images, as linear SVMs and box regression learn from them: what each holds, and its head features on demand.

Both look at few of an image's windows closely, so head features are computed when asked for, from the image's cached feature maps:
nothing but maps lies on disk, and no image's windows stay in memory. An image's objects come first among its windows, then its
proposals:

boxes [R, 4], labels [R], overlaps [R, K]; rows of them [n] -> head features [n, D].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sppnet.boxes import box_iou
from sppnet.cache import Part, fingerprint, read_tensors, write_tensors
from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.errors import UserError

# Mean length that head features are scaled to: the release's, which costs and ridge penalties are meant for.
FEATURE_NORM = 20.0
SAMPLE_IMAGES, SAMPLE_WINDOWS = 200, 200  # from as many images, as many windows each: the release's sample for the norm


@dataclass(frozen=True, eq=False)
class ImageWindows:
    """The windows of one image.

    Args:
        boxes: [R, 4] float32, pixels of the original image.
        labels: [R] int64: 1..K where the window is an object's own box, 0 elsewhere.
        overlaps: [R, K] float32: the largest IoU with an object of each class.
        embed: rows [n] int64 -> head features [n, D], floating point, on any device.

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
    embed: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, image: AnnotatedImage, proposals: np.ndarray, num_classes: int, embed: Callable[[Tensor], Tensor]
    ) -> ImageWindows:
        """The objects of an image, then its proposals.

        Difficult objects are no examples to learn from, but what overlaps one is not background either: they count in
        ``overlaps`` and are not among the windows.

        Args:
            image: the image and its objects.
            proposals: [R, 4] float32, pixels of the original image.
            num_classes: K.
            embed: boxes [n, 4] -> head features [n, D], such as `FeatureMaps.embed` of maps that are read in it.
        """
        easy = ~image.difficult
        boxes = torch.from_numpy(np.concatenate([image.gt_boxes[easy], proposals]).astype(np.float32))
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        labels[: int(easy.sum())] = torch.from_numpy(image.gt_labels[easy])
        overlaps = torch.zeros(len(boxes), num_classes)
        iou = box_iou(boxes, torch.from_numpy(image.gt_boxes))
        for index, label in enumerate(image.gt_labels.tolist()):
            overlaps[:, label - 1] = overlaps[:, label - 1].maximum(iou[:, index])
        return cls(boxes, labels, overlaps, lambda rows: embed(boxes[rows]))

    def features(self, rows: Tensor) -> Tensor:
        """rows [n] int64 -> head features [n, D] on the CPU, in the precision that they were computed in.

        Raises:
            ValueError: they are not finite.
        """
        features = self.embed(rows).detach().cpu()
        if not features.isfinite().all():
            raise ValueError("features hold infinities or NaN: the backbone's weights are damaged, or its maps")
        return features


class ManyWindows(Protocol):
    """What SVMs and box regression learn from: a list of `ImageWindows`, or anything that makes them when it is asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> ImageWindows: ...


class WindowsOfImages:
    """The windows of images whose feature maps are cached; an image's are made when its turn comes.

    Args:
        cache: of the feature maps of the model that embeds the windows.
        images: the images and their objects.
        proposals: [R, 4] of each.
        label: this class alone, 1..K of the images' labels, which becomes 1; 0: all of the model's.
    """

    def __init__(
        self, cache: FeatureMapCache, images: Sequence[AnnotatedImage], proposals: Sequence[np.ndarray], label: int = 0
    ) -> None:
        self.model, self.cache, self.images, self.proposals, self.label = cache.model, cache, images, proposals, label
        self.num_classes = 1 if label else len(cache.model.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageWindows:
        image = self.images[index]
        if self.label:
            own = image.gt_labels == self.label
            ones = np.ones(int(own.sum()), np.int64)
            image = replace(image, gt_boxes=image.gt_boxes[own], gt_labels=ones, difficult=image.difficult[own])

        def embed(boxes: Tensor) -> Tensor:
            return self.cache.read(image.path).to(self.model.device).embed(self.model, boxes)

        return ImageWindows.of(image, self.proposals[index], self.num_classes, embed)

    @cached_property
    def fingerprint(self) -> str:
        """Names all that the windows come from: objects, proposals, maps, and the layers that embed them."""
        architecture = self.model.architecture
        fields = {"num_classes": self.num_classes, "label": self.label, "levels": architecture.levels}
        parts: list[Part] = [json.dumps({**fields, "unit_length": architecture.unit_length}, sort_keys=True)]
        parts.append(self.model.fully_connected.state_dict())
        for image, proposals in zip(self.images, self.proposals, strict=True):
            maps = self.cache.path(image.path)
            parts += (f"{maps.parent.name}/{maps.name}", proposals, image.gt_boxes, image.gt_labels, image.difficult)
        return fingerprint(parts, size=8)


def feature_scale(images: ManyWindows, seed: int = 0) -> float:
    """The factor that brings head features to a mean length of `FEATURE_NORM`, from a sample of windows.

    Cost and ridge penalty are meant for vectors of one length, whatever the layer that they come from: with it, the paper's values
    serve any network.

    Raises:
        ValueError: no windows, or features that are all 0.

    Example:
        >>> vectors = torch.tensor([[3., 4.]])
        >>> image = ImageWindows(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1),
        ...                      lambda rows: vectors[rows])
        >>> feature_scale([image])
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
        raise ValueError(f"no length to scale to {FEATURE_NORM:g}: the features of {count} windows are all 0")
    return float(np.float32(f"{FEATURE_NORM * count / total:.4g}"))  # rounded: another machine gets the very same


def write_state(path: Path, told: Mapping[str, Any], tensors: Mapping[str, Tensor], **reached: float) -> None:
    """Write what a training has reached, or nothing; ``told`` says which training, and its settings."""
    numbers = {name: str(value) for name, value in reached.items()}
    write_tensors(path, tensors, {"identity": json.dumps(told), **numbers})


def read_state(path: Path | None, told: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `write_state` wrote; None where there is nothing to go on from, a UserError where it is of another training."""
    stored = None if path is None else read_tensors(path)
    if stored is not None and stored[1].get("identity") != json.dumps(told):
        raise UserError(f"{path} is the state of another training: delete it, or name another file")
    return stored
