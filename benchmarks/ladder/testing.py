"""Test one rung of one seed: average precision, seconds an image by stage, what its training took, and the bytes it left.

A result is one JSON file, written whole or not at all; one that is there is not made again.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sppnet.detection.linear_stages import stored_regression, stored_svms
from sppnet.detection.map_cache import MapCache
from sppnet.detection.rcnn import rcnn_maps
from sppnet.terminal import write_json
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.ladder.rcnn import crops_at_once, window_files, work_of_windows
from benchmarks.ladder.rungs import Rung, partners
from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.spp import start_file
from benchmarks.ladder.steps import SAMPLE, cost_of, ensure
from sppnet.boxes import clip_boxes, decode_boxes
from sppnet.data.images import read_image
from sppnet.detection import NMS_IOU, VOTE_IOU
from sppnet.detection.evaluate import MOST_PER_CLASS, SCORE_THRESHOLDS, evaluate_detector
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.predict import Stopwatch, select
from sppnet.errors import UserError
from sppnet.metrics.coco import evaluate_coco
from sppnet.metrics.errors import detection_errors
from sppnet.metrics.voc import evaluate_voc
from sppnet.models.files import load
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.ops.pyramid_pool import pyramid_pool
from sppnet.proposals.compute import propose
from sppnet.proposals.files import load_proposals

Tell = Callable[[str, str, int, int], None]  # rung or step, stage, done, total
STAGES = ("proposals", "maps", "pooling", "fully connected", "nms")  # of a test, as the table has them


def result_file(output: Path, rung: Rung, seed: int) -> Path:
    """Where the result of a rung and seed lies."""
    return output / f"{rung.name}-seed{seed}.json"


def measure_rung(ladder: Ladder, rung: Rung, seed: int, seeds: Sequence[int], output: Path, tell: Tell) -> Path | None:
    """Train what is missing, test, and write the result; nothing where it is there.

    Args:
        ladder: settings and images.
        rung: what to test.
        seed: of its training.
        seeds: all seeds, from which models that answer together are taken.
        output: folder of results.
        tell: told of progress.

    Returns:
        The result's file; None where a rung needs more seeds than there are.

    Raises:
        UserError: what the steps raise.
    """
    path, together = result_file(output, rung, seed), partners(rung, seed, seeds)
    if not together:
        return None
    if path.is_file():
        return path
    steps = [rung.make(ladder, each) for each in together]
    for step in steps:
        ensure(ladder.folder, step, tell)
    models = [load(start_file(step), ladder.settings.device) for step in steps]
    if not rung.moves:
        models = [standing(model) for model in models]
    busy = round(os.getloadavg()[0], 1)
    report = partial(tell, f"{rung.name}-seed{seed}")
    if rung.way == "crops":
        found = evaluate_rcnn(ladder, models[0], rung, report)
    else:
        if rung.way == "few":
            window_files(ladder, ladder.test, report)
        work = work_of_windows(ladder) if rung.way == "few" else ladder.work
        votes = VOTE_IOU if rung.votes else 0
        answer = evaluate_detector(models, ladder.test, work, report, vote_iou=votes, maps_folder=ladder.work / "maps")
        found = answer.to_dict()
        found["seconds_per_image"]["maps"] = sum(map_seconds(ladder, model) for model in models)
    seconds = {**found.pop("seconds_per_image"), "proposals": proposal_seconds(ladder)}
    train_seconds, left = cost_of(ladder.folder, steps)
    result = {
        "rung": rung.name,
        "title": rung.told(ladder),
        "seed": seed,
        "seeds": list(together),
        **found,
        "train_seconds": train_seconds,
        "test_seconds": seconds,
        "bytes": left,
        "ranks": list(models[0].architecture.ranks),
        "train_images": len(ladder.train),
        "settings": ladder.settings.to_dict(),
        "environment": {**environment(), "load before": busy},
    }
    write_json(path, result)
    return path


def standing(model: SPPNet) -> SPPNet:
    """A copy of a model that leaves boxes where they were proposed."""
    still = copy.deepcopy(model)
    outputs = [still.shared_deltas, still.class_deltas, still.residual_deltas]
    with torch.no_grad():
        for output in outputs:
            for parameter in output.parameters():
                parameter.zero_()
    return still


def proposal_seconds(ladder: Ladder) -> float:
    """Seconds that the proposals of a test image take."""
    return sampled_seconds(ladder, "proposal-seconds", lambda photo: propose(photo, ladder.settings.proposer))


def map_seconds(ladder: Ladder, model: SPPNet) -> float:
    """Seconds that the maps of a test image take: tests of one backbone share maps, and only the first computes them."""
    name = MapCache.of(model, ladder.work).folder.name
    return sampled_seconds(ladder, f"map-seconds-{name}", lambda photo: compute_feature_maps(model, photo))


def sampled_seconds(ladder: Ladder, name: str, work: Callable[[np.ndarray], object]) -> float:
    """Mean seconds of ``work`` on a sample of the test images, one after another; measured once under each name."""
    file = ladder.folder / f"{name}-{ladder.settings.test_split}.json"
    if file.is_file():
        known: float = json.loads(file.read_text(encoding="utf-8"))["seconds"]
        return known
    images = ladder.test.images
    photos = [read_image(image.path) for image in images[:: max(1, len(images) // SAMPLE)][:SAMPLE]]
    work(photos[0])  # what a first call costs does not count
    started = time.perf_counter()
    for photo in photos:
        work(photo)
    seconds = round((time.perf_counter() - started) / len(photos), 5)
    write_json(file, {"seconds": seconds, "images": len(photos)})
    return seconds


def evaluate_rcnn(ladder: Ladder, model: SPPNet, rung: Rung, report: Callable[[str, int, int], None]) -> dict[str, Any]:
    """What `evaluate_detector` tells of a detector, of R-CNN."""
    data, at_once = ladder.test, crops_at_once(ladder)
    files = window_files(ladder, data, report)
    watch, found = Stopwatch(), []
    for done, (image, file) in enumerate(zip(data.images, files, strict=True)):
        with watch.stage("decode"):
            pixels = read_image(image.path)
        scores, boxes = score_crops(model, pixels, load_proposals(file)[0], at_once, watch, moves=rung.moves)
        with watch.stage("nms"):
            threshold, names = SCORE_THRESHOLDS["margin"], model.class_names
            answer = select(scores, boxes, names, threshold, NMS_IOU, None, "margin", MOST_PER_CLASS, vote_iou=0)
        found.append((answer.boxes, answer.scores, answer.labels.copy()))  # a result's own cannot be written to
        report("detection", done + 1, len(data.images))
    truth = [(image.gt_boxes, image.gt_labels, image.difficult) for image in data.images]
    return {
        **evaluate_voc(found, truth, data.class_names).to_dict(),
        "coco": _coco(found, truth, data.class_names),
        "errors": detection_errors(found, truth, data.class_names).to_dict(),
        "images": len(data),
        "score_kind": "margin",
        "crops_at_once": at_once,
        "seconds_per_image": {stage: round(value / len(data), 5) for stage, value in watch.seconds.items()},
    }


def score_crops(
    model: SPPNet, pixels: np.ndarray, proposals: np.ndarray, at_once: int, watch: Stopwatch, *, moves: bool
) -> tuple[Tensor, Tensor]:
    """What R-CNN says of each proposal, as `sppnet.detection.predict.score_windows` does for SPP-net.

    Args:
        model: with SVMs.
        pixels: [H, W, 3] uint8.
        proposals: [R, 4] float32.
        at_once: crops in a batch.
        watch: its stage "maps" is cutting, warping and convolving.
        moves: whether the model's ridge regressors move boxes.

    Returns:
        Scores [R, 1 + K], background first, and boxes [R, K, 4], clipped to the image.
    """
    pooled = []
    for start in range(0, len(proposals), at_once):
        with watch.stage("maps"):
            maps = rcnn_maps(pixels, proposals[start : start + at_once], model)
        with watch.stage("pooling"), torch.inference_mode():
            pooled.append(pyramid_pool(maps, model.architecture.levels))
    with watch.stage("fully connected"), torch.inference_mode(), autocast(model.device):
        described = model.fully_connected(torch.cat(pooled))
        margins = stored_svms(model).margins(described).cpu()
        shape = (len(proposals), margins.shape[1], 4)
        deltas = stored_regression(model).deltas(described).cpu() if moves else torch.zeros(shape)
    with watch.stage("nms"):
        boxes = clip_boxes(decode_boxes(torch.from_numpy(proposals), deltas), (pixels.shape[0], pixels.shape[1]))
    return torch.cat([-margins.amax(1, keepdim=True), margins], dim=1), boxes


def _coco(found: list[Any], truth: list[Any], names: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        counted: dict[str, Any] = evaluate_coco(found, truth, names).to_dict()["coco"]
    except UserError:  # a package is missing, and nothing else
        return None
    return counted
