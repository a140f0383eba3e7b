"""Ways of feeding a network side by side: a bar for each, and how much it differs from native."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Protocol

from sppnet.visualize.canvas import new_figure, save_figure

NATIVE, OTHER = "#0072B2", "#999999"  # of Okabe and Ito; grey


class FitBar(Protocol):
    """What a bar is drawn from; `sppnet.classification.compare.FitResult` is one."""

    @property
    def fit(self) -> str: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...


class Gap(Protocol):
    """A difference between two of them."""

    @property
    def mean(self) -> float: ...
    @property
    def interval(self) -> tuple[float, float]: ...


class FitComparison(Protocol):
    """What the chart is drawn from; `sppnet.classification.compare.Comparison` is one."""

    @property
    def fits(self) -> Sequence[FitBar]: ...
    @property
    def advice(self) -> str: ...
    @property
    def images(self) -> int: ...
    def difference(self, first: str, second: str) -> Gap: ...


def plot_comparison(comparison: FitComparison, path: str | Path) -> None:
    """Draw the accuracy of each way of feeding, and its difference from native, with 95 % intervals, as a picture.

    A bar's own interval says where its accuracy may lie; whether two ways differ is to be read from the right: their folds
    are the same, so the interval of a difference is often the narrower one. It is drawn full where zero lies outside.

    Args:
        comparison: a `sppnet.classification.compare.Comparison`.
        path: where to; .png, .jpg, .pdf or .svg. The file appears whole or not at all; missing folders are made.

    Raises:
        UserError: another ending, or a place that cannot be written to.
    """
    fits = list(comparison.fits)
    figure = new_figure(9.0, 0.55 * len(fits) + 1.7)
    figure.suptitle(fill(comparison.advice, 105), fontsize=10, x=0.01, ha="left")
    bars, gaps = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = range(len(fits))
    values = [100 * each.accuracy for each in fits]
    ends = [(100 * each.interval[0], 100 * each.interval[1]) for each in fits]
    reach = [[v - low for v, (low, _) in zip(values, ends, strict=True)],
             [high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
    colours = [NATIVE if each.fit == "native" else OTHER for each in fits]
    bars.barh(rows, values, color=colours, height=0.62, xerr=reach, ecolor="0.25", capsize=3)
    bars.set_xlim(0, 1.14 * max(1.0, *(high for _, high in ends)))
    for row, value, (_, high) in zip(rows, values, ends, strict=True):
        bars.annotate(f"{value:.1f}", (high, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    bars.set_yticks(rows, [each.fit for each in fits], fontsize=10)
    bars.invert_yaxis()
    bars.set_xlabel(f"accuracy, %, of {comparison.images} images", fontsize=9)
    gaps.axvline(0, color=NATIVE, linewidth=1.2)
    for row, each in zip(rows, fits, strict=True):
        if each.fit == "native":
            continue
        gap = comparison.difference(each.fit, "native")
        low, high = gap.interval
        shown = not low <= 0 <= high
        colour = "0.1" if shown else "0.55"
        gaps.plot((100 * low, 100 * high), (row, row), color=colour, linewidth=2.2)
        gaps.plot(100 * gap.mean, row, "o", color=colour, markersize=7, markerfacecolor=colour if shown else "white")
    gaps.set_xlabel("points more than native (95 %, all pairs)", fontsize=9)
    for axes in (bars, gaps):
        axes.tick_params(labelsize=9, length=2)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    gaps.tick_params(axis="y", length=0)
    save_figure(figure, path)
