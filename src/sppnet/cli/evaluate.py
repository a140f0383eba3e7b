"""`sppnet evaluate`: scores a detector on annotated images, a classifier on a folder of class folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sppnet.cache import cache_directory
from sppnet.classification.evaluate import evaluate_classifier
from sppnet.cli.options import AsJson, Data, Device, Limit, Model, Scales, Views, checked_limit, chosen_device
from sppnet.data.dataset import annotated_layout, read_annotated
from sppnet.data.formats.folder import evaluation_images
from sppnet.detection.evaluate import NO_COCO, evaluate_detector
from sppnet.detection.suppression import DetectSettings
from sppnet.errors import SettingsError
from sppnet.files import write_json
from sppnet.models.files import load
from sppnet.models.sppnet import SPPNet
from sppnet.progress import progress_bars
from sppnet.visualize.plots import plot_confusion, plot_errors, plot_precision_recall

VOTE_IOU = DetectSettings().vote_iou


def evaluate(
    model: Model,
    data: Data,
    /,
    *,
    split: str = "val",
    limit: Limit = None,
    combine: list[str] = [],
    views: Views = "single",
    vote_iou: float = VOTE_IOU,
    proposals: str | None = None,
    scales: Scales = (),
    output: Path | None = None,
    cache: Path | None = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Score a model: a detector on annotated images (average precision), a classifier on a folder of class folders (accuracy).

    Args:
        split: A split that the model was not trained on.
        combine: More detectors, whose answers are combined with the first's.
        vote_iou: Boxes move to the mean of those that overlap them by this much; 0: as in the paper, they do not.
        proposals: selective-search, edge-boxes, grid, or several joined by +; left out: the one the model was trained with.
        output: Folder for evaluation.json and plots.
        cache: Folder for proposals, read again the next time.
    """
    nets = [load(name, chosen_device(device)) for name in (model, *combine)]
    detects = nets[0].architecture.detects or annotated_layout(data) is not None
    unused = {
        "--combine": not detects and combine,
        "--vote-iou": not detects and vote_iou != VOTE_IOU,
        "--proposals": not detects and proposals,
        "--scales": not detects and scales,
        "--cache": not detects and cache,
        "--views": detects and views != "single",
    }
    if any(unused.values()):
        name = next(name for name, given in unused.items() if given)
        raise SettingsError(f"{name} is for {'classifiers' if detects else 'detectors'}: {model} is none; leave it out")
    if not detects:
        return _evaluate_classifier(nets[0], model, data, split, limit, views, output, as_json)
    nets = [net.at_scales(scales) for net in nets] if scales else nets
    annotated = read_annotated(data, split, checked_limit(limit))
    with progress_bars() as progress, cache_directory(cache) as folder:
        evaluation = evaluate_detector(
            nets, annotated, cache=folder, vote_iou=vote_iou, proposals=proposals, progress=progress
        )
    how = {"vote_iou": vote_iou, "proposals": proposals or nets[0].detection.proposals, "scales": nets[0].short_sides}
    document = {"model": model, "combined": combine, "data": str(data), "split": split, **how, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_precision_recall(evaluation.result, output / "precision-recall.png")
        plot_errors(evaluation.errors, output / "errors.png")
    if as_json:
        print(json.dumps(document, indent=1))
        return 0
    print(evaluation.result.table())
    whole, coco, seconds = evaluation.whole_images, evaluation.coco, evaluation.seconds_per_image
    print(f"\nwhole images, is the class in the photo: {whole.map07:.3f} (11-point), {whole.map_area:.3f} (area)")
    print(f"\n{evaluation.errors.sentence()}")
    print(f"\nby COCO's rules:\n{coco.table()}" if coco else f"\n{NO_COCO}")
    parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
    print(f"\n{evaluation.images} images, {sum(seconds.values()):.3f} s each: {parts}")
    return 0


def _evaluate_classifier(
    net: SPPNet, model: str, data: Path, split: str, limit: int | None, views: str, output: Path | None, as_json: bool
) -> int:
    images = evaluation_images(data, split, net.class_names)
    if checked_limit(limit) is not None:  # some of every class, and not the first class alone
        images = images.subset(np.sort(np.random.default_rng(0).permutation(len(images))[:limit]))
    with progress_bars() as progress:
        evaluation = evaluate_classifier(net, images, views=views, progress=progress)
    document = {"model": model, "data": str(data), "views": views, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_confusion(evaluation.confusion, images.class_names, output / "confusion.png")
    print(json.dumps(document, indent=1) if as_json else evaluation.table())
    return 2 if evaluation.broken else 0
