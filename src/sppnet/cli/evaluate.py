"""`sppnet evaluate`: scores a detector on annotated images, a classifier on a folder of class folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sppnet.cli.loading import load_each
from sppnet.cli.parameters import AsJson, Data, Device, Limit, OtherProposals, OtherScales, ViewSet, VoteIou, Work
from sppnet.cli.values import check_proposer, check_share, checked_limit, checked_positive
from sppnet.cli.work import work_or_temporary
from sppnet.detection import VOTE_IOU
from sppnet.errors import UserError
from sppnet.terminal import progress, write_json

if TYPE_CHECKING:
    from sppnet.models.sppnet import SPPNet


def evaluate(
    model: Annotated[
        str, Parameter(help="A shipped model's name, the path of a model file, or several detectors to combine: A+B.")
    ],
    data: Data,
    /,
    *,
    split: Annotated[str, Parameter(help="A split that the model was not trained on.")] = "val",
    limit: Limit = None,
    views: ViewSet = "single",
    vote_iou: VoteIou = VOTE_IOU,
    proposer: OtherProposals = None,
    scales: OtherScales = (),
    output: Annotated[Path | None, Parameter(help="Folder for evaluation.json and plots.")] = None,
    work: Work = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Score a model: a detector on a VOC folder (average precision), a classifier on a folder of class folders (accuracy)."""
    from sppnet.data.annotated import annotated_layout, read_annotated
    from sppnet.detection.evaluate import NO_COCO, evaluate_detector
    from sppnet.visualize import plot_errors, plot_precision_recall

    nets = load_each(model, device)
    net = nets[0]
    if len(nets) == 1 and not net.architecture.detects and annotated_layout(data) is None:
        if scales:
            raise UserError("--scales is for detectors: leave it out, or give --views multi-view")
        return _evaluate_classifier(net, str(model), data, split, limit, views, output, as_json)
    if views != "single":
        raise UserError("--views is for classifiers: a detector looks at each image once; leave it out")
    check_share("--vote-iou", vote_iou)
    if proposer is not None:
        check_proposer(proposer)
    if scales:
        nets = [net.at_scales(checked_positive("--scales", scales)) for net in nets]
    annotated = read_annotated(data, split, checked_limit(limit))
    with progress() as report, work_or_temporary(work) as folder:
        evaluation = evaluate_detector(nets, annotated, folder, report, vote_iou=vote_iou, proposer=proposer)
    how = {
        "vote_iou": vote_iou,
        "proposer": proposer or net.architecture.proposer,
        "scales": nets[0].architecture.short_sides,
    }
    document = {"model": str(model), "data": str(data), "split": split, **how, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_precision_recall(evaluation.result, output / "precision-recall.png")
        plot_errors(evaluation.errors, output / "errors.png")
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print(evaluation.result.table())
        whole = evaluation.whole_images
        print(f"\nwhole images, is the class in the photo: {whole.map07:.3f} (11-point), {whole.map_area:.3f} (area)")
        print(f"\n{evaluation.errors.sentence()}")
        coco = evaluation.coco
        print(f"\nby COCO's rules:\n{coco.table()}" if coco else f"\n{NO_COCO}")
        seconds = evaluation.seconds_per_image
        parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
        print(f"\n{evaluation.images} images, {sum(seconds.values()):.3f} s each: {parts}")
    return 0


def _evaluate_classifier(
    net: SPPNet, model: str, data: Path, split: str, limit: int | None, views: str, output: Path | None, as_json: bool
) -> int:
    import numpy as np

    from sppnet.classification.evaluate import evaluate_classifier
    from sppnet.data.folder import read_folder
    from sppnet.data.folder_survey import split_parts
    from sppnet.visualize import plot_confusion

    folder = data / split
    if not folder.is_dir():
        parts = split_parts(data)
        if parts and split not in parts:
            raise UserError(f"{data} has no split {split!r}, but {' and '.join(parts)}: give --split {[*parts][-1]}")
        folder = parts.get(split, data)
    images = read_folder(folder, classes=net.class_names)
    if checked_limit(limit) is not None:  # some of every class, and not the first class alone
        chosen = np.random.default_rng(0).permutation(len(images))[:limit]
        images = images.subset(np.sort(chosen))
    with progress() as report:
        evaluation = evaluate_classifier(net, images, views=views, report=report)
    document = {"model": model, "data": str(data), "views": views, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_confusion(evaluation.confusion, images.names, output / "confusion.png")
    print(json.dumps(document, indent=1) if as_json else evaluation.table())
    return 2 if evaluation.broken else 0
