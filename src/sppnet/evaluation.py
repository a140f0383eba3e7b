"""Score any model on any data: a detector on boxes, a classifier on labeled images."""

from __future__ import annotations

from typing import Any

from sppnet.classification.evaluate import ClassifierEvaluation, evaluate_classifier
from sppnet.data.annotations import DetectionData
from sppnet.data.labelled import LabelledImages
from sppnet.detection.evaluate import DetectorEvaluation, evaluate_detector
from sppnet.models.sppnet import SPPNet


def evaluate(
    model: SPPNet, data: DetectionData | LabelledImages, **options: Any
) -> DetectorEvaluation | ClassifierEvaluation:
    """Score a model on data that it was not trained on.

    Args:
        model: a detector for annotated images, any model for labeled ones; its classes must be those of the data.
        data: what `sppnet.read_dataset` gives.
        options: those of `sppnet.detection.evaluate.evaluate_detector` (cache, vote_iou, proposals, progress) or of
            `sppnet.classification.evaluate.evaluate_classifier` (views, progress).

    Returns:
        What can be printed (``.table()``) or written as JSON (``.to_dict()``): average precision of boxes and of whole images by
        the rules of Pascal VOC; or accuracy with an interval.

    Raises:
        ModelError: annotated images, and a model that only classifies.
        UserError: other classes, or no images.
    """
    if isinstance(data, DetectionData):
        return evaluate_detector(model, data, **options)
    return evaluate_classifier(model, data, **options)
