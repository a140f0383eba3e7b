"""Which boxes stay, and where: threshold, non-maximum suppression, box voting.

scores [R, 1 + K], boxes [R, K, 4] -> `Detections`. Suppression keeps the most confident box, which is seldom the best localized
one; voting moves it to the mean of all boxes of its class that overlap it, each weighted by its score. Suppression:
arXiv:1406.4729, section 4.1; voting, which is not in that paper: Gidaris and Komodakis, arXiv:1505.01749, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sppnet.boxes import box_iou, non_maximum_suppression
from sppnet.errors import SettingsError
from sppnet.results import Detections, ScoreKind

SMALLEST_SIDE = 1.0  # pixels: a box thinner than this is dropped
# From which score on a box is shown, where nobody says another. Of decision scores, 0 is far on the safe side: measured on VOC,
# 85 % of what is above it is right, but 11 % of the objects are; above -0.75, where the two balance best, 47 % and 23 %.
SCORE_THRESHOLDS: dict[ScoreKind, float] = {"probability": 0.3, "decision": -0.75}
# Which boxes vote, and how much: a probability as it is; of a decision score what it has above -1, where background begins.
LEAST_PROBABILITY, BACKGROUND_SCORE = 0.005, -1.0


@dataclass(frozen=True)
class DetectSettings:
    """Which of a detector's boxes are given out.

    Args:
        score_threshold: boxes that score less are left out. Probabilities: 0..1, .3 where not given; decision scores of SVMs: any
            number, -.75 where not given; 0 for what is surely right, -1 for nearly all that might be something.
        nms_iou: 0..1; of two boxes of one class that overlap more, the lower-scoring goes.
        vote_iou: 0..1; boxes that stay move to the mean of those that overlap them by this much, weighted by score; 0: they do
            not move, as in the paper.
        max_detections: at most this many boxes, the best.

    Raises:
        SettingsError: a setting out of its range.
    """

    score_threshold: float | None = None
    nms_iou: float = 0.3
    vote_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name in ("nms_iou", "vote_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be between 0 and 1: got {getattr(self, name)}")
        if self.max_detections < 1:
            raise SettingsError(f"max_detections must be at least 1: got {self.max_detections}")


def select(
    scores: Tensor,
    boxes: Tensor,
    class_names: tuple[str, ...],
    settings: DetectSettings,
    kind: ScoreKind = "probability",
    max_per_class: int | None = None,
) -> Detections:
    """Class by class: threshold, suppress what overlaps a better box, keep the best, move it where its neighbors vote for.

    Args:
        scores: [R, 1 + K], background first.
        boxes: [R, K, 4], one box per class.
        class_names: K.
        settings: see there.
        kind: of the scores.
        max_per_class: boxes of each class by itself.

    Raises:
        SettingsError: a threshold that no probability can be.
    """
    threshold = SCORE_THRESHOLDS[kind] if settings.score_threshold is None else settings.score_threshold
    if kind == "probability" and not 0 <= threshold <= 1:
        raise SettingsError(f"score_threshold must be between 0 and 1, as scores are probabilities: got {threshold}")
    row, column = (scores[:, 1:] >= threshold).nonzero(as_tuple=True)
    candidates, values = boxes[row, column], scores[row, 1 + column]
    wide = ((candidates[:, 2:] - candidates[:, :2]) >= SMALLEST_SIDE).all(1)
    candidates, values, column = candidates[wide], values[wide], column[wide]
    kept = non_maximum_suppression(candidates, values, column, settings.nms_iou)
    if max_per_class is not None and len(kept):
        rank = torch.nn.functional.one_hot(column[kept]).cumsum(0)[torch.arange(len(kept)), column[kept]]
        kept = kept[rank <= max_per_class]
    kept = kept[: settings.max_detections]
    labels, found = column[kept] + 1, candidates[kept]
    if settings.vote_iou:
        found = vote(found, labels, scores, boxes, settings.vote_iou, kind)
    names = tuple(class_names[label - 1] for label in labels.tolist())
    return Detections(found.numpy(), values[kept].numpy(), labels.numpy(), names, kind)


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
        own = (labels == label).nonzero().flatten()
        weights = scores[:, label] if kind == "probability" else scores[:, label] - BACKGROUND_SCORE
        wide = ((boxes[:, label - 1, 2:] - boxes[:, label - 1, :2]) >= SMALLEST_SIDE).all(1)
        voters = (wide & (weights >= LEAST_PROBABILITY)).nonzero().flatten()
        theirs = boxes[voters, label - 1].double()  # so that the mean of like boxes is the very same
        cast = (box_iou(kept[own].double(), theirs) >= iou) * weights[voters].double()
        total = cast.sum(1, keepdim=True)
        means = (cast @ theirs / total.clamp(min=1e-9)).to(kept.dtype)
        moved[own] = torch.where(total > 0, means, kept[own])
    return moved
