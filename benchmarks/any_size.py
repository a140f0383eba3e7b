"""Classify and detect one photo at ten sizes and aspects; print what is found, the time, and the process's peak memory.

    uv run python -m benchmarks.any_size [--model voc] [--json FILE]

The photo is scikit-image's `chelsea` (a cat), resized and stretched. Peak memory only grows, so each line's is the largest
so far.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from skimage.data import chelsea

import sppnet
from benchmarks.environment import environment
from benchmarks.results_file import write_results
from sppnet.data.images import resize_image

SIZES = [(64, 64), (64, 96), (100, 400), (400, 100), (300, 451), (500, 500), (768, 1024), (1500, 800), (2000, 3000),
         (3000, 4000)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="voc", help="a shipped model's name or a model file")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    model, rows = sppnet.load(arguments.model), []
    print(environment()["text"])
    print(f"{'height x width':>14}  {'classes':28} {'boxes':34} {'seconds':>7} {'peak MB':>8}")
    for size in SIZES:
        image = resize_image(chelsea(), size)
        started = time.perf_counter()
        whole, found = sppnet.classify(image, model), sppnet.detect(image, model)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        classes = ", ".join(f"{name} {score:.2f}" for name, score in whole.top(2))
        boxes = ", ".join(f"{box.class_name} {box.score:.2f}" for box in found) or "-"
        print(f"{size[0]:>6} x {size[1]:<5}  {classes:28} {boxes:34.34} {seconds:7.2f} {peak:8.0f}")
        rows.append(
            {"size": size, "classes": whole.top(3), "detections": found.to_dict(), "seconds": seconds, "peak_mb": peak}
        )
    if arguments.json:
        write_results(arguments.json, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
