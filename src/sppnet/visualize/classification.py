"""A classifier's evaluation and training as pictures: confusions, mistakes and curves.

Plots are written as files (`plot_confusion`, `plot_training`); a picture made of photos is an array (`draw_mistakes`), for
`sppnet.visualize.save_image`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sppnet.errors import UserError
from sppnet.visualize.canvas import (
    BACKGROUND,
    FOREGROUND,
    MUTED,
    colour_of,
    fit_text,
    fitted_photo,
    font_of,
    new_figure,
    save_figure,
    with_title,
)

MOST_NUMBERS = 25  # classes up to which each cell of a confusion matrix shows its number
MOST_NAMES = 150  # classes up to which they are named beside it
MOST_PAIRS = 10  # confusions listed below it
TILE = (220, 165)  # px: width and height of a photo on a contact sheet
FONT = 13  # px, of contact sheets
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
    figure = new_figure(side + 2.2, side + 1.9 + 0.19 * math.ceil(len(pairs) / 2))
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
    save_figure(figure, path)


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
    figure = new_figure(9.0 if len(curves) > 1 else 5.5, 3.1 * rows + 0.3)
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
    save_figure(figure, path)


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
        sheet.paste(fitted_photo(image, size), (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        score, line = f" {scores[place]:.2f}", top + height + 0.95 * FONT
        answer = fit_text(answers[place], font, width - font.getlength(score))
        draw.text((left, line), answer, colour_of(answers[place]), font, anchor="lm")
        draw.text((left + font.getlength(answer), line), score, FOREGROUND, font, anchor="lm")
        truth = fit_text(f"is {truths[place]}", font, width)
        draw.text((left, line + 1.4 * FONT), truth, MUTED, font, anchor="lm")
    return np.array(sheet if title is None else with_title(sheet, title, FONT))


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
