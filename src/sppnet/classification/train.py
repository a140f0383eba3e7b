"""Train a classifier on labelled images of any size: the head on a frozen backbone, or the whole network.

Files that can be read -> batches of like sizes (`sppnet.data.size_buckets`) -> a network that learns, seen by held-out
images after every epoch -> the model that was best on those. A run that was stopped, by whatever means, goes on from its
last checkpoint and ends with the same weights, bit for bit on a CPU, as if never stopped. Source: arXiv:1406.4729, section 3.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sppnet.classification.kept import KeptFeatures, Vectors
from sppnet.classification.loader import (
    HeldOutViews,
    KeptRows,
    Stretch,
    TrainingViews,
    image_batch,
    own_sizes,
    pooled_batch,
)
from sppnet.classification.log import training_log
from sppnet.classification.loop import fit
from sppnet.classification.module import ClassifierModule, Loaders
from sppnet.classification.pooled import calibrate, spread
from sppnet.classification.readable import ReadableImages, Report, readable_images
from sppnet.classification.settings import ClassifierSettings
from sppnet.data.folder import LabelledImages, split_off
from sppnet.data.images import read_image
from sppnet.data.size_buckets import SizeBuckets
from sppnet.errors import UserError
from sppnet.metrics.classification import wilson_interval
from sppnet.models.fold import fold_batch_norm
from sppnet.models.mixed_batch import MixedBatch
from sppnet.models.sppnet import SPPNet


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A trained model, and all that is known of its training."""

    model: SPPNet  # in evaluation mode, its BatchNorm folded: as `sppnet.models.files.save_model` takes it
    held_out: LabelledImages  # the images that chose the epoch
    figures: dict[str, Any]  # JSON-ready: data, settings, held-out accuracy, what was skipped, seconds
    log: dict[str, list[float]]  # the curves, for `sppnet.visualize.plot_training`
    rank: int = 0  # of this process: with several devices every process gets here, and only 0 should write the model


