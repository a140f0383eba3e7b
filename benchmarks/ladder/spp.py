"""The steps of SPP-net: proposals -> maps -> fully connected layers -> SVMs -> box regressors; the backbone never learns.

A family is "spp1", maps of one scale, or "spp5", of several. Maps are the same for every seed; what is learned is not.
Source: arXiv:1406.4729, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sppnet.detection.linear_stages import LinearStages
from sppnet.detection.map_cache import MapCache

from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.steps import Report, Step, measured
from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.finetune import FinetuneSettings
from sppnet.detection.svm import SVMSettings
from sppnet.detection.train import calibrate, proposals_of, train_detector, train_stages_of
from sppnet.models.backbones import build_backbone
from sppnet.models.files import load, round_to_stored, save_model
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import proposals_for
from sppnet.proposals.files import proposals_path

SHARED = ("proposals", "maps")  # paid for by the first two steps


def proposals_step(ladder: Ladder) -> Step:
    """The proposals of the images to learn from; every rung needs them."""
    folder = ladder.work / "proposals" / ladder.settings.proposer

    def run(report: Report) -> None:
        proposals_of(ladder.train, ladder.settings.proposer, ladder.work, report)

    def leaves() -> dict[str, Iterable[Path]]:
        return {"proposals": [proposals_path(folder, image.image_id) for image in ladder.train.images]}

    def measure() -> dict[str, float]:
        def work(images: Sequence[AnnotatedImage]) -> None:
            with TemporaryDirectory(dir=ladder.work) as scratch:
                proposals_for([(image.image_id, image.path) for image in images], scratch, ladder.settings.proposer)

        return {"proposals": measured(work, ladder.train.images)}

    return Step("proposals", None, run, leaves, measure=measure)


def untrained_step(ladder: Ladder, family: str, seed: int, hidden: tuple[int, ...] | None = None) -> Step:
    """A network on the pretrained backbone of which nothing has learned yet; with no ``hidden`` layers, pooled windows alone."""
    architecture = ladder.architecture(family, hidden)
    name = f"{family}-{'pooled' if hidden == () else 'untrained'}-seed{seed}"
    output = model_file(ladder, name)

    def run(report: Report) -> None:
        torch.manual_seed(seed)
        model = SPPNet(architecture, build_backbone(architecture.backbone, ladder.weights))
        round_to_stored(model.backbone)
        model.eval().to(ladder.settings.device)
        model.backbone.to(memory_format=torch.channels_last)
        calibrate(model, ladder.train)
        save_model(model, output, {"seconds": {}, "seed": seed})

    return Step(name, output, run, dict, (proposals_step(ladder),))


def maps_step(ladder: Ladder, family: str, seed: int, *, mirrored: bool) -> Step:
    """The maps of the images to learn from, or of their mirror images. Of a backbone without weights, of one seed."""
    start = untrained_step(ladder, family, seed)
    of_seed = "" if ladder.weights is not None else f"-seed{seed}"

    def run(report: Report) -> None:
        model = load(start_file(start), ladder.settings.device)
        paths = [image.path for image in ladder.train.images]
        MapCache.of(model, ladder.work / "maps").fill(model, paths, mirrored=mirrored, progress=partial(report, "maps"))

    def leaves() -> dict[str, Iterable[Path]]:
        cache = MapCache.of(load(start_file(start)), ladder.work / "maps")
        return {"maps": [cache.path(image.path, mirrored=mirrored) for image in ladder.train.images]}

    def measure() -> dict[str, float]:
        model = load(start_file(start), ladder.settings.device)

        def work(images: Sequence[AnnotatedImage]) -> None:
            with TemporaryDirectory(dir=ladder.work) as scratch:
                paths = [image.path for image in images]
                MapCache.of(model, Path(scratch)).fill(model, paths, mirrored=False)  # a mirror image takes the same

        return {"maps": measured(work, ladder.train.images)}

    needs = (start, maps_step(ladder, family, seed, mirrored=False)) if mirrored else (start,)
    name = f"{family}-{'mirror-' if mirrored else ''}maps{of_seed}"
    return Step(name, None, run, leaves, needs, measure=measure)


def finetune_step(ladder: Ladder, family: str, seed: int) -> Step:
    """The fully connected layers, with softmax and the network's own box regression in one loss."""
    name = f"{family}-finetuned-seed{seed}"
    output = model_file(ladder, name)

    def run(report: Report) -> None:
        train_detector(
            ladder.train, ladder.architecture(family), output, ladder.work, weights=ladder.weights,
            settings=finetune_settings(ladder, seed), mirrored=ladder.settings.mirrored, device=ladder.settings.device,
            report=report,
        )  # fmt: skip

    maps = maps_step(ladder, family, seed, mirrored=ladder.settings.mirrored)
    return Step(name, output, run, leaves_of(ladder, name), (proposals_step(ladder), maps), SHARED)


def finetune_settings(ladder: Ladder, seed: int) -> FinetuneSettings:
    """As the ladder's settings say; the same for R-CNN."""
    settings = ladder.settings
    return FinetuneSettings(
        settings.steps, settings.images_per_step, settings.windows_per_image, learning_rate=settings.learning_rate, seed=seed
    )  # fmt: skip


def svm_step(
    ladder: Ladder, start: Step, name: str, seed: int, needs: tuple[Step, ...] = (), paid: tuple[str, ...] = SHARED
) -> Step:
    """SVMs in place of the softmax of a model, on what its last hidden layer says; of one without layers, on pooled windows.

    Args:
        start: makes the model; what else there must be, such as its maps, is in ``needs``.
        paid: stages that these have paid for.
    """
    return _linear_step(ladder, start, name, LinearStages("svm", svm=SVMSettings(seed=seed)), needs, paid)


def ridge_step(ladder: Ladder, start: Step, name: str, seed: int, *, pooled: bool = False) -> Step:
    """Ridge regressors in place of a model's own box regression, on the last hidden layer or, as in the paper, pooled windows."""
    kind = "ridge-pooled" if pooled else "ridge"
    stages = LinearStages(regression=kind, box_regression=BoxRegressionSettings(seed=seed))
    return _linear_step(ladder, start, name, stages, (), SHARED)


def _linear_step(
    ladder: Ladder, start: Step, name: str, stages: LinearStages, needs: tuple[Step, ...], paid: tuple[str, ...]
) -> Step:
    output = model_file(ladder, name)

    def run(report: Report) -> None:
        train_stages_of(
            start_file(start), ladder.train, output, ladder.work, stages, device=ladder.settings.device, report=report
        )

    return Step(name, output, run, leaves_of(ladder, name), (start, *needs), paid)


def model_file(ladder: Ladder, name: str) -> Path:
    """Where a step's model lies; checkpoints and states in ``work`` are named for it."""
    return ladder.folder / f"{ladder.key}-{name}.safetensors"


def start_file(step: Step) -> Path:
    """The model that a step makes."""
    assert step.makes is not None
    return step.makes


def leaves_of(ladder: Ladder, name: str) -> Callable[[], dict[str, Iterable[Path]]]:
    """What a training leaves beside proposals and maps: its model, checkpoints, and states of SVMs and regressors."""
    model = model_file(ladder, name)

    def leaves() -> dict[str, Iterable[Path]]:
        states = [path for stage in ("svms", "ridge") for path in ladder.work.glob(f"{model.stem}-{stage}-*")]
        checkpoints = [
            path for kind in ("checkpoints", "end-to-end") for path in ladder.work.glob(f"{kind}-{model.stem}-*")
        ]
        return {"model": [model], "checkpoints": checkpoints, "states": states}

    return leaves
