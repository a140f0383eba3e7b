"""Which resize mode serves *these* images: warped, cropped or letterboxed to a square, or each at its own shape?

The same frozen backbone sees every image in each of the four modes (`sppnet.models.preprocess`), with the same mean number of pixels:
squares of one side, and images at their own shape with a short side that makes their mean area that of the squares. What the
pyramid pools is made length 1, and one linear SVM a class learns from it, at one cost for all. All four learn from the same
images and answer about the same others (`sppnet.linear.selection`).

    images -> four times features [N, D] -> products [N, N] -> for each fold an accuracy -> means, differences, intervals

Source of the question: arXiv:1406.4729, figure 1 and section 3.3 (Caltech-101: warped 89.91, full image 91.44).
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sppnet.cache import cache_directory
from sppnet.classification.features import LARGEST_ASPECT, pooled_features, readable_images
from sppnet.data.labelled import LabelledImages
from sppnet.errors import SettingsError
from sppnet.linear.selection import fold_accuracies, mean_interval, stratified_folds
from sppnet.metrics import rounded
from sppnet.models.backbones import LITE, build_backbone, check_not_random, pretrained_weights
from sppnet.models.precision import choose_device
from sppnet.models.preprocess import LONGEST_SIDE, RESIZE_MODES, Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model
from sppnet.progress import Progress, no_progress

OWN_SHAPE = "keep-aspect"  # the mode that the squares are compared with
LEVELS = (3, 2, 1)


@dataclass(frozen=True)
class CompareSettings:
    """How resize modes are compared.

    Args:
        backbone: the network before the pyramid: a name of this project, of torchvision or, if installed, of timm.
        weights: the backbone's: a file, or a name that torchvision or timm knows; left out: the pretrained ones.
        side: of the squares, in pixels; images at their own shape have as many pixels on average.
        folds: parts that the images are dealt into; each is asked about by what learned from the others.
        repeats: how often that is done, with other parts.
        limit: of more images, about so many are drawn at random, of each class its share, but two at least. Memory grows with its
            square: 4 bytes for each pair of images.
        seed: of the draw and of the folds.

    Raises:
        SettingsError: a setting out of its range.
    """

    backbone: str = LITE
    weights: str | None = None
    side: int = 224
    folds: int = 5
    repeats: int = 3
    limit: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("side", 1), ("folds", 2), ("repeats", 1), ("limit", 2 * self.folds), ("seed", 0)):
            if getattr(self, name) < least:
                of_folds = f" with {self.folds} folds" if name == "limit" else ""
                raise SettingsError(f"{name} must be at least {least}{of_folds}: got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class ModeResult:
    """How one resize mode did."""

    resize_mode: str
    short_side: int  # pixels; of the squares, their side
    pixels: float  # of an image, on average
    accuracies: npt.NDArray[np.float64]  # [J], one for each fold of each repetition
    interval: tuple[float, float]  # 95 %, of ``accuracy``

    @property
    def accuracy(self) -> float:
        """The mean over all folds."""
        return float(self.accuracies.mean())


class Difference(NamedTuple):
    """By how much one mode is more accurate than another, fold by fold."""

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
    """The four resize modes side by side."""

    modes: tuple[ModeResult, ...]
    settings: CompareSettings
    images: int
    classes: int
    left_out: int = 0  # images beyond the limit, drawn at random
    broken: tuple[tuple[Path, str], ...] = ()  # files that cannot be read, and why

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Of all pairs, the better one first."""
        ranked = [sorted(pair, key=lambda mode: -mode.accuracy) for pair in combinations(self.modes, 2)]
        return tuple(self.difference(better.resize_mode, worse.resize_mode) for better, worse in ranked)

    def difference(self, first: str, second: str) -> Difference:
        """The difference between two modes, in this order."""
        named = {result.resize_mode: result for result in self.modes}
        gains = named[first].accuracies - named[second].accuracies
        interval = mean_interval(gains, self.settings.folds, pairs=len(named) * (len(named) - 1) // 2)
        return Difference(first, second, float(gains.mean()), interval)

    @property
    def best(self) -> ModeResult:
        """The one with the highest accuracy; of equals, the first."""
        return max(self.modes, key=lambda result: result.accuracy)

    @property
    def advice(self) -> str:
        """One sentence that says what to use, or that no difference is shown."""
        best = self.best.resize_mode
        others = [self.difference(best, each.resize_mode) for each in self.modes if each.resize_mode != best]
        beaten = _listed([f"{each.second} (by {100 * each.mean:.1f} points)" for each in others if each.shown])
        worse = {each.second for each in others if each.shown}
        level = [each.resize_mode for each in self.modes if each.resize_mode not in worse]
        finest = max(each.interval[1] - each.mean for each in self.differences)
        limits = f"{self.images} images show differences from about {100 * finest:.1f} points on"
        if not beaten:
            use = f"use {OWN_SHAPE}, which loses nothing of an image, or whichever is handiest"
            return f"No difference between {_listed(level)} is shown ({limits}): {use}."
        if level == [best]:
            return f"Use {best}: it is better than {beaten}."
        level_with = f"{_listed(level, 'or')}, between which no difference is shown ({limits})"
        return f"Use {level_with}; {best} is better than {beaten}."

    def table(self) -> str:
        """A table for people: a line for each mode, with its difference from images at their own shape."""
        lines = [f"{'mode':11}  accuracy  95 % interval  pixels  than {OWN_SHAPE} (95 %, all pairs)"]
        for result in self.modes:
            low, high = result.interval
            share = f"{100 * result.accuracy:6.1f} %  {100 * low:5.1f} to {100 * high:5.1f}"
            line = f"{result.resize_mode:11}  {share}  {result.pixels:6.0f}"
            if result.resize_mode != OWN_SHAPE:
                each = self.difference(result.resize_mode, OWN_SHAPE)
                low, high = each.interval
                gain = round(100 * each.mean, 1) + 0.0  # not "-0.0", where there is none
                line += f"  {gain:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            lines.append(line)
        drawn = f", drawn at random from {self.images + self.left_out}" if self.left_out else ""
        folds = f"{self.settings.folds} folds, {self.settings.repeats} times over"
        return "\n".join([*lines, f"\n{self.images} images{drawn}, of {self.classes} classes; {folds}"])

    def plot(self, path: str | Path) -> None:
        """Draw accuracies and differences as a bar chart: .png, .jpg, .pdf or .svg."""
        from sppnet.visualize.plots import plot_comparison

        accuracies = {each.resize_mode: (each.accuracy, each.interval) for each in self.modes}
        gains = [self.difference(mode, OWN_SHAPE) for mode in accuracies if mode != OWN_SHAPE]
        differences = {each.first: (each.mean, each.interval) for each in gains}
        plot_comparison(accuracies, differences, path, reference=OWN_SHAPE, images=self.images, title=self.advice)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``.

        Returns:
            ``{"modes": {name: {"accuracy", "interval", "short_side", "pixels"}}, "differences": [{"first", "second", "mean",
            "interval", "shown"}], "advice", "images", "classes", "left_out", "broken": [{"path", "error"}]}`` and the settings;
            accuracies are shares, 0 to 1.
        """
        settings = {name: value for name, value in vars(self.settings).items() if name != "limit"}
        if self.settings.weights is not None:
            settings["weights"] = Path(self.settings.weights).name

        modes, differences = {}, []
        for mode in self.modes:
            interval = [rounded(end) for end in mode.interval]
            looked_at = {"short_side": mode.short_side, "pixels": round(mode.pixels)}
            modes[mode.resize_mode] = {"accuracy": rounded(mode.accuracy), "interval": interval, **looked_at}
        for each in self.differences:
            interval = [rounded(end) for end in each.interval]
            figures = {"mean": rounded(each.mean), "interval": interval}
            differences.append({**each._asdict(), **figures, "shown": each.shown})
        return {
            "modes": modes,
            "differences": differences,
            **{name: getattr(self, name) for name in ("advice", "images", "classes", "left_out")},
            "broken": [{"path": str(path), "error": error} for path, error in self.broken],
            **settings,
        }


def compare_resize_modes(
    images: LabelledImages,
    settings: CompareSettings = CompareSettings(),
    *,
    model: SPPNet | None = None,
    skip_bad: bool = False,
    cache: Path | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Comparison:
    """Compare warp, crop, letterbox and images at their own shape on someone's own images.

    Args:
        images: of at least two classes, with at least two images of each.
        settings: how.
        model: gives backbone, pyramid levels and the normalization of pixels, instead of those that the settings name; its own
            head and sizes are not used.
        skip_bad: leave out files that cannot be read, and list them.
        cache: a folder that keeps the pooled features, for another comparison or after an interruption.
        device: where to compute; "auto" takes a GPU if there is one. A model stays where it is.
        progress: told of "checking images", "features" and "folds", the latter two for each mode.

    Returns:
        `Comparison`, in the order of `RESIZE_MODES`. The same images, settings and seed give the same.

    Raises:
        SettingsError: fewer than two classes, a class with one image, too few images for the folds, a side that the backbone cannot
            take, or random weights.
        ImageError: files that cannot be read, by name.
    """
    few = [name for name, images_of in zip(images.class_names, images.counts(), strict=True) if images_of == 1]
    if few:
        raise SettingsError(f"expected at least two images of every class, got one of {_listed(few[:5])}")
    given, folds = len(images), settings.folds
    if given > settings.limit:
        images = _drawn(images, settings.limit / given, settings.seed)
    left_out = given - len(images)
    if model is None:
        weights = settings.weights or pretrained_weights(settings.backbone)
        check_not_random(settings.backbone, weights)
        layers = images.class_names, settings.backbone, LEVELS, ()
        architecture = Architecture(*layers, detects=False, multi_label=False, unit_length=True)
        model = build_model(architecture, backbone=build_backbone(settings.backbone, weights)).eval()
        model.to(choose_device(device))
    least = model.preprocess.smallest_side
    if settings.side < least:
        raise SettingsError(f"side must be at least {least} pixels with this backbone: got {settings.side}")
    readable = readable_images(images, skip_bad=skip_bad, progress=progress)
    images, sizes = readable.images, [(int(height), int(width)) for height, width in readable.sizes]
    classes = int((images.counts() > 0).sum())
    if classes < 2 or len(images) < 2 * folds:
        found, wanted = f"{len(images)} images of {classes} classes", f"{2 * folds} images or more, for {folds} folds"
        raise SettingsError(f"too little to compare on: {found}; expected two classes or more, and {wanted}")
    draws = [np.random.default_rng([settings.seed, turn]) for turn in range(settings.repeats)]
    assignments = [stratified_folds(images.labels, folds, draw) for draw in draws]
    results = []
    with cache_directory(cache) as folder:
        for mode in RESIZE_MODES:
            side = equal_short_side(sizes, settings.side, model.preprocess) if mode == OWN_SHAPE else settings.side
            resized = copy.copy(model)
            resized.preprocess = _preprocess(model.preprocess, side, mode)
            features = pooled_features(resized, images.paths, folder, progress=partial(_of_mode, progress, mode))
            rows = features.unit_rows()
            done = count(1)
            accuracies = fold_accuracies(
                rows @ rows.T, images.labels, assignments,
                progress=lambda mode=mode, done=done: progress(f"folds, {mode}", next(done), folds * settings.repeats),  # type: ignore[misc]
            )  # fmt: skip
            low, high = mean_interval(accuracies, folds)
            pixels = _mean_area(sizes, resized.preprocess)
            results.append(ModeResult(mode, side, pixels, accuracies, (max(0.0, low), min(1.0, high))))
    return Comparison(tuple(results), settings, len(images), classes, left_out, readable.broken)


def equal_short_side(sizes: Sequence[tuple[int, int]], side: int, preprocess: Preprocess = Preprocess()) -> int:
    """The short side at which images at their own shape have as many pixels, on average, as squares of ``side``.

    Args:
        sizes: (height, width) of each image, in pixels; at least one.
        side: of the squares, at least 1.
        preprocess: says how short a side may become.

    Returns:
        Pixels, at least 1: the one that comes nearest.

    Example:
        >>> equal_short_side([(375, 500), (500, 375)], 224)
        194
    """

    def area(short_side: int) -> float:
        return _mean_area(sizes, _preprocess(preprocess, short_side, OWN_SHAPE))

    shorts = range(1, LONGEST_SIDE // LARGEST_ASPECT)
    longest = bisect_right(shorts, float(side * side), key=area)  # areas grow with it: no more than a square's
    return min((max(1, longest), longest + 1), key=lambda short: abs(area(short) - side * side))


def _of_mode(progress: Progress, mode: str, stage: str, done: int, total: int) -> None:
    progress(f"{stage}, {mode}", done, total)


def _preprocess(preprocess: Preprocess, side: int, mode: str) -> Preprocess:
    longest = max(LARGEST_ASPECT * side, preprocess.smallest_side)
    return replace(preprocess, short_side=side, long_side=longest, resize_mode=mode, fixed_size=False)


def _mean_area(sizes: Sequence[tuple[int, int]], preprocess: Preprocess) -> float:
    """Pixels of an image, on average, as the backbone sees it."""
    return float(np.mean([np.prod(preprocess.input_size(size)) for size in sizes]))


def _drawn(images: LabelledImages, share: float, seed: int) -> LabelledImages:
    """Some of the images: of each class its share, and two at least."""
    rng = np.random.default_rng(seed)
    of_class = [rng.permutation(np.flatnonzero(images.labels == label)) for label in range(len(images.class_names))]
    return images.subset(np.sort(np.concatenate([each[: max(2, round(share * len(each)))] for each in of_class])))


def _listed(words: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
