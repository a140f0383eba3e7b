"""A classifier learns by gradients: batches of like sizes, epoch after epoch, and what it measures on held-out images.

One of the two ways of `sppnet.classification.train`; the other is `sppnet.classification.svm_head`. Images, or what a frozen
backbone made of them -> batches (`sppnet.classification.loader`) -> Lightning's loop (`sppnet.classification.loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sppnet.cache import Part, fingerprint
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
from sppnet.classification.readable import ReadableImages, Report
from sppnet.classification.settings import ClassifierSettings
from sppnet.data.samplers import SizeBuckets
from sppnet.models.cut import fold_batch_norm
from sppnet.models.sppnet import SPPNet


class Learned(NamedTuple):
    """What learning comes to, beside the model."""

    figures: dict[str, Any]  # JSON-ready
    measured: (
        dict[str, float] | None
    )  # on the held-out images, if any: "images", "wrong", "loss", and, of the best, "epoch"
    log: dict[str, list[float]]
    rank: int  # of this process


def learn_in_epochs(
    model: SPPNet,
    train: ReadableImages,
    held_out: ReadableImages,
    settings: ClassifierSettings,
    checkpoints: Path,
    *,
    devices: int,
    workers: int,
    report: Report,
) -> Learned:
    """Train a model in place, the head alone or all of it, and keep the epoch that does best on the held-out images.

    Args:
        model: in evaluation mode, its features calibrated if they are not to change.
        train, held_out, settings, checkpoints, devices, workers: as of `sppnet.classification.train.train_classifier`.
        report: told of the progress: "features", where the head learns alone, and "training", done, total.

    Raises:
        UserError, KeyboardInterrupt: as of `train_classifier`.
    """
    name = fingerprint(_starts_from(model, settings, devices, train, held_out), size=8)
    folder = checkpoints / f"run-{name}"
    buckets = partial(_buckets, model, train, settings, devices)
    steps = len(buckets(0))  # in an epoch, on each device
    datasets = (
        _kept_rows(model, train, held_out, settings, checkpoints / "features", report)
        if settings.learn == "head"
        else _views(model, train, held_out, settings)
    )
    loaders = _loaders(model, datasets, held_out, buckets, settings, workers if settings.learn == "all" else 0)
    module = ClassifierModule(model, settings, settings.epochs * steps, *loaders)
    fit(module, folder, steps=steps, devices=devices, tell=partial(report, "training"))
    model.eval()
    if settings.learn == "all":
        fold_batch_norm(model.backbone)
    figures = {
        "steps": module.steps,
        "padding_share": round(buckets(0).padding_share().buckets, 4) if settings.learn == "all" else 0.0,
    }
    return Learned(figures, module.measured, training_log(folder), module.global_rank)


def has_batch_norm(model: SPPNet) -> bool:
    """Whether some of the backbone's statistics are those of batches."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.backbone.modules())


def _buckets(
    model: SPPNet, images: ReadableImages, settings: ClassifierSettings, devices: int, rank: int
) -> SizeBuckets:
    """Which images go together; where all are shown alike, at random."""
    smallest = 2 if settings.learn == "all" and has_batch_norm(model) else 1
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


def _starts_from(
    model: SPPNet, settings: ClassifierSettings, devices: int, train: ReadableImages, held_out: ReadableImages
) -> Iterator[Part]:
    """All that training starts from: only a stopped run of the very same kind may go on from its checkpoint."""
    yield repr((model.architecture, settings, devices))
    yield model.state_dict()
    for part in (train, held_out):
        yield from map(str, part.images.paths)
        yield part.images.labels
        yield part.sizes
