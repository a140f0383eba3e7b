"""Test one rung of one seed: average precision, seconds an image by stage, what its training took, and the bytes it left.

A result is one JSON file, written whole or not at all; one that is there is not made again.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.features_per_image import rcnn, spp_features
from benchmarks.ladder.rcnn import crops_at_once, some_proposals
from benchmarks.ladder.rungs import Rung, partners
from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.steps import SAMPLE, cost_of, ensure, measured
from benchmarks.rcnn import RcnnSettings, rcnn_features
from benchmarks.results_file import write_results
from sppnet.boxes import clip_boxes, decode_boxes
from sppnet.data.images import read_image
from sppnet.detection.evaluate import MAX_PER_CLASS, RANKED, SCORE_THRESHOLDS
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.predict import score_kind, score_windows, union
from sppnet.detection.suppression import DetectSettings, select
from sppnet.metrics.errors import detection_errors
from sppnet.metrics.voc import evaluate_voc
from sppnet.models.files import load
from sppnet.models.heads import BoxRegressor
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, timed
from sppnet.proposals.compute import propose

Tell = Callable[[str, str, int, int], None]  # rung or step, stage, done, total
STAGES = ("proposals", "maps", "pooling", "fully connected", "nms")  # of a test, as the table has them
REPEATED = 3  # turns of which the fastest counts


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
    if not together or path.is_file():
        return path if together else None
    steps = [rung.make(ladder, each) for each in together]
    for step in steps:
        ensure(step, tell)
    models = [load(step.model, ladder.settings.device) for step in steps]
    models = models if rung.moves else [standing(model) for model in models]
    busy = round(os.getloadavg()[0], 1)
    progress = partial(tell, f"{rung.name}-seed{seed}")
    proposals = (ladder.proposals if rung.way == "maps" else partial(some_proposals, ladder))(ladder.test, progress)
    found = evaluate(ladder, rung, models, proposals, progress)
    train_seconds, left = cost_of(steps)
    result = {
        "rung": rung.name,
        "title": rung.told(ladder),
        "seed": seed,
        "seeds": list(together),
        **found,
        "train_seconds": train_seconds,
        "test_seconds": {**test_seconds(ladder, rung, models, proposals), "nms": found.pop("seconds")},
        "bytes": left,
        "ranks": list(models[0].architecture.ranks),
        "train_images": len(ladder.train),
        "settings": ladder.settings.to_dict(),
        "environment": {**environment(), "load before": busy},
    }
    write_results(path, result)
    return path


def standing(model: SPPNet) -> SPPNet:
    """A copy of a model that leaves boxes where they were proposed."""
    still = copy.deepcopy(model)
    assert isinstance(still.box_regressor, BoxRegressor)
    with torch.no_grad():
        for parameter in still.box_regressor.parameters():
            parameter.zero_()
    return still


def evaluate(
    ladder: Ladder, rung: Rung, models: Sequence[SPPNet], proposals: Sequence[np.ndarray], progress: Progress
) -> dict[str, Any]:
    """Average precision and errors of one model or several on the test images, as `sppnet.detection.evaluate` counts; and ``seconds`` of
    suppression for an image."""
    data, kind, names = ladder.test, score_kind(models[0]), models[0].class_names
    settings = replace(
        RANKED, score_threshold=SCORE_THRESHOLDS[kind], vote_iou=DetectSettings.vote_iou if rung.votes else 0
    )
    if kind == "decision":
        settings = replace(settings, max_detections=MAX_PER_CLASS * len(names))
    caches = [FeatureMapCache(model, ladder.maps) for model in models]
    seconds, found = dict[str, float](), []
    for index, (image, boxes) in enumerate(zip(data.images, proposals, strict=True)):
        if rung.way == "crops":
            answers = [score_crops(models[0], read_image(image.path), boxes, crops_at_once(ladder))]
        else:
            maps = [cache.read(image.path) for cache in caches]
            answers = [score_windows(model, each, boxes) for model, each in zip(models, maps, strict=True)]
        with timed(seconds, "nms"):
            answer = select(
                *union(models, answers), names, settings, kind, MAX_PER_CLASS if kind == "decision" else None
            )
        found.append((answer.boxes, answer.scores, answer.labels))
        progress("detection", index + 1, len(data))
    truth = [(image.gt_boxes, image.gt_labels, image.difficult) for image in data.images]
    return {
        **evaluate_voc(found, truth, data.class_names).to_dict(),
        "errors": detection_errors(found, truth, data.class_names).to_dict(),
        "images": len(data),
        "score_kind": kind,
        "seconds": round(seconds["nms"] / len(data), 5),
    }


def test_seconds(
    ladder: Ladder, rung: Rung, models: Sequence[SPPNet], proposals: Sequence[np.ndarray]
) -> dict[str, float]:
    """Seconds of a test image by stage, on a sample of them, one after another; of several models, the sum."""
    images = list(zip(ladder.test.images, proposals, strict=True))
    sample = images[:: max(1, len(images) // SAMPLE)][:SAMPLE]
    photos = [(read_image(image.path), boxes) for image, boxes in sample]
    seconds = dict.fromkeys(STAGES, 0.0)
    method = ladder.settings.proposals

    def all_proposals(some: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        for photo, _ in some:
            propose(photo, method)

    seconds["proposals"] = measured(all_proposals, photos) / len(photos)
    for model in models:
        for photo, boxes in photos:
            turns = []
            for _ in range(REPEATED):
                if rung.way == "crops":
                    turns.append(rcnn(model, photo, boxes, len(boxes), RcnnSettings(crops_at_once(ladder))))
                else:
                    turns.append(spp_features(model, photo, boxes, list(model.short_sides), bfloat16=True))
            for stage, name in (("conv", "maps"), ("pooling", "pooling"), ("fully connected", "fully connected")):
                seconds[name] += min(turn[stage] for turn in turns) / len(photos)
    return {stage: round(value, 5) for stage, value in seconds.items()}


def score_crops(model: SPPNet, pixels: np.ndarray, proposals: np.ndarray, at_once: int) -> tuple[Tensor, Tensor]:
    """What R-CNN says of each proposal, as `sppnet.detection.predict.score_windows` does for SPP-net.

    Args:
        model: with SVMs.
        pixels: [H, W, 3] uint8.
        proposals: [R, 4] float32.
        at_once: crops in a batch.

    Returns:
        Scores [R, 1 + K], background first, and boxes [R, K, 4], clipped to the image.
    """
    head_features = rcnn_features(pixels, proposals, model, RcnnSettings(at_once))
    with model.inference():
        scores, deltas = model.heads(head_features, torch.zeros(len(proposals), 4, device=model.device))
    deltas = deltas.float().cpu() * torch.tensor(model.box_regressor.delta_scale)  # type: ignore[union-attr]
    boxes = decode_boxes(torch.from_numpy(proposals), deltas)
    return scores.cpu(), clip_boxes(boxes, (pixels.shape[0], pixels.shape[1]))
