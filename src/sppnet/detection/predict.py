"""A photo in, labelled boxes out: propose, map, pool, score, suppress.

image [H, W, 3] -> proposals [R, 4] -> maps [1, C, h, w] of one scale or several -> windows [R, 5] -> scores [R, 1 + K] and boxes
[R, K, 4] -> suppression and votes -> `Detections`. The convolutions run once for each scale, whatever the number of proposals: arXiv:1406.4729, section 4.

A model with SVMs scores by margins, one with ridge regressors moves boxes by them; one without, by the network's own outputs
(`sppnet.detection.linear_stages`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from sppnet.boxes import clip_boxes, decode_boxes
from sppnet.data.images import read_image
from sppnet.detection import NMS_IOU, SMALLEST_SIDE, VOTE_IOU
from sppnet.detection.linear_stages import stored_regression, stored_svms
from sppnet.detection.maps import ImageMaps, compute_maps
from sppnet.detection.targets import DELTA_SCALE
from sppnet.detection.voting import vote
from sppnet.errors import UserError
from sppnet.models.precision import autocast
from sppnet.models.sppnet import WINDOWS_AT_ONCE, SPPNet
from sppnet.proposals.compute import propose
from sppnet.results import Detections, ScoreKind

# From which score on a box is shown, where nobody says another. Of margins, 0 is far on the safe side: measured on VOC, 85 %
# of what is above it is right, but 11 % of the objects are; above -0.75, where the two balance best, 47 % and 23 %.
SCORE_THRESHOLDS: dict[ScoreKind, float] = {"probability": 0.3, "decision": -0.75}


@dataclass
class Stopwatch:
    """Seconds spent in each stage, summed over images."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def detect(
    source: str | os.PathLike[str] | Image.Image | np.ndarray,
    model: SPPNet,
    *,
    score_threshold: float | None = None,
    nms_iou: float = NMS_IOU,
    vote_iou: float = VOTE_IOU,
    most: int = 100,
    proposals: np.ndarray | None = None,
) -> Detections:
    """Find objects in one image of any size.

    Args:
        source: path, PIL image, or [H, W, 3] uint8 array. EXIF rotation is applied to files and PIL images.
        model: a detector, such as ``load("voc")``.
        score_threshold: boxes that score less are left out. Probabilities: 0..1, .3 where not given; margins of a model with
            SVMs: any number, -.75 where not given; 0 for what is surely right, -1 for nearly all that might be something.
        nms_iou: 0..1; of two boxes of one class that overlap more, the lower-scoring goes.
        vote_iou: 0..1; boxes that are kept move to the mean of those that overlap them by so much, weighted by score
            (`sppnet.detection.voting`); 0: they stay, as in the paper.
        most: at most this many boxes, the best.
        proposals: [R, 4] float32, pixels of the upright image; made by the model's own proposer where not given.

    Returns:
        `Detections`, by falling score; boxes in pixels of the upright image, inside it.

    Raises:
        UserError: no such file or not an image; a model that only classifies; proposals of a wrong shape.

    Source: arXiv:1406.4729, sections 4.1 and 4.2.

    Example:
        >>> from skimage.data import astronaut
        >>> found = detect(astronaut(), sppnet.load("voc"))
        >>> "person" in found.class_names
        True
    """
    check_detects(model)
    image = read_image(source)
    boxes = propose(image, model.architecture.proposer) if proposals is None else check_proposals(proposals)
    maps = compute_maps(model, image)
    return detect_in_maps(
        model, maps, boxes, score_threshold=score_threshold, nms_iou=nms_iou, vote_iou=vote_iou, most=most
    )


def detect_in_maps(
    model: SPPNet,
    maps: ImageMaps,
    proposals: np.ndarray,
    *,
    score_threshold: float | None = None,
    nms_iou: float = NMS_IOU,
    vote_iou: float = VOTE_IOU,
    most: int = 100,
) -> Detections:
    """`detect` where the maps are at hand, because something else needs them too.

    Args:
        model: a detector.
        maps: as `compute_maps` returns them.
        proposals: [R, 4] float32, pixels of the image.
        score_threshold, nms_iou, vote_iou, most: as for `detect`.

    Example:
        >>> image, model = np.zeros((60, 80, 3), np.uint8), sppnet.load("voc")
        >>> detect_in_maps(model, compute_maps(model, image), propose(image), score_threshold=0.9).class_names
        ()
    """
    scores, moved = score_windows(model, maps, proposals, Stopwatch())
    kind = score_kind(model)
    threshold = SCORE_THRESHOLDS[kind] if score_threshold is None else score_threshold
    return select(scores, moved, model.architecture.names, threshold, nms_iou, most, kind, vote_iou=vote_iou)


