"""Peak memory of `sppnet detect` over a folder, by the number of photos in it: it should not depend on that.

    uv run python -m benchmarks.memory FOLDER [--counts 40 200 1000] [--model voc] [--json FILE]

Each line is a process of its own over the first so many photos of the folder; its peak is the largest resident set that the
system saw. ``--keep-all`` leaves PyTorch's caches at their own sizes, to compare memory and processor time. Not for Windows,
which reports no peak.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.results_file import write_results
from sppnet.data.find import find_images

# What `sppnet.layers.bound_cpu_caches` sets; importing it here would import torch, whose memory each process starts out with.
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
UNIT = (
    2**20 if sys.platform == "darwin" else 2**10
)  # of ru_maxrss: bytes there, kB elsewhere; results are in MB of 2**20


def measure(photos: list[Path], model: str, surroundings: dict[str, str]) -> dict[str, float]:
    """Run `sppnet detect PHOTO ... --json` as a process, and read what it took from the system's account of it."""
    command = [sys.executable, "-c", "from sppnet.cli import main; main()", "detect", "--json", "--model", model]
    started = time.perf_counter()
    process = subprocess.Popen([*command, *map(str, photos)], stdout=subprocess.DEVNULL, env=surroundings)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"sppnet detect over {len(photos)} photos ended with status {os.waitstatus_to_exitcode(status)}")
    return {
        "photos": len(photos),
        "peak_mb": round(usage.ru_maxrss / UNIT, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[40, 200, 1000], help="of photos")
    parser.add_argument("--model", default="voc", help="a shipped model's name or a model file")
    parser.add_argument("--keep-all", action="store_true", help="leave PyTorch's caches at their own sizes")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    photos = find_images([arguments.folder])
    if len(photos) < max(arguments.counts):
        parser.error(f"{arguments.folder} holds {len(photos)} photos, fewer than {max(arguments.counts)}: see --counts")
    surroundings = {name: value for name, value in os.environ.items() if name not in CACHES}
    if arguments.keep_all:
        surroundings |= dict.fromkeys(CACHES, "1024")  # what they are by themselves
    rows = []
    print(f"{'photos':>6} {'peak MB':>8} {'against first':>13} {'seconds':>8} {'processor s a photo':>19}")
    for count in arguments.counts:
        row = measure(photos[:count], arguments.model, surroundings)
        rows.append(row)
        growth = row["peak_mb"] / rows[0]["peak_mb"] - 1
        each = row["processor_seconds"] / count
        print(f"{count:>6} {row['peak_mb']:>8.0f} {growth:>+13.1%} {row['seconds']:>8.0f} {each:>19.3f}", flush=True)

    from environment import environment  # imports torch: a process starts out with the peak of the one that starts it

    found = environment()
    print(found["text"])
    if arguments.json:
        result = {"environment": found, "model": arguments.model, "caches": "all" if arguments.keep_all else "bounded"}
        write_results(arguments.json, {**result, "rows": rows})


if __name__ == "__main__":
    main()
