"""Which proposals a detector is trained on, and what each should answer.

Foreground: overlap of at least ``FOREGROUND_IOU`` with an object; background: between ``BACKGROUND_IOU`` and that. What
lies below is left out: it teaches little. Difficult objects are not trained on, and what overlaps one is not background.
Source: arXiv:1406.4729, section 4.1 (25 % foreground, [.5, 1] against [.1, .5)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.boxes import box_iou, encode_boxes, flip_boxes, flip_deltas
from sppnet.data.annotations import AnnotatedImage
from sppnet.models.heads import DELTA_SCALE

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True)
class Candidates:
    """Windows of one image, and what they should answer."""

    boxes: Tensor  # [R, 4] pixels of the image: foreground first, then background
    labels: Tensor  # [R] int64, 0 = background
    deltas: Tensor  # [R, 4] box deltas to the object, over DELTA_SCALE; 0 for background
    num_foreground: int  # of R
    image_labels: Tensor  # [K] float32: 1 for each class that is in the image


@dataclass(frozen=True)
class TrainingImage:
    """An image file, and the windows of it that training may draw; at least one."""

    path: Path
    candidates: Candidates
    objects: AnnotatedImage | None = None  # where the network proposes, while it is trained


def training_images(
    images: Sequence[AnnotatedImage], proposals: Sequence[np.ndarray], num_classes: int
) -> list[TrainingImage]:
    """The images, each with its proposals [R, 4], that have something to train on; see `find_candidates`."""
    candidates = [find_candidates(*each, num_classes) for each in zip(images, proposals, strict=True)]
    return [TrainingImage(i.path, found, i) for i, found in zip(images, candidates, strict=True) if len(found.labels)]


def find_candidates(
    image: AnnotatedImage, proposals: np.ndarray, num_classes: int, background_iou: float = BACKGROUND_IOU
) -> Candidates:
    """Sort an image's proposals, and its objects themselves, into foreground and background.

    Args:
        image: the image and its objects.
        proposals: [R, 4] float32, pixels of the image.
        num_classes: K.
        background_iou: least overlap of background with an object.

    Example:
        >>> image = AnnotatedImage("1", Path("1.jpg"), (50, 100), np.array([[0, 0, 40, 40]], np.float32),
        ...                        np.array([2]), np.array([False]))
        >>> proposals = np.array([[0, 0, 40, 30], [20, 20, 60, 60], [80, 0, 90, 10]], np.float32)
        >>> find_candidates(image, proposals, 3).labels
        tensor([2, 2, 0])
    """
    easy = ~image.difficult
    objects, labels = torch.from_numpy(image.gt_boxes[easy]), torch.from_numpy(image.gt_labels[easy])
    boxes = torch.cat([objects, torch.from_numpy(proposals)])
    image_labels = torch.zeros(num_classes)
    image_labels[torch.from_numpy(image.gt_labels) - 1] = 1
    best, which = F.pad(box_iou(boxes, objects), (0, 1)).max(1)  # where there are no objects, 0
    best_difficult = F.pad(box_iou(boxes, torch.from_numpy(image.gt_boxes[image.difficult])), (0, 1)).amax(1)

    foreground = (best >= FOREGROUND_IOU).nonzero().flatten()
    other = (best < FOREGROUND_IOU) & (best_difficult < FOREGROUND_IOU)
    background = (other & (torch.maximum(best, best_difficult) >= background_iou)).nonzero().flatten()
    if not len(background):  # an image without objects, or filled by one: whatever is not the object will do
        background = other.nonzero().flatten()
    deltas = torch.zeros(len(foreground) + len(background), 4)
    matched = which[foreground]  # the object that each foreground window overlaps most
    deltas[: len(foreground)] = encode_boxes(boxes[foreground], objects[matched]) / deltas.new_tensor(DELTA_SCALE)
    chosen = torch.cat([foreground, background])
    window_labels = torch.cat([labels[matched], labels.new_zeros(len(background))])
    return Candidates(boxes[chosen], window_labels, deltas, len(foreground), image_labels)


def draw(candidates: Candidates, count: int, foreground_share: float, rng: np.random.Generator) -> Candidates:
    """``count`` of the candidates, at most ``foreground_share`` of them foreground; fewer where there are fewer.

    Example:
        >>> few = Candidates(torch.zeros(5, 4), torch.tensor([1, 1, 0, 0, 0]), torch.zeros(5, 4), 2, torch.zeros(1))
        >>> draw(few, 4, 0.25, np.random.default_rng(0)).labels
        tensor([1, 0, 0, 0])
    """
    background = len(candidates.labels) - candidates.num_foreground
    of_foreground = min(candidates.num_foreground, round(count * foreground_share))
    of_background = min(background, count - of_foreground)
    foreground = rng.choice(candidates.num_foreground, of_foreground, replace=False)
    others = candidates.num_foreground + rng.choice(background, of_background, replace=False)
    chosen = np.concatenate([foreground, others])
    boxes, labels, deltas = (part[chosen] for part in (candidates.boxes, candidates.labels, candidates.deltas))
    return Candidates(boxes, labels, deltas, of_foreground, candidates.image_labels)


def flip(candidates: Candidates, width: int) -> Candidates:
    """The same windows in the flipped image, which is ``width`` pixels wide."""
    return replace(candidates, boxes=flip_boxes(candidates.boxes, width), deltas=flip_deltas(candidates.deltas))


def flip_objects(image: AnnotatedImage, width: int) -> AnnotatedImage:
    """The objects in the flipped image, which is ``width`` pixels wide."""
    return replace(image, gt_boxes=flip_boxes(torch.from_numpy(image.gt_boxes), width).numpy())


def image_at(position: int, count: int, seed: int) -> int:
    """Which of ``count`` images comes at a position of all that training shows: each once before any comes again.

    Example:
        >>> sorted(image_at(position, 3, seed=0) for position in (3, 4, 5))
        [0, 1, 2]
    """
    epoch, within = divmod(position, count)
    return int(np.random.default_rng([seed, 1, epoch]).permutation(count)[within])
