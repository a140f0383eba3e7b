"""Evaluations and training runs as plots: precision-recall, kinds of error, confusions, training curves, a comparison.

Each is written to a .png, .jpg, .pdf or .svg, atomically and with our mark in its metadata; a file without the mark is not replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppnet.errors import OutputError
from sppnet.files import MADE_BY, atomic_write
from sppnet.metrics import shown as shown_number
from sppnet.metrics.errors import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sppnet.metrics.errors import DetectionErrors
    from sppnet.metrics.voc import VocResult

COLORS = BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GRAY, DARK = "#999999", "#555555"  # the colors are those of Okabe and Ito
MOST_CURVES, MOST_BARS = 100, 60  # classes shown, those with the most objects: nobody looks at a plot of a thousand
# Of a confusion matrix: classes up to which counts are written, and names; most frequent confusions listed.
MOST_NUMBERS, MOST_NAMES, MOST_PAIRS = 25, 150, 8
# How each format is told who made it; without dates, so that equal plots are equal files.
METADATA: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": MADE_BY}},
    "jpg": {"pil_kwargs": {"comment": MADE_BY.encode()}},
    "pdf": {"metadata": {"Creator": MADE_BY, "CreationDate": None}},
    "svg": {"metadata": {"Creator": MADE_BY, "Date": None}},
}


def plot_precision_recall(result: VocResult, path: str | Path) -> None:
    """Draw the precision-recall curve of every class, best class first.

    The thin line is the curve as measured; the filled step is the largest precision from each recall on, whose area is
    the average precision. Classes without objects come last, with an empty plot.

    Args:
        result: of `sppnet.metrics.voc.evaluate_voc`.
        path: .png, .jpg, .pdf or .svg; missing folders are made.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.

    Example:
        >>> from sppnet.metrics.voc import evaluate_voc
        >>> result = evaluate_voc([([[0, 0, 9, 9]], [0.8], [1])], [([[0, 0, 9, 9]], [1], [False])], ("cat",))
        >>> plot_precision_recall(result, "curves.png")
    """
    shown = sorted(result.classes, key=lambda curve: -curve.n_objects)[:MOST_CURVES]
    shown = sorted(shown, key=lambda curve: -math.inf if math.isnan(curve.ap_area) else curve.ap_area, reverse=True)
    columns = max(1, min(5, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = new_figure(max(5.0, 2.3 * columns), 2.05 * rows + 1.0)
    left_out = f", {len(shown)} of {len(result.classes)} classes shown" if len(shown) < len(result.classes) else ""
    means = f"mean AP {shown_number(result.map_area)} (area), {shown_number(result.map07)} (11-point)"
    figure.suptitle(f"{means} at IoU {result.iou:g}{left_out}", fontsize=13)
    plots = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, curve in zip(plots, shown, strict=False):
        if curve.n_objects:
            envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
            recall, height = np.append(0.0, curve.recall), np.append(envelope, 0.0)
            axes.fill_between(recall, height, step="post", color=BLUE, alpha=0.25, linewidth=0)
            axes.plot(curve.recall, curve.precision, color=BLUE, linewidth=1.2)
        else:
            axes.text(0.5, 0.5, "no objects", ha="center", va="center", color="0.5", fontsize=9)
        axes.set_title(f"{curve.name}   {shown_number(curve.ap_area)}", fontsize=10, loc="left")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        _tidy(axes)
    for axes in plots[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    save_figure(figure, path)


def plot_errors(errors: DetectionErrors, path: str | Path) -> None:
    """Draw what a class's most confident detections are, how many of its objects are missed, and what each kind of error costs.

    Left, class by class, best first, all together on top: of as many detections as there are objects, which share is correct
    and what is wrong with the others. Middle: the share of the objects that no detection finds. Right: by how much the mean
    average precision would be higher without each kind of error.

    Args:
        errors: of `sppnet.metrics.errors.detection_errors`.
        path: .png, .jpg, .pdf or .svg; missing folders are made.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.

    Example:
        >>> from sppnet.metrics.errors import detection_errors
        >>> truth = ([[0, 0, 9, 9]], [1], [False])
        >>> plot_errors(detection_errors([([[0, 0, 9, 9]], [0.8], [1])], [truth], ("cat",)), "errors.png")
    """
    colors = dict(zip(("correct", *KINDS), (GREEN, SKY, ORANGE, VERMILION, DARK), strict=True))
    shown = sorted((row for row in errors.classes if row.n_objects), key=lambda row: -row.n_objects)[:MOST_BARS]
    total = errors.total()
    rows = [total, *sorted(shown, key=lambda row: -row.ap)]
    indices = np.arange(len(rows))
    figure = new_figure(12.0, 1.6 + 0.26 * max(6, len(rows)))
    bars, missed, costs = figure.subplots(1, 3, width_ratios=(5, 2, 3))
    counts = np.array([(row.correct, row.localisation, row.other_class, row.background) for row in rows])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for part, (label, left) in enumerate(zip(list(colors)[:4], (shares.cumsum(1) - shares).T, strict=True)):
        bars.barh(indices, shares[:, part], left=left, color=colors[label], label=label, height=0.75)
    names = [f"{row.name}   {'-' if math.isnan(row.ap) else f'{row.ap:.2f}'}" for row in rows]
    xlabel = "of the most confident detections, as many as objects"
    bars.set(xlim=(0, 1), yticks=indices, yticklabels=names, xlabel=xlabel)
    bars.legend(ncols=4, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    missed.barh(indices, [row.missed / max(1, row.n_objects) for row in rows], color=colors["missed"], height=0.75)
    missed.set(xlim=(0, 1), yticks=[], xlabel="objects missed")
    for axes in (bars, missed):
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks((0, 0.5, 1), ("0", "50 %", "100 %"))
    kinds = list(total.ap_without)
    gains = [0.0 if math.isnan(total.ap) else total.ap_without[kind] - total.ap for kind in kinds]
    costs.barh(range(len(kinds)), gains, color=[colors[kind] for kind in kinds], height=0.6)
    for row, gain in enumerate(gains):
        costs.text(gain, row, f" +{gain:.3f}", va="center", fontsize=9)
    costs.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="mean AP gained without them")
    costs.set(xlim=(0, max(0.01, *gains) * 1.3), ylim=(len(kinds) - 0.5, -0.5))
    for axes in (bars, missed, costs):
        _tidy(axes, grid="none")
    figure.suptitle(f"mean AP {shown_number(total.ap)} (area) at IoU {errors.iou:g}: kinds of error", fontsize=12)
    save_figure(figure, path)


def plot_confusion(confusion: npt.ArrayLike, class_names: Sequence[str], path: str | Path) -> None:
    """Draw which classes are taken for which.

    A row is a true class; shades are shares of the row, so that rare classes read like common ones, and the right answers
    are on the diagonal. Numbers count images. Below stand the most frequent confusions.

    Args:
        confusion: [K, K] counts, row true, column answered.
        class_names: K of them, at least one.
        path: .png, .jpg, .pdf or .svg; missing folders are made.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.

    Example:
        >>> plot_confusion([[8, 2], [1, 9]], ("cat", "dog"), "confusion.png")
    """
    counts, classes = np.asarray(confusion, np.int64), len(class_names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [name if len(name) <= 18 else f"{name[:17]}…" for name in class_names]
    side = min(max(3.2, 0.33 * classes), 16.0)
    size = min(10.0, max(3.0, 0.62 * 72 * side / classes))  # points: a name must fit into its row
    filled = [(int(i), int(j)) for i, j in zip(*np.nonzero(counts), strict=True)]
    pairs = sorted((pair for pair in filled if pair[0] != pair[1]), key=lambda pair: -counts[pair])[:MOST_PAIRS]
    figure = new_figure(side + 2.2, side + 2.4 + 0.2 * len(pairs))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    accuracy = f"{counts.trace()} of {counts.sum()} right ({counts.trace() / max(1, counts.sum()):.1%})"
    axes.set_title(accuracy, fontsize=11, loc="left")
    axes.set(xlabel="answer", ylabel="true class")
    shown = names if classes <= MOST_NAMES else []
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=size)
    axes.set_yticks(range(len(shown)), shown, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.8")
    for i, j in filled if classes <= MOST_NUMBERS else ():
        ink = "white" if shares[i, j] > 0.55 else "0.15"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=ink, fontsize=min(9, size))
    if pairs:
        text = "\n".join(["most often:", *(f"{counts[i, j]}  {names[i]} → {names[j]}" for i, j in pairs)])
        figure.supxlabel(text, fontsize=8, x=0.02, ha="left", family="monospace")
    save_figure(figure, path)


def plot_training(log: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draw the curves of a training run.

    ``train_loss`` and ``val_loss`` share a plot named "loss". The best value of each validation curve is marked.

    Args:
        log: the columns of a log by name, all of one length; NaN, where nothing was measured, is left out. ``step`` is the
            horizontal axis.
        path: .png, .jpg, .pdf or .svg; missing folders are made.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.

    Example:
        >>> plot_training({"step": [0, 1, 2], "train_loss": [2.0, 1.1, 0.7], "val_loss": [2.1, 1.3, 1.2]}, "training.png")
    """
    columns = {name: np.asarray(values, np.float64) for name, values in log.items()}
    curves: dict[str, dict[str, npt.NDArray[np.float64]]] = {}  # by measure, then by split
    for name, values in columns.items():
        if name != "step" and np.isfinite(values).any():
            split, _, measure = name.partition("_") if name.startswith(("train_", "val_")) else (name, "", name)
            curves.setdefault(measure, {})[split] = values
    rows, beside = math.ceil(len(curves) / 2), min(2, len(curves))
    figure = new_figure(2 + 3.5 * beside, 3.1 * rows + 0.3)
    for plot, (measure, its_curves) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, beside, plot)
        for index, (split, values) in enumerate(its_curves.items()):
            color, there = COLORS[index % len(COLORS)], np.isfinite(values)
            x, y = columns["step"][there], values[there]
            axes.plot(x, y, color=color, linewidth=1.4, marker="o" if len(y) < 30 else None, markersize=3, label=split)
            if split.startswith("val"):
                best = int(y.argmin() if "loss" in measure or "error" in measure else y.argmax())
                axes.plot(x[best], y[best], "o", color=color, markersize=8, fillstyle="none")
                above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": color}
                axes.annotate(f"{y[best]:.3g}", (x[best], y[best]), (0, 7), **above)
        axes.set_title(measure, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.locator_params(axis="x", integer=True)
        axes.margins(y=0.12)
        _tidy(axes)
        if len(its_curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


Estimates = Mapping[str, tuple[float, tuple[float, float]]]  # by name, a value and its interval


def plot_comparison(
    accuracies: Estimates, differences: Estimates, path: str | Path, *, reference: str, images: int, title: str
) -> None:
    """Draw the accuracy of each way of feeding a network, and its difference from a reference, with 95 % intervals.

    A bar's own interval says where its accuracy may lie; whether two ways differ is to be read from the right: their folds
    are the same, so the interval of a difference is often the narrower one. It is drawn full where zero lies outside.

    Args:
        accuracies: 0..1 with its interval, by the name of the way, the reference among them.
        differences: of each other way, how much higher its accuracy is than the reference's.
        path: .png, .jpg, .pdf or .svg; missing folders are made.
        reference: the way that the others are compared with.
        images: how many were classified.
        title: a sentence above the chart.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.

    Example:
        >>> accuracies = {"native": (0.9, (0.87, 0.93)), "crop": (0.8, (0.76, 0.84))}
        >>> gain = {"crop": (-0.1, (-0.12, -0.08))}
        >>> plot_comparison(accuracies, gain, "chart.png", reference="native", images=300, title="Use native.")
    """
    figure = new_figure(9.0, 0.55 * len(accuracies) + 1.7)
    figure.suptitle(fill(title, 105), fontsize=10, x=0.01, ha="left")
    bars, gaps = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    gaps.axvline(0, color=BLUE, linewidth=1.2)
    for row, (name, (share, (low, high))) in enumerate(accuracies.items()):
        reach = [[100 * (share - low)], [100 * (high - share)]]
        color = BLUE if name == reference else GRAY
        bars.barh(row, 100 * share, color=color, height=0.62, xerr=reach, ecolor="0.25", capsize=3)
        beside = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        bars.annotate(f"{100 * share:.1f}", (100 * high, row), (5, 0), **beside)
        if name in differences:
            mean, (low, high) = differences[name]
            color, inside = ("0.55", "white") if low <= 0 <= high else ("0.1", "0.1")
            gaps.plot((100 * low, 100 * high), (row, row), color=color, linewidth=2.2)
            gaps.plot(100 * mean, row, "o", color=color, markersize=7, markerfacecolor=inside)
    bars.set_xlim(0, 1.14 * max(1.0, *(100 * high for _, (_, high) in accuracies.values())))
    bars.set_yticks(range(len(accuracies)), list(accuracies), fontsize=10)
    bars.invert_yaxis()
    bars.set_xlabel(f"accuracy, %, of {images} images", fontsize=9)
    gaps.set_xlabel(f"points more than {reference} (95 %, all pairs)", fontsize=9)
    for axes in (bars, gaps):
        _tidy(axes, grid="x")
    gaps.tick_params(axis="y", length=0)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty plot, of a size in inches."""
    from matplotlib.figure import Figure  # slow to import; and without pyplot there is no global state and no window

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a plot of `new_figure`, atomically and with our mark; its ending chooses the format.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.
    """
    form = plot_format(path)
    with atomic_write(Path(path)) as unfinished:
        figure.savefig(unfinished, format=form, dpi=130, **METADATA[form])


def plot_format(path: str | Path) -> str:
    """The format of a plot by the ending of its file's name; an `OutputError` for another than png, jpg, pdf and svg.

    Example:
        >>> plot_format("curves.PNG")
        'png'
    """
    form = Path(path).suffix.lstrip(".").lower()
    if form not in METADATA:
        ending = form or "no ending"
        raise OutputError(f"{path}: expected a file name that ends in .png, .jpg, .pdf or .svg, got {ending}")
    return form


def _tidy(axes: Axes, grid: str = "both") -> None:
    """Thin ticks, no frame above and at the right, a light grid along the axes named."""
    axes.tick_params(labelsize=8, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(axis=grid, color="0.9", linewidth=0.6)  # type: ignore[arg-type]
