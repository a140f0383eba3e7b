"""Run a detector over an annotated set and score it by the rules of Pascal VOC."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sppnet.data.annotations import DetectionData
from sppnet.data.images import read_image
from sppnet.detection import NMS_IOU
from sppnet.detection.maps import compute_map
from sppnet.detection.predict import Stopwatch, score_windows, select
from sppnet.detection.train import Report, proposals_of
from sppnet.errors import UserError
from sppnet.metrics.voc import VocResult, evaluate_voc, evaluate_voc_images
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.ops.windows import whole_windows
from sppnet.proposals.files import load_proposals

SCORE_THRESHOLD = 0.01  # low: average precision asks for the whole ranking
MOST = 300  # boxes per image


@dataclass(frozen=True)
class DetectorEvaluation:
    """A detector's score on one split, and where the time went."""

    result: VocResult  # of the boxes
    whole_images: VocResult  # of the ranking of whole images, class by class
    images: int
    seconds_per_image: dict[str, float]  # by stage; proposals that were found in the work folder cost next to nothing

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the boxes' ``map`` and ``classes``, ``classification``, ``images``, ``seconds_per_image``."""
        classification = {"map": self.whole_images.to_dict()["map"]}
        seconds = {stage: round(value, 5) for stage, value in self.seconds_per_image.items()}
        return {
            **self.result.to_dict(),
            "classification": classification,
            "images": self.images,
            "seconds_per_image": seconds,
        }


def evaluate_detector(
    model: SPPNet, data: DetectionData, work: Path, report: Report | None = None
) -> DetectorEvaluation:
    """Detect in every image of ``data`` and compare with its objects.

    Args:
        model: a detector whose classes are those of the data, in any order.
        data: a split that the model was not trained on.
        work: proposals are kept below this folder; missing ones are computed, several images at a time.
        report: told of each stage's progress: its name, done, total.

    Raises:
        UserError: the model and the data have different classes, or the data has no images.
    """
    names = model.architecture.names
    if set(names) != set(data.names):
        raise UserError(
            f"the model knows {len(names)} classes and the data has {len(data.names)}, and they differ: "
            f"only in the model {sorted(set(names) - set(data.names))[:5]}, only in the data "
            f"{sorted(set(data.names) - set(names))[:5]}"
        )
    if not data.images:
        raise UserError(f"split {data.split!r} holds no images: nothing to evaluate on")
    report = report or (lambda stage, done, total: None)
    to_data_label = np.array([0] + [data.names.index(name) + 1 for name in names])
    in_data_order = [names.index(name) for name in data.names]
    watch, found, whole = Stopwatch(), [], []
    with watch.stage("proposals"):
        files = proposals_of(data, model.architecture.proposer, work, partial(report, "proposals"))
    for done, (image, file) in enumerate(zip(data.images, files, strict=True)):
        with watch.stage("proposals"):
            boxes, _ = load_proposals(file)
        with watch.stage("decode"):
            pixels = read_image(image.path)
        with watch.stage("maps"):
            features, scale = compute_map(model, pixels)
        with watch.stage("whole image"), torch.inference_mode(), autocast(model.device):
            logits = model.image_logits(model.describe(model.pool(features, whole_windows(features))))
            whole.append(logits[0].float().cpu().numpy()[in_data_order])
        scores, moved = score_windows(model, features, boxes, scale, pixels.shape[:2], watch)
        with watch.stage("nms"):
            answer = select(scores, moved, names, SCORE_THRESHOLD, NMS_IOU, MOST)
        found.append((answer.boxes, answer.scores, to_data_label[answer.labels]))
        report("detection", done + 1, len(data.images))
    boxes_truth = [(image.gt_boxes, image.gt_labels, image.difficult) for image in data.images]
    image_truth = [(image.gt_labels, image.difficult) for image in data.images]
    return DetectorEvaluation(
        evaluate_voc(found, boxes_truth, data.names),
        evaluate_voc_images(np.stack(whole), image_truth, data.names),
        len(data),
        {stage: seconds / len(data) for stage, seconds in watch.seconds.items()},
    )
