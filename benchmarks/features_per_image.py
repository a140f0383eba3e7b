"""Seconds for the features of one image's windows: SPP-net at one and at five scales against R-CNN with the same network.

    uv run python -m benchmarks.features_per_image --backbone mobilenet_v2 --weights FILE --photos FOLDER \\
        --json benchmarks/results/features_per_image.json --markdown docs/features-per-image.md
    uv run python -m benchmarks.features_per_image --model MODEL --photos FOLDER --json ... --markdown ...

Paper: tables 9 and 10. Both ways start from a decoded photo and 2000 boxes (drawn from selective search and a grid) and end at
what the last hidden layer says of each. Stages:

- *conv*: SPP-net resizes and convolves the photo, once for each scale; R-CNN cuts out, warps and convolves every box, in the
  size of batch that was fastest of several on this machine, for this network and precision.
- *pooling*: the pyramid; SPP-net's includes finding each box's cells, and scale.
- *fully connected*: all windows at once, both ways. Boxes that fall on the very same cells are described once (R-CNN has none);
  the page has the time without this, too.

R-CNN is timed on a sample of the boxes, and its time scaled to all of them. The ways take turns in one process, and medians are
compared. The JSON file keeps what it holds of other networks; the page is made from all of it. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sppnet
from benchmarks.environment import environment
from benchmarks.photos import timed_photos
from benchmarks.rcnn import AT_ONCE, CONTEXT, SIDE, RcnnSettings, fastest_batch, rcnn_maps
from benchmarks.results_file import read_results, write_results, write_text
from sppnet.detection.feature_maps import SHORT_SIDES, compute_feature_maps
from sppnet.models.backbones import RANDOM, build_backbone
from sppnet.models.sppnet import WINDOW_CHUNK, Architecture, SPPNet, build_model
from sppnet.ops.pyramid_pool import pyramid_pool
from sppnet.progress import timed
from sppnet.proposals.compute import propose

STAGES = ("conv", "pooling", "fully connected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="voc", help="a shipped model's name or a model file")
    which.add_argument("--backbone", help="in its place, a network with random fully connected layers")
    parser.add_argument("--weights", help="of that backbone; random without")
    parser.add_argument("--levels", type=int, nargs="+", default=[6, 3, 2, 1], help="of that network")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1024, 1024], help="of that network")
    parser.add_argument("--short-side", type=int, default=688, help="of the single scale (paper: 688)")
    parser.add_argument("--scales", type=int, nargs="+", default=list(SHORT_SIDES), help="of the several")
    parser.add_argument("--windows", type=int, default=2000, help="boxes in each photo")
    parser.add_argument("--sample", type=int, default=256, help="boxes that R-CNN is timed on")
    parser.add_argument("--side", type=int, default=SIDE, help="of R-CNN's warped boxes")
    parser.add_argument("--batches", type=int, nargs="+", default=list(AT_ONCE), help="R-CNN's, to choose from")
    parser.add_argument("--photos", help="a folder to draw photos from; otherwise scikit-image's samples")
    parser.add_argument("--count", type=int, default=4, help="how many photos")
    parser.add_argument("--repeats", type=int, default=5, help="how many turns each way takes with each photo")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the page made from it; needs --json")
    arguments = parser.parse_args()
    if arguments.markdown and not arguments.json:
        parser.error("--markdown needs --json")
    label, model = _network(arguments)
    photos = [(photo, _boxes(photo, arguments.windows)) for photo in timed_photos(arguments.photos, arguments.count)]
    settings = model.architecture
    result: dict[str, Any] = {
        "settings": {
            "backbone": settings.backbone, "levels": settings.levels, "hidden": settings.hidden,
            "stride": model.geometry.stride, "short side": arguments.short_side, "scales": arguments.scales,
            "windows": arguments.windows, "R-CNN": {"side": arguments.side, "context": CONTEXT, "timed on": arguments.sample},
        },
        "photos": [f"{photo.shape[1]} x {photo.shape[0]}" for photo, _ in photos],
        "repeats": arguments.repeats,
        "environment": {**environment(), "load before": round(os.getloadavg()[0], 1)},
    }  # fmt: skip
    for precision in arguments.precisions:
        result[precision] = time_ways(model, photos, arguments, bfloat16=precision == "bfloat16")
    known = read_results(arguments.json)
    known[label] = result
    text = page(known)
    print(text)
    if arguments.json:
        write_results(arguments.json, known)
    if arguments.markdown:
        write_text(arguments.markdown, text)


def time_ways(
    model: SPPNet, photos: list[tuple[np.ndarray, np.ndarray]], arguments: argparse.Namespace, *, bfloat16: bool
) -> dict[str, Any]:
    """Seconds an image by way and stage: medians over turns, means over photos."""
    photo, boxes = photos[0]

    def run(count: int) -> None:
        rcnn_maps(photo, boxes[:count], model, RcnnSettings(side=arguments.side, bfloat16=bfloat16))

    at_once, of_batches = fastest_batch(run, [size for size in arguments.batches if size <= len(boxes)])
    print("R-CNN, ms a crop by batch:", {size: round(1e3 * each, 2) for size, each in of_batches.items()}, flush=True)
    settings = RcnnSettings(at_once, arguments.side, bfloat16=bfloat16)
    ways = {"SPP-net, 1 scale": [arguments.short_side], f"SPP-net, {len(arguments.scales)} scales": arguments.scales}
    turns: dict[str, list[list[dict[str, float]]]] = {way: [] for way in (*ways, "R-CNN")}
    for photo, boxes in photos:
        for times in turns.values():
            times.append([])
        for turn in range(arguments.repeats + 1):  # the first one warms up
            for way, sides in ways.items():
                seconds = spp_features(model, photo, boxes, sides, bfloat16=bfloat16)
                if turn:
                    turns[way][-1].append(seconds)
            chosen = np.random.default_rng(turn).permutation(len(boxes))[: arguments.sample if turn else at_once]
            seconds = rcnn(model, photo, boxes[chosen], len(boxes), settings)
            if turn:
                turns["R-CNN"][-1].append(seconds)
        print(photo.shape, {way: round(_total(_median(times[-1])), 3) for way, times in turns.items()}, flush=True)
    found = {way: _mean([_median(times) for times in of_photos]) for way, of_photos in turns.items()}
    slow = _total(found["R-CNN"])
    return {
        "seconds": {
            way: {**{stage: row[stage] for stage in STAGES}, "total": _total(row)} for way, row in found.items()
        },
        "fully connected, every box by itself": {way: found[way]["every box"] for way in ways},
        "distinct windows": {way: found[way]["distinct"] for way in ways},
        "times as fast as R-CNN": {way: slow / _total(found[way]) for way in ways},
        "R-CNN's batch": at_once,
        "R-CNN's seconds a crop by batch": of_batches,
        "totals of every turn": {
            way: [[_total(each) for each in times] for times in of_photos] for way, of_photos in turns.items()
        },
    }


@contextmanager
def stage(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """`timed`, to the end of what a GPU was given to do."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    with timed(seconds, name):
        yield
        wait()


