"""Box voting: a box that was kept moves to the mean of all boxes of its class that overlap it, each weighted by its score.

kept [N, 4] -> [N, 4]. Suppression keeps the surest box, which is seldom the best placed one: where a detector's mistake is mostly
that boxes are badly placed, the neighbours know better. Not in the SPP-net paper; Source: Gidaris and Komodakis,
arXiv:1505.01749, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppnet.boxes import box_iou
from sppnet.detection import SMALLEST_SIDE
from sppnet.results import ScoreKind

# Whose vote counts, and how much: a probability as it is; of a margin what it has above -1, where what is surely background begins.
LEAST_PROBABILITY, SURE_BACKGROUND = 0.005, -1.0


def vote(kept: Tensor, labels: Tensor, scores: Tensor, boxes: Tensor, iou: float, kind: ScoreKind) -> Tensor:
    """Where boxes belong by the votes of all.

    Args:
        kept: [N, 4], xyxy in pixels.
        labels: [N] int64, 1..K.
        scores: [R, 1 + K] of all boxes, background first.
        boxes: [R, K, 4], one box per class.
        iou: 0..1; boxes of the same class that overlap a kept one by at least this have a vote on it.
        kind: of the scores.

    Returns:
        [N, 4]; a box on which nobody votes stays.

    Source: arXiv:1505.01749, section 5.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
        >>> scores = torch.tensor([[0.25, 0.75], [0.75, 0.25], [0.4, 0.6]])
        >>> vote(boxes[:1], torch.tensor([1]), scores, boxes[:, None], iou=0.5, kind="probability")
        tensor([[ 0.0000,  0.0000, 10.0000, 10.5000]])
    """
    moved = kept.clone()
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero().flatten()
        weights = scores[:, label] if kind == "probability" else scores[:, label] - SURE_BACKGROUND
        wide = ((boxes[:, label - 1, 2:] - boxes[:, label - 1, :2]) >= SMALLEST_SIDE).all(1)
        voters = (wide & (weights >= LEAST_PROBABILITY)).nonzero().flatten()
        theirs = boxes[voters, label - 1].double()  # so that the mean of like boxes is the very same
        cast = (box_iou(kept[mine].double(), theirs) >= iou) * weights[voters].double()
        total = cast.sum(1, keepdim=True)
        means = (cast @ theirs / total.clamp(min=1e-9)).to(kept.dtype)
        moved[mine] = torch.where(total > 0, means, kept[mine])
    return moved
