"""From labelled images to a model file, and beside it a report: the curves, the confusions, the surest mistakes.

The last step of `sppnet train classifier`; the learning itself is in `sppnet.classification.train`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sppnet.classification.evaluate import ClassifierEvaluation, evaluate_classifier
from sppnet.classification.log import write_log
from sppnet.classification.readable import Report
from sppnet.classification.settings import RANDOM, ClassifierSettings
from sppnet.classification.train import TrainedClassifier, train_classifier
from sppnet.data.images import read_image
from sppnet.data.labelled import LabelledImages
from sppnet.errors import UserError
from sppnet.models.backbones import OWN, OWN_NETS, build_backbone
from sppnet.models.networks import compact_resnet
from sppnet.models.cut import cut_at_stride
from sppnet.models.files import SHIPPED, round_to_stored, save_model
from sppnet.models.files import trained_by
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.visualize import draw_mistakes, plot_confusion, plot_training, save_image

EVALUATED = ("top1", "top1_interval", "top5", "mean_class", "images")  # what a model file holds of an evaluation


def train_to_file(
    train: LabelledImages,
    held_out: LabelledImages | None,
    architecture: Architecture,
    output: Path,
    work: Path,
    *,
    weights: str | Path | None = None,
    settings: ClassifierSettings | None = None,
    devices: int = 1,
    workers: int = 0,
    skip_bad: bool = False,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> dict[str, Any] | None:
    """Train a classifier, write its model file, and a report on it.

    Args:
        train, held_out, settings, devices, workers, skip_bad, report: as of `train_classifier`.
        architecture: its names must be those of the data; it neither detects nor gives an image several classes.
        output: the model file, .safetensors. The folder ``<its stem>.report`` beside it gets curves.png and log.csv of a
            training in epochs, and of the held-out images evaluation.json, confusion.png and, if there are any, mistakes.jpg.
        work: checkpoints and features are kept here; a run that was stopped goes on from them.
        weights: as of `starting_backbone`.
        device: where to compute.

    Returns:
        What the model file says about its training, and ``skipped``, the files that were left out. None in the further
        processes of several ``devices``, which write nothing.

    Raises:
        UserError: as `train_classifier`; or another ending than .safetensors.
    """
    settings = settings or ClassifierSettings()
    if output.suffix != ".safetensors":
        raise UserError(f"the model's file name must end in .safetensors: got {output}")
    if settings.learn == "head" and weights == RANDOM:
        raise UserError(
            "a backbone with random weights has to learn too: take learn='all', or weights that have learned"
        )
    torch.manual_seed(settings.seed)
    backbone = starting_backbone(architecture.backbone, weights, architecture.backbone_stride or None)
    model = SPPNet(architecture, backbone).to(device)
    trained = train_classifier(
        model, train, held_out, settings,
        checkpoints=work, devices=devices, workers=workers, skip_bad=skip_bad, report=report,
    )  # fmt: skip
    if trained.rank:
        return None
    round_to_stored(model)  # what is evaluated is what the file holds
    evaluation = evaluate_classifier(model, trained.held_out, report=report) if len(trained.held_out) else None
    skipped = trained.figures["data"]["skipped"]
    record = {
        **trained_by(),
        **trained.figures,
        "data": trained.figures["data"] | {"skipped": len(skipped)},  # paths are nobody else's business
        "backbone_weights": None if weights is None else Path(weights).name,
        "evaluation": {key: evaluation.to_dict()[key] for key in EVALUATED} if evaluation else None,
    }
    save_model(model, output, record)
    write_report(report_folder(output), trained, evaluation, record)
    return record | {"skipped": skipped}


def starting_backbone(name: str, weights: str | Path | None, stride: int | None = None) -> nn.Module:
    """The backbone that training begins with.

    Args:
        name, stride: as of `sppnet.models.backbones.build_backbone`.
        weights: the same; or ``"random"``, and it keeps its BatchNorm, without which it would hardly learn. None: those of
            the shipped model for ``compact``, else what torchvision or timm calls DEFAULT. Weights that have learned come
            with their BatchNorm folded: a few images of someone's own are too few to learn its statistics anew.

    Raises:
        UserError: as `build_backbone`; a net that nobody has published weights of.

    Example:
        >>> any(isinstance(module, nn.BatchNorm2d) for module in starting_backbone("compact", "random").modules())
        True
    """
    if weights == RANDOM:
        if name != OWN:
            return build_backbone(name, stride=stride, fold=False)
        backbone = compact_resnet(folded=False).eval()
        return backbone if stride is None else cut_at_stride(backbone, stride, name)
    if weights is None and name in OWN_NETS and name != OWN:
        raise UserError(
            f"{name} comes without weights: give a file of yours, or train all of it from weights {RANDOM!r}"
        )
    return build_backbone(name, weights or (SHIPPED["voc"] if name == OWN else "DEFAULT"), stride)


def report_folder(output: Path) -> Path:
    """Where the report on a model file is."""
    return output.with_name(f"{output.stem}.report")


def write_report(
    folder: Path, trained: TrainedClassifier, evaluation: ClassifierEvaluation | None, record: dict[str, Any]
) -> None:
    """Write curves.png and log.csv, if there is a log; of an evaluation evaluation.json, confusion.png and mistakes.jpg.

    Raises:
        UserError: a place that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("log.csv", "curves.png", "mistakes.jpg"):  # of an earlier model of this name
            (folder / name).unlink(missing_ok=True)
        if trained.log:
            write_log(trained.log, folder / "log.csv")
            plot_training(trained.log, folder / "curves.png")
        if evaluation is None:
            return
        document = evaluation.to_dict() | {"training": record, "skipped": trained.figures["data"]["skipped"]}
        (folder / "evaluation.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    plot_confusion(evaluation.confusion, evaluation.names, folder / "confusion.png")
    mistakes = evaluation.mistakes()
    if mistakes:
        paths, truths, answers, scores = zip(*mistakes, strict=True)
        title = f"the surest of {(evaluation.ranks > 0).sum()} mistakes in {len(evaluation.paths)} held-out images"
        sheet = draw_mistakes([read_image(path) for path in paths], truths, answers, scores, title)
        save_image(sheet, folder / "mistakes.jpg")