def train_classifier(
    model: SPPNet,
    train: LabelledImages,
    held_out: LabelledImages | None = None,
    settings: ClassifierSettings | None = None,
    *,
    checkpoints: Path,
    devices: int = 1,
    workers: int = 0,
    skip_bad: bool = False,
    report: Report | None = None,
) -> TrainedClassifier:
    """Train a single-label classifier, and keep the weights that do best on held-out images.

    Args:
        model: trained in place, on its device. Its architecture says how images are fed in use, and so to the held-out
            accuracy; its names are those of the data. Where ``settings.learn`` is "all" and it starts from random weights,
            its backbone should still have its BatchNorm (``compact_resnet(folded=False)``): that is folded at the end.
        train: images to learn from.
        held_out: images that choose the best epoch; never test data. None: a share of ``train`` is split off.
        settings: how.
        checkpoints: a folder. Each training has its own in it, named for all that it depends on: checkpoints (``last.ckpt``,
            ``best.ckpt``), logs (CSV; TensorBoard if installed). Vectors of a frozen backbone are shared by all.
        devices: processes, one on each device of the model's kind (on a CPU: gloo); only with ``learn="all"``. Lightning
            starts the others by running the very same command again.
        workers: processes that read images; 0: the training itself does.
        skip_bad: leave out files that cannot be read, and list them in ``figures``, instead of refusing to start.
        report: told of the progress: stage, done, total.

    Returns:
        `TrainedClassifier`. ``figures["held_out"]["accuracy"]`` is of the images that chose the epoch, and so a little too
        good.

    Raises:
        UserError: files that cannot be read (all are named, before anything is computed, unless the damage is beyond a
            file's head), too few images, classes that are not the model's, a loss that is no number, no room.
        KeyboardInterrupt: at Ctrl-C; the next call goes on from the last checkpoint.

    Source: arXiv:1406.4729, section 3.1; for the training sizes see `sppnet.classification.schedule.TrainingSizes`.

    Example:
        >>> from PIL import Image
        >>> from sppnet.data.folder import read_folder
        >>> from sppnet.models.sppnet import Architecture, SPPNet
        >>> for name, colour in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
        ...     Path("photos", name).mkdir(parents=True)
        ...     for i in range(4):
        ...         Image.new("RGB", (40 + i, 50 - i), colour).save(f"photos/{name}/{i}.png")
        >>> images = read_folder("photos")
        >>> shape = Architecture(images.names, levels=(1,), hidden=(), detects=False, multi_label=False, short_side=32)
        >>> backbone = sppnet.load("voc").backbone
        >>> trained = train_classifier(SPPNet(shape, backbone), images, checkpoints=Path("work"))
        >>> trained.figures["held_out"]["accuracy"]
        1.0
    """
    settings = settings or ClassifierSettings()
    if report is None or vars(rank_zero_only).get("rank"):  # of several processes, the first tells
        report = _silent
    started = time.perf_counter()
    given = held_out is not None
    if held_out is None:
        train, held_out = split_off(train, settings.held_out_share, seed=settings.seed)
    _check(model, train, held_out, settings, devices)
    learnt = readable_images(train, skip_bad=skip_bad, report=report, stage="checking images")
    watched = readable_images(held_out, skip_bad=skip_bad, report=report, stage="checking held-out images")
    _check_classes(learnt.images)
    model.eval().backbone.to(memory_format=torch.channels_last)
    if settings.learn == "head" or not _has_batch_norm(model):
        calibrate(model, [read_image(learnt.images.paths[place]) for place in spread(len(learnt.images))])

    folder = checkpoints / f"run-{_fingerprint(model, settings, devices, learnt, watched)}"
    buckets = partial(_buckets, model, learnt, settings, devices)
    steps = len(buckets(0))  # in an epoch, on each device
    datasets = (
        _kept_rows(model, learnt, watched, settings, checkpoints / "features", report)
        if settings.learn == "head"
        else _views(model, learnt, watched, settings)
    )
    loaders = _loaders(model, datasets, watched, buckets, settings, workers if settings.learn == "all" else 0)
    module = ClassifierModule(model, settings, settings.epochs * steps, *loaders)
    fit(module, folder, steps=steps, devices=devices, tell=partial(report, "training"))
    model.eval()
    if settings.learn == "all":
        fold_batch_norm(model.backbone)
    figures = {
        "data": {
            "train": len(learnt.images),
            "held_out": len(watched.images),
            "held_out_were": "given" if given else "split off",
            "classes": len(train.names),
            "skipped": [{"path": str(path), "error": error} for path, error in (*learnt.broken, *watched.broken)],
        },
        "settings": dataclasses.asdict(settings) | {"devices": devices},
        "steps": module.steps,
        "padding_share": round(buckets(0).padding_share().buckets, 4) if settings.learn == "all" else 0.0,
        "held_out": _held_out_figures(module.measured),
        "seconds": round(time.perf_counter() - started),
    }
    return TrainedClassifier(model, watched.images, figures, training_log(folder), module.global_rank)


def _silent(stage: str, done: int, total: int) -> None:
    """What reports to nobody."""


def _check(
    model: SPPNet, train: LabelledImages, held_out: LabelledImages, settings: ClassifierSettings, devices: int
) -> None:
    architecture, sizes = model.architecture, settings.sizes
    if architecture.multi_label:
        raise ValueError("train_classifier: expected a model of one class an image: Architecture(multi_label=False)")
    if train.names != architecture.names or held_out.names != architecture.names:
        raise UserError(
            f"the data's classes are not the model's: {_some(train.names)} against {_some(architecture.names)}"
        )
    _check_classes(train)
    if settings.learn == "all" and sizes.rule == "native" and architecture.fit == "native":
        MixedBatch(model.backbone)  # a backbone that cannot take images of different sizes together says so here
    side = architecture.short_side
    if architecture.fixed_size and (sizes.rule, max(sizes.sides)) != ("single", side) and sizes.rule != "native":
        raise UserError(
            f"this network takes images of {side} x {side} alone: train it at 'native' sizes, or at the 'single' size {side}"
        )
    if sizes.rule != "native" and min(sizes.sides) < model.smallest_side:
        raise UserError(
            f"the sides must be at least {model.smallest_side} pixels with this backbone: got {min(sizes.sides)}"
        )
    if devices < 1:
        raise UserError(f"devices must be at least 1: got {devices}")
    if devices > 1 and settings.learn == "head":
        raise UserError("the head alone learns on one device: take devices=1, or learn='all'")


def _check_classes(train: LabelledImages) -> None:
    present = [name for name, count in zip(train.names, train.counts(), strict=True) if count]
    if len(present) < 2:
        raise UserError(f"expected images of at least two classes to learn from, got {_some(tuple(present)) or 'none'}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" ... ({len(names)})" if len(names) > 3 else "")


def _has_batch_norm(model: SPPNet) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.backbone.modules())


