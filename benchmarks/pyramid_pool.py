"""Region pyramid pooling on the CPU, side by side: this project's, torchvision's `roi_pool`, a loop, and writing the output.

    uv run python -m benchmarks.pyramid_pool [--quick] [--json FILE] [--markdown FILE] [--plot FILE]

The contestants of a row take turns within one run, the short ones several times a turn, since a core that has slept takes its
time to wake. Every figure is the shortest of all times: read the ratios, since machines differ.
`torchvision` is one call of `roi_pool` per level, which is how a pyramid is made of it; `loop` is `adaptive_max_pool2d` of
every window's crop; `write` fills memory of the output's size, newly allocated, as every pooling has to.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_pool

from benchmarks.environment import environment
from benchmarks.results_file import write_results, write_text
from sppnet import region_pyramid_pool

MAP, CHANNELS, WINDOWS, LEVELS = (43, 65), 256, 2000, (6, 3, 2, 1)


def random_windows(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """[count, 5]: corners anywhere on one map, every window at least one cell."""
    random = torch.Generator().manual_seed(seed)
    windows = torch.zeros(count, 5, dtype=torch.int64)
    for axis, side in ((1, size[1]), (2, size[0])):
        ends = (torch.rand(count, 2, generator=random) * side).sort(1).values.long()
        windows[:, axis], windows[:, axis + 2] = ends[:, 0], ends[:, 1] + 1
    return windows


def case(
    windows: int = WINDOWS,
    channels: int = CHANNELS,
    size: tuple[int, int] = MAP,
    levels: tuple[int, ...] = LEVELS,
    dtype: torch.dtype = torch.float32,
    threads: int = 2,
    against: tuple[str, ...] = ("torchvision", "write"),
    repeats: int = 4,
) -> dict[str, object]:
    """Milliseconds of each contestant, forward and backward."""
    torch.set_num_threads(threads)
    features = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    theirs = features.float().contiguous()  # the layout that roi_pool reads, and a dtype that it has on the CPU
    rows = random_windows(windows, size)
    inclusive = rows.float() - torch.tensor([0, 0, 0, 1, 1])
    shape = windows, sum(n * n for n in levels), channels

    def ours(features: Tensor) -> list[Tensor]:
        return [region_pyramid_pool(features, rows, levels)]

    def torchvision(features: Tensor) -> list[Tensor]:
        return [roi_pool(features, inclusive, level) for level in levels]

    def loop(features: Tensor) -> list[Tensor]:
        return [region_pyramid_pool(features, rows, levels, implementation="torch")]

    forward: dict[str, Callable[[], object]] = {"sppnet": lambda: ours(features)}
    backward: dict[str, Callable[[], float]] = {"sppnet": lambda: time_of_gradient(ours, features)}
    if "torchvision" in against:
        forward["torchvision"] = lambda: torchvision(theirs)
        backward["torchvision"] = lambda: time_of_gradient(torchvision, theirs)
    if "loop" in against:
        forward["loop"] = lambda: loop(theirs)
        backward["loop"] = lambda: time_of_gradient(loop, theirs)
    if "write" in against:
        forward["write"] = lambda: torch.empty(shape, dtype=dtype).fill_(1)
    times: dict[str, list[float]] = {name: [] for name in forward}
    gradients: dict[str, list[float]] = {name: [] for name in backward}
    for _ in range(repeats):
        for name, run in forward.items():
            times[name] += several(lambda run=run: time_of(run))  # type: ignore[misc]
        for name, timed in backward.items():
            gradients[name] += several(timed)
    return {
        "windows": windows,
        "channels": channels,
        "map": size,
        "levels": levels,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "output_mb": math.prod(shape) * features.element_size() / 2**20,
        "forward_ms": {name: 1e3 * min(values) for name, values in times.items()},
        "backward_ms": {name: 1e3 * min(values) for name, values in gradients.items()},
    }


def several(timed: Callable[[], float], least: float = 0.1, most: int = 6) -> list[float]:
    """Seconds of one run, or of as many as fill ``least`` seconds."""
    found = [timed()]
    while sum(found) < least and len(found) < most:
        found.append(timed())
    return found


def time_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    del result
    return seconds


def time_of_gradient(pool: Callable[[Tensor], list[Tensor]], features: Tensor) -> float:
    leaf = features.detach().requires_grad_()
    pooled = pool(leaf)
    given = [torch.ones_like(part) for part in pooled]
    started = time.perf_counter()
    torch.autograd.grad(pooled, leaf, given)
    return time.perf_counter() - started


def exponent(rows: list[dict[str, object]]) -> float:
    """The power of the number of windows that the time grows with: slope of a line through the logarithms."""
    x = [math.log(row["windows"]) for row in rows]  # type: ignore[arg-type]
    y = [math.log(row["forward_ms"]["sppnet"]) for row in rows]  # type: ignore[index]
    return statistics.linear_regression(x, y).slope


def first_call() -> dict[str, float]:
    """Seconds of a new process's first calls: importing, compiling (into an empty cache) and loading what was compiled."""
    code = (
        "import time; a = time.perf_counter(); import sppnet, torch; b = time.perf_counter();"
        "pool = lambda: sppnet.pyramid_pool(torch.rand(1, 64, 9, 9), (3, 2, 1));"
        "pool(); c = time.perf_counter(); pool(); print(b - a, c - b, time.perf_counter() - c)"
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("compiling", "compiled before"):
            ran = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "NUMBA_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            imported, first, second = map(float, ran.stdout.split())
            found |= {f"import, {name}": imported, f"first call, {name}": first, f"second call, {name}": second}
    return found


def peak_memory(windows: int, channels: int) -> dict[str, float]:
    """MB by which a process grows while it pools, and MB of its output. On Linux: from its own record of its peak."""
    code = (
        "import sys, torch; from benchmarks.pyramid_pool import *;"
        "status = lambda name: int(Path('/proc/self/status').read_text().split(name + ':')[1].split()[0]) / 1024;"
        f"features = torch.rand(1, {channels}, *MAP); rows = random_windows({windows}, MAP);"
        "region_pyramid_pool(features, rows[:1], LEVELS); before = status('VmRSS');"
        "pooled = region_pyramid_pool(features, rows, LEVELS); print(status('VmHWM') - before, pooled.nbytes / 2**20)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, output = map(float, ran.stdout.split())
    return {"windows": windows, "channels": channels, "grown_mb": grown, "output_mb": output}


def table(rows: list[dict[str, object]]) -> list[str]:
    """Markdown."""
    lines = [
        "| windows | channels | map | levels | dtype | threads | sppnet ms | torchvision | loop | write | backward ms | torchvision |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        forward, backward = row["forward_ms"], row["backward_ms"]

        def times(given: dict[str, float], name: str) -> str:
            return f"{given[name] / given['sppnet']:.2f} x" if name in given else "-"

        lines.append(
            f"| {row['windows']} | {row['channels']} | {row['map'][0]} x {row['map'][1]} | {row['levels']} | {row['dtype']} "  # type: ignore[index]
            f"| {row['threads']} | {forward['sppnet']:.2f} | {times(forward, 'torchvision')} | {times(forward, 'loop')} "  # type: ignore[index,arg-type]
            f"| {times(forward, 'write')} | {backward['sppnet']:.2f} | {times(backward, 'torchvision')} |"  # type: ignore[index,arg-type]
        )
    return lines


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Time against the number of windows, one line a contestant, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = {"torchvision": "torchvision roi_pool, per level", "loop": "loop of adaptive_max_pool2d", "sppnet": "sppnet",
             "write": "writing the output"}  # fmt: skip
    for name, label in names.items():
        points = [(row["windows"], row["forward_ms"][name]) for row in rows if name in row["forward_ms"]]  # type: ignore[index,operator]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="windows", ylabel="milliseconds",
        title=f"Pooling windows of a {MAP[0]} x {MAP[1]} map, {rows[0]['channels']} channels, levels {LEVELS}",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="the main case and a few windows only")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--plot", type=Path, help="draw time against windows into this file")
    arguments = parser.parse_args()

    def note(row: dict[str, object]) -> dict[str, object]:
        print(table([row])[-1], file=sys.stderr, flush=True)
        return row

    everything = ("torchvision", "loop", "write")
    main_rows = [note(case(threads=threads, against=everything)) for threads in (2, 1)]
    counts = [100, 1000, 2000] if arguments.quick else [100, 1000, 3000, 10_000, 30_000, 100_000]
    growth = [
        note(case(windows, 64, against=everything if windows <= 3000 else ("write",) if windows > 30_000 else
                  ("torchvision", "write"), repeats=4 if windows < 30_000 else 3))
        for windows in counts
    ]  # fmt: skip
    others: list[dict[str, object]] = []
    if not arguments.quick:
        others += [note(case(dtype=dtype)) for dtype in (torch.float16, torch.bfloat16, torch.float64)]
        others += [note(case(channels=channels)) for channels in (64, 512, 1024)]
        others += [note(case(size=size)) for size in ((13, 13), (27, 41), (75, 113))]
        others += [note(case(levels=levels)) for levels in ((1,), (3, 2, 1), (6, 4, 3, 2, 1), (7, 3))]
    figures = {
        "environment": environment(),
        "rows": main_rows + growth + others,
        "exponent": exponent([row for row in growth if row["windows"] >= 1000]),  # type: ignore[operator]
        "memory": peak_memory(2000 if arguments.quick else 100_000, 64),
        "first_call_s": first_call(),
    }
    if arguments.plot:
        plot(growth, arguments.plot)
    text = page(figures, arguments.plot)
    print(text)
    if arguments.markdown:
        write_text(arguments.markdown, text)
    if arguments.json:
        write_results(arguments.json, figures)


def page(figures: dict[str, Any], picture: Path | None) -> str:
    """All figures as Markdown."""
    memory, starting = figures["memory"], figures["first_call_s"]
    lines = [
        "# Pooling windows on the CPU",
        "",
        f"Made by `python -m benchmarks.pyramid_pool`. {figures['environment']['text']}.",
        "",
        "`sppnet` is in milliseconds, the shortest of several times; the columns after it say how many times as long the others",
        "took in the same run. `write` fills memory of the output's size, which may or may not be new to the process: new memory",
        "takes many times as long as memory at hand, which is why single figures of it differ so much.",
        "",
        *table(figures["rows"]),
        "",
        f"The time grows with the number of windows to the power {figures['exponent']:.2f}, from 1000 windows on.",
        f"Pooling {memory['windows']:.0f} windows of {memory['channels']:.0f} channels grows the process by "
        f"{memory['grown_mb']:.0f} MB, of which {memory['output_mb']:.0f} MB are the output.",
        "",
        "A first call compiles, once for each dtype on a machine: "
        + "; ".join(f"{name} {seconds:.2f} s" for name, seconds in starting.items())
        + ".",
    ]
    if picture:
        lines += ["", f"![Time against the number of windows]({picture.name})"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
