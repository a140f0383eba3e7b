"""Time the paper's 96 views as windows of feature maps against the same 96 as crops through the network, side by side.

    uv run python -m benchmarks.multi_view --model voc --json benchmarks/results/multi_view.json --markdown docs/multi-view.md
    uv run python -m benchmarks.multi_view --backbone vgg16 --levels 6 3 2 1 --hidden 4096 4096 --json ...   # timing only
    uv run python -m benchmarks.multi_view --model MODEL --data FOLDER --limit 500 --crops --json ...        # and accuracy

A second timing takes a grid of windows on each scale (6 x 6 unless --grid says otherwise): more views cost windows of the map
little, and crops in proportion. Both ways start from a decoded photo and end at the scores; resizing is part of both. Crops go
through the network in the batch size that was fastest of several on this machine, one at a time being one of them. Then the two
ways take turns, and medians are compared. Decoding is not timed. The JSON file keeps what it holds of other models; the page is
made from all of it. Run it on an idle machine: the page says how busy it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sppnet
from benchmarks.environment import environment
from benchmarks.photos import timed_photos
from benchmarks.results_file import read_results, write_results, write_text
from sppnet.classification.evaluate import evaluate_classifier
from sppnet.classification.views import PAPER_WINDOW, Views, view_scores, view_set
from sppnet.data.formats.folder import read_folder
from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import read_image, scaled_size
from sppnet.data.labelled import LabelledImages
from sppnet.metrics.voc import evaluate_voc_images
from sppnet.models.sppnet import Architecture, SPPNet, build_model

VIEW_SETS = ("single", "center-crop", "full", "10-view", "multi-view", "multi-view+full")
ALSO_AS_CROPS = ("10-view", "multi-view")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="voc", help="a shipped model's name or a model file")
    which.add_argument("--backbone", help="in its place, a network of random weights: timing only")
    parser.add_argument("--levels", type=int, nargs="+", default=[6, 3, 2, 1], help="of the network of random weights")
    parser.add_argument("--hidden", type=int, nargs="*", default=[4096, 4096], help="of the network of random weights")
    parser.add_argument(
        "--size", type=int, help="side of a view, in pixels; of the accuracy, the model's own short side if not given"
    )
    parser.add_argument(
        "--photos", help="a folder to take photos for the timing from; otherwise scikit-image's samples"
    )
    parser.add_argument("--count", type=int, default=4, help="how many photos are timed")
    parser.add_argument("--repeats", type=int, default=5, help="how many times each way takes its turn")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32, 96], help="of crops, to choose from"
    )
    parser.add_argument("--grid", type=int, default=6, help="windows a side of the second timing; 0 leaves it out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--data", help="a folder of class folders, or a VOC folder: measure the accuracy of each view set"
    )
    parser.add_argument("--split", default="val", help="of a VOC folder")
    parser.add_argument("--limit", type=int, help="only so many images of the data, drawn at random")
    parser.add_argument("--crops", action="store_true", help="measure the accuracy of the views as crops too: slow")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the page made from it; needs --json")
    arguments = parser.parse_args()
    if arguments.markdown and not arguments.json:
        parser.error("--markdown needs --json")
    label, model = _network(arguments)
    photos, paper = (
        timed_photos(arguments.photos, arguments.count),
        view_set("multi-view", arguments.size or PAPER_WINDOW),
    )
    timing = time_views(model, photos, paper, arguments.batches, arguments.repeats)
    settings = model.architecture
    result = {
        "settings": {"backbone": settings.backbone, "levels": settings.levels, "hidden": settings.hidden},
        "environment": {**environment(), "load before": round(os.getloadavg()[0], 1)},
        "timing": timing,
    }
    if arguments.grid:
        shares = np.linspace(0, 1, arguments.grid).tolist() if arguments.grid > 1 else [0.5]
        dense = replace(paper, positions=tuple(product(shares, shares)))
        result["dense_timing"] = time_views(model, photos, dense, [timing["crops_at_once"]], arguments.repeats)
    if arguments.data and not arguments.backbone:
        result["accuracy"] = accuracy_of_views(model, arguments)
    known = read_results(arguments.json)
    known[label] = {**known.get(label, {}), **result}
    text = page(known)
    print(text)
    if arguments.json:
        write_results(arguments.json, known)
    if arguments.markdown:
        write_text(arguments.markdown, text)


def _network(arguments: argparse.Namespace) -> tuple[str, SPPNet]:
    """The network to measure, and what the page calls it."""
    if not arguments.backbone:
        return Path(arguments.model).stem, sppnet.load(arguments.model, arguments.device)
    levels, hidden = tuple(arguments.levels), tuple(arguments.hidden)
    names = tuple(f"class {k}" for k in range(1000))
    torch.manual_seed(0)
    model = build_model(Architecture(names, arguments.backbone, levels, hidden, detects=False)).eval()
    label = f"{arguments.backbone}, levels {levels}, hidden {hidden}, random weights"
    return label, model.to(arguments.device, memory_format=torch.channels_last)


def time_views(
    model: SPPNet, photos: list[np.ndarray], views: Views, batches: list[int], repeats: int
) -> dict[str, Any]:
    """Seconds a photo both ways, and how far their scores agree."""
    as_crops = replace(views, crops=True)

    def windows() -> list[torch.Tensor]:
        return [view_scores(photo, model, views) for photo in photos]

    def crops(at_once: int) -> list[torch.Tensor]:
        return [view_scores(photo, model, as_crops, chunk_size=at_once) for photo in photos]

    scores = windows()  # also the warm-up
    crop_scores = crops(batches[-1])
    of_batches = {at_once: _timed(partial(crops, at_once))[0] / len(photos) for at_once in batches}
    best = min(of_batches, key=lambda at_once: of_batches[at_once])
    print("crops, seconds a photo by batch:", {n: round(seconds, 3) for n, seconds in of_batches.items()}, flush=True)
    turns = []
    for turn in range(repeats):
        turns.append([seconds / len(photos) for seconds in (*_timed(windows), *_timed(partial(crops, best)))])
        print(f"turn {turn + 1}: windows {turns[-1][0]:.3f} s, crops {turns[-1][2]:.3f} s a photo", flush=True)
    medians = [statistics.median(column) for column in zip(*turns, strict=True)]
    mean, crop_mean = (torch.stack([each.mean(0) for each in one]) for one in (scores, crop_scores))
    return {
        "photos": [f"{photo.shape[1]} x {photo.shape[0]}" for photo in photos],
        "views": [len(each) for each in scores],
        "repeats": repeats,
        "windows_seconds": medians[0],
        "crops_seconds": medians[2],
        "crops_at_once": best,
        "speedup": medians[2] / medians[0],
        "processor_seconds": {
            "windows": medians[1],
            "crops": medians[3],
        },  # of all threads: what a busy machine spoils less
        "every_turn": {"windows": [turn[0] for turn in turns], "crops": [turn[2] for turn in turns]},
        "crops_seconds_by_batch": of_batches,
        "convolved_megapixels": {
            "windows": statistics.mean(_megapixels(photo, views) for photo in photos),
            "crops": statistics.mean(len(each) for each in crop_scores) * views.window**2 / 1e6,
        },
        "agreement": {
            "same_best_class": float((mean.argmax(1) == crop_mean.argmax(1)).float().mean()),
            "largest_difference": float((mean - crop_mean).abs().max()),
            "mean_difference_of_a_view": float(torch.cat(scores).sub(torch.cat(crop_scores)).abs().mean()),
        },
    }


def accuracy_of_views(model: SPPNet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each view set its accuracy (class folders) or mean average precision (VOC)."""
    folder = Path(arguments.data)
    devkit = next((path for path in (folder, folder / "VOC2007") if (path / "JPEGImages").is_dir()), None)
    measure = _voc_measure(devkit, arguments) if devkit else _folder_measure(model, folder, arguments)
    size = arguments.size or model.preprocess.short_side
    wanted = [(name, view_set(name, size)) for name in VIEW_SETS]
    if arguments.crops:
        wanted += [(f"{name}, crops", view_set(name, size, crops=True)) for name in ALSO_AS_CROPS]
    rows = {}
    for name, views in wanted:
        started = time.perf_counter()
        rows[name] = measure(model, views)
        rows[name]["seconds_per_image"] = (time.perf_counter() - started) / rows[name]["images"]
        print(name, rows[name], flush=True)
    return {"data": f"{folder.name}, {arguments.split}" if devkit else folder.name, "size": size, "views": rows}


