"""Train a classifier on labelled images of any size: the head on a frozen backbone, or the whole network.

Files that can be read -> batches of like sizes (`sppnet.data.samplers`) -> a network that learns, seen by held-out
images after every epoch -> the model that was best on those. Or, for a model with SVMs, files -> pooled vectors -> SVMs
(`sppnet.classification.svm_head`), of which held-out images choose nothing. A run that was stopped, by whatever means, goes on
from its last checkpoint, or with the vectors that it has, and ends with the same weights, bit for bit on a CPU, as if never
stopped. Source: arXiv:1406.4729, section 3.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from sppnet.classification.epochs import Learned, has_batch_norm, learn_in_epochs
from sppnet.classification.pooled import calibrate, spread
from sppnet.classification.readable import Report, readable_images
from sppnet.classification.settings import ClassifierSettings
from sppnet.classification.svm_head import check_count, train_svm_head
from sppnet.data.images import read_image
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import UserError
from sppnet.metrics.classification import wilson_interval
from sppnet.models.mixed_batch import MixedBatch
from sppnet.models.sppnet import SPPNet

USED_BY_SVMS = ("learn", "held_out_share", "seed")  # of the settings


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A trained model, and all that is known of its training."""

    model: SPPNet  # in evaluation mode, its BatchNorm folded: as `sppnet.models.files.save_model` takes it
    held_out: LabelledImages  # the images that chose the epoch; for SVMs, they chose nothing
    figures: dict[str, Any]  # JSON-ready: data, settings, held-out accuracy, what was skipped, seconds
    log: dict[str, list[float]]  # the curves, for `sppnet.visualize.plot_training`; SVMs have none
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
            accuracy, and, by ``classifier``, whether it learns in epochs or gets SVMs, which want ``settings.learn="head"`` and
            have no use for its epochs, batches and rates; its names are those of the data. Where ``settings.learn`` is "all" and it starts from random weights,
            its backbone should still have its BatchNorm (``compact_resnet(folded=False)``): that is folded at the end.
        train: images to learn from.
        held_out: images that choose the best epoch, or show what SVMs are worth; never test data. None: a share of ``train``
            is split off.
        settings: how.
        checkpoints: a folder. Each training has its own in it, named for all that it depends on: checkpoints (``last.ckpt``,
            ``best.ckpt``), logs (CSV; TensorBoard if installed). Vectors of a frozen backbone are shared by all; SVMs leave
            nothing else, and are solved anew.
        devices: processes, one on each device of the model's kind (on a CPU: gloo); only with ``learn="all"``. Lightning
            starts the others by running the very same command again.
        workers: processes that read images; 0: the training itself does.
        skip_bad: leave out files that cannot be read, and list them in ``figures``, instead of refusing to start.
        report: told of the progress: stage, done, total.

    Returns:
        `TrainedClassifier`. ``figures["held_out"]["accuracy"]`` is of the images that chose the epoch, and so a little too
        good; that of SVMs is not.

    Raises:
        UserError: files that cannot be read (all are named, before anything is computed, unless the damage is beyond a
            file's head), too few images, classes that are not the model's, a loss that is no number, no room.
        KeyboardInterrupt: at Ctrl-C; the next call goes on from the last checkpoint.

    Source: arXiv:1406.4729, section 3.1; for the training sizes see `sppnet.classification.schedule.TrainingSizes`.

    Example:
        >>> from PIL import Image
        >>> from sppnet.data.formats.folder import read_folder
        >>> from sppnet.models.sppnet import Architecture, SPPNet
        >>> for name, colour in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
        ...     Path("photos", name).mkdir(parents=True)
        ...     for i in range(4):
        ...         Image.new("RGB", (40 + i, 50 - i), colour).save(f"photos/{name}/{i}.png")
        >>> images = read_folder("photos")
        >>> shape = Architecture(images.class_names, levels=(1,), hidden=(), detects=False, multi_label=False, short_side=32)
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
    if settings.learn == "head" or not has_batch_norm(model):
        calibrate(model, [read_image(learnt.images.paths[place]) for place in spread(len(learnt.images))])

    used = dataclasses.asdict(settings)
    if model.architecture.classifier == "svm":
        cache, used = checkpoints / "features", {name: used[name] for name in USED_BY_SVMS}
        choice, measured = train_svm_head(
            model, learnt.images, watched.images, cache, seed=settings.seed, report=report
        )
        learned = Learned({"svm": choice.figures()}, measured, {}, 0)
    else:
        learned = learn_in_epochs(
            model, learnt, watched, settings, checkpoints, devices=devices, workers=workers, report=report
        )
    figures = {
        "data": {
            "train": len(learnt.images),
            "held_out": len(watched.images),
            "held_out_were": "given" if given else "split off",
            "classes": len(train.class_names),
            "skipped": [{"path": str(path), "error": error} for path, error in (*learnt.broken, *watched.broken)],
        },
        "classifier": model.architecture.classifier,
        "settings": used | {"devices": devices},
        **learned.figures,
        "held_out": _held_out_figures(learned.measured),
        "seconds": round(time.perf_counter() - started),
    }
    return TrainedClassifier(model, watched.images, figures, learned.log, learned.rank)


def _silent(stage: str, done: int, total: int) -> None:
    """What reports to nobody."""


def _check(
    model: SPPNet, train: LabelledImages, held_out: LabelledImages, settings: ClassifierSettings, devices: int
) -> None:
    architecture, sizes = model.architecture, settings.sizes
    if architecture.multi_label:
        raise ValueError("train_classifier: expected a model of one class an image: Architecture(multi_label=False)")
    if train.class_names != architecture.names or held_out.class_names != architecture.names:
        raise UserError(
            f"the data's classes are not the model's: {_some(train.class_names)} against {_some(architecture.names)}"
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
    if architecture.classifier == "svm":
        if settings.learn == "all":
            raise UserError(
                "SVMs learn on a backbone that stays as it is: take learn='head', or the softmax classifier"
            )
        check_count(len(train))
    if devices > 1 and settings.learn == "head":
        raise UserError("the head alone learns on one device: take devices=1, or learn='all'")


def _check_classes(train: LabelledImages) -> None:
    present = [name for name, count in zip(train.class_names, train.counts(), strict=True) if count]
    if len(present) < 2:
        raise UserError(f"expected images of at least two classes to learn from, got {_some(tuple(present)) or 'none'}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" ... ({len(names)})" if len(names) > 3 else "")


def _held_out_figures(measured: dict[str, float] | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    wrong, images = round(measured["wrong"]), round(measured["images"])
    return {
        "accuracy": round(1 - wrong / images, 4),
        "interval": [round(end, 4) for end in wilson_interval(images - wrong, images)],
        "loss": round(measured["loss"], 4),
        "epoch": round(measured["epoch"]) if "epoch" in measured else None,
    }
