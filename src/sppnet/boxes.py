"""The one box convention, and what is computed with it.

A box is (x0, y0, x1, y1) in continuous pixels of the original image, half-open: it covers x0 <= x < x1, so its width is
x1 - x0 and the whole of an image of H x W pixels is (0, 0, W, H). Readers of data sets convert to this on reading.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

LARGEST_LOG_RATIO = math.log(1000 / 16)  # a decoded side grows at most 62-fold, so that exp never overflows


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes1: [A, 4] in pixels, xyxy.
        boxes2: [B, 4] in the same pixels.

    Returns:
        [A, B] in 0..1; 0 where either box has no area.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2], [5, 5, 6, 6]]))
        tensor([[0.3333, 0.0000]])
    """
    areas1, areas2 = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes1, boxes2))
    corners = boxes1[:, None, 2:].minimum(boxes2[:, 2:]) - boxes1[:, None, :2].maximum(boxes2[:, :2])
    common = corners.clamp(min=0).prod(2)
    return torch.nan_to_num(common / (areas1[:, None] + areas2 - common), nan=0.0)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Of boxes of one label that overlap, keep the one that scores highest.

    Args:
        boxes: [R, 4] in pixels, xyxy.
        scores: [R], larger is better; of equals the first wins.
        labels: [R] int64; boxes of different labels do not touch each other.
        iou: 0..1; a box that overlaps a better one by more goes.

    Returns:
        [N] int64, indices of the boxes that stay, by falling score.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
        >>> non_maximum_suppression(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([1, 1, 1]), iou=0.5)
        tensor([1, 2])
    """
    corners = boxes.double().cpu().numpy()
    rectangles: Any = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    of_label = labels.cpu().numpy()
    order = np.argsort(-scores.double().cpu().numpy(), kind="stable")
    ranks: Any = np.empty(len(order), np.float32)  # in place of scores, which OpenCV wants to be positive
    ranks[order] = np.arange(len(order), 0, -1)
    kept = np.zeros(len(order), bool)
    for label in np.unique(of_label):  # one by one: OpenCV compares every box with every one that it keeps
        rows = np.flatnonzero(of_label == label)
        kept[rows[np.asarray(cv2.dnn.NMSBoxes(rectangles[rows], ranks[rows], 0.0, iou), np.int64).ravel()]] = True
    return torch.from_numpy(order[kept[order]]).to(boxes.device)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes [R, 4] off at the edges of an image of ``size`` (height, width); a new tensor.

    Example:
        >>> clip_boxes(torch.tensor([[-5.0, 10, 300, 20]]), (100, 200))
        tensor([[  0.,  10., 200.,  20.]])
    """
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [R, 4] in the image flipped left for right, ``width`` pixels wide; a new tensor.

    Example:
        >>> flip_boxes(torch.tensor([[0.0, 0, 10, 40]]), width=100)
        tensor([[ 90.,   0., 100.,  40.]])
    """
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def flip_deltas(deltas: Tensor) -> Tensor:
    """Deltas [R, 4], as `encode_boxes` gives, of boxes and targets that are both flipped; a new tensor.

    Example:
        >>> flip_deltas(torch.tensor([[0.5, 0.25, 0.0, 0.0]]))
        tensor([[-0.5000,  0.2500,  0.0000,  0.0000]])
    """
    return deltas * deltas.new_tensor([-1, 1, 1, 1])


def encode_boxes(boxes: Tensor, targets: Tensor) -> Tensor:
    """What must be done to ``boxes`` to get ``targets``: shift by shares of the side, scale by logarithms.

    Args:
        boxes: [R, 4] in pixels, each side above 0.
        targets: [R, 4] in the same pixels, each side above 0.

    Returns:
        [R, 4]: (dx / width, dy / height, log width ratio, log height ratio), centre to centre.

    Source: Girshick et al., arXiv:1311.2524, appendix C; used by SPP-net, section 4.2.

    Example:
        >>> encode_boxes(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 15, 20]]))
        tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    sides, target_sides = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centres, target_centres = (boxes[:, 2:] + boxes[:, :2]) / 2, (targets[:, 2:] + targets[:, :2]) / 2
    return torch.cat([(target_centres - centres) / sides, (target_sides / sides).log()], dim=1)


def decode_boxes(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Undo `encode_boxes`: move and scale ``boxes`` by ``deltas``.

    Args:
        boxes: [R, 4] in pixels.
        deltas: [R, 4] or [R, K, 4], as `encode_boxes` gives; log ratios above log(62.5) count as log(62.5).

    Returns:
        The moved boxes, in the shape of ``deltas``.

    Example:
        >>> decode_boxes(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[0.5, 0, 0, 0]]))
        tensor([[ 5.,  0., 15., 20.]])
    """
    if deltas.ndim == 3:
        boxes = boxes[:, None]
    sides, centres = boxes[..., 2:] - boxes[..., :2], (boxes[..., 2:] + boxes[..., :2]) / 2
    centres = centres + deltas[..., :2] * sides
    halves = deltas[..., 2:].clamp(max=LARGEST_LOG_RATIO).exp() * sides / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)