def _folder_measure(
    model: SPPNet, folder: Path, arguments: argparse.Namespace
) -> Callable[[SPPNet, Views], dict[str, Any]]:
    images: LabelledImages = read_folder(folder, class_names=model.class_names)
    images = images.subset(np.random.default_rng(0).permutation(len(images))[: arguments.limit])

    def measure(model: SPPNet, views: Views) -> dict[str, Any]:
        result = evaluate_classifier(model, images, views=views).to_dict()
        return {key: result[key] for key in ("top1", "top1_interval", "top5", "mean_class", "images")}

    return measure


def _voc_measure(folder: Path, arguments: argparse.Namespace) -> Callable[[SPPNet, Views], dict[str, Any]]:
    data = read_voc(folder, arguments.split)
    chosen = np.random.default_rng(0).permutation(len(data.images))[: arguments.limit]
    images = [data.images[index] for index in chosen]
    truth = [(image.gt_labels, image.difficult) for image in images]

    def measure(model: SPPNet, views: Views) -> dict[str, Any]:
        order = [model.class_names.index(name) for name in data.class_names]
        scores = [view_scores(read_image(image.path), model, views).mean(0).numpy()[order] for image in images]
        result = evaluate_voc_images(np.stack(scores), truth, data.class_names)
        return {"map_area": result.map_area, "map_voc07": result.map07, "images": len(images)}

    return measure