def _buckets(
    model: SPPNet, images: ReadableImages, settings: ClassifierSettings, devices: int, rank: int
) -> SizeBuckets:
    """Which images go together; where all are shown alike, at random."""
    smallest = 2 if settings.learn == "all" and _has_batch_norm(model) else 1
    sizes = np.ones((len(images.images), 2), np.int64)
    if settings.learn == "all" and settings.sizes.rule == "native":
        sizes = own_sizes(images.sizes, model.architecture, model.smallest_side)
    length = max(settings.batch_size, smallest)
    return SizeBuckets(sizes, length, seed=settings.seed, ranks=devices, rank=rank, smallest_batch=smallest)


def _kept_rows(
    model: SPPNet,
    train: ReadableImages,
    held_out: ReadableImages,
    settings: ClassifierSettings,
    folder: Path,
    report: Report,
) -> tuple[Dataset[Any], Dataset[Any]]:
    """What a head learns from, and what it is seen by."""
    paths = [*train.images.paths, *held_out.images.paths]
    files, count = KeptFeatures.of(model, folder).fill(model, paths, report), len(train.images)
    return (
        KeptRows(Vectors(files[:count]), train.images.labels, settings.seed),
        KeptRows(Vectors(files[count:]), held_out.images.labels, settings.seed),
    )


def _views(
    model: SPPNet, train: ReadableImages, held_out: ReadableImages, settings: ClassifierSettings
) -> tuple[Dataset[Any], Dataset[Any]]:
    """What a whole network learns from, and what it is seen by."""
    return (
        TrainingViews(
            train.images,
            model.architecture,
            settings.sizes,
            minimum=model.smallest_side,
            least_region=settings.least_region,
            light=settings.light,
            seed=settings.seed,
        ),
        HeldOutViews(held_out.images, model.architecture, model.smallest_side),
    )


def _loaders(
    model: SPPNet,
    datasets: tuple[Dataset[Any], Dataset[Any]],
    held_out: ReadableImages,
    buckets: Callable[[int], SizeBuckets],
    settings: ClassifierSettings,
    workers: int,
) -> tuple[Loaders, Loaders | None]:
    """What makes the batches to learn from, and those that are held out, once the ranks of all processes are known."""
    common: dict[str, Any] = {
        "collate_fn": pooled_batch if settings.learn == "head" else image_batch,
        "num_workers": workers,
        # Not forked: of OpenCV's threads, a fork has only the locks, and waits for them for ever.
        "multiprocessing_context": "spawn" if workers else None,
        "persistent_workers": workers > 0,
        "worker_init_fn": _one_thread,
        "pin_memory": model.device.type == "cuda",
    }
    sizes = own_sizes(held_out.sizes, model.architecture, model.smallest_side)

    def train_loader(module: ClassifierModule) -> DataLoader[Any]:
        its_own = buckets(module.global_rank)
        length = min(settings.checkpoint_every, len(its_own))
        batches = Stretch(its_own, settings.sizes, settings.seed, length, lambda: module.global_step)
        return DataLoader(datasets[0], batch_sampler=batches, **common)

    def held_out_loader(module: ClassifierModule) -> DataLoader[Any]:
        its_own = SizeBuckets(
            sizes,
            settings.batch_size,
            shuffle=False,
            ranks=module.trainer.world_size,
            rank=module.global_rank,
            smallest_batch=1,
        )
        return DataLoader(datasets[1], batch_sampler=its_own, **common)

    return train_loader, held_out_loader if len(sizes) else None


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)  # each worker is a thread of its own already


def _held_out_figures(measured: dict[str, float] | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    wrong, images = round(measured["wrong"]), round(measured["images"])
    return {
        "accuracy": round(1 - wrong / images, 4),
        "interval": [round(end, 4) for end in wilson_interval(images - wrong, images)],
        "loss": round(measured["loss"], 4),
        "epoch": round(measured["epoch"]),
    }


def _fingerprint(
    model: SPPNet, settings: ClassifierSettings, devices: int, train: ReadableImages, held_out: ReadableImages
) -> str:
    """Names all that training starts from: only a stopped run of the very same kind may go on from its checkpoint."""
    digest = hashlib.blake2b(repr((model.architecture, settings, devices)).encode(), digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    for part in (train, held_out):
        for path in part.images.paths:
            digest.update(str(path).encode("utf-8", "surrogatepass"))
        digest.update(part.images.labels.tobytes() + part.sizes.tobytes())
    return digest.hexdigest()
