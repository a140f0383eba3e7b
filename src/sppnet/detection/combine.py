"""Several detectors as one: the boxes of all, each scored by its own model, then one round of suppression for each class.

    scores [R, 1 + K] and boxes [R, K, 4] of each model -> of all, [sum of R, ..] -> `select` -> `Detections`

What makes the union better than each is that the models err differently: in the paper two fine-tunings of one backbone gained
nothing, two backbones 1.7 points (59.2 and 59.1 -> 60.9 mAP). Source: arXiv:1406.4729, section 4.4 and Table 12.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.data.images import read_image
from sppnet.detection import NMS_IOU, VOTE_IOU
from sppnet.detection.maps import compute_maps
from sppnet.detection.predict import (
    SCORE_THRESHOLDS,
    Stopwatch,
    check_detects,
    check_proposals,
    score_kind,
    score_windows,
    select,
)
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import propose
from sppnet.results import Detections


def detect_with_several(
    source: str | os.PathLike[str] | Image.Image | np.ndarray,
    models: Sequence[SPPNet],
    *,
    score_threshold: float | None = None,
    nms_iou: float = NMS_IOU,
    vote_iou: float = VOTE_IOU,
    most: int = 100,
    proposals: np.ndarray | None = None,
) -> Detections:
    """Find objects in one image by the union of what several detectors find.

    Args:
        source: path, PIL image, or [H, W, 3] uint8 array.
        models: detectors of the same classes, in any order, whose scores are of one kind.
        score_threshold, nms_iou, vote_iou, most, proposals: as for `sppnet.detect`; without ``proposals`` each model gets those of its own
            proposer, made once where two share one.

    Returns:
        `Detections`, labels in the order of the first model's classes.

    Raises:
        UserError: models that cannot be combined, and what `sppnet.detect` raises.

    Source: arXiv:1406.4729, section 4.4.

    Example:
        >>> model, image = sppnet.load("voc"), np.zeros((60, 80, 3), np.uint8)
        >>> len(detect_with_several(image, [model, model])) == len(sppnet.detect(image, model))
        True
    """
    check_combination(models)
    image = read_image(source)
    given = None if proposals is None else check_proposals(proposals)
    made: dict[str, np.ndarray] = {}
    answers = []
    for model in models:
        proposer = model.architecture.proposer
        if given is None and proposer not in made:
            made[proposer] = propose(image, proposer)
        boxes = made[proposer] if given is None else given
        answers.append(score_windows(model, compute_maps(model, image), boxes, Stopwatch()))
    scores, moved = union(models, answers)
    kind = score_kind(models[0])
    threshold = SCORE_THRESHOLDS[kind] if score_threshold is None else score_threshold
    return select(scores, moved, models[0].architecture.names, threshold, nms_iou, most, kind, vote_iou=vote_iou)


def union(models: Sequence[SPPNet], answers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What `score_windows` says of an image by each model, as if one had scored all windows.

    Args:
        models: as checked by `check_combination`.
        answers: of each, scores [R, 1 + K] and boxes [R, K, 4].

    Returns:
        Scores [sum of R, 1 + K] and boxes [sum of R, K, 4], classes in the order of the first model.
    """
    names = models[0].architecture.names
    scores, boxes = [], []
    for model, (score, box) in zip(models, answers, strict=True):
        order = torch.tensor([model.architecture.names.index(name) for name in names])
        scores.append(torch.cat([score[:, :1], score[:, 1 + order]], dim=1))
        boxes.append(box[:, order])
    return torch.cat(scores), torch.cat(boxes)


def check_combination(models: Sequence[SPPNet]) -> None:
    """Raise a UserError where models cannot answer together."""
    if not models:
        raise UserError("no model given: expected one, or several to combine")
    first = models[0].architecture
    for number, model in enumerate(models, start=1):
        check_detects(model)
        names = model.architecture.names
        if set(names) != set(first.names):
            raise UserError(
                f"models can be combined if they know the same classes; model {number} and the first differ: only in the "
                f"first {sorted(set(first.names) - set(names))[:5]}, only in model {number} "
                f"{sorted(set(names) - set(first.names))[:5]}"
            )
        if score_kind(model) != score_kind(models[0]):
            raise UserError(
                f"models can be combined if their scores are of one kind; model {number}'s are {score_kind(model)}, the "
                f"first's {score_kind(models[0])}: train SVMs for both, or for neither ('sppnet train detector --classifier')"
            )
