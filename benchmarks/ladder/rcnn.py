"""The steps of R-CNN: every window cut out, warped and sent through the network by itself; otherwise what SPP-net does.

Backbone, pyramid, fully connected layers, schedule and SVMs are those of the ladder's SPP-net of one scale, so what differs is what
a window's features come from. As fast as it can be: the size of batch that is fastest on this machine; each crop of the training
goes through the convolutions once, and is kept. Source: arXiv:1311.2524, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sppnet.detection.linear_stages import store_regression, store_svms
from sppnet.detection.rcnn import AT_ONCE, fastest_batch, rcnn_maps
from sppnet.terminal import write_json

from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.spp import finetune_settings, model_file, proposals_step, start_file, untrained_step
from benchmarks.ladder.steps import Report, Step
from benchmarks.ladder.warped import (
    WarpedCache,
    WarpedWindows,
    capped_proposals,
    describe_all,
    pool_sample,
    sample_candidates,
)
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import content_key, image_size, read_image
from sppnet.detection.box_regression import BoxRegressionSettings, train_box_regression
from sppnet.detection.finetune import TrainingImage, finetune
from sppnet.detection.svm import SVMSettings, train_svms
from sppnet.detection.targets import Candidates, find_candidates
from sppnet.detection.train import proposals_of
from sppnet.models.files import load, round_to_stored, save_model
from sppnet.progress import no_progress
from sppnet.proposals.files import load_proposals, proposals_path


def work_of_windows(ladder: Ladder) -> Path:
    """A work folder whose proposals are those that R-CNN looks at: `ladder.work` itself where it looks at all."""
    most = ladder.settings.rcnn_proposals
    return ladder.work / f"at-most-{most}" if most else ladder.work


def window_files(ladder: Ladder, data: DetectionData, report: Report | None = None) -> list[Path]:
    """The files of the proposals that R-CNN looks at, one for each image; missing ones are written."""
    files = proposals_of(data, ladder.settings.proposer, ladder.work, report or no_progress)
    most = ladder.settings.rcnn_proposals
    if not most:
        return files
    folder = work_of_windows(ladder) / "proposals" / ladder.settings.proposer
    targets = [proposals_path(folder, image.image_id) for image in data.images]
    for image, source, target in zip(data.images, files, targets, strict=True):
        capped_proposals(source, target, image.image_id, most)
    return targets


def batch_step(ladder: Ladder, seed: int) -> Step:
    """The size of batch that takes least time for each crop, measured on this machine."""
    start, output = untrained_step(ladder, "spp1", seed), ladder.folder / "rcnn-batch.json"

    def run(report: Report) -> None:
        model = load(start_file(start), ladder.settings.device)
        image = read_image(ladder.train.images[0].path)
        boxes = np.tile(np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32), (max(AT_ONCE), 1))
        best, seconds = fastest_batch(lambda size: rcnn_maps(image, boxes[:size], model))
        write_json(output, {"at once": best, "seconds a crop": seconds})

    return Step("rcnn-batch", output, run, dict, (start,))


def crops_at_once(ladder: Ladder) -> int:
    """What `batch_step` found."""
    found: int = json.loads((ladder.folder / "rcnn-batch.json").read_text(encoding="utf-8"))["at once"]
    return found


def crops_step(ladder: Ladder, seed: int) -> Step:
    """A sample of each image's windows through the convolutions: what the fully connected layers learn from, for every seed."""
    start = untrained_step(ladder, "spp1", seed)
    name = _crops_name(ladder, seed)

    def run(report: Report) -> None:
        model, at_once = load(start_file(start), ladder.settings.device), crops_at_once(ladder)
        samples = _samples(ladder, seed)
        for done, (image, candidates) in enumerate(samples):
            for path, mirrored in zip(_crop_files(ladder, image, seed), (False, True), strict=False):
                pool_sample(model, image.path, candidates.boxes, path, at_once=at_once, mirrored=mirrored)
            report("crops", done + 1, len(samples))

    def leaves() -> dict[str, Iterable[Path]]:
        return {"crops": [ladder.work / name]}

    return Step(name, None, run, leaves, (proposals_step(ladder), batch_step(ladder, seed)), ("proposals",))


def rcnn_finetune_step(ladder: Ladder, seed: int) -> Step:
    """The fully connected layers on these crops, as SPP-net's."""
    start, name = untrained_step(ladder, "spp1", seed), f"rcnn-finetuned-{ladder.settings.rcnn_windows}-seed{seed}"
    output = model_file(ladder, name)
    checkpoints = ladder.work / f"checkpoints-{output.stem}-crops"

    def run(report: Report) -> None:
        model = load(start_file(start), ladder.settings.device)
        images = [
            TrainingImage(candidates, tuple(_crop_files(ladder, image, seed)), image_size(image.path))
            for image, candidates in _samples(ladder, seed)
        ]
        settings = finetune_settings(ladder, seed)
        finetune(model, images, WarpedCache(), settings, checkpoints, partial(report, "fine-tuning"))  # type: ignore[arg-type]
        round_to_stored(model)
        save_model(model, output, {"seed": seed})

    def leaves() -> dict[str, Iterable[Path]]:
        return {"model": [output], "checkpoints": [checkpoints]}

    return Step(name, output, run, leaves, (crops_step(ladder, seed),))


