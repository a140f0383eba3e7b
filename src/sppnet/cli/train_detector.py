"""`sppnet train detector`: a network for boxes, from annotated images; or more stages, or a class more, of one that is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sppnet.cli.loading import chosen_device
from sppnet.cli.parameters import Backbone, Data, Device, Levels, Limit, NewModel, Proposals, ShortSide, Work
from sppnet.cli.values import check_proposer, checked_limit, checked_positive
from sppnet.cli.work import work_folder
from sppnet.errors import UserError
from sppnet.terminal import progress

if TYPE_CHECKING:
    from sppnet.detection.linear_stages import LinearStages


def detector(
    data: Data,
    /,
    *,
    output: NewModel,
    split: Annotated[str, Parameter(help="Learn from the images of this split.")] = "train",
    backbone: Backbone = "compact",
    weights: Annotated[
        str | None,
        Parameter(help="The backbone's: a file, or a name torchvision knows, such as DEFAULT. compact: as in 'voc'."),
    ] = None,
    levels: Levels = (3, 2, 1),
    hidden: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, help="Widths of the fully connected layers.")
    ] = (1024, 1024),
    short_side: ShortSide = 600,
    long_side: Annotated[int, Parameter(help="unless their long side would become longer than this.")] = 1000,
    scales: Annotated[
        tuple[int, ...],
        Parameter(
            consume_multiple=True,
            help="Several short sides instead, such as 480 576 688 864 1200: every window is pooled at the one where its object "
            "looks the usual size. More maps, more time. --short-side then counts for whole images, and the long side's limit "
            "grows in proportion.",
        ),
    ] = (),
    mapping: Annotated[
        Literal["centre", "paper", "release", "roi_pool"],
        Parameter(
            help="From a box to its window of cells: this project's way, the paper's, its authors' code's, or Fast R-CNN's."
        ),
    ] = "centre",
    steps: Annotated[int, Parameter(help="Of training; each sees 8 images, 64 windows of each.")] = 2500,
    learning_rate: Annotated[float, Parameter(help="Peak of the schedule.")] = 1e-3,
    proposer: Proposals | None = None,
    mirrored: Annotated[bool, Parameter(help="Learn from mirror images too: better, but twice the maps.")] = True,
    end_to_end: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Learn in one stage in which the convolutions learn too (Fast R-CNN): several times longer, and better. "
            "Goes on from --model if that is given. For --steps and --mirrored there are the next seven.",
        ),
    ] = False,
    learn: Annotated[
        str,
        Parameter(help="End to end, the layers that learn: 'all', 'from:LAYER' (a name or an index), or 'fc_only'."),
    ] = "all",
    epochs: Annotated[int, Parameter(help="End to end: how often every image is seen, mirrored half of the time.")] = 6,
    sides: Annotated[
        tuple[int, ...],
        Parameter(
            consume_multiple=True,
            help="End to end: short sides, one of which is drawn whenever an image is seen; left out: as in use.",
        ),
    ] = (),
    images_per_step: Annotated[
        int,
        Parameter(
            help="End to end: images that a step learns from, 64 windows of each; on a CPU, 4 are faster than 2."
        ),
    ] = 2,
    backbone_rate: Annotated[
        float, Parameter(help="End to end: the convolutions' learning rate, as a share of the others'.")
    ] = 0.03,
    workers: Annotated[int, Parameter(help="End to end: processes that read images; 0: the training itself does.")] = 0,
    devices: Annotated[int, Parameter(help="End to end: processes, each on a device or a share of the CPU.")] = 1,
    classifier: Annotated[
        Literal["softmax", "svm"],
        Parameter(
            help="What scores boxes: the network's own probabilities; or, trained after it with hard negatives, one "
            "linear SVM for each class, whose score is a margin and to which classes can be added."
        ),
    ] = "softmax",
    regression: Annotated[
        Literal["network", "ridge", "ridge-pooled"],
        Parameter(
            help="What moves boxes: the network's own output; a ridge regression for each class on what its fully "
            "connected layers say; or, as in the paper, on the pooled windows."
        ),
    ] = "network",
    model: Annotated[
        str | None,
        Parameter(
            help="A trained detector to go on from, with one of --end-to-end, --classifier, --regression, --add-class."
        ),
    ] = None,
    add_class: Annotated[
        str | None,
        Parameter(help="Add this class of DATA to --model, which has SVMs; its other classes stay as they are."),
    ] = None,
    old_negatives: Annotated[
        bool,
        Parameter(
            help="Learn an added class also from windows of the model's own training, if --work is its folder; not where "
            "those images show the class."
        ),
    ] = True,
    limit: Limit = None,
    work: Work = None,
    seed: int = 0,
    device: Device = "auto",
) -> int:
    """Train a detector on a frozen backbone: proposals, maps, fully connected layers; then, if asked for, SVMs and box regressors.

    A stopped run goes on where it was. With --model, a trained detector gets SVMs or box regressors, or a class more. With
    --end-to-end, the backbone learns as well, from --model or from its weights.
    """
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.finetune import FinetuneSettings
    from sppnet.detection.linear_stages import LinearStages
    from sppnet.detection.train import train_detector
    from sppnet.models.backbones import OWN
    from sppnet.models.files import SHIPPED
    from sppnet.models.sppnet import Architecture

    for name, number in {"--steps": steps, "--short-side": short_side, "--long-side": long_side}.items():
        if number < 1:
            raise UserError(f"{name} must be at least 1: got {number}")
    if not 0 < learning_rate < 1:
        raise UserError(f"--learning-rate must be between 0 and 1: got {learning_rate}")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be a whole number from 0 to {2**32 - 1}: got {seed}")
    if proposer is not None:
        check_proposer(proposer)
    stages = LinearStages(classifier, regression)
    if (model is not None or add_class is not None) and (backbone != OWN or weights is not None):
        raise UserError("--backbone and --weights are for a new detector: --model brings its own; leave them out")
    if end_to_end and (add_class is not None or stages != LinearStages()):
        raise UserError(
            "--end-to-end comes first: give its model to --classifier, --regression or --add-class afterwards"
        )
    if not end_to_end and (model is not None or add_class is not None):
        if proposer is not None:
            raise UserError(
                "--proposer is for a new detector or --end-to-end: --model looks at boxes of its own; leave it out"
            )
        return _train_further(model, add_class, stages, data, split, limit, output, work, old_negatives, device)
    annotated = read_annotated(data, split, checked_limit(limit))
    architecture = Architecture(
        annotated.names,
        backbone,
        checked_positive("--levels", levels),
        checked_positive("--hidden", hidden),
        short_side=short_side,
        long_side=long_side,
        proposer=proposer or Architecture(()).proposer,
        scales=checked_positive("--scales", scales) if scales else (),
        mapping=mapping,
    )
    learned = SHIPPED["voc"] if backbone == OWN and weights is None and model is None else weights
    work = work or work_folder(output)
    if end_to_end:
        from sppnet.detection.end_to_end import train_end_to_end
        from sppnet.detection.fast_rcnn import FastRcnnSettings

        if devices < 1 or workers < 0:
            raise UserError(f"--devices must be at least 1, --workers at least 0: got {devices} and {workers}")
        whole = FastRcnnSettings(
            learn=learn, epochs=epochs, images_per_step=images_per_step, short_sides=sides, learning_rate=learning_rate,
            backbone_rate=backbone_rate, seed=seed,
        )  # fmt: skip
        start = architecture if model is None else model
        with progress() as report:
            record = train_end_to_end(
                annotated, start, output, work, weights=learned, proposer=proposer, settings=whole, devices=devices, workers=workers,
                device=chosen_device(device), report=report,
            )  # fmt: skip
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several processes; another one writes
            return 0
        return _wrote(output, record["seconds"])
    settings = FinetuneSettings(steps=steps, learning_rate=learning_rate, seed=seed)
    with progress() as report:
        record = train_detector(
            annotated,
            architecture,
            output,
            work,
            weights=learned,
            settings=settings,
            stages=stages,
            mirrored=mirrored,
            device=chosen_device(device),
            report=report,
        )
    return _wrote(output, record["seconds"])


def _train_further(
    model: str | None,
    name: str | None,
    stages: LinearStages,
    data: Path,
    split: str,
    limit: int | None,
    output: Path,
    work: Path | None,
    old_negatives: bool,
    device: str,
) -> int:
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.add_class import add_class
    from sppnet.detection.linear_stages import LinearStages
    from sppnet.detection.train import train_stages_of

    if model is None:
        raise UserError("--add-class needs --model: a trained detector with SVMs that gets the class")
    if (name is None) == (stages == LinearStages()):
        raise UserError(
            "--model needs one of: --add-class NAME; or --classifier svm, --regression ridge or ridge-pooled, or both, "
            "to be trained on its own data"
        )
    annotated = read_annotated(data, split, checked_limit(limit))
    own = work_folder(Path(model))  # where it was trained, if nothing else was said
    work = work or (own if own.is_dir() else work_folder(output))
    with progress() as report:
        if name is None:
            record = train_stages_of(
                model, annotated, output, work, stages, device=chosen_device(device), report=report
            )
            return _wrote(output, record["seconds"])
        record = add_class(
            model,
            name,
            annotated,
            output,
            work,
            old_negatives=old_negatives,
            device=chosen_device(device),
            report=report,
        )
    added = record["added"][-1]
    told_apart = f"{added['images']} images" + (
        f" and {added['old_negatives']} windows of the model's own training" if added["old_negatives"] else ""
    )
    print(f"learned {name!r} from {added['objects']} objects, told apart from what else is in {told_apart}")
    return _wrote(output, added["seconds"])


def _wrote(output: Path, seconds: dict[str, float]) -> int:
    took = ", ".join(f"{stage} {value} s" for stage, value in seconds.items())
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB; {took})")
    return 0
