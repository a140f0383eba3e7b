"""Which proposals a detector learns from, and what each should answer.

Foreground: overlap of at least ``foreground_iou`` with an object; background: between ``background_iou`` and that. What
lies below is left out: it teaches little. Difficult objects are not learned, and what overlaps one is not background.
Source: arXiv:1406.4729, section 4.1 (25 % foreground, [.5, 1] against [.1, .5)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sppnet.boxes import box_iou, encode_boxes
from sppnet.data.annotations import AnnotatedImage

DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)  # spread of box deltas among foreground windows: brings them to about 1 (1504.08083)


@dataclass(frozen=True)
class Candidates:
    """The windows of one image that training may draw."""

    boxes: Tensor  # [R, 4] pixels of the original image: foreground first, then background
    labels: Tensor  # [R] int64, 0 = background
    deltas: Tensor  # [R, 4] box deltas to the object, over DELTA_SCALE; 0 for background
    foreground: int  # how many of R are foreground
    image_labels: Tensor  # [K] float32: 1 for each class that is in the image


def find_candidates(
    image: AnnotatedImage, proposals: np.ndarray, classes: int, foreground_iou: float, background_iou: float
) -> Candidates:
    """Sort an image's proposals, and its objects themselves, into foreground and background.

    Args:
        image: the image and its objects.
        proposals: [R, 4] float32, pixels of the original image.
        classes: K.
        foreground_iou: at least this overlap with an object makes a window foreground.
        background_iou: at least this, and less than ``foreground_iou``, makes it background.

    Example:
        >>> from pathlib import Path
        >>> image = AnnotatedImage("1", Path("1.jpg"), (50, 100), np.array([[0, 0, 40, 40]], np.float32),
        ...                        np.array([2]), np.array([False]))
        >>> proposals = np.array([[0, 0, 40, 30], [20, 20, 60, 60], [80, 0, 90, 10]], np.float32)
        >>> find_candidates(image, proposals, 3, 0.5, 0.1).labels
        tensor([2, 2, 0])
    """
    easy = ~image.difficult
    objects, labels = torch.from_numpy(image.gt_boxes[easy]), torch.from_numpy(image.gt_labels[easy])
    boxes = torch.cat([objects, torch.from_numpy(proposals)])
    image_labels = torch.zeros(classes)
    image_labels[torch.from_numpy(image.gt_labels) - 1] = 1
    best, which = _best_overlap(boxes, objects)
    best_difficult, _ = _best_overlap(boxes, torch.from_numpy(image.gt_boxes[image.difficult]))

    foreground = (best >= foreground_iou).nonzero().flatten()
    other = (best < foreground_iou) & (best_difficult < foreground_iou)
    background = (other & (torch.maximum(best, best_difficult) >= background_iou)).nonzero().flatten()
    if not len(background):  # an image without objects, or filled by one: whatever is not the object will do
        background = other.nonzero().flatten()
    deltas = torch.zeros(len(foreground) + len(background), 4)
    matched = which[foreground]  # the object that each foreground window overlaps most
    deltas[: len(foreground)] = encode_boxes(boxes[foreground], objects[matched]) / deltas.new_tensor(DELTA_SCALE)
    chosen = torch.cat([foreground, background])
    window_labels = torch.cat([labels[matched], labels.new_zeros(len(background))])
    return Candidates(boxes[chosen], window_labels, deltas, len(foreground), image_labels)


def _best_overlap(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """For each box the largest overlap with an object, and which object; 0 and 0 where there are no objects."""
    if not len(objects):
        return torch.zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    best, which = box_iou(boxes, objects).max(1)
    return best, which


def draw(candidates: Candidates, count: int, foreground_share: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` candidates, at most ``foreground_share`` of them foreground; fewer where there are fewer.

    Example:
        >>> import torch
        >>> few = Candidates(torch.zeros(5, 4), torch.tensor([1, 1, 0, 0, 0]), torch.zeros(5, 4), 2, torch.zeros(1))
        >>> sorted(draw(few, 4, 0.25, np.random.default_rng(0)).tolist())[1:]
        [2, 3, 4]
    """
    background = len(candidates.labels) - candidates.foreground
    of_foreground = min(candidates.foreground, round(count * foreground_share))
    of_background = min(background, count - of_foreground)
    return np.concatenate(
        [
            rng.choice(candidates.foreground, of_foreground, replace=False),
            candidates.foreground + rng.choice(background, of_background, replace=False),
        ]
    )
