"""Precision-recall curves of an evaluation, one small plot for each class."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sppnet.visualize.canvas import new_figure, save_figure

COLUMNS = 5
MOST_CLASSES = 100  # of more, those with the most objects: a plot of a thousand curves is looked at by nobody


class ClassCurve(Protocol):
    """What a curve is drawn from; `sppnet.metrics.voc.ClassResult` is one."""

    @property
    def name(self) -> str: ...
    @property
    def ap07(self) -> float: ...
    @property
    def ap_area(self) -> float: ...
    @property
    def n_objects(self) -> int: ...
    @property
    def precision(self) -> npt.NDArray[np.float64]: ...
    @property
    def recall(self) -> npt.NDArray[np.float64]: ...


class Evaluation(Protocol):
    """What the plot is drawn from; `sppnet.metrics.voc.VocResult` is one."""

    @property
    def classes(self) -> Sequence[ClassCurve]: ...
    @property
    def iou(self) -> float: ...
    @property
    def map07(self) -> float: ...
    @property
    def map_area(self) -> float: ...


def plot_precision_recall(result: Evaluation, path: str | Path) -> None:
    """Draw the precision-recall curve of every class, best class first, and write it as a picture.

    The thin line is the curve as measured; the filled step is the largest precision from each recall on, whose area is
    the average precision. Classes without objects come last, with an empty plot.

    Args:
        result: a `sppnet.metrics.voc.VocResult`.
        path: where to; .png, .jpg, .pdf or .svg. The file appears whole or not at all; missing folders are made.

    Raises:
        UserError: another ending, or a place that cannot be written to.

    Example:
        >>> import tempfile
        >>> from sppnet.metrics.voc import evaluate_voc
        >>> result = evaluate_voc([([[0, 0, 9, 9]], [0.8], [1])], [([[0, 0, 9, 9]], [1], [False])], names=("cat",))
        >>> target = Path(tempfile.mkdtemp()) / "curves.png"
        >>> plot_precision_recall(result, target)
        >>> target.exists()
        True
    """
    shown = sorted(result.classes, key=lambda curve: -curve.n_objects)[:MOST_CLASSES]
    shown = sorted(shown, key=lambda curve: -math.inf if math.isnan(curve.ap_area) else curve.ap_area, reverse=True)
    columns = max(1, min(COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = new_figure(max(5.0, 2.3 * columns), 2.05 * rows + 1.0)
    left_out = f", {len(shown)} of {len(result.classes)} classes shown" if len(shown) < len(result.classes) else ""
    figure.suptitle(
        f"mean AP {_shown(result.map_area)} (area), {_shown(result.map07)} (11-point) at IoU {result.iou:g}{left_out}",
        fontsize=13,
    )
    plots = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(plots.flat):
        if place >= len(shown):
            axes.set_axis_off()
            continue
        curve = shown[place]
        if curve.n_objects:
            envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
            recall, height = np.append(0.0, curve.recall), np.append(envelope, 0.0)
            axes.fill_between(recall, height, step="post", color="#0072B2", alpha=0.25, linewidth=0)
            axes.plot(curve.recall, curve.precision, color="#0072B2", linewidth=1.2)
        else:
            axes.text(0.5, 0.5, "no objects", ha="center", va="center", color="0.5", fontsize=9)
        axes.set_title(f"{curve.name}   {_shown(curve.ap_area)}", fontsize=10, loc="left")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelsize=8, length=2)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("recall", fontsize=10)
    figure.supylabel("precision", fontsize=10)
    save_figure(figure, path)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
