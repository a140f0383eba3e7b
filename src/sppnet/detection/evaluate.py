"""Run a detector over an annotated set and score it by the rules of Pascal VOC, and of COCO where its packages are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sppnet.data.annotations import DetectionData
from sppnet.data.images import read_image
from sppnet.detection import NMS_IOU, VOTE_IOU
from sppnet.detection.combine import check_combination, union
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.map_cache import MapCache
from sppnet.detection.predict import Stopwatch, score_kind, score_windows, select
from sppnet.detection.train import Report, proposals_of
from sppnet.errors import UserError
from sppnet.metrics.coco import CocoResult, evaluate_coco
from sppnet.metrics.errors import DetectionErrors, detection_errors
from sppnet.metrics.voc import VocResult, evaluate_voc, evaluate_voc_images
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.files import load_proposals
from sppnet.results import ScoreKind

# Low: average precision asks for the whole ranking. Of margins, what hard negative mining calls easy is left out.
SCORE_THRESHOLDS: dict[ScoreKind, float] = {"probability": 0.01, "decision": -1.2}
MOST = 300  # boxes per image; COCO counts the 100 best
MOST_PER_CLASS = 100  # boxes per image by margin, as released: classes' margins are not made to be compared
NO_COCO = "COCO's average precision needs two more packages: pip install 'sppnet[coco]'"


@dataclass(frozen=True)
class DetectorEvaluation:
    """A detector's score on one split, and where the time went."""

    result: VocResult  # of the boxes
    coco: CocoResult | None  # of the boxes, by COCO's rules; None where the packages that count so are missing
    errors: DetectionErrors  # of the boxes: what was wrong, class by class
    whole_images: VocResult  # of the ranking of whole images, class by class
    images: int
    score_kind: ScoreKind  # what the boxes were ranked by
    seconds_per_image: dict[str, float]  # by stage; proposals that were found in the work folder cost next to nothing

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the boxes' ``map`` and ``classes``, ``coco`` (None where it could not be counted), ``errors``,
        ``classification``, ``images``, ``score_kind``, ``seconds_per_image``."""
        classification = {"map": self.whole_images.to_dict()["map"]}
        seconds = {stage: round(value, 5) for stage, value in self.seconds_per_image.items()}
        return {
            **self.result.to_dict(),
            "coco": self.coco.to_dict()["coco"] if self.coco else None,
            "errors": self.errors.to_dict(),
            "classification": classification,
            "images": self.images,
            "score_kind": self.score_kind,
            "seconds_per_image": seconds,
        }


def evaluate_detector(
    model: SPPNet | Sequence[SPPNet],
    data: DetectionData,
    work: Path,
    report: Report | None = None,
    *,
    vote_iou: float = VOTE_IOU,
    proposer: str | None = None,
    maps_folder: Path | None = None,
) -> DetectorEvaluation:
    """Detect in every image of ``data`` and compare with its objects.

    Args:
        model: a detector whose classes are those of the data, in any order; or several, whose answers are combined
            (`sppnet.detection.combine`; of whole images, the mean of their logits).
        data: a split that the model was not trained on.
        work: proposals are kept below this folder; missing ones are computed, several images at a time.
        report: told of each stage's progress: its name, done, total.
        vote_iou: see `sppnet.detect`; 0: boxes stay, as in the paper.
        proposer: another than the model's own, for all of them.
        maps_folder: read maps that are kept below it (`sppnet.detection.map_cache`), and keep those that are missing: several models
            of one frozen backbone are scored sooner. Then the seconds of "maps" are of reading.

    Raises:
        UserError: the model and the data have different classes, or the data has no images.
    """
    models = (model,) if isinstance(model, SPPNet) else tuple(model)
    check_combination(models)
    names = models[0].class_names
    data.check_class_names(names)
    if not data.images:
        raise UserError(f"split {data.split!r} holds no images: nothing to evaluate on")
    report = report or (lambda stage, done, total: None)
    to_data_label = np.array([0] + [data.class_names.index(name) + 1 for name in names])
    watch, found, whole, kind = Stopwatch(), [], [], score_kind(models[0])
    with watch.stage("proposals"):
        own = [proposer or net.architecture.proposer for net in models]
        proposers = set(own)
        files = {name: proposals_of(data, name, work, report) for name in sorted(proposers)}
    caches = [None if maps_folder is None else MapCache.of(net, maps_folder) for net in models]
    for done, image in enumerate(data.images):
        with watch.stage("decode"):
            pixels = read_image(image.path)
        answers, logits = [], []
        for net, source, cache in zip(models, own, caches, strict=True):
            with watch.stage("proposals"):
                boxes, _ = load_proposals(files[source][done])
            with watch.stage("maps"):
                maps = compute_feature_maps(net, pixels) if cache is None else cache.get(net, image.path, pixels)
            with watch.stage("whole image"), torch.inference_mode(), autocast(net.device):
                answer_of_whole = net.image_classifier(net.fully_connected(maps.pool(net, maps.whole_window())))[0]
                in_data_order = [net.class_names.index(name) for name in data.class_names]
                logits.append(answer_of_whole.float().cpu().numpy()[in_data_order])
            answers.append(score_windows(net, maps, boxes, watch))
        whole.append(np.mean(logits, axis=0))
        with watch.stage("nms"):
            scores, moved = union(models, answers)
            most = (None, MOST_PER_CLASS) if kind == "decision" else (MOST, None)
            answer = select(
                scores, moved, names, SCORE_THRESHOLDS[kind], NMS_IOU, most[0], kind, most[1], vote_iou=vote_iou
            )
        found.append((answer.boxes, answer.scores, to_data_label[answer.labels]))
        report("detection", done + 1, len(data.images))
    boxes_truth = [(image.gt_boxes, image.gt_labels, image.difficult) for image in data.images]
    image_truth = [(image.gt_labels, image.difficult) for image in data.images]
    return DetectorEvaluation(
        evaluate_voc(found, boxes_truth, data.class_names),
        _coco(found, boxes_truth, data.class_names),
        detection_errors(found, boxes_truth, data.class_names),
        evaluate_voc_images(np.stack(whole), image_truth, data.class_names),
        len(data),
        kind,
        {stage: seconds / len(data) for stage, seconds in watch.seconds.items()},
    )


def _coco(found: list[Any], truth: list[Any], names: tuple[str, ...]) -> CocoResult | None:
    try:
        return evaluate_coco(found, truth, names)
    except UserError:  # a package is missing, and nothing else
        return None
