"""What a detector gets wrong, as a picture: a bar for each class, of its surest detections, and one of the objects it missed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sppnet.visualize.canvas import new_figure, save_figure

MOST_CLASSES = 60  # of more, those with the most objects
PARTS = (
    ("correct", "correct", "#009E73"),
    ("localisation", "localisation", "#56B4E9"),
    ("other_class", "other class", "#E69F00"),
    ("background", "background", "#D55E00"),
)
MISSED = "#555555"


class ClassErrors(Protocol):
    """What a bar is drawn from; `sppnet.metrics.errors.ClassErrors` is one."""

    @property
    def name(self) -> str: ...
    @property
    def n_objects(self) -> int: ...
    @property
    def correct(self) -> int: ...
    @property
    def localisation(self) -> int: ...
    @property
    def other_class(self) -> int: ...
    @property
    def background(self) -> int: ...
    @property
    def missed(self) -> int: ...
    @property
    def ap(self) -> float: ...
    @property
    def ap_without(self) -> Mapping[str, float]: ...


class Errors(Protocol):
    """What the picture is drawn from; `sppnet.metrics.errors.DetectionErrors` is one."""

    @property
    def classes(self) -> Sequence[ClassErrors]: ...
    @property
    def iou(self) -> float: ...
    def total(self) -> ClassErrors: ...


def plot_errors(errors: Errors, path: str | Path) -> None:
    """Draw what a class's surest detections are, how many of its objects are missed, and what each kind of error costs.

    Left, class by class, best first, all together on top: of as many detections as there are objects, which share is correct and
    what is wrong with the others. Middle: the share of the objects that no detection finds. Right: by how much the mean average
    precision would be higher without each kind of error.

    Args:
        errors: a `sppnet.metrics.errors.DetectionErrors`.
        path: where to; .png, .jpg, .pdf or .svg. The file appears whole or not at all; missing folders are made.

    Raises:
        UserError: another ending, or a place that cannot be written to.

    Example:
        >>> import tempfile
        >>> from sppnet.metrics.errors import detection_errors
        >>> truth = ([[0, 0, 9, 9]], [1], [False])
        >>> target = Path(tempfile.mkdtemp()) / "errors.png"
        >>> plot_errors(detection_errors([([[0, 0, 9, 9]], [0.8], [1])], [truth], names=("cat",)), target)
        >>> target.exists()
        True
    """
    shown = sorted((row for row in errors.classes if row.n_objects), key=lambda row: -row.n_objects)[:MOST_CLASSES]
    total = errors.total()
    rows = [total, *sorted(shown, key=lambda row: -row.ap)]
    figure = new_figure(12.0, 1.6 + 0.26 * max(6, len(rows)))
    bars, missed, costs = figure.subplots(1, 3, width_ratios=(5, 2, 3))
    places = list(range(len(rows)))
    left = [0.0] * len(rows)
    for field, label, colour in PARTS:
        widths = [getattr(row, field) / max(1, _looked_at(row)) for row in rows]
        bars.barh(places, widths, left=left, color=colour, label=label, height=0.75)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    names = [f"{row.name}   {'-' if math.isnan(row.ap) else f'{row.ap:.2f}'}" for row in rows]
    bars.set(xlim=(0, 1), yticks=places, yticklabels=names, xlabel="of the surest detections, as many as objects")
    bars.legend(ncols=4, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    missed.barh(places, [row.missed / max(1, row.n_objects) for row in rows], color=MISSED, height=0.75)
    missed.set(xlim=(0, 1), yticks=[], xlabel="objects missed")
    for axes in (bars, missed):
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks((0, 0.5, 1), ("0", "50 %", "100 %"))
    kinds = list(total.ap_without)
    gains = [0.0 if math.isnan(total.ap) else total.ap_without[kind] - total.ap for kind in kinds]
    colours = {"missed": MISSED, **{label: colour for _, label, colour in PARTS}}
    costs.barh(range(len(kinds)), gains, color=[colours[kind] for kind in kinds], height=0.6)
    for place, gain in enumerate(gains):
        costs.text(gain, place, f" +{gain:.3f}", va="center", fontsize=9)
    costs.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="mean AP gained without them")
    costs.set_xlim(0, max(0.01, *gains) * 1.3)
    costs.set_ylim(len(kinds) - 0.5, -0.5)
    for axes in (bars, missed, costs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, length=2)
    figure.suptitle(
        f"mean AP {'-' if math.isnan(total.ap) else f'{total.ap:.3f}'} (area) at IoU {errors.iou:g}: kinds of error",
        fontsize=12,
    )
    save_figure(figure, path)


def _looked_at(row: ClassErrors) -> int:
    return row.correct + row.localisation + row.other_class + row.background
