"""The ladder for people: average precision by seed, what each rung gains, where the time goes; as Markdown and as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ladder.rungs import AGAINST, CLAIMS
from benchmarks.ladder.testing import STAGES
from benchmarks.results_file import read_results, write_text
from sppnet.errors import UserError
from sppnet.visualize.plots import new_figure, save_figure

Results = dict[str, dict[int, dict[str, Any]]]  # by rung, in the ladder's order, and seed

BEGIN, END = "<!-- table -->", "<!-- end of table -->"  # of a page that people wrote
# Of Okabe and Ito.
FAMILIES = {"rcnn": "#D55E00", "spp1": "#0072B2", "spp5": "#56B4E9", "e2e": "#009E73"}
STAGE_COLORS = ("#999999", "#0072B2", "#56B4E9", "#E69F00", "#CC79A7")
STAGE_NAMES = ("proposals", "conv", "pooling", "fully connected", "nms")  # of `STAGES`


def read_ladder(output: Path) -> Results:
    """All results of a folder.

    Raises:
        UserError: a file that is none; it is named.
    """
    order = [*AGAINST]
    order.insert(order.index("spp1-svm-network") + 1, order.pop())  # what is no longer trained stands where it stood
    found: Results = {name: {} for name in order}
    for path in sorted(output.glob("*-seed*.json")):
        try:
            result = read_results(path)
            found[result["rung"]][int(result["seed"])] = result
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a result of the ladder: remove it to have it made anew") from error
    return {name: dict(sorted(seeds.items())) for name, seeds in found.items() if seeds}


@dataclass(frozen=True)
class Spread:
    """Some figures: their mean, and how far they lie apart.

    Example:
        >>> Spread((1.0, 2.0, 3.0)).text()
        '2.0 ± 1.0'
        >>> Spread((1.0,)).text()
        '1.0'
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The sample's standard deviation; NaN of a single figure."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean of many more seeds would lie, 95 % (Student's t); without end for a single figure."""
        if len(self.values) < 2:
            return -math.inf, math.inf
        from scipy.stats import t

        reach = float(t.ppf(0.975, len(self.values) - 1)) * self.deviation / math.sqrt(len(self.values))
        return self.mean - reach, self.mean + reach

    def text(self, *, signed: bool = False) -> str:
        """With one decimal; "-" where there is nothing."""
        if not self.values:
            return "-"
        mean = f"{self.mean:+.1f}" if signed else f"{self.mean:.1f}"
        return mean if math.isnan(self.deviation) else f"{mean} ± {self.deviation:.1f}"


def average_precision(of_seeds: Mapping[int, Mapping[str, Any]], rule: str = "voc07") -> Spread:
    """Of a rung, in percent, by "voc07" or "area"."""
    return Spread(tuple(_percent(result["map"][rule]) for result in of_seeds.values()))


def gain(results: Results, rung: str, other: str, rule: str = "voc07") -> Spread:
    """What a rung's average precision is more than another's, in points, of each seed that both have.

    Example:
        >>> one = {"map": {"voc07": 0.25, "area": 0.25}}
        >>> two = {"map": {"voc07": 0.5, "area": 0.25}}
        >>> gain({"rcnn": {0: one}, "rcnn-ridge": {0: two, 1: two}}, "rcnn-ridge", "rcnn").values
        (25.0,)
    """
    of_rung, of_other = results.get(rung, {}), results.get(other, {})
    both = [(of_rung[seed]["map"][rule], of_other[seed]["map"][rule]) for seed in of_rung if seed in of_other]
    return Spread(tuple(_percent(ours) - _percent(theirs) for ours, theirs in both))


def verdict(spread: Spread) -> str:
    """Whether seeds tell a difference from none.

    Example:
        >>> verdict(Spread((1.0, 1.1, 1.2))), verdict(Spread((-1.0, 1.0))), verdict(Spread((1.0,)))
        ('more', 'not told apart', 'one seed')
    """
    if len(spread.values) < 2:
        return "one seed" if spread.values else "not run"
    low, high = spread.interval
    return "more" if low > 0 else "less" if high < 0 else "not told apart"


def seconds_of(of_seeds: Mapping[int, Mapping[str, Any]], what: str, stages: Sequence[str] = ()) -> dict[str, float]:
    """Means over seeds of "train_seconds" or "test_seconds", by stage: these, or all that there are."""
    found = [result[what] for result in of_seeds.values()]
    names = stages or list(dict.fromkeys(stage for each in found for stage in each))
    return {stage: statistics.fmean(each.get(stage, 0.0) for each in found) for stage in names}


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * float(value)


# As Markdown


def ladder_text(results: Results) -> str:
    """All tables, and what they were measured on; without results, a word on that."""
    if not results:
        return "No results yet."
    parts = [_accuracy(results), "**What it costs**", _costs(results)]
    claims = claims_table(results)
    if claims:
        parts += ["**The papers' claims, asked again**", claims]
    return "\n\n".join([*parts, _circumstances(results)])


def claims_table(results: Results) -> str:
    """A row for each claim that the results have both sides of, as Markdown; empty where there is none."""
    rows = [
        "| claim | rungs | the paper's mAP | here, points | seeds | told apart from none |",
        "|---|---|---|--:|--:|---|",
    ]
    for claim in CLAIMS:
        spread = gain(results, claim.rung, claim.other)
        if spread.values:
            paper = f"{claim.paper} ({claim.source})" if claim.paper else "not reported"
            rows.append(
                f"| {claim.text} | {claim.rung} - {claim.other} | {paper} | {spread.text(signed=True)} | "
                f"{len(spread.values)} | {verdict(spread)} |"
            )
    return "\n".join(rows) if len(rows) > 2 else ""


def _accuracy(results: Results) -> str:
    rows = [
        "| rung | | mAP (VOC 2007) | of each seed | mAP (area) | none badly placed | gain, points | over |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for name, of_seeds in results.items():
        each = ", ".join(f"{value:.1f}" for value in average_precision(of_seeds).values)
        spread = gain(results, name, AGAINST[name])
        without = [result["errors"]["total"]["ap_without"]["localisation"] for result in of_seeds.values()]
        rows.append(
            f"| {name} | {next(iter(of_seeds.values()))['title']} | **{average_precision(of_seeds).text()}** | {each} | "
            f"{average_precision(of_seeds, 'area').text()} | {Spread(tuple(map(_percent, without))).text()} | "
            f"{spread.text(signed=True)} | {AGAINST[name] if spread.values else ''} |"
        )
    return "\n".join(rows)


def _costs(results: Results) -> str:
    rows = [
        f"| rung | training, min | of which | test, s an image | {' | '.join(STAGE_NAMES)} | disk, GB |",
        f"|---|--:|---|--:|{'--:|' * len(STAGES)}--:|",
    ]
    for name, of_seeds in results.items():
        train, test = seconds_of(of_seeds, "train_seconds"), seconds_of(of_seeds, "test_seconds", STAGES)
        most = sorted((stage for stage in train if train[stage] >= 1), key=lambda stage: -train[stage])
        where = ", ".join(f"{stage} {train[stage] / 60:.1f}" for stage in most)
        figures = " | ".join(f"{test[stage]:.3f}" for stage in STAGES)
        disk = statistics.fmean(sum(result["bytes"].values()) for result in of_seeds.values())
        rows.append(
            f"| {name} | {sum(train.values()) / 60:.1f} | {where} | {sum(test.values()):.3f} | {figures} | {disk / 1e9:.2f} |"
        )
    return "\n".join(rows)


def _circumstances(results: Results) -> str:
    every = [result for of_seeds in results.values() for result in of_seeds.values()]
    settings: dict[str, Any] = every[0]["settings"]
    method, flip = (
        settings.get(new, settings.get(old)) for new, old in (("proposals", "proposer"), ("flip", "mirrored"))
    )
    seeds = sorted({seed for of_seeds in results.values() for seed in of_seeds})
    loads = [result["environment"]["load before"] for result in every]
    weights = settings["weights"] or "pretrained"
    lines = [
        "mAP in percent, mean ± standard deviation over seeds; a gain is that of each seed by itself, then mean and deviation, so what "
        "all rungs of a seed share does not blur it. *Told apart*: by a 95 % interval of the mean over seeds (Student's t), which "
        "says nothing of other test images. *None badly placed*: the area under the curve without detections whose only fault is "
        "an overlap of .1 to .5, or a second answer to one object.",
        "Training: the work of every step that a rung builds on, proposals and maps included (told from a sample of images), also where "
        "another rung had paid for it. Test: one image after another; decoding is left out. *conv*: SPP-net resizes and convolves "
        "the image, R-CNN cuts out, warps and convolves windows. Disk: all that these steps left, checkpoints included.",
        f"{every[0]['train_images']} images of {settings['train_split']!r} to learn from, {every[0]['images']} of "
        f"{settings['test_split']!r} to test on, seeds {', '.join(map(str, seeds))}; {settings['backbone']}, weights {weights}; levels "
        f"{tuple(settings['levels'])}, fully connected {tuple(settings['hidden'])}; short side {settings['short_side']} px or "
        f"{settings['scales']} px; {method}; {settings['steps']} steps of fine-tuning, "
        f"{'with' if flip else 'without'} mirror images, {settings['epochs']} epochs end to end.",
        *sorted({result["environment"]["text"] + "." for result in every}),
        f"Load of the machine when the tests began: {min(loads):.1f} to {max(loads):.1f}, {statistics.median(loads):.1f} in the middle.",
    ]
    return "\n\n".join(lines)


def filled(page: str, text: str) -> str:
    """The page with this text between its markers, in place of what was there.

    Raises:
        ValueError: not both markers once, in this order.

    Example:
        >>> filled("Before <!-- table -->old<!-- end of table --> after", "new")
        'Before <!-- table -->\\n\\nnew\\n\\n<!-- end of table --> after'
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"expected {BEGIN} and, after it, {END}, each once")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def fill_page(path: Path, text: str | None) -> None:
    """Fill in a page that people wrote; without a text, only look whether it has room for one.

    Raises:
        UserError: no such page, or one without the markers.
    """
    try:
        page = filled(path.read_text(encoding="utf-8"), text or "")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such page; expected one with {BEGIN} and, after it, {END}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if text is not None:
        write_text(path, page)


