"""Run a detector over an annotated set and score it by the rules of Pascal VOC, and of COCO where its packages are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.cache import cache_directory
from sppnet.data.annotations import DetectionData
from sppnet.data.images import read_image
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.network_proposals import other_proposals, propose_boxes, without_network
from sppnet.detection.predict import check_combination, score_kind, score_windows, union
from sppnet.detection.suppression import DetectSettings, select
from sppnet.errors import UserError
from sppnet.metrics.coco import CocoResult, evaluate_coco
from sppnet.metrics.errors import DetectionErrors, detection_errors
from sppnet.metrics.voc import VocResult, evaluate_voc, evaluate_voc_images
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress, timed
from sppnet.results import ScoreKind

# Low: average precision asks for the whole ranking. Of decision scores, what hard negative mining calls easy is left out.
SCORE_THRESHOLDS: dict[ScoreKind, float] = {"probability": 0.01, "decision": -1.2}
RANKED = DetectSettings(max_detections=300)  # COCO counts the 100 best of an image
MAX_PER_CLASS = 100  # boxes per image by decision score, as released: classes' scores are not made to be compared
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
    seconds_per_image: dict[str, float]  # by stage; what was cached costs next to nothing

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the boxes' ``map`` and ``classes``, ``coco`` (None where it could not be counted), ``errors``,
        ``classification``, ``images``, ``score_kind``, ``seconds_per_image``."""
        return {
            **self.result.to_dict(),
            "coco": self.coco.to_dict()["coco"] if self.coco else None,
            "errors": self.errors.to_dict(),
            "classification": {"map": self.whole_images.to_dict()["map"]},
            "images": self.images,
            "score_kind": self.score_kind,
            "seconds_per_image": {stage: round(value, 5) for stage, value in self.seconds_per_image.items()},
        }


def evaluate_detector(
    model: SPPNet | Sequence[SPPNet],
    data: DetectionData,
    *,
    cache: Path | None = None,
    cache_maps: bool = False,
    proposals: str | None = None,
    settings: DetectSettings = RANKED,
    progress: Progress = no_progress,
    **options: Any,
) -> DetectorEvaluation:
    """Detect in every image of ``data`` and compare with its objects.

    Args:
        model: a detector whose classes are those of the data, in any order; or several, whose answers are combined: see
            `sppnet.detection.predict.union`; of whole images, the mean of their logits.
        data: a split that the model was not trained on.
        cache: proposals that lie below this folder are read, and missing ones written; None: they are computed for this once.
        cache_maps: feature maps, too: several models of one frozen backbone are scored sooner.
        proposals: another method than the model's own, for all of them.
        settings, options: as of `sppnet.detect`; where no score threshold is given, a low one.
        progress: called with "proposals" and "detection", images done, all.

    Raises:
        ModelError: models that cannot be combined, or one that only classifies.
        UserError: the model and the data have different classes, or the data has no images, or some that cannot be read.
    """
    models = (model,) if isinstance(model, SPPNet) else tuple(model)
    check_combination(models)
    class_names, kind = models[0].class_names, score_kind(models[0])
    data.check_class_names(class_names)
    if not data.images:
        raise UserError(f"split {data.split!r} holds no images: nothing to evaluate on")
    settings = replace(settings, **options)
    if settings.score_threshold is None:
        settings = replace(settings, score_threshold=SCORE_THRESHOLDS[kind])
    max_per_class = None
    if kind == "decision":
        max_per_class, settings = MAX_PER_CLASS, replace(settings, max_detections=MAX_PER_CLASS * len(class_names))
    to_data_label = np.array([0] + [data.class_names.index(name) + 1 for name in class_names])
    seconds: dict[str, float] = {}
    found, image_logits = [], []
    with cache_directory(cache) as folder:
        with timed(seconds, "proposals"):
            methods = [proposals or net.detection.proposals for net in models]
            boxes = {method: other_proposals(data, method, folder, progress) for method in sorted(set(methods))}
        caches = [FeatureMapCache(net, folder / "feature-maps") for net in models if cache_maps]
        for index, image in enumerate(data.images):
            answers, logits = [], []
            if not cache_maps:
                with timed(seconds, "decode"):
                    pixels = read_image(image.path)
            for number, (net, method) in enumerate(zip(models, methods, strict=True)):
                with timed(seconds, "feature maps"):
                    maps = caches[number].read(image.path) if cache_maps else compute_feature_maps(net, pixels)
                with timed(seconds, "whole image"), net.inference():
                    head_features = net.fully_connected(maps.pool(net, maps.whole_window()))
                    order = [net.class_names.index(name) for name in data.class_names]
                    logits.append(net.image_classifier(head_features)[0, order].float().cpu().numpy())
                with timed(seconds, "proposals"):
                    proposed = propose_boxes(
                        net, maps, method, {without_network(method): boxes[method][index]}.__getitem__
                    )
                with timed(seconds, "windows"):
                    answers.append(score_windows(net, maps, proposed))
            image_logits.append(np.mean(logits, axis=0))
            with timed(seconds, "suppression"):
                answer = select(*union(models, answers), class_names, settings, kind, max_per_class)
            found.append((answer.boxes, answer.scores, to_data_label[answer.labels]))
            progress("detection", index + 1, len(data))
    boxes_truth = [(image.gt_boxes, image.gt_labels, image.difficult) for image in data.images]
    try:
        coco = evaluate_coco(found, boxes_truth, data.class_names)
    except UserError:  # a package is missing, and nothing else
        coco = None
    result = evaluate_voc(found, boxes_truth, data.class_names)
    errors = detection_errors(found, boxes_truth, data.class_names)
    whole_images = evaluate_voc_images(np.stack(image_logits), [truth[1:] for truth in boxes_truth], data.class_names)
    per_image = {stage: value / len(data) for stage, value in seconds.items()}
    return DetectorEvaluation(result, coco, errors, whole_images, len(data), kind, per_image)
