"""What keeping maps costs and saves: bytes an image against keeping windows, and images a second, written, checked and read.

    uv run python benchmarks/map_cache.py VOCdevkit/VOC2007 --backbone mobilenet_v2 --weights mobilenet_v2.safetensors \
        --images 60 --markdown docs/map-cache.md

Windows: what R-CNN and the released SPP-net keep, a vector for each of an image's boxes, as pooled (M x C) and as the fully
connected layers describe them (1024), in half precision; of the boxes of the proposer. The disk's cache in memory is warm:
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
from environment import environment
from results_file import write_text
from sppnet.detection.scales import SHORT_SIDES

from sppnet.data.dataset import read_annotated
from sppnet.data.images import image_size
from sppnet.detection.map_cache import MapCache, is_whole
from sppnet.models.backbones import build_backbone
from sppnet.models.sppnet import Architecture, SPPNet
from sppnet.proposals.compute import proposals_for
from sppnet.proposals.files import load_proposals

SCALES = {"600": (600,), "688": (688,), "480 to 1200": SHORT_SIDES}
PER_IMAGE = 64  # windows that training reads of an image at a time
TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", help="a file, or a name that torchvision knows")
    parser.add_argument("--proposer", default="edge-boxes")
    parser.add_argument("--work", type=Path, help="where proposals lie already")
    parser.add_argument("--markdown", type=Path, required=True, help="the page to write")
    arguments = parser.parse_args()
    data = read_annotated(arguments.data, arguments.split, arguments.images)
    paths = [image.path for image in data.images]
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        named = [(image.image_id, image.path) for image in data.images]
        files, errors = proposals_for(named, work / "proposals" / arguments.proposer, arguments.proposer)
        if errors:
            raise SystemExit(str(next(iter(errors.values()))))
        boxes = [torch.from_numpy(load_proposals(files[name])[0]) for name, _ in named]
        rows = {
            name: measure(arguments.backbone, arguments.weights, scales, paths, boxes, Path(folder))
            for name, scales in SCALES.items()
        }
    text = page(arguments, rows, float(np.mean([len(part) for part in boxes])))
    print(text)
    write_text(arguments.markdown, text)


def measure(
    backbone: str,
    weights: str | None,
    scales: tuple[int, ...],
    paths: list[Path],
    boxes: list[torch.Tensor],
    folder: Path,
) -> dict[str, Any]:
    """Bytes and images a second at some scales."""
    shape = Architecture(
        ("any",), backbone, levels=(3, 2, 1), short_side=scales[0], long_side=5 * scales[0] // 3, scales=scales
    )
    model = SPPNet(shape, build_backbone(backbone, weights)).eval()
    model.backbone.to(memory_format=torch.channels_last)
    cache = MapCache.of(model, folder / "maps")
    expected = cache.bytes_needed(model, [image_size(path) for path in paths])
    started = time.perf_counter()
    files = [of_image[0] for of_image in cache.fill(model, paths, mirrored=False).values()]
    computed = time.perf_counter() - started
    written = sum(file.stat().st_size for file in files)
    rng = np.random.default_rng(0)
    pooled_bytes = boxes_bytes = 0
    some = [part[torch.from_numpy(rng.permutation(len(part))[:PER_IMAGE])] for part in boxes]

    def pool(which: list[torch.Tensor]) -> None:
        for file, part in zip(files, which, strict=True):
            maps = cache.read(file)
            maps.pool(model, maps.windows(model, part)[0])

    for part in boxes:
        pooled_bytes += 2 * len(part) * model.pool.bins * cache.read(files[0]).whole_map.shape[1]
        boxes_bytes += 2 * len(part) * 1024
    return {
        "expected": expected / len(paths), "maps": written / len(paths), "pooled": pooled_bytes / len(paths),
        "described": boxes_bytes / len(paths), "computed": len(paths) / computed,
        "checked": written / quickest(lambda: [is_whole(file) for file in files]),
        "opened": len(paths) / quickest(lambda: [cache.read(file) for file in files]),
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
    lines = ["# Keeping maps, not windows", "",
             f"Made by `benchmarks/map_cache.py`: {arguments.images} images of VOC 2007 `{arguments.split}`, {arguments.backbone}, levels (3, 2, 1), "
             f"{boxes:.0f} boxes an image", f"by {arguments.proposer}. Bytes are on disk, an image, without its mirror image. *Pooled windows* is what the paper's pipeline kept of every box,",
             "*described windows* what R-CNN keeps (1024 numbers); both in half precision. Rates are of one process, files in the disk's cache.", "",
             "| short sides | maps, MB | pooled windows, MB | times | described windows, MB | times |", "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['maps'] / 1e6:.2f} | {row['pooled'] / 1e6:.1f} | {row['pooled'] / row['maps']:.1f} | "
            f"{row['described'] / 1e6:.2f} | {row['described'] / row['maps']:.2f} |"
        )
    lines += ["", "Maps serve any pyramid, any boxes and any fully connected layers; windows only the ones they were made for.", "",
              f"| short sides | made, images/s | checksum, GB/s | opened, images/s | {PER_IMAGE} windows of each pooled, images/s | all boxes pooled, images/s |",
              "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['computed']:.1f} | {row['checked'] / 1e9:.2f} | {row['opened']:.0f} | {row['some']:.0f} | {row['all']:.1f} |"
        )
    lines += ["", "Every file has a checksum of its maps, looked at before training starts; one that does not agree is made anew. Whether a training that is",
              "killed loses anything is a test: `uv run pytest -m slow tests/detection/test_kills.py` ends training and evaluation twenty times by SIGKILL, in",
              "every stage, cuts some of the files short besides, and compares the model file and the scores with those of an unbroken run: they are equal.",
              "", f"{environment()['text']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
