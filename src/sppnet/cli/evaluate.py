"""`sppnet evaluate`: scores a detector on annotated images, a classifier on class folders. `sppnet proposals`: boxes, and their recall."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from sppnet.cache import cache_directory
from sppnet.classification.evaluate import evaluate_classifier
from sppnet.cli import complain
from sppnet.cli.options import AsJson, Data, Device, Limit, Model, Scales, Split, Views, checked_limit, chosen_device
from sppnet.data import annotated_layout, read_annotated
from sppnet.data.formats.folder import evaluation_images
from sppnet.data.images import read_image
from sppnet.detection.evaluate import NO_COCO, evaluate_detector
from sppnet.detection.feature_maps import FeatureMaps, compute_feature_maps
from sppnet.detection.network_proposals import other_proposals, proposals_of_images
from sppnet.detection.suppression import DetectSettings
from sppnet.errors import SettingsError
from sppnet.files import check_outputs, to_json, write_json
from sppnet.models.files import load
from sppnet.models.sppnet import SPPNet
from sppnet.progress import progress_bars
from sppnet.proposals.compute import NETWORK, check_method
from sppnet.proposals.files import IMPORTED, import_proposals
from sppnet.proposals.recall import format_recall, recall_report
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
        proposals: network, selective-search, edge-boxes, grid, or several joined by +; left out: those it was trained with.
        output: Folder for evaluation.json and plots.
        cache: Folder for proposals, read again the next time.
    """
    nets = [load(name, chosen_device(device)) for name in (model, *combine)]
    detects = nets[0].architecture.detects or annotated_layout(data) is not None
    of_detectors = {"--combine": combine, "--vote-iou": vote_iou != VOTE_IOU, "--proposals": proposals}
    of_detectors |= {"--scales": scales, "--cache": cache}
    for name, given in ({"--views": views != "single"} if detects else of_detectors).items():
        if given:
            kind = "classifiers" if detects else "detectors"
            raise SettingsError(f"{name} is for {kind}: {model} is none; leave it out")
    if output is not None:
        pictures = ("precision-recall.png", "errors.png") if detects else ("confusion.png",)
        check_outputs(*(output / name for name in ("evaluation.json", *pictures)))
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
        print(to_json(document))
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
    print(to_json(document) if as_json else evaluation.table())
    return 2 if evaluation.broken else 0


def _maps_of(net: SPPNet, path: Path) -> FeatureMaps:
    return compute_feature_maps(net, read_image(path))


def proposals(
    data: Data,
    /,
    *,
    split: Split = "train",
    method: Annotated[str, Parameter(name="--proposals")] = "selective-search",
    model: str | None = None,
    source: Annotated[Path | None, Parameter(name="--import")] = None,
    limit: Limit = None,
    cache: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Propose boxes for every image of a data set, or bring in others', and say how many of its objects they find.

    Args:
        method: selective-search, edge-boxes, grid, network with --model, or several joined by +.
        model: A detector with network proposals.
        source: Bring in boxes made elsewhere: an .npz of arrays [R, 4] of x0 y0 x1 y1, each named by its image.
        cache: Folder that keeps the boxes; give it to training, too.
    """
    by_network = NETWORK in check_method(method)
    if by_network != (model is not None) or (by_network and source is not None):
        raise SettingsError("--proposals network and --model go together, and without --import: give both, or neither")
    if source is not None and cache is None:
        where = "to where training looks for them: give the same --cache FOLDER as there"
        raise SettingsError(f"--import brings boxes {where}")
    annotated = read_annotated(data, split, checked_limit(limit))
    with progress_bars() as progress, cache_directory(cache) as folder:
        if source is None:
            found = other_proposals(annotated, method, folder, progress)
            if model is not None:
                net = load(model)
                maps_of = partial(_maps_of, net)
                found = proposals_of_images(net, maps_of, annotated, method, found, progress)
            boxes = {image.image_id: boxes for image, boxes in zip(annotated.images, found, strict=True)}
        else:
            cached = folder / "proposals" / IMPORTED
            boxes, dropped = import_proposals(source, annotated, cached, progress)
    answer = recall_report(annotated, boxes)
    print(to_json(answer) if as_json else format_recall(answer))
    if source is None:
        return 0
    count = sum(map(len, boxes.values()))
    print(f"{count} boxes of {len(boxes)} images in {cached}; {dropped} empty or outside their image", file=sys.stderr)
    missing = [image.image_id for image in annotated.images if image.image_id not in boxes]
    if not missing:
        return 0
    some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
    return complain(f"{source} has no boxes of {len(missing)} of {len(annotated)} images, which need some: {some}")
