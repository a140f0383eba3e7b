"""Train a detector from annotated images: proposals -> maps -> fully connected layers -> SVMs, box regressors -> a model file.

Every stage leaves its work in one folder and goes on where it was stopped. The backbone stays as it is. SVMs and ridge
regressors are the paper's last stages; without them the network's own outputs score windows and move boxes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sppnet.cache import Part, fingerprint
from sppnet.data.annotations import DetectionData
from sppnet.data.images import image_size, read_image
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.finetune import FinetuneSettings, TrainingImage, finetune
from sppnet.detection.linear_stages import LinearStages, train_linear_stages
from sppnet.detection.map_cache import MapCache
from sppnet.detection.targets import find_candidates
from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone
from sppnet.models.files import find_model, load, round_to_stored, save_model, training_record
from sppnet.models.files import trained_by
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.proposals.compute import proposals_for
from sppnet.proposals.files import load_proposals

CALIBRATION_IMAGES = 32  # maps whose mean square sets the scale of the features
Report = Callable[[str, int, int], None]  # stage, done, total


def train_detector(
    data: DetectionData,
    architecture: Architecture,
    output: Path,
    work: Path,
    *,
    weights: str | Path | None = None,
    settings: FinetuneSettings | None = None,
    stages: LinearStages | None = None,
    mirrored: bool = True,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> dict[str, Any]:
    """Train the fully connected layers of a detector on a frozen backbone, then what ``stages`` asks for; write the model file.

    Args:
        data: the images to learn from, all of them; hold a split back to evaluate on.
        architecture: its names must be those of the data.
        output: the model file, .safetensors.
        work: proposals, maps and checkpoints are kept here; another training may share it.
        weights: the backbone's, see `sppnet.models.backbones.build_backbone`.
        settings: of `sppnet.detection.finetune`.
        stages: what follows; nothing where it is not given.
        mirrored: fine-tune on the mirror images too; twice the maps.
        device: where to compute.
        report: told of each stage's progress: its name, done, total.

    Returns:
        What is written into the model file about its training: data, settings, seconds of each stage.

    Raises:
        UserError: no images or no objects, unreadable images (named), no room for the maps.

    Source: arXiv:1406.4729, section 4.1.
    """
    settings, stages = settings or FinetuneSettings(), stages or LinearStages()
    report = report or (lambda stage, done, total: None)
    check_training(data, output)
    seconds: dict[str, float] = {}
    torch.manual_seed(settings.seed)
    model = SPPNet(architecture, build_backbone(architecture.backbone, weights))
    round_to_stored(model.backbone)  # so that the maps are those of the model file
    model.eval().to(device)
    model.backbone.to(memory_format=torch.channels_last)

    started = time.perf_counter()
    files = proposals_of(data, architecture.proposer, work, report)
    seconds["proposals"] = time.perf_counter() - started

    started = time.perf_counter()
    calibrate(model, data)
    cache = MapCache.of(model, work / "maps")
    maps = cache.fill(model, [image.path for image in data.images], mirrored=mirrored, progress=partial(report, "maps"))
    seconds["maps"] = time.perf_counter() - started

    started = time.perf_counter()
    images = []
    for image, file in zip(data.images, files, strict=True):
        candidates = find_candidates(
            image, load_proposals(file)[0], len(data.class_names), settings.foreground_iou, settings.background_iou
        )
        if len(candidates.labels):
            size = image_size(image.path)  # the annotation's may be wrong; the map was made of what the file holds
            images.append(TrainingImage(candidates, maps[image.path], size))
    name = fingerprint(_starts_from(architecture, settings, images), size=6)
    checkpoints = work / f"checkpoints-{output.stem}-{name}"
    finetune(model, images, cache, settings, checkpoints, partial(report, "fine-tuning"))
    round_to_stored(model)  # what comes next learns from what the model file holds
    seconds["fine-tuning"] = time.perf_counter() - started
    last = train_linear_stages(
        model, cache, data.images, files, [maps[i.path][0] for i in data.images], stages, work / output.stem, report
    )

    record = {
        **trained_by(),
        "data": {"split": data.split, "images": len(data), "objects": sum(len(i.gt_labels) for i in data.images)},
        "backbone_weights": None if weights is None else Path(weights).name,
        "settings": dataclasses.asdict(settings) | {"mirrored": mirrored},
        **last,
        "seconds": {stage: round(value) for stage, value in seconds.items()} | last["seconds"],
    }
    save_model(model, output, record)
    return record


def train_stages_of(
    model: str | Path,
    data: DetectionData,
    output: Path,
    work: Path,
    stages: LinearStages,
    *,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> dict[str, Any]:
    """Train what ``stages`` asks for on a model that was fine-tuned before, and write it as a new model file.

    Args:
        model: a detector's file, or a shipped name; its classes must be those of the data, in any order.
        data: the images to learn from; those that the model was fine-tuned on serve.
        output, work, device, report: as of `train_detector`.
        stages: asks for SVMs or ridge regressors, or both.

    Returns:
        The model's record with what was added.

    Raises:
        UserError: a model that only classifies, other classes, or what `train_detector` raises.
    """
    report = report or (lambda stage, done, total: None)
    check_training(data, output)
    net = load(model, device)
    if not net.architecture.detects:
        raise UserError(f"{model} classifies only: give a detector, as 'sppnet train detector' writes them")
    images = data.relabelled(net.class_names).images
    files, cache, maps = windows_of(net, data, work, report)
    last = train_linear_stages(net, cache, images, files, maps, stages, work / output.stem, report)
    before = training_record(find_model(model))
    record = {**before, **last, "seconds": {**before.get("seconds", {}), **last["seconds"]}}
    save_model(net, output, record)
    return record


def windows_of(
    model: SPPNet, data: DetectionData, work: Path, report: Report
) -> tuple[list[Path], MapCache, list[Path]]:
    """The proposals' file of each image, the cache of maps, and the maps' file of each image; missing ones are computed."""
    files = proposals_of(data, model.architecture.proposer, work, report)
    cache = MapCache.of(model, work / "maps")
    paths = [image.path for image in data.images]
    maps = cache.fill(model, paths, mirrored=False, progress=partial(report, "maps"))
    return files, cache, [maps[path][0] for path in paths]


def check_training(data: DetectionData, output: Path) -> None:
    """Raise a UserError where there is nothing to learn from, or the model file's name will not do."""
    if not any((~image.difficult).any() for image in data.images):
        raise UserError(f"split {data.split!r} holds no object to learn from ({len(data)} images)")
    if output.suffix != ".safetensors":
        raise UserError(f"the model's file name must end in .safetensors: got {output}")


