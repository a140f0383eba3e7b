"""What recall does each way of proposing boxes give for its time? Every proposer on the same images, one thread, in one run.

    uv run python -m benchmarks.proposers VOCDEVKIT [--split val] [--limit 100] [--json FILE] [--markdown FILE]

Recall is the share of objects (difficult ones left out) that at least one box overlaps by an IoU of .5, or .7; by size, the
root of the object's area. Seconds are of processor time, so that a busy machine does not change them much; decoding is not
timed. A union takes the time of its parts and of dropping near-duplicates. Images are drawn at random, by a seed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.results_file import write_results, write_text
from sppnet.data import read_annotated
from sppnet.data.images import read_image
from sppnet.proposals.compute import grid_boxes
from sppnet.proposals.edge_boxes import EdgeBoxes, edge_boxes
from sppnet.proposals.recall import SIZES, recall_report
from sppnet.proposals.selective_search import SelectiveSearch, drop_near_duplicates, selective_search

ALONE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "selective search 500": lambda image: selective_search(image, SelectiveSearch(working_size=500)),
    "selective search 350": lambda image: selective_search(image, SelectiveSearch(working_size=350)),
    "selective search 250": lambda image: selective_search(image, SelectiveSearch(working_size=250)),
    "grid": lambda image: grid_boxes(image.shape[:2]),
    "edge boxes 350": edge_boxes,
    "edge boxes 250": lambda image: edge_boxes(image, EdgeBoxes(working_size=250)),
}
UNIONS = (
    ("selective search 250", "grid"),
    ("selective search 350", "grid"),
    ("edge boxes 350", "grid"),
    ("selective search 250", "edge boxes 250"),
    ("selective search 350", "edge boxes 350"),
    ("selective search 350", "grid", "edge boxes 350"),
)
IOUS = (0.5, 0.7)
NEAR_DUPLICATE_IOU = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="annotated images: VOC, COCO or YOLO")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=100, help="how many images")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    data = read_annotated(arguments.data, arguments.split)
    chosen = random.Random(arguments.seed).sample(data.images, min(arguments.limit, len(data)))
    data = replace(data, images=tuple(chosen))

    boxes: dict[str, dict[str, np.ndarray]] = {}
    seconds: dict[str, float] = {}
    for propose in ALONE.values():
        propose(np.zeros((99, 99, 3), np.uint8))  # what a first call costs is not of the method
    for image in data.images:
        pixels = read_image(image.path)
        for name, propose in ALONE.items():
            started = time.process_time()
            boxes.setdefault(name, {})[image.image_id] = propose(pixels)
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
        for parts in UNIONS:
            name = " + ".join(parts)
            started = time.process_time()
            both = np.concatenate([boxes[part][image.image_id] for part in parts])
            boxes.setdefault(name, {})[image.image_id] = drop_near_duplicates(both, NEAR_DUPLICATE_IOU)
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
    for parts in UNIONS:
        seconds[" + ".join(parts)] += sum(seconds[part] for part in parts)

    rows = {
        name: {"seconds_per_image": round(seconds[name] / len(data), 4), **recall_report(data, of_images, IOUS)}
        for name, of_images in boxes.items()
    }
    result = {"environment": environment(), "images": len(data), "split": arguments.split, "seed": arguments.seed}
    result["proposers"] = rows
    text = page(result)
    print(text)
    if arguments.json:
        write_results(arguments.json, result)
    if arguments.markdown:
        write_text(arguments.markdown, text)


def page(result: dict[str, Any]) -> str:
    """The page of a result."""
    sizes = list(SIZES)
    objects = next(iter(result["proposers"].values()))["sizes"]
    head = ["proposer", "s / image", "boxes", *(f"IoU {iou:.1f}" for iou in IOUS)]
    head += [f"{size} {iou:.1f}" for iou in IOUS for size in sizes]
    lines = [
        "# What recall each proposer gives for its time",
        "",
        "Made by `python -m benchmarks.proposers`. A proposer's recall bounds what a detector behind it can find: an object counts",
        f"as found at an IoU of {IOUS[0]} or {IOUS[1]} if one box overlaps it by that much. By size: small below 64 px (root of",
        "the area), medium below 160 px. Seconds are of processor time on one core; several images can be searched at once.",
        "",
        f"{result['images']} images of the split `{result['split']}`, drawn at random (seed {result['seed']}); "
        + ", ".join(f"{objects[size]['objects']} {size}" for size in sizes)
        + " objects.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
    ]
    for name, row in result["proposers"].items():
        of = row["sizes"]
        cells = [name, f"{row['seconds_per_image']:.3f}", f"{row['boxes_per_image']:.0f}"]
        cells += [_share(of["all"]["recall"][i]) for i in range(len(IOUS))]
        cells += [_share(of[size]["recall"][i]) for i in range(len(IOUS)) for size in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "A name with numbers is a working size: the longest side, in pixels, of the image that is searched. In the package",
        'they are `"selective-search"`, `"grid"`, `"edge-boxes"` (350 each where it applies) and unions such as',
        '`"edge-boxes+grid"`; a detector looks at those it was trained on, unless `--proposer` says others.',
        "",
        f"{result['environment']['text']}.",
        "",
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".removeprefix("0")


if __name__ == "__main__":
    main()