def rcnn_svm_step(ladder: Ladder, seed: int) -> Step:
    """All windows through the network, then SVMs on what it says of them."""
    start, name = rcnn_finetune_step(ladder, seed), f"rcnn-svm-{_windows_name(ladder)}-seed{seed}"
    output = model_file(ladder, name)
    state = ladder.work / f"{output.stem}-svms.safetensors"

    def run(report: Report) -> None:
        model = load(start_file(start), ladder.settings.device)
        files, at_once = window_files(ladder, ladder.train, report), crops_at_once(ladder)
        described = _described_files(ladder, seed)
        for done, (image, file, path) in enumerate(zip(ladder.train.images, files, described, strict=True)):
            describe_all(model, image, file, path, at_once=at_once)
            report("windows", done + 1, len(files))
        images, settings = _warped(ladder, files, seed), SVMSettings(seed=seed)
        store_svms(
            model, train_svms(images, ladder.train.class_names, settings, state=state, progress=partial(report, "SVMs"))
        )
        save_model(model, output, {"seed": seed})

    def leaves() -> dict[str, Iterable[Path]]:
        return {"model": [output], "states": [state], "windows": _described_files(ladder, seed)}

    return Step(name, output, run, leaves, (start,), ("proposals",))


def rcnn_ridge_step(ladder: Ladder, seed: int) -> Step:
    """Ridge regressors on what the network says of the same windows."""
    start, name = rcnn_svm_step(ladder, seed), f"rcnn-ridge-{_windows_name(ladder)}-seed{seed}"
    output = model_file(ladder, name)
    state = ladder.work / f"{output.stem}-ridge.safetensors"

    def run(report: Report) -> None:
        model = load(start_file(start), ladder.settings.device)
        images = _warped(ladder, window_files(ladder, ladder.train), seed)
        settings, progress = BoxRegressionSettings(seed=seed), partial(report, "box regression")
        regression = train_box_regression(
            images, len(ladder.train.class_names), settings, state=state, progress=progress
        )
        store_regression(model, regression, "ridge")
        save_model(model, output, {"seed": seed})

    return Step(name, output, run, lambda: {"model": [output], "states": [state]}, (start,))


def _samples(ladder: Ladder, seed: int) -> list[tuple[AnnotatedImage, Candidates]]:
    """Of each image with something to learn, the windows that are; the same for every seed, so that crops are made once."""
    settings, of_finetuning = ladder.settings, finetune_settings(ladder, seed)
    files = proposals_of(ladder.train, settings.proposer, ladder.work)
    found = []
    for number, (image, file) in enumerate(zip(ladder.train.images, files, strict=True)):
        candidates = find_candidates(
            image, load_proposals(file)[0], len(ladder.train.class_names), of_finetuning.foreground_iou, of_finetuning.background_iou
        )  # fmt: skip
        sample = sample_candidates(candidates, settings.rcnn_windows, of_finetuning.foreground_share, number)
        if len(sample.labels):
            found.append((image, sample))
    return found


def _warped(ladder: Ladder, files: Sequence[Path], seed: int) -> WarpedWindows:
    return WarpedWindows(ladder.train.images, files, _described_files(ladder, seed), len(ladder.train.class_names))


def _crops_name(ladder: Ladder, seed: int) -> str:
    of_seed = "" if ladder.weights is not None else f"-seed{seed}"
    return f"{ladder.key}-rcnn-crops-{ladder.settings.rcnn_windows}{of_seed}"


def _crop_files(ladder: Ladder, image: AnnotatedImage, seed: int) -> list[Path]:
    """Of an image, and of its mirror image if that is learned from."""
    folder, key = ladder.work / _crops_name(ladder, seed), content_key(image.path)
    ends = ("", "-mirrored") if ladder.settings.mirrored else ("",)
    return [folder / f"{key}{end}.safetensors" for end in ends]


def _windows_name(ladder: Ladder) -> str:
    settings = ladder.settings
    return f"{settings.rcnn_windows}-{settings.rcnn_proposals or 'all'}"


def _described_files(ladder: Ladder, seed: int) -> list[Path]:
    folder = ladder.work / f"{ladder.key}-rcnn-windows-{_windows_name(ladder)}-seed{seed}"
    return [folder / f"{content_key(image.path)}.safetensors" for image in ladder.train.images]
