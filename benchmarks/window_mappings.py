"""Picture and count how four ways from boxes to windows differ.

    uv run python benchmarks/window_mappings.py --markdown docs/window-mappings.md

Draws docs/window-mappings.png beside the page: boxes of growing length, one below the other, and the cells that each mapping
takes for them. Counts, over all boxes with whole-numbered ends on one axis of an image, how often the mappings agree, and how
far the ends of their windows lie from the boxes' own, a cell taken to cover a stride around its centre.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from environment import environment
from results_file import write_text
from sppnet.models.window_mappings import MAPPINGS, windows_by

from sppnet.models.geometry import Geometry

NETWORKS = {"ZF-5 as released": Geometry(16, 20.5), "SqueezeNet": Geometry(16, 17.5), "MobileNetV2": Geometry(32, 0.5)}
COLOURS = {"centre": "#1b7837", "paper": "#762a83", "release": "#d95f02", "roi_pool": "#386cb0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--markdown", type=Path, required=True, help="the page to write; the picture goes beside it")
    parser.add_argument("--width", type=int, default=600, help="of the image whose boxes are counted, in pixels")
    arguments = parser.parse_args()
    arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
    picture = arguments.markdown.with_suffix(".png")
    draw(NETWORKS["ZF-5 as released"], picture)
    text = page(arguments.width, picture.name)
    print(text)
    write_text(arguments.markdown, text)


def draw(geometry: Geometry, path: Path) -> None:
    """Boxes along one axis, and the cells that each mapping takes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    ends = [(70, 78), (70, 90), (70, 106), (69, 116), (62, 138), (57, 157), (49, 181)]
    figure, axes = plt.subplots(figsize=(10, 7))
    cells = 12
    for row, (start, stop) in enumerate(ends):
        top = row * 6
        axes.barh(top, stop - start, left=start, height=0.8, color="#444444")
        for line, (name, colour) in enumerate(COLOURS.items(), 1):
            box = torch.tensor([[float(start), 0, stop, 100]])
            x0, _, x1, _ = windows_by(name, box, geometry, (cells, cells), (1.0, 1.0))[0].tolist()
            centres = [geometry.offset + geometry.stride * cell for cell in range(x0, x1)]
            left = centres[0] - geometry.stride / 2
            label = name if row == 0 else None
            axes.barh(
                top + line, len(centres) * geometry.stride, left=left, height=0.7, color=colour, alpha=0.35, label=label
            )
            axes.plot(centres, [top + line] * len(centres), "o", color=colour, markersize=4)
    for cell in range(cells):
        axes.axvline(geometry.offset + geometry.stride * cell, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.invert_yaxis()
    axes.set_yticks([row * 6 for row in range(len(ends))], [f"{stop - start} px" for start, stop in ends])
    axes.set_xlabel("pixels; lines: centres of cells (stride 16, the first at 20.5)")
    axes.set_title("A box (dark), and the cells that stand for it by each mapping")
    axes.set_xlim(30, 200)
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(width: int, picture: str) -> str:
    """Counts as a page for people."""
    starts, stops = torch.meshgrid(torch.arange(width), torch.arange(1, width + 1), indexing="ij")
    keep = stops - starts >= 16
    first, last = starts[keep].float(), stops[keep].float()
    boxes = torch.stack([first, torch.zeros_like(first), last, torch.full_like(first, 100)], 1)
    lines = ["# From boxes to windows: four mappings", "",
             f"Made by `benchmarks/window_mappings.py`: all {len(boxes)} boxes of at least 16 pixels along one axis of {width} pixels,",
             "ends at whole pixels, not resized. *Same* as `centre`, the mapping of this project: both ends alike. *Cells*: mean",
             "length of the window. *Too far left* and *right*: mean distance of the window's ends outside the box's, in pixels, where",
             "a cell covers a stride around its centre; negative inside.", "",
             "| network | mapping | same | cells | too far left | too far right |", "|---|---|--:|--:|--:|--:|"]  # fmt: skip
    for network, geometry in NETWORKS.items():
        cells = -(-width // geometry.stride) + 1
        found = {name: windows_by(name, boxes, geometry, (cells, cells), (1.0, 1.0))[:, ::2] for name in MAPPINGS}
        for name, windows in found.items():
            ends = geometry.offset + geometry.stride * (windows - 0.5)
            left, right = (first - ends[:, 0]).mean(), (ends[:, 1] - last).mean()
            same = (windows == found["centre"]).all(1).float().mean()
            length = (windows[:, 1] - windows[:, 0]).float().mean()
            lines.append(f"| {network} | `{name}` | {same:.1%} | {length:.2f} | {left:.1f} | {right:.1f} |")
    lines += ["", f"![Boxes and the cells that each mapping takes]({picture})", "", f"{environment()['text']}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
