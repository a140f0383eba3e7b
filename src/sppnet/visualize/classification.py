"""A classifier's evaluation and training as pictures: confusions, mistakes, curves, and what the pyramid pools.

Plots are written as files (`plot_confusion`, `plot_training`); pictures made of photos are arrays (`draw_mistakes`,
`draw_pyramid`), for `sppnet.visualize.save_image`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sppnet.errors import UserError
from sppnet.ops.bins import bin_count, bin_edges, check_levels
from sppnet.visualize.canvas import (
    BACKGROUND,
    FOREGROUND,
    LARGEST_ASPECT,
    MUTED,
    Colour,
    colour_of,
    fit_text,
    font_of,
    replacing,
    with_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 25  # classes up to which each cell of a confusion matrix shows its number
MOST_NAMES = 150  # classes up to which they are named beside it
MOST_PAIRS = 10  # confusions listed below it
TILE = (220, 165)  # px: width and height of a photo on a contact sheet
FONT = 13  # px, of contact sheets and panels
PANEL = 420  # px: the long side of a level's photo
DARKEST = 0.2  # light left on the bin of the weakest response
FRAMES: tuple[Colour, ...] = ((86, 180, 233), (230, 159, 0), (0, 178, 131), (238, 51, 119))  # of bins: no two beside
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of Okabe and Ito


def plot_confusion(confusion: npt.ArrayLike, names: Sequence[str], path: str | Path) -> None:
    """Draw which classes are taken for which, and write it as a picture.

    A row is a true class; shades are shares of the row, so that rare classes read like common ones, and the right answers
    are on the diagonal. Numbers count images. Below stand the commonest confusions.

    Args:
        confusion: [K, K] counts, row true, column answered: `sppnet.metrics.classification.confusion_matrix`.
        names: the K class names.
        path: where to; .png, .jpg, .pdf or .svg. The file appears whole or not at all; missing folders are made.

    Raises:
        ValueError: a matrix that is not [K, K].
        UserError: another ending, or a place that cannot be written to.

    Example:
        >>> plot_confusion([[8, 2], [1, 9]], ("cat", "dog"), "confusion.png")
        >>> Path("confusion.png").exists()
        True
    """
    counts, classes = np.asarray(confusion, np.int64), len(names)
    if counts.shape != (classes, classes) or not classes:
        raise ValueError(f"confusion: expected [{classes}, {classes}], one row for each name, got {list(counts.shape)}")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named, side = classes <= MOST_NAMES, min(max(3.2, 0.33 * classes), 16.0)
    size = min(10.0, max(3.0, 0.62 * 72 * side / classes))  # points: a name must fit into its row
    pairs = [(i, j) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    pairs = sorted(pairs, key=lambda pair: -counts[pair])[:MOST_PAIRS]
    figure = _figure(side + 2.2, side + 1.9 + 0.19 * math.ceil(len(pairs) / 2))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    accuracy = f"{counts.trace()} of {counts.sum()} right ({counts.trace() / max(1, counts.sum()):.1%})"
    axes.set_title(accuracy, fontsize=11, loc="left")
    axes.set_xlabel("answer", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    shown = [_shortened(name) for name in names] if named else []
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=size)
    axes.set_yticks(range(len(shown)), shown, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.8")
    if classes <= MOST_NUMBERS:
        for i, j in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[i, j] > 0.55 else "0.15"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=ink, fontsize=min(9, size))
    lines = [f"{counts[i, j]}  {_shortened(names[i])} → {_shortened(names[j])}" for i, j in pairs]
    half = math.ceil(len(lines) / 2)
    rows = [f"{left:<46}{right}" for left, right in zip(lines, [*lines[half:], ""][:half], strict=False)]
    if lines:
        figure.supxlabel("\n".join(["most often:", *rows]), fontsize=8, x=0.02, ha="left", family="monospace")
    _write(figure, path)


def plot_training(log: Mapping[str, Sequence[Any]], path: str | Path) -> None:
    """Draw the curves of a training run, and write them as a picture.

    ``train_loss`` and ``val_loss`` share a plot named "loss"; so do all columns that differ only in such a first part, or in
    a last ``_step`` or ``_epoch``. The best value of each validation curve is marked.

    Args:
        log: the columns of a CSV log by name, all of one length; numbers, or text that reads as one. What does not, such
            as the empty fields between two epochs, is left out. ``step`` (or else ``epoch``) is the horizontal axis.
        path: where to; .png, .jpg, .pdf or .svg. The file appears whole or not at all; missing folders are made.

    Raises:
        UserError: no column with numbers, another ending, or a place that cannot be written to.
        ValueError: columns of different lengths.

    Example:
        >>> log = {"epoch": [0, 1, 2], "train_loss": [2.0, 1.1, 0.7], "val_loss": [2.1, 1.3, 1.2], "val_accuracy": [0.3, 0.6, 0.7]}
        >>> plot_training(log, "training.png")
        >>> Path("training.png").exists()
        True
    """
    columns = {name: np.array([_as_number(value) for value in values]) for name, values in log.items()}
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"log: expected columns of one length, got { {name: len(v) for name, v in columns.items()} }")
    along = next((name for name in ("step", "epoch") if name in columns), "")
    curves: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for name, values in columns.items():
        if name not in ("step", "epoch") and np.isfinite(values).any():
            kind, measure = _parts_of(name)
            curves.setdefault(measure, {})[kind or name] = values
    if not curves:
        raise UserError(f"the log has no curves: expected columns of numbers beside step and epoch, got {list(log)}")
    rows = math.ceil(len(curves) / 2) if len(curves) > 1 else 1
    figure = _figure(9.0 if len(curves) > 1 else 5.5, 3.1 * rows + 0.3)
    plots = figure.subplots(rows, min(2, len(curves)), squeeze=False)
    for axes in plots.flat[len(curves) :]:
        axes.set_axis_off()
    for axes, (measure, its_curves) in zip(plots.flat, curves.items(), strict=False):
        for colour, (kind, values) in zip(LINES * len(its_curves), its_curves.items(), strict=False):
            there = np.isfinite(values)
            places = (columns[along] if along else np.arange(len(values)))[there]
            marker = "o" if there.sum() < 30 else None
            axes.plot(places, values[there], color=colour, linewidth=1.4, marker=marker, markersize=3, label=kind)
            if kind.startswith("val"):
                best = int(
                    values[there].argmin() if "loss" in measure or "error" in measure else values[there].argmax()
                )
                axes.plot(places[best], values[there][best], "o", color=colour, markersize=8, fillstyle="none")
                axes.annotate(
                    f"{values[there][best]:.3g}", (places[best], values[there][best]), (0, 7),
                    textcoords="offset points", ha="center", fontsize=8, color=colour,
                )  # fmt: skip
        axes.set_title(measure, fontsize=10, loc="left")
        axes.set_xlabel(along or "row", fontsize=9)
        axes.locator_params(axis="x", integer=True)
        axes.tick_params(labelsize=8, length=2)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        if len(its_curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    _write(figure, path)


def draw_mistakes(
    images: Sequence[npt.NDArray[np.uint8]],
    truths: Sequence[str],
    answers: Sequence[str],
    scores: Sequence[float],
    title: str | None = None,
    columns: int | None = None,
) -> npt.NDArray[np.uint8]:
    """A contact sheet of photos that were taken for something else: each with the answer, its score, and the truth.

    Args:
        images: of each photo [H, W, 3] uint8 RGB, any size; at least one. Not modified.
        truths: the true class of each.
        answers: the answer to each.
        scores: how sure it was, 0..1; ``ClassifierEvaluation.mistakes`` has all three, the surest first.
        title: a line above the sheet; cut short if it does not fit.
        columns: photos in a row; chosen for a sheet of about 4 : 3 where it is not given.

    Returns:
        [H', W', 3] uint8 RGB, a new array.

    Raises:
        ValueError: no images, lists of different lengths, an image of another form, or columns below 1.

    Example:
        >>> draw_mistakes([np.zeros((30, 40, 3), np.uint8)], ["cat"], ["dog"], [0.9]).shape
        (232, 244, 3)
    """
    if not images or not len(images) == len(truths) == len(answers) == len(scores):
        lengths = len(images), len(truths), len(answers), len(scores)
        raise ValueError(f"expected at least one image, and a truth, an answer and a score for each, got {lengths}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    (width, height), gap, text = TILE, 12, round(3.3 * FONT)
    columns = min(columns or math.ceil(math.sqrt(1.25 * len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + text + gap) + gap), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), font_of(FONT)
    for place, image in enumerate(images):
        left, top = gap + place % columns * (width + gap), gap + place // columns * (height + text + gap)
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=(0, 0, 0))
        scale = min(width / image.shape[1], height / image.shape[0])
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        sheet.paste(_photo(image, size), (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        score, line = f" {scores[place]:.2f}", top + height + 0.95 * FONT
        answer = fit_text(answers[place], font, width - font.getlength(score))
        draw.text((left, line), answer, colour_of(answers[place]), font, anchor="lm")
        draw.text((left + font.getlength(answer), line), score, FOREGROUND, font, anchor="lm")
        truth = fit_text(f"is {truths[place]}", font, width)
        draw.text((left, line + 1.4 * FONT), truth, MUTED, font, anchor="lm")
    return np.array(sheet if title is None else with_title(sheet, title, FONT))


def draw_pyramid(
    image: npt.NDArray[np.uint8],
    levels: Sequence[int],
    map_size: tuple[int, int],
    stride: float,
    offset: float,
    scale: tuple[float, float] = (1.0, 1.0),
    strengths: npt.ArrayLike | None = None,
) -> npt.NDArray[np.uint8]:
    """What the pyramid pools: the bins of each level over the photo, a picture for each level.

    Dots are the centres of the map's cells. A bin's frame goes half a cell beyond the centres that it pools; where a level
    does not divide the map, neighbouring bins share a row or column of cells, and their frames overlap. What a cell sees
    reaches far beyond its frame.

    Args:
        image: [H, W, 3] uint8 RGB, any size; strips longer than 8 : 1 are shown squeezed. Not modified.
        levels: bins per side, such as ``(6, 3, 2, 1)``.
        map_size: (height, width) of the map in cells.
        stride: pixels from one cell's centre to the next, in the image that the backbone saw.
        offset: pixels to the centre of cell 0 there.
        scale: (vertical, horizontal) factor from ``image`` to the image that the backbone saw: `SPPNet.prepare`.
        strengths: [M] how strong each bin's response is, in the order of the pooled output: of each level the strongest
            bin is left as bright as the photo, the weakest nearly dark.

    Returns:
        [H', W', 3] uint8 RGB, a new array.

    Raises:
        ValueError: an image of another form, levels or a map below 1, or strengths of another number than bins.

    Example:
        >>> photo = np.zeros((375, 500, 3), np.uint8)
        >>> draw_pyramid(photo, (3, 1), (24, 32), stride=16, offset=8.0, scale=(1.024, 1.024)).shape[2]
        3
    """
    levels = check_levels(levels)
    strong = None if strengths is None else np.asarray(strengths, np.float64)
    if strong is not None and strong.shape != (bin_count(levels),):
        raise ValueError(f"strengths: expected one for each of the {bin_count(levels)} bins, got {list(strong.shape)}")
    _check_photo(image)
    height, width = image.shape[:2]
    zoom = PANEL / max(height, width)
    size = max(round(width * zoom), PANEL // LARGEST_ASPECT), max(round(height * zoom), PANEL // LARGEST_ASPECT)
    photo, band, gap = _photo(image, size), round(2.2 * FONT), 14
    columns = len(levels) if len(levels) <= 3 or size[1] > 1.6 * size[0] else math.ceil(math.sqrt(len(levels)))
    rows = math.ceil(len(levels) / columns)
    sheet = Image.new("RGB", (columns * (size[0] + gap) + gap, rows * (size[1] + band + gap) + gap), BACKGROUND)
    font, start = font_of(FONT), 0
    # from the centre of cell i, offset + stride i in the resized image, to panel pixels
    across = (size[0] / (width * scale[1]) * stride, size[0] / (width * scale[1]) * offset)
    down = (size[1] / (height * scale[0]) * stride, size[1] / (height * scale[0]) * offset)
    for place, level in enumerate(levels):
        its_strengths = None if strong is None else strong[start : start + level * level].reshape(level, level)
        start += level * level
        left, top = gap + place % columns * (size[0] + gap), gap + place // columns * (size[1] + band + gap)
        sheet.paste(_level(photo, level, map_size, across, down, its_strengths), (left, top + band))
        text = f"{level} x {level} of {_cells(map_size[0], level)} x {_cells(map_size[1], level)} cells"
        ImageDraw.Draw(sheet).text((left, top + band / 2), fit_text(text, font, size[0]), FOREGROUND, font, anchor="lm")
    return np.array(sheet)


def _level(
    photo: Image.Image,
    level: int,
    map_size: tuple[int, int],
    across: tuple[float, float],
    down: tuple[float, float],
    strengths: npt.NDArray[np.float64] | None,
) -> Image.Image:
    """One level's picture: the photo, every bin's frame, the cells' centres."""

    def sides(length: int, step: float, offset: float, limit: int) -> list[tuple[int, int]]:
        edges = [
            (offset + (first - 0.5) * step, offset + (last - 0.5) * step) for first, last in bin_edges(length, level)
        ]
        return [(min(max(0, round(first)), limit - 1), min(max(1, round(last)), limit)) for first, last in edges]

    columns, rows = sides(map_size[1], *across, photo.width), sides(map_size[0], *down, photo.height)
    light = np.full((photo.height, photo.width, 1), 0.6 if strengths is None else DARKEST)
    if strengths is not None:
        least, spread = float(strengths.min()), float(np.ptp(strengths))
        for (i, (y0, y1)), (j, (x0, x1)) in product(enumerate(rows), enumerate(columns)):
            share = (strengths[i, j] - least) / spread if spread > 0 else 1.0
            part = light[y0:y1, x0:x1]
            np.maximum(part, DARKEST + (1 - DARKEST) * share, out=part)
    panel = Image.fromarray((np.asarray(photo) * light).astype(np.uint8))
    draw = ImageDraw.Draw(panel, "RGBA")
    for (i, (y0, y1)), (j, (x0, x1)) in product(enumerate(rows), enumerate(columns)):
        colour = FRAMES[2 * (i % 2) + j % 2]
        opacity = 45 if strengths is None and level > 1 else 0
        box = (x0 + 1, y0 + 1, max(x0 + 1, x1 - 2), max(y0 + 1, y1 - 2))
        draw.rounded_rectangle(box, radius=7, fill=(*colour, opacity), outline=(*colour, 255), width=2)
    if min(across[0], down[0]) >= 5:  # px apart; closer, they would cover the photo
        radius = 1.2
        for i, j in product(range(map_size[0]), range(map_size[1])):
            x, y = across[1] + j * across[0], down[1] + i * down[0]
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255, 200))
    return panel


def _cells(side: int, level: int) -> str:
    """How many cells a bin has along a side: "4", or "4-5"."""
    lengths = sorted({last - first for first, last in bin_edges(side, level)})
    return f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"


def _photo(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """The image at a size (width, height)."""
    _check_photo(image)
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _check_photo(image: npt.NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image: expected [H, W, 3] uint8 RGB with pixels, got {list(image.shape)} {image.dtype}")


def _parts_of(name: str) -> tuple[str, str]:
    """``train_loss_epoch`` -> ("train", "loss"): which images, and what was measured on them."""
    measure = name.removesuffix("_step").removesuffix("_epoch")
    for kind in ("train", "val", "valid", "validation", "test"):
        for mark in ("_", "/", "-", " "):
            if measure.startswith(kind + mark):
                return kind + name[len(measure) :].replace("_", " "), measure[len(kind) + 1 :]
    return "", measure


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow to import; and without pyplot there is no global state and no window

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    form = path.suffix.lstrip(".").lower()
    if form not in ("png", "jpg", "pdf", "svg"):
        raise UserError(
            f"{path}: expected a file name that ends in .png, .jpg, .pdf or .svg, got {form or 'no ending'}"
        )
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=form, dpi=130)
