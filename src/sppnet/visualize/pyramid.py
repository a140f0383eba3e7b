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

from sppnet.ops.bins import bin_count, bin_edges, check_levels
from sppnet.visualize.draw import BACKGROUND, FOREGROUND, MUTED, Color, fit_text, font_of, resized, with_title

Bins = list[tuple[tuple[int, int, int, int], int, int]]  # x0, y0, x1, y1 on the panel; row; column

FONT = 13  # px
PANEL = 420  # px: the long side of a level's photo
LARGEST_ASPECT = 8  # longer strips are shown squeezed
GAP = 14  # px, between panels
DIMMED = 0.6  # light left on a photo below frames, so that they stand out
FRAMES: tuple[Color, ...] = ((86, 180, 233), (230, 159, 0), (0, 178, 131), (238, 51, 119))  # of bins: no two beside
FOR, AGAINST = (230, 120, 0), (0, 100, 235)  # orange and blue: told apart by the color-blind too
OPAQUE = 0.7  # of the color of the largest contribution; the photo shows through
LEGEND = (("orange: speaks for it", FOR), ("blue: against it", AGAINST))
MEANING = "numbers: by how much the logit would fall if the bin saw nothing"


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

    Dots are the centres of the map's cells. A bin's frame goes half a cell beyond the centres that it pools; where a level
    does not divide the map, neighbouring bins share a row or column of cells, and their frames overlap. What a cell sees
    reaches far beyond its frame. With contributions, bins are colored by them instead, on one scale for all levels: orange
    where a bin speaks for the answer, blue where it speaks against; where bins overlap, by their mean.

    Args:
        image: [H, W, 3] uint8 RGB, as the backbone saw it; strips longer than 8 : 1 are shown squeezed. Not modified.
        levels: bins per side, such as ``(6, 3, 2, 1)``.
        map_size: (height, width) of the map in cells.
        stride: pixels of ``image`` from one cell's centre to the next.
        offset: pixels to the centre of cell 0.
        contributions: [M] what each bin adds to the answer's logit, in the order of the pooled output; see
            `sppnet.classification.explain.bin_contributions`.
        together: [L] what all bins of each level add, shown above its panel.
        title: a line above the picture; cut short if it does not fit.

    Returns:
        [H', W', 3] uint8 RGB, a new array.

    Raises:
        ValueError: an image of another form, levels or a map below 1, or contributions of another number than bins.

    Example:
        >>> photo = np.zeros((384, 512, 3), np.uint8)
        >>> draw_pyramid(photo, (3, 1), (24, 32), stride=16, offset=8.0, title="cat").shape[2]
        3
    """
    levels = check_levels(levels)
    bins = _checked("contributions", "bins", contributions, bin_count(levels))
    sums = _checked("together", "levels", together, len(levels))
    height, width = image.shape[:2] if image.ndim == 3 else (1, 1)  # what is not a photo is refused by `resized`
    zoom = PANEL / max(height, width, 1)
    size = max(round(width * zoom), PANEL // LARGEST_ASPECT), max(round(height * zoom), PANEL // LARGEST_ASPECT)
    photo, band = resized(image, size), round(2.2 * FONT)
    columns = len(levels) if len(levels) <= 3 or size[1] > 1.6 * size[0] else math.ceil(math.sqrt(len(levels)))
    rows = math.ceil(len(levels) / columns)
    sheet = Image.new("RGB", (columns * (size[0] + GAP) + GAP, rows * (size[1] + band + GAP) + GAP), BACKGROUND)
    draw, font, start = ImageDraw.Draw(sheet), font_of(FONT), 0
    # from the centre of cell i, offset + stride i, to pixels of the panel
    steps = stride * size[0] / width, stride * size[1] / height
    offsets = offset * size[0] / width, offset * size[1] / height
    largest = 0.0 if bins is None else float(np.abs(bins).max())
    for index, level in enumerate(levels):
        values = None if bins is None else bins[start : start + level * level].reshape(level, level)
        start += level * level
        left, top = GAP + index % columns * (size[0] + GAP), GAP + index // columns * (size[1] + band + GAP)
        boxes = _boxes(level, map_size, steps, offsets, size)
        if values is None:
            panel = _framed(photo, boxes, level)
            _draw_cells(panel, map_size, steps, offsets)
        else:
            panel = _colored(photo, boxes, values, largest)
        sheet.paste(panel, (left, top + band))
        text = f"{level} x {level} bins of {_cells(map_size[0], level)} x {_cells(map_size[1], level)} cells"
        if sums is not None:
            text = f"{level} x {level} bins, together {sums[index]:+z.2f}" if level > 1 else "the whole map"
        draw.text((left, top + band / 2), fit_text(text, font, size[0]), FOREGROUND, font, anchor="lm")
    picture = sheet if bins is None else _with_legend(sheet)
    return np.array(picture if title is None else with_title(picture, title, FONT))


def _boxes(
    level: int,
    map_size: tuple[int, int],
    steps: tuple[float, float],
    offsets: tuple[float, float],
    size: tuple[int, int],
) -> Bins:
    """Where the bins of a level lie on its panel, each at least a pixel wide and high."""

    def sides(length: int, step: float, offset: float, limit: int) -> list[tuple[int, int]]:
        edges = [
            (offset + (first - 0.5) * step, offset + (last - 0.5) * step) for first, last in bin_edges(length, level)
        ]
        starts = [min(max(0, round(start)), limit - 1) for start, _ in edges]
        return [(start, min(max(start + 1, round(end)), limit)) for start, (_, end) in zip(starts, edges, strict=True)]

    columns, rows = (sides(map_size[1 - axis], steps[axis], offsets[axis], size[axis]) for axis in (0, 1))
    return [
        ((x0, y0, x1, y1), row, column)
        for (row, (y0, y1)), (column, (x0, x1)) in product(enumerate(rows), enumerate(columns))
    ]


def _framed(photo: Image.Image, boxes: Bins, level: int) -> Image.Image:
    """The photo with every bin's frame, each in a color that its neighbours do not have."""
    panel = Image.fromarray((np.asarray(photo) * DIMMED).astype(np.uint8))
    draw = ImageDraw.Draw(panel, "RGBA")
    for (x0, y0, x1, y1), row, column in boxes:
        color = FRAMES[2 * (row % 2) + column % 2]
        inside = (x0 + 1, y0 + 1, max(x0 + 1, x1 - 2), max(y0 + 1, y1 - 2))
        draw.rounded_rectangle(inside, radius=7, fill=(*color, 45 if level > 1 else 0), outline=(*color, 255), width=2)
    return panel