def page(known: dict[str, Any]) -> str:
    """The results of all models as a page for people."""
    lines = ["# 96 views: windows of the map against crops", "",
             "Made by `python -m benchmarks.multi_view`; every figure is in its JSON file.", "",
             "The views are the paper's (arXiv:1406.4729, section 3.1): short sides 224, 256, 300, 360, 448 and 560, on each",
             "windows of 224 pixels in the middle, the corners and the middles of the sides, mirrored too. As windows of the",
             "map, each scale's convolutions run once for the photo and once for its mirror image; as crops, once a view.",
             "Fully connected layers run once a view both ways. *Megapixels* are those that go through the convolutions, as",
             "windows / as crops; where the convolutions take nearly all the time, their ratio is what windows can gain. A",
             "denser grid of windows adds to the crops' megapixels alone.", "", "## Time", "",
             "| model | views | windows, s a photo | crops, s a photo (best batch) | crops one by one | speedup | "
             "processor time | megapixels | ratio |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for label, result in known.items():
        for timing in (result["timing"], result.get("dense_timing")):
            if timing is None:
                continue
            pixels, processor = timing["convolved_megapixels"], timing["processor_seconds"]
            alone = {int(batch): seconds for batch, seconds in timing["crops_seconds_by_batch"].items()}.get(1)
            lines.append(
                f"| {label} | {max(timing['views'])} | {timing['windows_seconds']:.3f} | "
                f"{timing['crops_seconds']:.3f} ({timing['crops_at_once']}) | {'-' if alone is None else f'{alone:.3f}'} | "
                f"**{timing['speedup']:.1f} x** | {processor['crops'] / processor['windows']:.1f} x | "
                f"{pixels['windows']:.2f} / {pixels['crops']:.2f} | {pixels['crops'] / pixels['windows']:.1f} |"
            )
    lines += ["", "Medians over turns taken by both ways in one process; decoding is not timed.", "", "## Agreement", "",
              "| model | same best class | largest difference of a mean score | mean difference of one view's score |",
              "|---|---|---|---|"]  # fmt: skip
    for label, result in known.items():
        agreement = result["timing"]["agreement"]
        lines.append(f"| {label} | {agreement['same_best_class']:.0%} | {agreement['largest_difference']:.4f} | "
                     f"{agreement['mean_difference_of_a_view']:.4f} |")  # fmt: skip
    for label, result in known.items():
        if "accuracy" in result:
            accuracy = result["accuracy"]
            lines += ["", f"## Accuracy of {label} on {accuracy['data']}, windows of {accuracy['size']} pixels", ""]
            lines += _accuracy_table(accuracy["views"])
    lines += ["", "## Where this ran", ""]
    for label, result in known.items():
        found = result["environment"]
        lines.append(f"- {label}: {found['text']}; {found['load before']} processes were running when it began.")
    return "\n".join(lines) + "\n"


def _accuracy_table(rows: dict[str, Any]) -> list[str]:
    if all("top1" in row for row in rows.values()):
        lines = ["| views | top-1 (95 % interval) | top-5 | mean of classes | images |", "|---|---|---|---|---|"]  # fmt: skip
        for name, row in rows.items():
            lower, upper = row["top1_interval"]
            top5 = "-" if row["top5"] is None else f"{row['top5']:.2%}"
            lines.append(f"| {name} | {row['top1']:.2%} ({lower:.1%} to {upper:.1%}) | {top5} | {row['mean_class']:.2%} | "
                         f"{row['images']} |")  # fmt: skip
        return lines
    lines = ["| views | mAP (area) | mAP (11-point) | images |", "|---|---|---|---|"]
    return lines + [f"| {name} | {row['map_area']:.4f} | {row['map_voc07']:.4f} | {row['images']} |"
                    for name, row in rows.items()]  # fmt: skip


def _megapixels(photo: np.ndarray, views: Views) -> float:
    """What goes through the convolutions for windows of the maps."""
    sizes = [scaled_size(photo.shape[:2], side, 4 * side, minimum=views.window) for side in views.short_sides]
    return (1 + views.flip) * sum(height * width for height, width in sizes) / 1e6


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of all processor threads."""
    started, processor = time.perf_counter(), time.process_time()
    work()  # its scores come back to the CPU, so a GPU has finished too
    return time.perf_counter() - started, time.process_time() - processor


if __name__ == "__main__":
    main()
