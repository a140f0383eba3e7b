"""With and without the pyramid, at one size and at several: the paper's Table 2 in small, from random weights.

    uv run python -m benchmarks.multi_size --data ../shared/data/caltech101 --cache FOLDER \
        --json benchmarks/results/multi_size.json --markdown docs/multi-size.md --picture docs/multi-size.png

One small network (a residual net of plain convolutions, a cell every 8 pixels, two fully connected layers) is trained on the
classes of DATA/train from random weights, on as many images in every row, with the same regions of the same images in the
same order for the same seed; only the pooling and the sizes differ:

- no pyramid: one 6 x 6 grid, images of one size alone, as a network without the layer has it;
- pyramid, single: levels 6, 3, 2, 1, the same images;
- pyramid, multi: the same region in turn at the larger and the smaller size, an epoch each (section 2.3);
- pyramid, random: at a side drawn for every epoch between the two (section 3.1.3).

A tenth of the training images is held out and chooses the epoch; DATA/test is looked at once, at the end: by one centre
crop, by ten crops, and, with the pyramid, by the same ten views as windows of the map, and as whole images. Every run is kept in the JSON file as it ends, and a run that was
stopped goes on, so the command can be given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import environment
from benchmarks.results_file import read_results, write_results, write_text
from sppnet.classification.batches import SHORT_SIDE_PER_CROP, TrainingSizes
from sppnet.classification.epochs import EpochSettings, train_epochs
from sppnet.classification.evaluate import evaluate_classifier
from sppnet.classification.features import readable_images
from sppnet.classification.views import view_set
from sppnet.data.formats.folder import read_folder
from sppnet.data.images import read_image, resize_image, scaled_size
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.files import atomic_write
from sppnet.models.networks import compact_resnet
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, build_model
from sppnet.progress import progress_bars

WIDTHS, BLOCKS = (32, 64, 128), (1, 2)  # of the backbone: 128 channels, a cell every 8 pixels
HIDDEN = (512, 512)
PYRAMID, GRID = (6, 3, 2, 1), (6,)
HELD_OUT = 0.1


class Row(NamedTuple):
    name: str
    levels: tuple[int, ...]
    rule: str  # of `TrainingSizes`


ROWS = {
    "none": Row("no pyramid, one size", GRID, "single"),
    "single": Row("pyramid, one size", PYRAMID, "single"),
    "multi": Row("pyramid, two sizes in turn", PYRAMID, "multi"),
    "random": Row("pyramid, random sizes", PYRAMID, "random"),
}
VIEWS = {"centre-crop": "centre crop", "10-crop": "10 crops", "10-view": "10 views of the map", "full": "full image"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with train and test, each of class folders")
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the shrunken images and checkpoints")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", type=int, nargs=2, default=[80, 64], help="pixels; the larger is the one size")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    side = max(arguments.sides)
    short = round(side * SHORT_SIDE_PER_CROP)
    train, test = (shrunken(read_folder(arguments.data / part), short, arguments.cache) for part in ("train", "test"))
    figures = load(arguments)
    for seed in arguments.seeds:
        for key in arguments.rows:
            runs = [run for run in figures["runs"] if run["row"] == key and run["seed"] == seed]
            if not runs or views_of(ROWS[key]) - set(runs[0]["accuracy"]):
                done = run_one(key, seed, train, test, runs[0]["accuracy"] if runs else {}, arguments)
                if runs:  # the training was not done again: its time is the first one's
                    runs[0]["accuracy"] = done["accuracy"]
                else:
                    figures["runs"].append(done)
                figures["environment"] = environment()
                write_results(arguments.json, figures)
    if arguments.markdown:
        write_text(arguments.markdown, page(figures, arguments.picture))
    if arguments.picture:
        draw(figures, arguments.picture)


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    setting = {"sides": arguments.sides, "epochs": arguments.epochs, "data": arguments.data.name}
    figures = read_results(arguments.json) or {"setting": setting, "runs": []}
    if figures["setting"] != setting:
        raise SystemExit(f"{arguments.json} holds runs of {figures['setting']}, not of {setting}: give another file")
    return figures


def shrunken(images: LabelledImages, short: int, cache: Path) -> LabelledImages:
    """Copies whose short side is no longer than all rows see it: what is read is then read in no time."""
    paths = []
    for place, path in enumerate(images.paths):
        copy = cache / f"short-{short}" / path.parent.parent.name / path.parent.name / f"{path.stem}.png"
        paths.append(copy)
        if not copy.exists():
            pixels = read_image(path)
            size = scaled_size((pixels.shape[0], pixels.shape[1]), short, 4 * short, minimum=short)
            with atomic_write(copy, replace="any") as unfinished:
                Image.fromarray(resize_image(pixels, size)).save(unfinished, "PNG", compress_level=1)
        if place % 500 == 0:
            print(f"copies {place} of {len(images)}", flush=True)
    return LabelledImages(tuple(paths), images.labels, images.class_names)


def views_of(row: Row) -> set[str]:
    """Without a pyramid there are crops alone."""
    return set(VIEWS) if row.levels == PYRAMID else {"centre-crop", "10-crop"}


def run_one(
    key: str,
    seed: int,
    train: LabelledImages,
    test: LabelledImages,
    known: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """One training, and what comes of it by each view set that is not yet `known`."""
    row, side = ROWS[key], max(arguments.sides)
    fixed = row.levels == GRID
    short = side if fixed else round(side * SHORT_SIDE_PER_CROP)
    torch.manual_seed(seed)
    model = build_model(
        Architecture(train.class_names, "compact", row.levels, HIDDEN, detects=False, multi_label=False),
        Preprocess(short, 4 * short, "crop" if fixed else "keep-aspect", fixed),
        backbone=compact_resnet(WIDTHS, BLOCKS, folded=False),
    )
    settings = EpochSettings(
        train_backbone=True, epochs=arguments.epochs, batch_size=32, learning_rate=1e-3, backbone_rate=1.0,
        weight_decay=0.05, sizes=TrainingSizes(row.rule, tuple(arguments.sides)),  # type: ignore[arg-type]
        checkpoint_interval=500, seed=seed,
    )  # fmt: skip
    learnt, held_out = (readable_images(part) for part in split_off(train, HELD_OUT, seed=seed))
    started = time.perf_counter()
    with progress_bars() as progress:
        trained = train_epochs(model, learnt, held_out, settings, arguments.cache / f"{key}-{seed}", progress=progress)
    seconds, accuracy = time.perf_counter() - started, dict(known)
    for name in sorted(views_of(row) - set(known)):
        crops = name in ("centre-crop", "10-crop")
        views = replace(
            view_set({"10-crop": "10-view", "centre-crop": "center-crop"}.get(name, name), side), crops=crops
        )
        evaluation = evaluate_classifier(model, test, views=views)
        accuracy[name] = {"top1": evaluation.top1, "top5": evaluation.top5}
    run = {
        "row": key, "seed": seed, "accuracy": accuracy, "best_epoch": trained.figures["best_epoch"],
        "seconds": seconds, "parameters": sum(p.numel() for p in model.parameters()),
        "test_images": len(test), "train_images": len(learnt.images), "classes": len(train.class_names),
    }  # fmt: skip
    print(json.dumps(run), flush=True)
    return run


def page(figures: dict[str, Any], picture: Path | None) -> str:
    runs, setting = figures["runs"], figures["setting"]
    one = runs[0]
    large, small = max(setting["sides"]), min(setting["sides"])
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "# With and without the pyramid, at one size and at several",
        "",
        "The paper's Table 2 in small: one network from random weights, the same images and number of steps in every row.",
        "",
        *([f"![Error of every run]({picture.name})", ""] if picture else []),
        f"Made by `python -m benchmarks.multi_size`. {figures['environment']['text']}.",
        "",
        f"{setting['data']}: {one['classes']} classes, {one['train_images']} training images and a tenth held out to choose the "
        f"epoch, {one['test_images']} test images looked at once; {setting['epochs']} epochs; square regions of {large} pixels, and of "
        f"{small} where there are two sizes. Top-1 error in %, mean and standard deviation over {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}); in brackets by how much it is lower than without the pyramid, seed by seed.",
        "",
        f"| network | parameters | {' | '.join(VIEWS.values())} | training, of the first row's time |",
        "|---|---:|" + "---:|" * (len(VIEWS) + 1),
    ]
    for key, row in ROWS.items():
        own = {run["seed"]: run for run in runs if run["row"] == key}
        if not own:
            continue
        cells = []
        for view in VIEWS:
            errors = {
                seed: 100 * (1 - run["accuracy"][view]["top1"]) for seed, run in own.items() if view in run["accuracy"]
            }
            if not errors:
                cells.append("-")
                continue
            cell = f"{statistics.mean(errors.values()):.1f} ± {deviation(list(errors.values())):.1f}"
            gains = gain(runs, key, view)
            cells.append(cell + (f" ({statistics.mean(gains):+.1f} ± {deviation(gains):.1f})" if gains else ""))
        first = {run["seed"]: run["seconds"] for run in runs if run["row"] == "none"}
        times = [run["seconds"] / first[seed] for seed, run in own.items() if seed in first]
        cells.append(f"{statistics.mean(times):.2f}" if times else "-")
        lines.append(f"| {row.name} | {next(iter(own.values()))['parameters'] / 1e6:.1f} M | {' | '.join(cells)} |")
    lines += [
        "",
        "The paper (ImageNet, 10 views, ZF-5 to Overfeat-7): the pyramid lowers top-1 error by .6 to 1.7 points, training at two "
        "sizes by another .4 to .7.",
    ]
    return "\n".join(lines) + "\n"


def gain(runs: list[dict[str, Any]], key: str, view: str) -> list[float]:
    """By how many points the error is lower than without the pyramid, for every seed: one view against its one crop, ten
    against its ten."""
    if key == "none":
        return []
    base_view = {"full": "centre-crop", "10-view": "10-crop"}.get(view, view)
    base = {run["seed"]: run["accuracy"][base_view]["top1"] for run in runs if run["row"] == "none"}
    return [
        100 * (run["accuracy"][view]["top1"] - base[run["seed"]])
        for run in runs
        if run["row"] == key and run["seed"] in base
    ]


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw(figures: dict[str, Any], path: Path) -> None:
    """A dot for every run: rows from top to bottom, views in colors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(VIEWS, ("#999999", "#0072B2", "#D55E00", "#009E73"), strict=True))
    rows = [key for key in ROWS if any(run["row"] == key for run in figures["runs"])]
    for place, key in enumerate(rows):
        for shift, view in zip((-0.27, -0.09, 0.09, 0.27), VIEWS, strict=True):
            errors = [
                100 * (1 - run["accuracy"][view]["top1"])
                for run in figures["runs"]
                if run["row"] == key and view in run["accuracy"]
            ]
            if errors:
                heights = np.full(len(errors), place + shift)
                axes.scatter(errors, heights, s=22, color=colors[view], alpha=0.7, linewidths=0)
                mean = statistics.mean(errors)
                axes.plot((mean, mean), (place + shift - 0.07, place + shift + 0.07), color=colors[view], linewidth=2.5)
    for place, (view, label) in enumerate(VIEWS.items()):
        axes.text(0.99, 0.97 - 0.075 * place, label, color=colors[view], transform=axes.transAxes, ha="right", va="top")
    axes.set_yticks(range(len(rows)), [ROWS[key].name for key in rows])
    axes.invert_yaxis()
    axes.set_xlabel("top-1 error on the test images, %; a dot for each seed, a line for their mean")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
