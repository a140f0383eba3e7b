"""The results of a folder: of each rung its seeds' figures, and what one rung gains over another, seed by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ladder.rungs import NAMES
from sppnet.errors import UserError

Results = dict[str, dict[int, dict[str, Any]]]  # by rung, in the ladder's order, and seed


def read_results(output: Path) -> Results:
    """All results of a folder.

    Raises:
        UserError: a file that is none; it is named.
    """
    found: Results = {name: {} for name in NAMES}
    for path in sorted(output.glob("*-seed*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found[result["rung"]][int(result["seed"])] = result
        except (ValueError, KeyError, TypeError) as error:
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
    return Spread(tuple(_map(result, rule) for result in of_seeds.values()))


def without_localisation(of_seeds: Mapping[int, Mapping[str, Any]]) -> Spread:
    """Of a rung, in percent, the area average precision if no detection were badly placed (`sppnet.metrics.errors`)."""
    values = [result["errors"]["total"]["ap_without"]["localisation"] for result in of_seeds.values()]
    return Spread(tuple(math.nan if value is None else 100 * value for value in values))


def gain(results: Results, rung: str, other: str, rule: str = "voc07") -> Spread:
    """What a rung's average precision is more than another's, in points, of each seed that both have.

    Example:
        >>> one = {"map": {"voc07": 0.25, "area": 0.25}}
        >>> two = {"map": {"voc07": 0.5, "area": 0.25}}
        >>> gain({"rcnn": {0: one}, "rcnn-ridge": {0: two, 1: two}}, "rcnn-ridge", "rcnn").values
        (25.0,)
    """
    of_rung, of_other = results.get(rung, {}), results.get(other, {})
    both = [seed for seed in of_rung if seed in of_other]
    return Spread(tuple(_map(of_rung[seed], rule) - _map(of_other[seed], rule) for seed in both))


def verdict(spread: Spread) -> str:
    """Whether seeds tell a difference from none.

    Example:
        >>> verdict(Spread((1.0, 1.1, 1.2))), verdict(Spread((-1.0, 1.0))), verdict(Spread((1.0,)))
        ('more', 'not told apart', 'one seed')
    """
    if not spread.values:
        return "not run"
    if len(spread.values) < 2:
        return "one seed"
    low, high = spread.interval
    return "more" if low > 0 else "less" if high < 0 else "not told apart"


def seconds_of(of_seeds: Mapping[int, Mapping[str, Any]], what: str, stages: Sequence[str] = ()) -> dict[str, float]:
    """Means over seeds of "train_seconds" or "test_seconds", by stage: these, or all that there are."""
    found = [result[what] for result in of_seeds.values()]
    names = stages or list(dict.fromkeys(stage for each in found for stage in each))
    return {stage: statistics.fmean(each.get(stage, 0.0) for each in found) for stage in names}


def bytes_of(of_seeds: Mapping[int, Mapping[str, Any]]) -> float:
    """On disk, mean over seeds."""
    return statistics.fmean(sum(result["bytes"].values()) for result in of_seeds.values())


def _map(result: Mapping[str, Any], rule: str) -> float:
    value = result["map"][rule]
    return math.nan if value is None else 100 * float(value)