def check_detects(model: SPPNet) -> None:
    """Raise a UserError for a model that only classifies."""
    if not model.architecture.detects:
        raise UserError(
            "this model classifies only: give a detector, such as the shipped 'voc', or use 'sppnet classify'"
        )


def score_kind(model: SPPNet) -> ScoreKind:
    """What a detector's scores are."""
    return "decision" if model.architecture.classifier == "svm" else "probability"


def score_windows(model: SPPNet, maps: ImageMaps, proposals: np.ndarray, watch: Stopwatch) -> tuple[Tensor, Tensor]:
    """What the network says of each proposal.

    Proposals that fall on the same cells share one pass through the fully connected layers.

    Returns:
        Scores [R, 1 + K], background first: probabilities; or margins, and as the background's the largest of them with its
        sign turned. And boxes [R, K, 4] in pixels, clipped to the image.
    """
    boxes = torch.from_numpy(proposals)
    with watch.stage("pooling"):
        windows, residuals = maps.windows(model, boxes)
        unique, which = windows.unique(dim=0, return_inverse=True)
    outputs = []
    for part in unique.split(WINDOWS_AT_ONCE):
        with torch.inference_mode():
            with watch.stage("pooling"):
                pooled = maps.pool(model, part)
            with watch.stage("fully connected"), autocast(model.device):
                outputs.append(tuple(part.cpu() for part in _answers(model, pooled)))
    with watch.stage("nms"), torch.inference_mode():
        scores, deltas = (torch.cat(column)[which] for column in zip(*outputs, strict=True))
        if model.architecture.regression == "network":
            deltas = model.correct_deltas(deltas.to(model.device), residuals.to(model.device)).cpu()
            deltas = deltas * deltas.new_tensor(DELTA_SCALE)
        return scores, clip_boxes(decode_boxes(boxes, deltas), maps.size)


def _answers(model: SPPNet, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """pooled [R, M, C] -> scores [R, 1 + K], deltas [R, K, 4]; float32."""
    architecture = model.architecture
    described = model.describe(pooled)
    logits, deltas = model.window_outputs(described)
    if architecture.classifier == "svm":
        margins = stored_svms(model).margins(described)
        scores = torch.cat([-margins.amax(1, keepdim=True), margins], dim=1)
    else:
        scores = logits.float().softmax(1)
    if architecture.regression != "network":
        wide = architecture.regression == "ridge-pooled"
        deltas = stored_regression(model).deltas(pooled.flatten(1) if wide else described)
    return scores, deltas.float()


def select(
    scores: Tensor,
    boxes: Tensor,
    names: tuple[str, ...],
    score_threshold: float,
    nms_iou: float,
    most: int | None,
    kind: ScoreKind = "probability",
    most_per_class: int | None = None,
    *,
    vote_iou: float,
) -> Detections:
    """Class by class: threshold, suppress what overlaps a better box, keep the best, move it where its neighbours vote for.

    Args:
        scores: [R, 1 + K], background first; larger is surer.
        boxes: [R, K, 4], one box per class.
        score_threshold, nms_iou, vote_iou: as for `detect`.
        most: boxes in all, the best; None: any number.
        kind: of the scores.
        most_per_class: the same of each class by itself.
    """
    row, column = (scores[:, 1:] >= score_threshold).nonzero(as_tuple=True)
    candidates, values = boxes[row, column], scores[row, 1 + column]
    wide = ((candidates[:, 2:] - candidates[:, :2]) >= SMALLEST_SIDE).all(1)
    candidates, values, column = candidates[wide], values[wide], column[wide]
    kept = batched_nms(candidates, values, column, nms_iou)
    if most_per_class is not None and len(kept):
        place = torch.nn.functional.one_hot(column[kept]).cumsum(0)[torch.arange(len(kept)), column[kept]]
        kept = kept[place <= most_per_class]
    kept = kept[:most]
    labels, found = column[kept] + 1, candidates[kept]
    if vote_iou:
        found = vote(found, labels, scores, boxes, vote_iou, kind)
    return Detections(
        found.numpy(),
        values[kept].numpy(),
        labels.numpy(),
        tuple(names[label - 1] for label in labels.tolist()),
        kind,
    )


def check_proposals(proposals: np.ndarray) -> np.ndarray:
    """Boxes as [R, 4] float32, or a UserError."""
    boxes = np.asarray(proposals, dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise UserError(f"proposals must be [R, 4] boxes in pixels, at least one: got shape {list(boxes.shape)}")
    return boxes
