"""Annotated images -> a detector trained end to end -> a model file like any other, for `detect` and `evaluate`.

Proposals come first, and are kept; then there is one stage, `sppnet.detection.fast_rcnn`. It starts from a detector that has
learned on a frozen backbone, which saves most of what the fully connected layers have to learn, or from a backbone alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sppnet.cache import Part, fingerprint
from sppnet.data.annotations import DetectionData
from sppnet.data.images import content_key
from sppnet.detection.fast_rcnn import FastRcnnSettings, learn_end_to_end
from sppnet.detection.image_batches import LearningImage
from sppnet.detection.learning_layers import choose_layers
from sppnet.detection.targets import find_candidates
from sppnet.detection.train import Report, calibrate, check_training, proposals_of
from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone
from sppnet.models.files import find_model, load, save_model, training_record
from sppnet.models.files import trained_by
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.proposals.files import load_proposals


def train_end_to_end(
    data: DetectionData,
    start: Architecture | str | Path,
    output: Path,
    work: Path,
    *,
    weights: str | Path | None = None,
    proposer: str | None = None,
    settings: FastRcnnSettings | None = None,
    devices: int = 1,
    workers: int = 0,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> dict[str, Any]:
    """Train a detector end to end, and write the model file.

    Args:
        data: the images to learn from, all of them; hold a split back to evaluate on.
        start: a detector to go on from, a model file or a shipped name, of the same classes in any order; or what to
            build, with names that are those of the data.
        output: the model file, .safetensors.
        work: proposals and checkpoints are kept here; another training may share it.
        weights: of the backbone of an architecture, see `sppnet.models.backbones.build_backbone`. It should have learned: its
            BatchNorm is folded, and keeps the statistics that it has.
        proposer: of the boxes to learn from, and to look at in use; where not given, the starting point's own.
        settings: how.
        devices: processes; see `sppnet.detection.fast_rcnn.learn_end_to_end`.
        workers: processes that read images; 0: the training itself does.
        device: where to compute.
        report: told of each stage's progress: its name, done, total.

    Returns:
        What is written into the model file about its training: data, settings, seconds of each stage.

    Raises:
        UserError: no images or no objects, unreadable images (named), a model that only classifies, has SVMs, or knows other
            classes, no such layers to learn, or a loss that is no number.

    Source: arXiv:1504.08083, section 2.3.
    """
    settings = settings or FastRcnnSettings()
    report = report or (lambda stage, done, total: None)
    check_training(data, output)
    seconds: dict[str, float] = {}
    torch.manual_seed(settings.seed)
    model, before = _model(start, weights)
    if proposer is not None:
        model.architecture = dataclasses.replace(model.architecture, proposer=proposer)
    choose_layers(model.backbone, settings.learn)  # a mistake in it is said before the work
    model.eval().to(device)
    model.backbone.to(memory_format=torch.channels_last)
    annotated = data.relabelled(model.class_names).images

    started = time.perf_counter()
    files = proposals_of(data, model.architecture.proposer, work, report)
    seconds["proposals"] = time.perf_counter() - started

    started = time.perf_counter()
    if isinstance(start, Architecture):
        calibrate(model, data)
    images = []
    for image, file in zip(annotated, files, strict=True):
        candidates = find_candidates(
            image, load_proposals(file)[0], len(data.class_names), settings.foreground_iou, settings.background_iou
        )
        if len(candidates.labels):
            images.append(LearningImage(image.path, candidates))
    name = fingerprint(_starts_from(model, settings, devices, images), size=6)
    checkpoints = work / f"end-to-end-{output.stem}-{name}"
    progress = partial(report, "end to end")
    rank = learn_end_to_end(model, images, settings, checkpoints, devices=devices, workers=workers, progress=progress)
    seconds["end to end"] = time.perf_counter() - started

    record = {
        **trained_by(),
        "data": {"split": data.split, "images": len(data), "objects": sum(len(i.gt_labels) for i in data.images)},
        "backbone_weights": None if weights is None else Path(weights).name,
        "end_to_end": dataclasses.asdict(settings) | {"devices": devices},
        "started_from": before,
        "seconds": {stage: round(value) for stage, value in seconds.items()},
    }
    if rank == 0:
        save_model(model, output, record)
    return record


def _model(start: Architecture | str | Path, weights: str | Path | None) -> tuple[SPPNet, dict[str, Any] | None]:
    """The model to train, and how it was trained so far."""
    if isinstance(start, Architecture):
        return SPPNet(start, build_backbone(start.backbone, weights)), None
    model = load(start)
    if not model.architecture.detects:
        raise UserError(f"{start} classifies only: give a detector, as 'sppnet train detector' writes them")
    if (model.architecture.classifier, model.architecture.regression) != ("softmax", "network"):
        raise UserError(
            f"{start} has SVMs or box regressors, made for the layers before them as they are: give the detector that they "
            "were added to"
        )
    return model, training_record(find_model(start))


def _starts_from(
    model: SPPNet, settings: FastRcnnSettings, devices: int, images: Sequence[LearningImage]
) -> Iterator[Part]:
    """All that training starts from: only a stopped run of the very same kind may go on from its checkpoint."""
    yield repr((model.architecture, settings, devices))
    yield model.state_dict()
    for image in images:
        yield content_key(image.path)
        yield from (image.candidates.boxes, image.candidates.labels, image.candidates.image_labels)
