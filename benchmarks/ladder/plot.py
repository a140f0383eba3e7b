"""The ladder as a picture: of each rung average precision, time of training and time of a test image, beside each other."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ladder.results import Results, average_precision, seconds_of
from benchmarks.ladder.testing import STAGES
from sppnet.visualize.plots import new_figure, save_figure

# Of Okabe and Ito.
FAMILIES = {"rcnn": "#D55E00", "spp1": "#0072B2", "spp5": "#56B4E9", "e2e": "#009E73"}
STAGE_COLOURS = ("#999999", "#0072B2", "#56B4E9", "#E69F00", "#CC79A7")
STAGE_NAMES = ("proposals", "conv", "pooling", "fully connected", "nms")  # as they are called in the table


def plot_ladder(results: Results, path: Path) -> None:
    """Draw the ladder, top rung first as in the table; the points are the seeds.

    Args:
        results: at least one.
        path: .png, .jpg, .pdf or .svg.

    Raises:
        ValueError: no results.
        UserError: another ending, or a place that cannot be written to.
    """
    if not results:
        raise ValueError("no results to plot: expected at least one rung")
    names = list(results)
    rows = range(len(names))
    figure = new_figure(12.0, 0.34 * len(names) + 1.6)
    accuracy, training, test = figure.subplots(1, 3, sharey=True, width_ratios=(4, 3, 3))
    for row, name in zip(rows, names, strict=True):
        spread, colour = average_precision(results[name]), FAMILIES[name.partition("-")[0]]
        accuracy.barh(row, spread.mean, color=colour, alpha=0.55, height=0.66)
        accuracy.plot(spread.values, [row] * len(spread.values), "o", color="0.15", markersize=3.5)
        accuracy.annotate(
            spread.text(), (max(spread.values), row), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
        training.barh(row, sum(seconds_of(results[name], "train_seconds").values()) / 60, color=colour, height=0.66)
        left = 0.0
        seconds = seconds_of(results[name], "test_seconds", STAGES)
        for stage, of_stage in zip(STAGES, STAGE_COLOURS, strict=True):
            test.barh(row, seconds[stage], left=left, color=of_stage, height=0.66)
            left += seconds[stage]
        test.annotate(f"{left:.2g}", (left, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    accuracy.set_yticks(rows, names, fontsize=9)
    accuracy.invert_yaxis()
    accuracy.set_xlabel("mAP, % (VOC 2007)", fontsize=9)
    training.set_xlabel("training, minutes", fontsize=9)
    test.set_xlabel("test, seconds an image", fontsize=9)
    for axes in (accuracy, training, test):
        axes.set_xlim(0, 1.22 * max(axes.get_xlim()[1], 1e-9))
        axes.tick_params(labelsize=8, length=2)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.tick_params(axis="y", labelsize=9)
    handles = [test.barh(0, 0, color=colour) for colour in STAGE_COLOURS]
    figure.legend(handles, STAGE_NAMES, loc="outside upper right", ncols=len(STAGES), fontsize=8, frameon=False)
    save_figure(figure, path)
