"""What caching maps costs and saves: bytes an image against caching windows, and images a second, written, checked and read.

    uv run python -m benchmarks.map_cache VOCdevkit/VOC2007 --backbone mobilenet_v2 --weights mobilenet_v2.safetensors \
        --images 60 --markdown docs/map-cache.md

Windows: what R-CNN and the released SPP-net store, a vector for each of an image's boxes, as pooled (M x C) and as head
features (1024), in half precision. The disk's cache in memory is warm:
figures of reading are of what the program does, not of the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.results_file import write_text
from sppnet.cache import read_tensors
from sppnet.data import read_annotated
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import SHORT_SIDES
from sppnet.models.backbones import build_backbone, pretrained_weights
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, build_model
from sppnet.proposals.compute import proposals_of

SCALES = {"600": (600,), "688": (688,), "480 to 1200": SHORT_SIDES}
PER_IMAGE = 64  # windows that training reads of an image at a time
TURNS = 3
HIDDEN = 1024  # numbers of a window's head features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", help="a file, or a name that torchvision knows; pretrained if left out")
    parser.add_argument("--proposals", default="edge-boxes", help="the proposal method")
    parser.add_argument("--cache", type=Path, help="where proposals lie already")
    parser.add_argument("--markdown", type=Path, required=True, help="the page to write")
    arguments = parser.parse_args()
    data = read_annotated(arguments.data, arguments.split, arguments.images)
    paths = [image.path for image in data.images]
    weights = arguments.weights or pretrained_weights(arguments.backbone)
    with tempfile.TemporaryDirectory() as folder:
        boxes = [
            torch.from_numpy(each) for each in proposals_of(data, arguments.proposals, arguments.cache or Path(folder))
        ]
        rows = {
            name: measure(arguments.backbone, weights, scales, paths, boxes, Path(folder))
            for name, scales in SCALES.items()
        }
    text = page(arguments, rows, float(np.mean([len(part) for part in boxes])))
    print(text)
    write_text(arguments.markdown, text)


def measure(
    backbone: str,
    weights: str | Path,
    scales: tuple[int, ...],
    paths: list[Path],
    boxes: list[torch.Tensor],
    folder: Path,
) -> dict[str, Any]:
    """Bytes and images a second at some scales."""
    model = build_model(
        Architecture(("any",), backbone, levels=(3, 2, 1)), Preprocess(scales[0], 5 * scales[0] // 3),
        DetectionSettings(scales=scales), backbone=build_backbone(backbone, weights),
    ).eval()  # fmt: skip
    model.backbone.to(memory_format=torch.channels_last)
    cache = FeatureMapCache(model, folder / "maps")
    started = time.perf_counter()
    cache.fill(paths)
    computed = time.perf_counter() - started
    files = [cache.path(path) for path in paths]
    written = sum(file.stat().st_size for file in files)
    rng = np.random.default_rng(0)
    some = [part[torch.from_numpy(rng.permutation(len(part))[:PER_IMAGE])] for part in boxes]

    def pool(which: list[torch.Tensor]) -> None:
        for path, part in zip(paths, which, strict=True):
            maps = cache.read(path)
            maps.pool(model, maps.windows(model, part)[0])

    windows = sum(len(part) for part in boxes)
    return {
        "maps": written / len(paths), "pooled": 2 * windows * model.pool.bins * model.geometry.channels / len(paths),
        "embedded": 2 * windows * HIDDEN / len(paths), "computed": len(paths) / computed,
        "checked": written / quickest(lambda: [read_tensors(file) for file in files]),
        "opened": len(paths) / quickest(lambda: [cache.read(path) for path in paths]),
        "some": len(paths) / quickest(lambda: pool(some)), "all": len(paths) / quickest(lambda: pool(boxes)),
    }  # fmt: skip


def quickest(work: Callable[[], object]) -> float:
    """Seconds of the quickest of some turns: others on the machine only ever make one slower."""
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def page(arguments: argparse.Namespace, rows: dict[str, dict[str, Any]], boxes: float) -> str:
    """The figures as a page for people."""
    lines = ["# Caching maps, not windows", "",
             f"Made by `python -m benchmarks.map_cache`: {arguments.images} images of VOC 2007 `{arguments.split}`, {arguments.backbone}, levels (3, 2, 1), "
             f"{boxes:.0f} boxes an image", f"by {arguments.proposals}. Bytes are on disk, an image, without its mirror image. *Pooled windows* is what the paper's pipeline kept of every box,",
             "*head features* what R-CNN keeps (1024 numbers); both in half precision. Rates are of one process, files in the disk's cache.", "",
             "| short sides | maps, MB | pooled windows, MB | times | head features, MB | times |", "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['maps'] / 1e6:.2f} | {row['pooled'] / 1e6:.1f} | {row['pooled'] / row['maps']:.1f} | "
            f"{row['embedded'] / 1e6:.2f} | {row['embedded'] / row['maps']:.2f} |"
        )
    lines += ["", "Maps serve any pyramid, any boxes and any fully connected layers; windows only the ones they were made for.", "",
              f"| short sides | made, images/s | checksum, GB/s | opened, images/s | {PER_IMAGE} windows of each pooled, images/s | all boxes pooled, images/s |",
              "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['computed']:.1f} | {row['checked'] / 1e9:.2f} | {row['opened']:.0f} | {row['some']:.0f} | {row['all']:.1f} |"
        )
    lines += ["", "Every file has a checksum of its maps, looked at when the file is first read; one that does not agree is made anew. Whether a training that is",
              "killed loses anything is a test: `uv run pytest -m slow tests/detection/test_kills.py` ends training and evaluation twenty times by SIGKILL, in",
              "every stage, cuts some of the files short besides, and compares the model file and the scores with those of an unbroken run: they are equal.",
              "", f"{environment()['text']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