# As a picture


def plot_ladder(results: Results, path: Path) -> None:
    """Draw the ladder, top rung first as in the table; the points are the seeds.

    Args:
        results: at least one.
        path: .png, .jpg, .pdf or .svg.

    Raises:
        UserError: another ending, or a place that cannot be written to.
    """
    names = list(results)
    rows = range(len(names))
    figure = new_figure(12.0, 0.34 * len(names) + 1.6)
    accuracy, training, test = figure.subplots(1, 3, sharey=True, width_ratios=(4, 3, 3))
    for row, name in zip(rows, names, strict=True):
        spread, color = average_precision(results[name]), FAMILIES[name.partition("-")[0]]
        accuracy.barh(row, spread.mean, color=color, alpha=0.55, height=0.66)
        accuracy.plot(spread.values, [row] * len(spread.values), "o", color="0.15", markersize=3.5)
        above = (max(spread.values), row)
        accuracy.annotate(spread.text(), above, (6, 0), textcoords="offset points", va="center", fontsize=8)
        training.barh(row, sum(seconds_of(results[name], "train_seconds").values()) / 60, color=color, height=0.66)
        left = 0.0
        for seconds, of_stage in zip(
            seconds_of(results[name], "test_seconds", STAGES).values(), STAGE_COLORS, strict=True
        ):
            test.barh(row, seconds, left=left, color=of_stage, height=0.66)
            left += seconds
        test.annotate(f"{left:.2g}", (left, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    accuracy.set_yticks(rows, names, fontsize=9)
    accuracy.invert_yaxis()
    labels = ("mAP, % (VOC 2007)", "training, minutes", "test, seconds an image")
    for axes, label in zip((accuracy, training, test), labels, strict=True):
        axes.set_xlabel(label, fontsize=9)
        axes.set_xlim(0, 1.22 * max(axes.get_xlim()[1], 1e-9))
        axes.tick_params(labelsize=8, length=2)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [test.barh(0, 0, color=color) for color in STAGE_COLORS]
    figure.legend(handles, STAGE_NAMES, loc="outside upper right", ncols=len(STAGES), fontsize=8, frameon=False)
    save_figure(figure, path)