def _draw_cells(
    panel: Image.Image, map_size: tuple[int, int], steps: tuple[float, float], offsets: tuple[float, float]
) -> None:
    if min(steps) < 5:  # px apart; closer, they would cover the photo
        return
    draw, radius = ImageDraw.Draw(panel, "RGBA"), 1.2
    for row, column in product(range(map_size[0]), range(map_size[1])):
        x, y = offsets[0] + column * steps[0], offsets[1] + row * steps[1]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255, 200))


def _colored(photo: Image.Image, boxes: Bins, values: npt.NDArray[np.float64], largest: float) -> Image.Image:
    """The photo, without its own colors, below those of the contributions; and their numbers where there is room."""
    sums, counts = np.zeros((photo.height, photo.width)), np.zeros((photo.height, photo.width))
    for (x0, y0, x1, y1), row, column in boxes:
        sums[y0:y1, x0:x1] += values[row, column]
        counts[y0:y1, x0:x1] += 1
    means = sums / np.maximum(counts, 1)
    opacity = OPAQUE * np.abs(means)[..., None] / (largest or 1.0)
    colors = np.where(means[..., None] > 0, FOR, AGAINST)
    gray = np.asarray(photo.convert("L"), np.float64)[..., None]
    panel = Image.fromarray((gray * (1 - opacity) + colors * opacity).round().astype(np.uint8))
    draw, font = ImageDraw.Draw(panel, "RGBA"), font_of(FONT)
    digits = 2 if largest >= 0.1 else 4
    written: list[tuple[float, float]] = []
    for (x0, y0, x1, y1), row, column in boxes:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=(255, 255, 255, 130))
        number, x, y = f"{values[row, column]:+z.{digits}f}", (x0 + x1) / 2, (y0 + y1) / 2
        wide, high = font.getlength(number) + 4, 1.3 * FONT
        beside = all(abs(x - other[0]) > wide or abs(y - other[1]) > high for other in written)  # bins may overlap
        if x1 - x0 > wide and y1 - y0 > high and beside:
            draw.text((x, y), number, (255, 255, 255), font, anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))
            written.append((x, y))
    return panel


def _with_legend(sheet: Image.Image) -> Image.Image:
    """The sheet with a line below it that says what the colors and numbers mean."""
    font, band = font_of(FONT), round(1.9 * FONT)
    wide = max(sheet.width, round(sum(font.getlength(text) + 2 * GAP for text, _ in LEGEND)) + 2 * GAP)
    lines = 1 if wide > sum(font.getlength(text) + 3 * GAP for text in (*(text for text, _ in LEGEND), MEANING)) else 2
    whole = Image.new("RGB", (wide, sheet.height + lines * band), BACKGROUND)
    whole.paste(sheet)
    draw, x, y = ImageDraw.Draw(whole), float(GAP), sheet.height + band / 2 - GAP / 2
    for text, color in LEGEND:
        draw.rectangle((x, y - FONT / 2, x + FONT, y + FONT / 2), fill=color)
        draw.text((x + 1.5 * FONT, y), text, MUTED, font, anchor="lm")
        x += font.getlength(text) + 1.5 * FONT + GAP
    left, top = (x, y) if lines == 1 else (float(GAP), y + band)
    draw.text((left, top), fit_text(MEANING, font, wide - left - GAP), MUTED, font, anchor="lm")
    return whole


def _checked(name: str, of: str, values: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float64] | None:
    if values is None:
        return None
    given = np.asarray(values, np.float64)
    if given.shape != (count,) or not np.isfinite(given).all():
        raise ValueError(f"{name}: expected a finite number for each of the {count} {of}, got {list(given.shape)}")
    return given


def _cells(side: int, level: int) -> str:
    """How many cells a bin has along a side: "4", or "4-5"."""
    lengths = sorted({last - first for first, last in bin_edges(side, level)})
    return f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
