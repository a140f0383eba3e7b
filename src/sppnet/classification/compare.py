"""Which way of feeding a network serves *these* images: squashed, cropped or padded to a square, or each at its own shape?

The same backbone, frozen, sees every image in each of the four ways (`sppnet.data.fit`), with the same mean number of pixels:
squares of one side, and images at their own shape with a short side that makes their mean area that of the squares. What the
pyramid pools is made length 1, and one linear SVM a class learns from it, at one cost for all. All four learn from the same
images and answer about the same others (`sppnet.classification.cross_validation`).

    images -> four times features [N, D] -> products [N, N] -> for each fold an accuracy -> means, differences, intervals

Source of the question: arXiv:1406.4729, figure 1 and section 3.3 (Caltech-101: warped 89.91, full image 91.44).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sppnet.classification.cross_validation import fold_accuracies, mean_interval, stratified_folds
from sppnet.classification.features import LARGEST_ASPECT, image_features
from sppnet.classification.readable import readable_images
from sppnet.data.fit import FITS, fitted_size
from sppnet.data.labelled import LabelledImages
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet

Report = Callable[[str, int, int], None]  # stage, done, total
DECIMALS = 4  # of accuracies


@dataclass(frozen=True, eq=False)
class FitResult:
    """How one way of feeding did."""

    fit: str
    short_side: int  # pixels; of the squares, their side
    pixels: float  # of an image, on average
    accuracies: npt.NDArray[np.float64]  # [J], one for each fold of each repetition
    interval: tuple[float, float]  # 95 %, of ``accuracy``

    @property
    def accuracy(self) -> float:
        """The mean over all folds."""
        return float(self.accuracies.mean())


class Difference(NamedTuple):
    """By how much one way is more accurate than another, fold by fold."""

    first: str
    second: str
    mean: float  # accuracy of the first minus that of the second
    interval: tuple[float, float]  # 95 %, for all pairs together: the chance that any of them misses is 5 %

    @property
    def shown(self) -> bool:
        """Whether there is a difference beyond chance."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The four ways of feeding side by side."""

    fits: tuple[FitResult, ...]
    differences: tuple[Difference, ...]  # of all pairs, the better one first
    images: int
    classes: int
    folds: int
    repeats: int
    left_out: int  # images beyond the most that are used, drawn at random
    broken: tuple[tuple[Path, str], ...]  # files that cannot be read, and why

    def difference(self, first: str, second: str) -> Difference:
        """The difference between two ways, in this order.

        Raises:
            ValueError: a way that was not compared, or twice the same.
        """
        for each in self.differences:
            if (each.first, each.second) == (first, second):
                return each
            if (each.second, each.first) == (first, second):
                return Difference(first, second, -each.mean, (-each.interval[1], -each.interval[0]))
        raise ValueError(f"expected two of {', '.join(result.fit for result in self.fits)}: got {first}, {second}")

    @property
    def best(self) -> FitResult:
        """The one with the highest accuracy; of equals, the first."""
        return max(self.fits, key=lambda result: result.accuracy)

    @property
    def advice(self) -> str:
        """One sentence that says what to use, or that no difference is shown."""
        best = self.best.fit
        others = [self.difference(best, result.fit) for result in self.fits if result.fit != best]
        level = [
            result.fit for result in self.fits if result.fit == best or not self.difference(best, result.fit).shown
        ]
        finest = max(each.interval[1] - each.mean for each in self.differences)
        limits = f"{self.images} images show differences from about {100 * finest:.1f} points on"
        beaten = _listed([f"{each.second} (by {100 * each.mean:.1f} points)" for each in others if each.shown])
        if not beaten:
            return (
                f"No difference between {_listed(level)} is shown ({limits}): "
                "use native, which loses nothing of an image, or whichever is handiest."
            )
        if level == [best]:
            return f"Use {best}: it is better than {beaten}."
        return (
            f"Use {_listed(level, 'or')}, between which no difference is shown ({limits}); "
            f"{best} is better than {beaten}."
        )

    def table(self) -> str:
        """A table for people: a line for each way, with its difference from native."""
        lines = [f"{'fit':8}  accuracy  95 % interval  pixels  than native (95 %, all pairs)"]
        for result in self.fits:
            low, high = result.interval
            line = (
                f"{result.fit:8}  {100 * result.accuracy:6.1f} %  {100 * low:5.1f} to {100 * high:5.1f}"
                f"  {result.pixels:6.0f}"
            )
            if result.fit != "native":
                each = self.difference(result.fit, "native")
                low, high = each.interval
                gain = round(100 * each.mean, 1) + 0.0  # not "-0.0", where there is none
                line += f"  {gain:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            lines.append(line)
        drawn = f", drawn at random from {self.images + self.left_out}" if self.left_out else ""
        lines.append(
            f"\n{self.images} images{drawn}, of {self.classes} classes; {self.folds} folds, {self.repeats} times over"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``.

        Returns:
            ``{"fits": {name: {"accuracy", "interval", "short_side", "pixels"}}, "differences": [{"first", "second", "mean",
            "interval", "shown"}], "advice", "images", "classes", "folds", "repeats", "left_out", "broken": [{"path",
            "error"}]}``; accuracies are shares, 0 to 1.
        """
        return {
            "fits": {
                result.fit: {
                    "accuracy": round(result.accuracy, DECIMALS),
                    "interval": [round(end, DECIMALS) for end in result.interval],
                    "short_side": result.short_side,
                    "pixels": round(result.pixels),
                }
                for result in self.fits
            },
            "differences": [
                {
                    "first": each.first,
                    "second": each.second,
                    "mean": round(each.mean, DECIMALS),
                    "interval": [round(end, DECIMALS) for end in each.interval],
                    "shown": each.shown,
                }
                for each in self.differences
            ],
            "advice": self.advice,
            "images": self.images,
            "classes": self.classes,
            "folds": self.folds,
            "repeats": self.repeats,
            "left_out": self.left_out,
            "broken": [{"path": str(path), "error": error} for path, error in self.broken],
        }


def compare_fits(
    images: LabelledImages,
    model: SPPNet,
    *,
    side: int = 224,
    folds: int = 5,
    repeats: int = 3,
    at_most: int = 2000,
    seed: int = 0,
    skip_bad: bool = False,
    cache: Path | None = None,
    report: Report | None = None,
) -> Comparison:
    """Compare squash, crop, pad and native on someone's own images.

    Args:
        images: of at least two classes, with at least two images of each.
        model: whose backbone, pyramid levels and normalisation of pixels are used; its own head and sizes are not.
        side: of the squares, in pixels, at least the model's smallest. Native images have as many pixels on average.
        folds: parts that the images are dealt into, at least 2; each is answered about by what was learned from the others.
        repeats: how often that is done, with other folds.
        at_most: of more images, about so many are drawn at random, of each class its share, but two at least. Memory grows
            with its square: 4 bytes for each pair of images.
        seed: of the draw and of the folds, 0 or more.
        skip_bad: leave out files that cannot be read, and list them.
        cache: a folder that keeps the pooled maps, for another comparison or after an interruption.
        report: told of the progress: stage, done, total.

    Returns:
        `Comparison`, in the order of `FITS`. The same images, settings and seed give the same.

    Raises:
        UserError: fewer than two classes, or a class with one image; files that cannot be read, by name; too few images
            for the folds; a side that the backbone cannot take.
        ValueError: other numbers out of range.
    """
    if folds < 2 or repeats < 1 or at_most < 2 * folds or seed < 0:
        raise ValueError(
            f"compare_fits: expected folds >= 2, repeats >= 1, at_most >= {2 * folds}, seed >= 0; "
            f"got {folds}, {repeats}, {at_most}, {seed}"
        )
    if side < model.smallest_side:
        raise UserError(f"the side must be at least {model.smallest_side} pixels with this backbone: got {side}")
    few = [name for name, count in zip(images.class_names, images.counts(), strict=True) if count == 1]
    if few:
        raise UserError(f"expected at least two images of every class, got one of {_listed(few[:5])}")
    given = len(images)
    if given > at_most:
        images = _drawn(images, at_most / given, seed)
    left_out = given - len(images)
    readable = readable_images(images, skip_bad=skip_bad, report=report)
    images = readable.images
    classes = int((images.counts() > 0).sum())
    if classes < 2 or len(images) < 2 * folds:
        raise UserError(
            f"too little to compare on: {len(images)} images of {classes} classes; expected two classes or more, and "
            f"{2 * folds} images or more, for {folds} folds"
        )
    assignments = [
        stratified_folds(images.labels, folds, np.random.default_rng([seed, turn])) for turn in range(repeats)
    ]
    sizes = [(int(height), int(width)) for height, width in readable.sizes]
    results = []
    for fit in FITS:
        short = native_short_side(sizes, side, model.smallest_side) if fit == "native" else side
        features = image_features(
            images.paths,
            model,
            levels=model.architecture.levels,
            fit=fit,
            short_side=short,
            cache=cache,
            progress=partial(report, f"features, {fit}") if report else None,
        )
        (vectors,) = features.values()
        accuracies = fold_accuracies(
            vectors @ vectors.T,
            images.labels,
            assignments,
            progress=partial(report, f"folds, {fit}") if report else None,
        )
        low, high = mean_interval(accuracies, folds)
        pixels = _mean_area(sizes, fit, short, model.smallest_side)
        results.append(FitResult(fit, short, pixels, accuracies, (max(0.0, low), min(1.0, high))))
    return Comparison(
        fits=tuple(results),
        differences=_differences(results, folds),
        images=len(images),
        classes=classes,
        folds=folds,
        repeats=repeats,
        left_out=left_out,
        broken=readable.broken,
    )


def native_short_side(sizes: Sequence[tuple[int, int]], side: int, minimum: int = 1) -> int:
    """The short side at which images at their own shape have as many pixels, on average, as squares of ``side``.

    Args:
        sizes: (height, width) of each image, in pixels; at least one.
        side: of the squares, at least 1.
        minimum: no side of a native image becomes shorter.

    Returns:
        Pixels, at least 1: the one that comes nearest.

    Example:
        >>> native_short_side([(375, 500), (500, 375)], 224)
        194
    """
    low, high = 0, 1  # areas grow with the short side: too small, too large
    while _mean_area(sizes, "native", high, minimum) <= side * side:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _mean_area(sizes, "native", middle, minimum) <= side * side else (low, middle)
    candidates = [short for short in (low, high) if short >= 1]
    return min(candidates, key=lambda short: abs(_mean_area(sizes, "native", short, minimum) - side * side))


def _drawn(images: LabelledImages, share: float, seed: int) -> LabelledImages:
    """Some of the images: of each class its share, and two at least."""
    rng = np.random.default_rng(seed)
    of_class = [rng.permutation(np.flatnonzero(images.labels == label)) for label in range(len(images.class_names))]
    return images.subset(np.sort(np.concatenate([each[: max(2, round(share * len(each)))] for each in of_class])))


def _mean_area(sizes: Sequence[tuple[int, int]], fit: str, short_side: int, minimum: int) -> float:
    """Pixels of an image, on average, as `sppnet.classification.features` shows them to a backbone."""
    long_side = max(LARGEST_ASPECT * short_side, minimum)
    return float(np.mean([np.prod(fitted_size(size, fit, short_side, long_side, minimum)) for size in sizes]))


def _differences(results: Sequence[FitResult], folds: int) -> tuple[Difference, ...]:
    pairs = list(combinations(results, 2))
    differences = []
    for first, second in pairs:
        better, worse = (first, second) if first.accuracy >= second.accuracy else (second, first)
        gains = better.accuracies - worse.accuracies
        interval = mean_interval(gains, folds, pairs=len(pairs))
        differences.append(Difference(better.fit, worse.fit, float(gains.mean()), interval))
    return tuple(differences)


def _listed(words: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
