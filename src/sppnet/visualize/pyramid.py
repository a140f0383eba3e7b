"""What the pyramid sees: the bins of each level over the photo, and what each of them adds to the answer.

Bins are given in cells of the map; stride and offset of the backbone bring them to pixels (`sppnet.models.geometry`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sppnet.data.images import checked_size
from sppnet.ops.bins import bin_edges, check_levels
from sppnet.visualize.draw import BACKGROUND, FOREGROUND, MUTED, Color, fit_text, font_of, resized, with_title

Bins = list[tuple[int, int, int, int]]  # x0, y0, x1, y1 on the panel, row by row

FONT = 13  # px
PANEL = 420  # px: the long side of a level's photo
LARGEST_ASPECT = 8  # longer strips are shown squeezed
GAP = 14  # px, between panels
DIMMED = 0.6  # light left on a photo below frames, so that they stand out
FRAMES: tuple[Color, ...] = ((86, 180, 233), (230, 159, 0), (0, 178, 131), (238, 51, 119))  # of bins: no two beside
FOR, AGAINST = (230, 120, 0), (0, 100, 235)  # orange and blue: told apart by the color-blind too
OPAQUE = 0.7  # of the color of the largest contribution; the photo shows through
LEGEND = (
    ("orange: speaks for it", FOR),
    ("blue: against it", AGAINST),
    ("numbers: by how much the logit would fall if the bin saw nothing", FOREGROUND),
)


def draw_pyramid(
    image: npt.NDArray[np.uint8],
    levels: Sequence[int],
    map_size: tuple[int, int],
    stride: float,
    offset: float,
    *,
    contributions: npt.ArrayLike | None = None,
    together: npt.ArrayLike | None = None,
    title: str | None = None,
) -> npt.NDArray[np.uint8]:
    """What the pyramid pools: the bins of each level over the photo, a panel for each level.

    Dots are the centers of the map's cells. A bin's frame goes half a cell beyond the centers that it pools; where a level
    does not divide the map, neighboring bins share a row or column of cells, and their frames overlap. What a cell sees
    reaches far beyond its frame. With contributions, bins are colored by them instead, on one scale for all levels: orange
    where a bin speaks for the answer, blue where it speaks against; where bins overlap, by their mean.

    Args:
        image: [H, W, 3] uint8 RGB, as the backbone saw it; strips longer than 8 : 1 are shown squeezed. Not modified.
        levels: bins per side, such as ``(6, 3, 2, 1)``.
        map_size: (height, width) of the map in cells.
        stride: pixels of ``image`` from one cell's center to the next.
        offset: pixels to the center of cell 0.
        contributions: [M] what each bin adds to the answer's logit, in the order of the pooled output; see
            `sppnet.classification.predict.bin_contributions`.
        together: [L] what all bins of each level add, shown above its panel.
        title: a line above the picture; cut short if it does not fit.

    Returns:
        [H', W', 3] uint8 RGB, a new array.

    Raises:
        ValueError: an image of another form, or levels or a map below 1.

    Example:
        >>> photo = np.zeros((384, 512, 3), np.uint8)
        >>> draw_pyramid(photo, (3, 1), (24, 32), stride=16, offset=8.0, title="cat").shape[2]
        3
    """
    levels = check_levels(levels)
    bins = None if contributions is None else np.asarray(contributions, np.float64)
    sums = None if together is None else np.asarray(together, np.float64)
    height, width = checked_size(image, "image")
    zoom, least = PANEL / max(height, width), PANEL // LARGEST_ASPECT
    size = max(round(width * zoom), least), max(round(height * zoom), least)
    photo, band, font = resized(image, size), round(2.2 * FONT), font_of(FONT)
    scale = np.array([size[0] / width, size[1] / height])  # panel pixels per image pixel; squeezed strips have two
    step, first = stride * scale, offset * scale
    cells = product(*map(range, map_size)) if step.min() >= 5 else ()  # px apart; closer, dots would cover the photo
    centers = [(first[0] + step[0] * column, first[1] + step[1] * row) for row, column in cells]
    columns = len(levels) if len(levels) <= 3 or size[1] > 1.6 * size[0] else math.ceil(math.sqrt(len(levels)))
    rows = math.ceil(len(levels) / columns)
    panels_end = rows * (size[1] + band + GAP) + GAP
    legend = () if bins is None else LEGEND
    sheet = Image.new("RGB", (columns * (size[0] + GAP) + GAP, panels_end + len(legend) * 2 * FONT), BACKGROUND)
    draw, start = ImageDraw.Draw(sheet), 0
    for index, level in enumerate(levels):
        left, top = GAP + index % columns * (size[0] + GAP), GAP + index // columns * (size[1] + band + GAP)
        across, down = (_sides(map_size[1 - i], level, step[i], first[i], size[i]) for i in (0, 1))
        boxes = [(x0, y0, x1, y1) for (y0, y1), (x0, x1) in product(down, across)]
        if bins is None:
            panel = _framed(photo, boxes, level, centers)
        else:
            panel = _colored(photo, boxes, bins[start : start + level * level], float(np.abs(bins).max()))
        start += level * level
        sheet.paste(panel, (left, top + band))
        text = f"{level} x {level} bins of {_cells(map_size[0], level)} x {_cells(map_size[1], level)} cells"
        if sums is not None:
            text = f"{level} x {level} bins, together {sums[index]:+z.2f}" if level > 1 else "the whole map"
        draw.text((left, top + band / 2), fit_text(text, font, size[0]), FOREGROUND, font, anchor="lm")
    for line, (text, color) in enumerate(legend):
        y = panels_end + 2 * line * FONT
        draw.rectangle((GAP, y, GAP + FONT, y + FONT), fill=color)
        shown = fit_text(text, font, sheet.width - 2 * GAP - 1.5 * FONT)
        draw.text((GAP + 1.5 * FONT, y + FONT / 2), shown, MUTED, font, anchor="lm")
    return np.array(sheet if title is None else with_title(sheet, title, FONT))


def _sides(cells: int, level: int, step: float, offset: float, limit: int) -> list[tuple[int, int]]:
    """Where the bins of a level begin and end along a side of the panel, each at least a pixel long."""
    sides = []
    for first, last in bin_edges(cells, level):  # the center of cell i lies at offset + step * i
        start = min(max(0, round(offset + (first - 0.5) * step)), limit - 1)
        sides.append((start, min(max(start + 1, round(offset + (last - 0.5) * step)), limit)))
    return sides


def _framed(photo: Image.Image, boxes: Bins, level: int, centers: Sequence[tuple[float, float]]) -> Image.Image:
    """The photo with every bin's frame, each in a color that its neighbors do not have, and the centers of the cells."""
    panel = Image.fromarray((np.asarray(photo) * DIMMED).astype(np.uint8))
    draw = ImageDraw.Draw(panel, "RGBA")
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        color = FRAMES[2 * (index // level % 2) + index % level % 2]
        inside = (x0 + 1, y0 + 1, max(x0 + 1, x1 - 2), max(y0 + 1, y1 - 2))
        draw.rounded_rectangle(inside, radius=7, fill=(*color, 45 if level > 1 else 0), outline=(*color, 255), width=2)
    for x, y in centers:
        draw.ellipse((x - 1.2, y - 1.2, x + 1.2, y + 1.2), fill=(255, 255, 255, 200))
    return panel


def _colored(photo: Image.Image, boxes: Bins, values: npt.NDArray[np.float64], largest: float) -> Image.Image:
    """The photo, without its own colors, below those of the contributions; and their numbers where there is room."""
    sums, counts = np.zeros((2, photo.height, photo.width, 1))
    for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
        sums[y0:y1, x0:x1] += value
        counts[y0:y1, x0:x1] += 1
    means = sums / np.maximum(counts, 1)
    opacity = OPAQUE * np.abs(means) / (largest or 1.0)
    gray = np.asarray(photo.convert("L"), np.float64)[..., None]
    mixed = gray * (1 - opacity) + np.where(means > 0, FOR, AGAINST) * opacity
    panel = Image.fromarray(mixed.round().astype(np.uint8))
    draw, font, high = ImageDraw.Draw(panel, "RGBA"), font_of(FONT), 1.3 * FONT
    written: list[tuple[float, float]] = []
    for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=(255, 255, 255, 130))
        number, x, y = f"{value:+z.{2 if largest >= 0.1 else 4}f}", (x0 + x1) / 2, (y0 + y1) / 2
        wide = font.getlength(number) + 4
        free = all(abs(x - other[0]) > wide or abs(y - other[1]) > high for other in written)  # bins may overlap
        if x1 - x0 > wide and y1 - y0 > high and free:
            draw.text((x, y), number, (255, 255, 255), font, anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))
            written.append((x, y))
    return panel


def _cells(side: int, level: int) -> str:
    """How many cells a bin has along a side: "4", or "4-5"."""
    lengths = sorted({last - first for first, last in bin_edges(side, level)})
    return f"{lengths[0]}-{lengths[-1]}" if len(lengths) > 1 else str(lengths[0])