def spp_features(
    model: SPPNet, photo: np.ndarray, boxes: np.ndarray, sides: list[int], *, bfloat16: bool
) -> dict[str, float]:
    """Seconds of one image, the way of `sppnet.detection.predict.score_windows`; ``distinct`` windows, too."""
    seconds: dict[str, float] = {}
    with stage(seconds, "conv", model.device):
        maps = compute_feature_maps(model, photo, sides, bfloat16=bfloat16)
    with stage(seconds, "pooling", model.device):
        windows, _ = maps.windows(model, torch.from_numpy(boxes))
        unique, which = windows.unique(dim=0, return_inverse=True)
        with torch.inference_mode():
            pooled = maps.pool(model, unique)
    with stage(seconds, "fully connected", model.device):
        embed(model, pooled, bfloat16=bfloat16)[which.to(model.device)]
    with torch.inference_mode():
        every = maps.pool(model, windows)
    with stage(seconds, "every box", model.device):
        embed(model, every, bfloat16=bfloat16)
    return {**seconds, "distinct": float(len(unique))}


def embed(model: SPPNet, pooled: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    """Pooled windows [R, M, C] -> head features [R, D]."""
    with model.inference(bfloat16=bfloat16):
        parts = [model.fully_connected(part) for part in pooled.split(WINDOW_CHUNK)]
    return torch.cat(parts)  # not in autocast, which on a CPU knows no half precision


def rcnn(model: SPPNet, photo: np.ndarray, boxes: np.ndarray, count: int, settings: RcnnSettings) -> dict[str, float]:
    """Seconds of one image with ``count`` boxes, from those of ``boxes``, a sample of them; stage by stage.

    The fully connected layers are timed on as many rows as there will be, as more rows are faster for each.
    """
    seconds: dict[str, float] = {}
    parts = []
    for start in range(0, len(boxes), settings.at_once):
        with stage(seconds, "conv", model.device):
            maps = rcnn_maps(photo, boxes[start : start + settings.at_once], model, settings)
        with stage(seconds, "pooling", model.device):
            parts.append(pyramid_pool(maps, model.architecture.levels))
    pooled = torch.cat(parts)
    rows = pooled.repeat(-(-count // len(pooled)), 1, 1)[:count]
    with stage(seconds, "fully connected", model.device):
        embed(model, rows, bfloat16=settings.bfloat16)
    return {name: value * (1 if name == "fully connected" else count / len(boxes)) for name, value in seconds.items()}


def page(known: dict[str, Any]) -> str:
    """The results of all networks as a page for people."""
    lines = ["# Features per image: SPP-net against R-CNN", "",
             "Made by `python -m benchmarks.features_per_image`; every figure is in its JSON file. What the last hidden layer says of every",
             "box of a photo, by the same network: SPP-net convolves the photo, once for each scale, and pools the boxes from its",
             "map; R-CNN convolves every box by itself, warped with context, in the size of batch that was fastest on this machine.",
             "Boxes that fall on the very same cells are described once; the last column is the factor without that. R-CNN is timed",
             "on a sample of the boxes, and its convolutions' time scaled to all of them.", "",
             "| network | precision | way | conv s | pooling s | fully connected s | total s | against R-CNN | without sharing |",
             "|---|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for label, result in known.items():
        for precision in ("float32", "bfloat16"):
            if precision not in result:
                continue
            found = result[precision]
            slow = found["seconds"]["R-CNN"]["total"]
            for way, row in found["seconds"].items():
                batch = found["R-CNN's batch"]
                name = f"R-CNN, {batch} at once" if way == "R-CNN" else way
                figures = " | ".join(f"{row[stage]:.3f}" for stage in (*STAGES, "total"))
                factors = "1 | 1"
                if way != "R-CNN":
                    alone = row["total"] - row["fully connected"] + found["fully connected, every box by itself"][way]
                    factors = f"**{slow / row['total']:.0f} x** | {slow / alone:.0f} x"
                lines.append(f"| {label} | {precision} | {name} | {figures} | {factors} |")
    lines += ["", "The paper's figures for the same question, on a GPU of its time (table 10, ZF-5, 2000 windows): R-CNN 14.46 s,",
              "one scale .142 s (102 x), five scales .382 s (38 x).", "",
              "bfloat16: convolutions and fully connected layers. Maps are kept in half precision in every row. Medians over turns",
              "taken by all ways in one process, means over photos; decoding and proposals are not timed.", ""]  # fmt: skip
    for label, result in known.items():
        settings, found = result["settings"], result["environment"]
        one = result.get("bfloat16") or result["float32"]
        distinct = ", ".join(
            f"{count:.0f} at {way.partition(', ')[2]}" for way, count in one["distinct windows"].items()
        )
        lines += [f"- {label}: stride {settings['stride']}, levels {tuple(settings['levels'])}, fully connected "
                  f"{tuple(settings['hidden'])}, short side {settings['short side']} px and {settings['scales']} px; "
                  f"{settings['windows']} boxes, of which distinct windows: {distinct}; photos {', '.join(result['photos'])}; "
                  f"R-CNN timed on {settings['R-CNN']['timed on']} boxes of {settings['R-CNN']['side']} px, {result['repeats']} "
                  f"turns. {found['text']}; load {found['load before']} when it began."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _network(arguments: argparse.Namespace) -> tuple[str, SPPNet]:
    """The network to measure, and what the page calls it."""
    if not arguments.backbone:
        return Path(arguments.model).stem, sppnet.load(arguments.model, arguments.device)
    torch.manual_seed(0)
    architecture = Architecture(("class",), arguments.backbone, tuple(arguments.levels), tuple(arguments.hidden))
    backbone = build_backbone(arguments.backbone, arguments.weights or RANDOM)
    model = build_model(architecture, backbone=backbone).eval().to(arguments.device)
    model.backbone.to(memory_format=torch.channels_last)
    return f"{arguments.backbone} {tuple(arguments.levels)}", model


def _boxes(photo: np.ndarray, count: int) -> np.ndarray:
    boxes = propose(photo, "selective-search+grid")
    if len(boxes) < count:
        raise SystemExit(
            f"a photo of {photo.shape[1]} x {photo.shape[0]} has {len(boxes)} boxes: ask for fewer than {count}"
        )
    return boxes[np.random.default_rng(0).permutation(len(boxes))[:count]]


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def _total(row: dict[str, float]) -> float:
    return sum(row[stage] for stage in STAGES)


if __name__ == "__main__":
    main()
