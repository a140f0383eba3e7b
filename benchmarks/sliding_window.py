"""Compare the paper's sliding-window rule for bins with its adaptive one: a page with tables, and a picture of both.

    uv run python -m benchmarks.sliding_window [--folder docs]

Writes FOLDER/sliding-window.md and FOLDER/sliding-window.png. Nothing is timed: the tables are counted over maps of 4 to 40
cells a side, by running PyTorch's pooling layers where the page speaks of layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import max_pool1d

from sppnet.ops.bins import bin_edges, sliding_window_bins, window_and_stride

SIDES = range(4, 41)
LEVELS = (1, 2, 3, 4, 6)
PICTURED = ((13, 4), (13, 6), (10, 4), (10, 6))  # the paper's two training maps

PAGE = """\
# Which cells does a bin cover?

A spatial pyramid divides a map of a x a cells into n x n bins for each of its levels, whatever a is. The paper
([arXiv:1406.4729](https://arxiv.org/abs/1406.4729)) has two rules for it. They are not the same.

- **Adaptive** (appendix A): bin i of n, counted from 0, covers the cells from `floor(i * a / n)` up to, not including,
  `ceil((i + 1) * a / n)`. There are always n bins, none is empty, and every cell is in one. **This library pools by this rule
  everywhere**; PyTorch's adaptive pooling layers do too.
- **Sliding window** (section 2.3): a pooling layer with window `ceil(a / n)` and stride `floor(a / n)`. The paper describes its
  training with it, on maps of 13 x 13 cells, where both rules agree at every level it uses.

![Both rules on the paper's two maps](sliding-window.png)

On its other training map, 10 x 10 cells, the sliding window gives 9 bins a side where 6 were wanted: 81 numbers a channel, not
36, so the fully connected layer that follows does not fit. Taking the first 6 would leave three of the ten rows and columns out.

## How often

Maps of {first} to {last} cells a side, {count} in all:

{summary}

The remainder `r` of `a / n` decides. If it is 0 or 1, both rules give the same bins. Otherwise the window's last bin ends r - 1
cells before the map does: those cells are never read. If r - 1 is at least the stride, the window moves on once more, or
several times, and there are too many bins. If there are more bins than cells, the stride is 0. (The tests hold the
function to this for sides to 400.) All five levels agree on {all_agree} cells a side only.

## How code for the layer goes wrong

Three ways to set up a pooling layer are often copied. How many of the {count} sides give n bins, with PyTorch's `max_pool`:

{layers}

The other sides give a vector of another length, which the next layer refuses, or the pooling layer itself refuses its padding
or its stride of 0. Code that was tried with one or two sizes finds out with the next photo. The first of the three also leaves
cells out without a word, as counted above.

The rule of section 2.3 is `sppnet.sliding_window_bins`, for comparison; it raises a `ValueError` that says how many bins come
out where they are not n.

## Every side

`same`: the adaptive bins. `-k`: n bins, which leave the last k cells out. A number: so many bins come out instead of n.

{table}

Made by `python -m benchmarks.sliding_window`.
"""


def unread_cells(side: int, bins: int) -> list[int]:
    """The cells along one side that no bin of `sliding_window_bins` reads; arguments and errors are the same.

    They are the last ones: windows are at least as long as the stride, so none is skipped between two.

    Example:
        >>> unread_cells(13, 6), unread_cells(10, 4), unread_cells(11, 3)
        ([], [9], [10])
    """
    return list(range(sliding_window_bins(side, bins)[-1][1], side))


def outcome(side: int, bins: int) -> str:
    """What the sliding window gives along a side, as the page's last table says it."""
    window, stride = window_and_stride(side, bins)
    if not stride:
        return "stride 0"
    try:
        found = sliding_window_bins(side, bins)
    except ValueError:
        return str((side - window) // stride + 1)
    if found == bin_edges(side, bins):
        return "same"
    return f"-{len(unread_cells(side, bins))}"


def layer_bins(side: int, window: int, stride: int, padding: int = 0) -> int | None:
    """How many bins a pooling layer gives; None if it refuses."""
    if not window or not stride:
        return None
    try:
        return max_pool1d(torch.zeros(1, side), window, stride, padding).shape[1]
    except RuntimeError:  # padding of more than half the window
        return None


def padded(side: int, bins: int) -> int | None:
    window = -(-side // bins)
    return layer_bins(side, window, window, (window * bins - side + 1) // 2)


LAYERS: dict[str, Callable[[int, int], int | None]] = {
    "window `ceil(a / n)`, stride `floor(a / n)`": lambda a, n: layer_bins(a, *window_and_stride(a, n)),
    "window and stride `ceil(a / n)`, padding `(n * window - a + 1) // 2`": padded,
    "window and stride `floor(a / n)`": lambda a, n: layer_bins(a, a // n, a // n),
    "adaptive (`torch.nn.AdaptiveMaxPool2d`, this library)": lambda a, n: len(bin_edges(a, n)),
}


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---", *["---:"] * (len(header) - 1)], *rows])


def page() -> str:
    outcomes = {(a, n): outcome(a, n) for a in SIDES for n in LEVELS}
    kinds: dict[str, Callable[[str], bool]] = {
        "the adaptive bins": lambda found: found == "same",
        "n bins that leave cells out": lambda found: found.startswith("-"),
        "another number of bins": str.isdigit,
        "no bins: stride 0": lambda found: found == "stride 0",
    }
    agreeing = [str(a) for a in SIDES if all(outcomes[a, n] == "same" for n in LEVELS)]
    levels = [f"n = {n}" for n in LEVELS]
    return PAGE.format(
        first=SIDES[0],
        last=SIDES[-1],
        count=len(SIDES),
        all_agree=", ".join(agreeing[:-1]) + " and " + agreeing[-1],
        summary=table(
            ["the sliding window gives", *levels],
            [
                [kind, *(str(sum(holds(outcomes[a, n]) for a in SIDES)) for n in LEVELS)]
                for kind, holds in kinds.items()
            ],
        ),
        layers=table(
            ["the layer", *levels],
            [[name, *(str(sum(count(a, n) == n for a in SIDES)) for n in LEVELS)] for name, count in LAYERS.items()],
        ),
        table=table(["a", *levels], [[str(a), *(outcomes[a, n] for n in LEVELS)] for a in SIDES]),
    )


BLUE, RED, CELL, SHARED, UNREAD = "#3b6fb6", "#c8382e", "#dbe6f4", "#9dbce0", "#ffffff"


def draw(axes: Any, side: int, bins: int, rule: str) -> None:
    """One map, a bar above it for each bin along its width, and its cells tinted by how many bins read them."""
    from matplotlib.patches import Rectangle

    if rule == "adaptive":
        edges = bin_edges(side, bins)
    else:
        window, stride = window_and_stride(side, bins)
        edges = [(x, x + window) for x in range(0, side - window + 1, stride)]
    reads = [sum(start <= cell < stop for start, stop in edges) for cell in range(side)]
    for y in range(side):
        for x in range(side):
            count = reads[x] * reads[y]
            color = UNREAD if not count else CELL if count == 1 else SHARED
            hatch = "" if count else "xxxx"
            axes.add_patch(
                Rectangle((x, y), 1, 1, facecolor=color, edgecolor=RED if hatch else "white", hatch=hatch, lw=0.8)
            )
    for i, (start, stop) in enumerate(edges):
        y = -0.9 - 0.75 * (len(edges) - 1 - i)
        color = BLUE if i < bins else RED
        axes.add_patch(Rectangle((start + 0.06, y), stop - start - 0.12, 0.55, facecolor=color, edgecolor="none"))
        axes.text(stop + 0.15, y + 0.3, f"bin {i}", fontsize=7, va="center", color=color)
    unread = reads.count(0)
    wrong = len(edges) != bins or unread
    axes.set_title(
        f"{side} x {side} cells, n = {bins}\n"
        + (f"{len(edges)} bins a side" + (f", not {bins}" if len(edges) != bins else ""))
        + ("; last cells unread" if unread else ""),
        fontsize=10,
        loc="left",
        color=RED if wrong else "black",
    )
    axes.set(xlim=(-0.2, 15.2), ylim=(13.3, -7.6), aspect="equal")
    axes.axis("off")


def picture(path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    figure, grid = plt.subplots(2, len(PICTURED), figsize=(12, 10.2))
    titles = {
        "adaptive": "Adaptive bins (appendix A; this library): from floor(i a / n) to ceil((i + 1) a / n)",
        "sliding": "Sliding window (section 2.3): window ceil(a / n), stride floor(a / n)",
    }
    figure.subplots_adjust(left=0.02, right=0.99, top=0.88, bottom=0.06, hspace=0.34, wspace=0.05)
    for row, (rule, title) in zip(grid, titles.items(), strict=True):
        for axes, (side, bins) in zip(row, PICTURED, strict=True):
            draw(axes, side, bins, rule)
        top = row[0].get_position().y1
        figure.text(0.02, top + 0.058, title, fontsize=13, weight="bold")
    figure.legend(
        handles=[
            Patch(facecolor=BLUE, label="the columns of one bin (rows likewise)"),
            Patch(facecolor=RED, label="a bin too many"),
            Patch(facecolor=CELL, label="cell read by one bin"),
            Patch(facecolor=SHARED, label="by several"),
            Patch(facecolor=UNREAD, edgecolor=RED, hatch="xxxx", label="by none"),
        ],
        loc="lower center",
        ncols=5,
        frameon=False,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("docs"), help="where the page and the picture go")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "sliding-window.md").write_text(page(), encoding="utf-8")
    picture(arguments.folder / "sliding-window.png")
    print(f"wrote {arguments.folder / 'sliding-window.md'} and {arguments.folder / 'sliding-window.png'}")


if __name__ == "__main__":
    main()
