"""`sppnet train classifier`: from a folder of class folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sppnet.cli.loading import chosen_device
from sppnet.cli.parameters import AsJson, Backbone, Device, Levels, ShortSide, SkipBad
from sppnet.cli.values import checked_positive
from sppnet.cli.work import work_folder
from sppnet.errors import UserError
from sppnet.terminal import complain, progress


def classifier(
    folder: Annotated[
        Path, Parameter(help="A folder of class folders; or of 'train' and perhaps 'val', each of class folders.")
    ],
    /,
    *,
    output: Annotated[Path, Parameter(help="The model file to write, .safetensors; a report comes beside it.")],
    learn: Annotated[
        Literal["head", "all"],
        Parameter(
            help="The layers behind the backbone, in minutes; or the whole network, which wants a GPU or patience."
        ),
    ] = "head",
    classifier: Annotated[
        Literal["svm", "softmax"] | None,
        Parameter(
            help="With --learn head: linear SVMs on the pooled pyramid, as in the paper, their margins made probabilities; or "
            "fully connected layers that learn in epochs. Left out: svm, but softmax with --hidden or --learn all."
        ),
    ] = None,
    backbone: Backbone = "compact",
    weights: Annotated[
        str | None,
        Parameter(
            help="The backbone's: a file, a name torchvision knows, or 'random'. Left out: compact's as in 'voc', or DEFAULT."
        ),
    ] = None,
    stride: Annotated[
        int | None, Parameter(help="Cut the backbone where a cell of its map has so many pixels, such as 16.")
    ] = None,
    levels: Levels = (3, 2, 1),
    hidden: Annotated[
        tuple[int, ...],
        Parameter(consume_multiple=True, help="Widths of fully connected layers before the last (paper: 4096 4096)."),
    ] = (),
    fit: Annotated[
        Literal["native", "squash", "crop", "pad"],
        Parameter(help="Images at their own shape, or how they become square."),
    ] = "native",
    short_side: ShortSide = 224,
    long_side: Annotated[
        int | None, Parameter(help="unless their long side would become longer than this; left out: 4 short sides.")
    ] = None,
    sizes: Annotated[
        Literal["native", "single", "multi", "random", "random-batch"],
        Parameter(
            help="With --learn all, at which sizes it sees the images: as in use; or squares of one of --sides, of each in "
            "turn by epoch, or of any between them by epoch or by batch."
        ),
    ] = "native",
    sides: Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="Of those squares, in pixels.")] = (
        224,
        180,
    ),
    epochs: Annotated[
        int | None, Parameter(help="With softmax, how often every image is learned from; left out: 30.")
    ] = None,
    batch_size: Annotated[
        int | None, Parameter(help="With softmax, images learned from at once, on each device; left out: 32.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        Parameter(
            help="With softmax, the peak; left out: 0.001, and 0.01 with sgd. A trained backbone learns at a tenth of it."
        ),
    ] = None,
    optimiser: Annotated[
        Literal["adamw", "sgd"] | None,
        Parameter(help="With softmax: adamw, along a cosine; sgd, in steps, as the paper. Left out: adamw."),
    ] = None,
    held_out: Annotated[
        float,
        Parameter(
            help="Share of each class that is held out, where the folder holds none: it chooses the best epoch of softmax, and "
            "nothing of svm."
        ),
    ] = 0.15,
    precision: Annotated[
        Literal["auto", "bfloat16", "float32"] | None,
        Parameter(help="With softmax; auto, as if left out: bfloat16 where the processor is fast at it."),
    ] = None,
    devices: Annotated[
        int, Parameter(help="Processes that share the work of --learn all, each with its own device.")
    ] = 1,
    workers: Annotated[int, Parameter(help="Further processes that read images for --learn all.")] = 0,
    skip_bad: SkipBad = False,
    work: Annotated[
        Path | None, Parameter(help="Folder for features and checkpoints; left out: beside the model.")
    ] = None,
    seed: int = 0,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Train a classifier on a folder of class folders. A stopped run goes on, if given the same words again."""
    for name, number in {"--short-side": short_side, "--long-side": long_side, "--stride": stride}.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1: got {number}")
    if workers < 0:
        raise UserError(f"--workers must be at least 0: got {workers}")
    checked_positive("--levels", levels)
    if hidden:
        checked_positive("--hidden", hidden)
    in_epochs = {
        "--hidden": hidden or None, "--epochs": epochs, "--batch-size": batch_size, "--learning-rate": learning_rate,
        "--optimiser": optimiser, "--precision": precision,
    }  # fmt: skip
    if classifier is None:
        classifier = "softmax" if hidden or learn == "all" else "svm"
    if classifier == "svm":
        _check_svm(learn, [name for name, value in in_epochs.items() if value is not None])

    from sppnet.classification.schedule import TrainingSizes
    from sppnet.classification.settings import RANDOM, ClassifierSettings
    from sppnet.data.folder import split_folder
    from sppnet.data.folder_survey import split_parts

    settings = ClassifierSettings(
        learn=learn,
        epochs=30 if epochs is None else epochs,
        batch_size=32 if batch_size is None else batch_size,
        optimiser=optimiser or "adamw",
        learning_rate={"adamw": 1e-3, "sgd": 1e-2}[optimiser or "adamw"] if learning_rate is None else learning_rate,
        backbone_rate=1.0 if weights == RANDOM else 0.1,
        weight_decay={"adamw": 1e-2, "sgd": 5e-4}[optimiser or "adamw"],
        sizes=TrainingSizes(sizes, sides),
        held_out_share=held_out,
        precision=precision or "auto",
        seed=seed,
    )
    images, given = split_folder(folder)
    if list(split_parts(folder)) == ["train", "test"]:  # test images choose nothing
        given = None

    from sppnet.classification.train_to_file import report_folder, train_to_file
    from sppnet.models.sppnet import Architecture

    architecture = Architecture(
        images.names,
        backbone,
        levels,
        hidden,
        detects=False,
        multi_label=False,
        short_side=short_side,
        long_side=long_side or 4 * short_side,
        fit=fit,
        backbone_stride=stride or 0,
        classifier=classifier,
    )
    with progress() as report:
        record = train_to_file(
            images,
            given,
            architecture,
            output,
            work or work_folder(output),
            weights=weights,
            settings=settings,
            devices=devices,
            workers=workers,
            skip_bad=skip_bad,
            device=chosen_device(device),
            report=report,
        )
    if record is None:  # one of several processes, and not the one that answers
        return 0
    for bad in record["skipped"]:
        complain(f"left out: {bad['error']}")
    if as_json:
        print(json.dumps({"model": str(output), "report": str(report_folder(output)), **record}, indent=1))
        return 0
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {record['seconds']} s)")
    if record["evaluation"] is not None:
        right, (low, high) = record["evaluation"]["top1"], record["evaluation"]["top1_interval"]
        pictures = "confusions and mistakes" if classifier == "svm" else "curves, confusions and mistakes"
        print(
            f"{100 * right:.1f} % of {record['evaluation']['images']} held-out images are answered right "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f}); {pictures} in {report_folder(output)}"
        )
    return 0


def _check_svm(learn: str, given: list[str]) -> None:
    """Refuse what SVMs have no use for, rather than pass over it."""
    if learn != "head":
        raise UserError(
            "--classifier svm learns on a backbone that stays as it is: leave out --learn all, or take softmax"
        )
    if given:
        raise UserError(
            f"{', '.join(given)}: only for layers that learn in epochs; add --classifier softmax, or leave it out: SVMs "
            "are the default on a backbone that stays as it is"
        )
