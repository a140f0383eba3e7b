"""Images per second of learning end to end: by which layers learn, at which size, how many images a step.

    uv run python benchmarks/end_to_end_speed.py --model MODEL --data VOC2007 --work WORK --learn fc_only from:7 from:4 all \\
        --sides 400 600 --images 2 4 --json benchmarks/results/end_to_end_speed.json --markdown docs/end-to-end-speed.md

Real images with their proposals (made below --work where they are missing), real steps: reading and resizing, convolutions,
pooling, fully connected layers, the way back, AdamW. The fastest half of the steps counts, after the first of each kind. Run it
on an idle machine; seconds of processor time, of all threads, are given too: they say what a busy one hides.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import torch
from environment import environment
from results_file import write_results, write_text

import sppnet
from sppnet.data.dataset import read_annotated
from sppnet.detection.fast_rcnn import FastRcnn, FastRcnnSettings
from sppnet.detection.image_batches import ImageBatches, LearningImage
from sppnet.detection.targets import find_candidates
from sppnet.detection.train import proposals_of
from sppnet.proposals.files import load_proposals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="voc", help="a detector's file, or a shipped name")
    parser.add_argument("--data", type=Path, required=True, help="annotated images")
    parser.add_argument("--work", type=Path, required=True, help="folder with proposals, or for them")
    parser.add_argument("--learn", nargs="+", default=["fc_only", "all"])
    parser.add_argument("--sides", type=int, nargs="+", default=[600], help="short sides, in pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[2], help="a step")
    parser.add_argument("--steps", type=int, default=12, help="of each kind")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    busy = round(os.getloadavg()[0], 1)
    data = read_annotated(arguments.data, "train", max(arguments.images) * (arguments.steps + 1))
    files = proposals_of(data, sppnet.load(arguments.model).architecture.proposer, arguments.work)
    candidates = [
        find_candidates(image, load_proposals(file)[0], len(data.class_names), 0.5, 0.1)
        for image, file in zip(data.images, files, strict=True)
    ]
    images = [
        LearningImage(image.path, each) for image, each in zip(data.images, candidates, strict=True) if len(each.labels)
    ]
    rows = []
    for side in arguments.sides:
        for count in arguments.images:
            for learn in arguments.learn:
                rows.append(measure(arguments.model, images, learn, side, count, arguments.steps))
                print(rows[-1], flush=True)
    found = environment()
    text = page(Path(arguments.model).stem, rows, f"{found['text']}; load {busy} when it began.")
    print(text)
    if arguments.json:
        write_results(arguments.json, {"environment": found, "load before": busy, "rows": rows})
    if arguments.markdown:
        write_text(arguments.markdown, text)


def measure(name: str, images: list[LearningImage], learn: str, side: int, count: int, steps: int) -> dict[str, Any]:
    """One kind of step."""
    model = sppnet.load(name).train()
    model.backbone.eval()
    long_side = round(model.architecture.long_side * side / model.architecture.short_side)
    model.architecture = dataclasses.replace(model.architecture, short_side=side, long_side=long_side)
    settings = FastRcnnSettings(learn=learn, images_per_step=count)
    module = FastRcnn(model, images, settings, steps)
    optimiser = module.configure_optimizers()["optimizer"]
    batches = ImageBatches(
        images, model.architecture, model.smallest_side, images_per_step=count, windows_per_image=settings.windows_per_image,
        foreground_share=settings.foreground_share, short_sides=(), mirrored=True, seed=0,
    )  # fmt: skip
    seconds, processor = [], []
    for step in range(steps + 1):
        started, used = time.perf_counter(), time.process_time()
        losses = module.losses(batches[step])
        (losses["windows"] + losses["boxes"] + settings.image_weight * losses["images"]).backward()
        torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        )
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    fastest = [sorted(times[1:])[: max(1, steps // 2)] for times in (seconds, processor)]
    second, core = (sum(times) / len(times) / count for times in fastest)
    return {"learn": learn, "side": side, "images": count, "images/s": 1 / second, "processor s/image": core}


def page(label: str, rows: list[dict[str, Any]], where: str) -> str:
    """The figures as a page for people."""
    lines = ["# Learning end to end: images per second", "",
             f"Made by `benchmarks/end_to_end_speed.py` with {label}: whole steps, 64 windows of each image.", "",
             "| layers that learn | short side | images a step | images/s | processor s an image | minutes for 2500 images |",
             "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for row in rows:
        minutes = 2500 / row["images/s"] / 60
        lines.append(f"| `{row['learn']}` | {row['side']} | {row['images']} | {row['images/s']:.1f} | "
                     f"{row['processor s/image']:.3f} | {minutes:.1f} |")  # fmt: skip
    return "\n".join([*lines, "", where]) + "\n"


if __name__ == "__main__":
    main()
