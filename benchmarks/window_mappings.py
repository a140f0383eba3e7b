"""Four ways from a box to the window of cells that stands for it: this project's, the paper's, its release's, and RoI pooling's.

boxes [R, 4] in pixels -> windows [R, 4] in cells. The figures published for SPP-net and Fast R-CNN were made with three different
ones, a cell or so apart. Along one axis, with S the stride, o the centre of cell 0, and a box from a to b in continuous pixels
(its first pixel is a, its last b - 1, counted from 0):

- ``centre``: the cells whose centers lie in the box, a <= centre < b: `sppnet.models.geometry.boxes_to_windows`.
- ``paper``: those strictly between the centers of the box's first and last pixel: floor + 1 and ceil - 1 (arXiv:1406.4729,
  appendix A).
- ``release``: the box is shrunk by 6.5 pixels on each side, and its ends are rounded to the nearest centre (the authors' code,
  spm_response_boxes.m, for S = 16 and 12). So it reaches past the box's last centers by up to half a stride less 6.5 pixels.
- ``roi_pool``: a / S and b / S are rounded, and both ends belong to the window; o is not asked for, so windows are off by o - S/2
  pixels, and often a cell longer (torchvision, after Fast R-CNN's code).

Where the two ends cross, one cell is left, that of their middle. All are clipped to the map.

    uv run python -m benchmarks.window_mappings --markdown docs/window-mappings.md

pictures and counts how they differ: docs/window-mappings.png beside the page shows boxes of growing length, one below the other, and
the cells that each mapping takes for them. Counted over all boxes with whole-numbered ends on one axis of an image: how often the
mappings agree, and how far the ends of their windows lie from the boxes' own, a cell taken to cover a stride around its center.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.results_file import write_text
from sppnet.models.geometry import Geometry, boxes_to_windows, window_residuals
from sppnet.models.sppnet import SPPNet

NETWORKS = {"ZF-5 as released": Geometry(16, 20.5), "SqueezeNet": Geometry(16, 17.5), "MobileNetV2": Geometry(32, 0.5)}
COLORS = {"centre": "#1b7837", "paper": "#762a83", "release": "#d95f02", "roi_pool": "#386cb0"}
RELEASE_SHRINK = 6.5  # pixels, for strides of 16 and 12


def windows_by(
    mapping: str, boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Map boxes of the original image to windows of its feature map, by the rule of one's choice.

    Args:
        mapping: one of `MAPPINGS`; see the module.
        boxes: [R, 4] in pixels of the original image.
        geometry: stride and offset of the backbone.
        map_size: (height, width) of the map, in cells.
        scale: (vertical, horizontal) factor from the original image to the image that the backbone saw.

    Returns:
        [R, 4] int64: x0, y0, x1, y1 in cells, half-open, never empty, inside the map.

    Raises:
        ValueError: no such mapping.

    Example:
        >>> boxes, zf5 = torch.tensor([[49.0, 49, 66, 66]]), Geometry(16, 20.5)
        >>> {name: windows_by(name, boxes, zf5, (30, 30), (1.0, 1.0))[0].tolist()[::2] for name in MAPPINGS}
        {'centre': [2, 3], 'paper': [2, 3], 'release': [2, 3], 'roi_pool': [3, 5]}
    """
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping must be one of {', '.join(MAPPINGS)}: got {mapping!r}")
    return MAPPINGS[mapping](boxes, geometry, map_size, scale)


def _paper(boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    first, last = _ends(boxes, scale)
    centre = geometry.offset - 0.5  # of cell 0, as a pixel counted from 0
    left = ((first - centre) / geometry.stride).floor() + 1
    right = ((last - centre) / geometry.stride).ceil() - 1
    return _windows(left, right, map_size)


def _release(boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    first, last = _ends(boxes, scale)
    centre = geometry.offset - 0.5
    left = ((first - centre + RELEASE_SHRINK) / geometry.stride + 0.5).floor()
    right = ((last - centre - RELEASE_SHRINK) / geometry.stride - 0.5).ceil()
    return _windows(left, right, map_size)


def _roi_pool(boxes: Tensor, geometry: Geometry, map_size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    ends = boxes.double() * boxes.new_tensor([scale[1], scale[0]] * 2, dtype=torch.float64) / geometry.stride
    ends = (ends + 0.5).floor()  # C's rounding
    return _windows(ends[:, :2], ends[:, 2:].maximum(ends[:, :2]), map_size)


def _ends(boxes: Tensor, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The first and last pixel of each box in the scaled image, counted from 0: [R, 2] each, x and y."""
    scaled = boxes.double() * boxes.new_tensor([scale[1], scale[0]] * 2, dtype=torch.float64)
    return scaled[:, :2], scaled[:, 2:] - 1


def _windows(left: Tensor, right: Tensor, map_size: tuple[int, int]) -> Tensor:
    """From first and last cells [R, 2], which may have crossed or lie outside."""
    middle = ((left + right) / 2).floor()
    crossed = left > right
    left, right = torch.where(crossed, middle, left), torch.where(crossed, middle, right)
    last = left.new_tensor([map_size[1] - 1, map_size[0] - 1])
    left, right = (end.clamp(min=0).minimum(last) for end in (left, right))
    return torch.cat([left, right + 1], dim=1).long()


MAPPINGS: dict[str, Callable[[Tensor, Geometry, tuple[int, int], tuple[float, float]], Tensor]] = {
    "centre": boxes_to_windows,
    "paper": _paper,
    "release": _release,
    "roi_pool": _roi_pool,
}


def use_mapping(model: SPPNet, mapping: str) -> None:
    """Have a model map boxes to windows by another rule, in place."""

    def windows(boxes: Tensor, feature_size: tuple[int, int], scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
        found = windows_by(mapping, boxes, model.geometry, feature_size, scale)
        return found, window_residuals(boxes, found, model.geometry, scale)

    vars(model)["windows"] = windows


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
        for line, (name, color) in enumerate(COLORS.items(), 1):
            box = torch.tensor([[float(start), 0, stop, 100]])
            x0, _, x1, _ = windows_by(name, box, geometry, (cells, cells), (1.0, 1.0))[0].tolist()
            centers = [geometry.offset + geometry.stride * cell for cell in range(x0, x1)]
            left = centers[0] - geometry.stride / 2
            label = name if row == 0 else None
            axes.barh(
                top + line, len(centers) * geometry.stride, left=left, height=0.7, color=color, alpha=0.35, label=label
            )
            axes.plot(centers, [top + line] * len(centers), "o", color=color, markersize=4)
    for cell in range(cells):
        axes.axvline(geometry.offset + geometry.stride * cell, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.invert_yaxis()
    axes.set_yticks([row * 6 for row in range(len(ends))], [f"{stop - start} px" for start, stop in ends])
    axes.set_xlabel("pixels; lines: centers of cells (stride 16, the first at 20.5)")
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
             f"Made by `python -m benchmarks.window_mappings`: all {len(boxes)} boxes of at least 16 pixels along one axis of {width} pixels,",
             "ends at whole pixels, not resized. *Same* as `centre`, the mapping of this project: both ends alike. *Cells*: mean",
             "length of the window. *Too far left* and *right*: mean distance of the window's ends outside the box's, in pixels, where",
             "a cell covers a stride around its center; negative inside.", "",
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