def proposals_of(data: DetectionData, method: str, work: Path, progress: Progress = no_progress) -> list[Path]:
    """The proposals' file of each image of ``data``, in order, below ``work``; missing ones are computed.

    Raises:
        UserError: images that cannot be read; all are named.
    """
    images = [(image.image_id, image.path) for image in data.images]
    files, errors = proposals_for(images, work / "proposals" / method, method, progress=progress)
    if errors:
        raise UserError(
            f"{len(errors)} of {len(images)} images cannot be used: " + "; ".join(map(str, errors.values()))
        )
    return [files[image_id] for image_id, _ in images]


def calibrate(model: SPPNet, data: DetectionData) -> None:
    """Scale the features so that their mean square over the first images is 1."""
    model.feature_scale.fill_(1.0)
    squares = [
        compute_feature_maps(model, read_image(image.path)).whole_map.float().square().mean()
        for image in data.images[:CALIBRATION_IMAGES]
    ]
    model.calibrate(float(torch.stack(squares).mean()))


def _starts_from(architecture: Architecture, settings: FinetuneSettings, images: list[TrainingImage]) -> Iterator[Part]:
    """All that fine-tuning starts from: only a stopped run of the very same kind may go on from its checkpoint."""
    yield repr((architecture, settings))
    for image in images:
        yield repr([path.name for path in image.maps] + [image.maps[0].parent.name])
        yield from (image.candidates.boxes, image.candidates.labels, image.candidates.image_labels)
