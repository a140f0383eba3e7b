"""Images per second of training end to end: by which layers are trained, at which size, how many images a step.

    uv run python -m benchmarks.end_to_end_speed --model MODEL --data VOC2007 --cache CACHE --train-layers none 7 4 all \\
        --sides 400 600 --images 2 4 --json benchmarks/results/end_to_end_speed.json --markdown docs/end-to-end-speed.md

Real images with their proposals (made below --cache where they are missing), real steps: reading and resizing, convolutions,
pooling, fully connected layers, the way back, AdamW. The fastest half of the steps counts, after the first of each kind. Run it
on an idle machine; seconds of processor time, of all threads, are given too: they say what a busy one hides.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.results_file import write_results, write_text
from sppnet.data.dataset import read_annotated
from sppnet.detection.end_to_end import EndToEndSettings, train_end_to_end
from sppnet.detection.targets import TrainingImage, training_images
from sppnet.models.files import load
from sppnet.proposals.compute import proposals_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="voc", help="a detector's file, or a shipped name")
    parser.add_argument("--data", type=Path, required=True, help="annotated images")
    parser.add_argument("--cache", type=Path, required=True, help="folder with proposals, or for them")
    parser.add_argument("--train-layers", nargs="+", default=["none", "all"], help="of the backbone")
    parser.add_argument("--sides", type=int, nargs="+", default=[600], help="short sides, in pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[2], help="a step")
    parser.add_argument("--steps", type=int, default=12, help="of each kind")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    busy, model = round(os.getloadavg()[0], 1), load(arguments.model)
    data = read_annotated(arguments.data, "train", max(arguments.images) * (arguments.steps + 1))
    proposals = proposals_of(data, model.detection.proposals, arguments.cache)
    images = training_images(data.images, proposals, len(data.class_names))
    rows = []
    for side in arguments.sides:
        for count in arguments.images:
            for layers in arguments.train_layers:
                rows.append(measure(arguments.model, images, layers, side, count, arguments.steps))
                print(rows[-1], flush=True)
    found = environment()
    text = page(Path(arguments.model).stem, rows, f"{found['text']}; load {busy} when it began.")
    print(text)
    if arguments.json:
        write_results(arguments.json, {"environment": found, "load before": busy, "rows": rows})
    if arguments.markdown:
        write_text(arguments.markdown, text)


def measure(name: str, images: list[TrainingImage], layers: str, side: int, count: int, steps: int) -> dict[str, Any]:
    """One kind of step: the fastest half counts, after the first."""
    model, moments = load(name), list[tuple[float, float]]()
    long_side = round(model.preprocess.long_side * side / model.preprocess.short_side)
    model.preprocess = replace(model.preprocess, short_side=side, long_side=long_side)
    settings = EndToEndSettings(train_layers=layers, images_per_step=count, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        train_end_to_end(
            model, images[: count * (steps + 1)], settings, Path(folder),
            progress=lambda *_: moments.append((time.perf_counter(), time.process_time())),
        )  # fmt: skip
    taken = [[after[clock] - before[clock] for before, after in pairwise(moments)] for clock in (0, 1)]
    fastest = [sorted(times)[: max(1, len(times) // 2)] for times in taken]
    second, core = (sum(times) / len(times) / count for times in fastest)
    return {"layers": layers, "side": side, "images": count, "images/s": 1 / second, "processor s/image": core}


def page(label: str, rows: list[dict[str, Any]], where: str) -> str:
    """The figures as a page for people."""
    lines = ["# Training end to end: images per second", "",
             f"Made by `python -m benchmarks.end_to_end_speed` with {label}: whole steps, 64 windows of each image.", "",
             "| layers that are trained | short side | images a step | images/s | processor s an image | minutes for 2500 images |",
             "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for row in rows:
        minutes = 2500 / row["images/s"] / 60
        lines.append(f"| `{row['layers']}` | {row['side']} | {row['images']} | {row['images/s']:.1f} | "
                     f"{row['processor s/image']:.3f} | {minutes:.1f} |")  # fmt: skip
    return "\n".join([*lines, "", where]) + "\n"


if __name__ == "__main__":
    main()
