"""Caltech-101, layer by layer: linear SVMs on pooled maps; crop against warp against full image, pyramid against one level.

    uv run python -m benchmarks.caltech101 --data ../shared/data/caltech101 --backbone mobilenet_v2 --weights FILE \\
        --layers 6 10 13 16 17 18 --json benchmarks/results/caltech101.json --markdown docs/caltech101.md --cache FOLDER
    uv run python -m benchmarks.caltech101 ... --fits native --short-sides 224 320 --mirrored --reduce max+mean --layers 18

The protocol of arXiv:1406.4729, section 3.3: 30 images a class to train, at most 50 of the rest to test, drawn anew for each
split; l2-normalised features, one linear SVM a class; the mean of the classes' accuracies. The folder may hold the images
as train/CLASS and test/CLASS: they are put together first. C is chosen anew for every split and row, on a third of the
split's training images. Every call adds its rows to the JSON file, as each is done, and makes the page from all of it; a
row that is there is not computed again, nor are maps that are in the cache: kill it, and start it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix
from torch import nn

from benchmarks.environment import environment
from benchmarks.image_features import (
    Look,
    Pooling,
    choose_cost,
    fill_features,
    layer_names,
    pooled_features,
    take_levels,
    to_vectors,
    unit_length,
)
from benchmarks.results_file import read_results, write_results, write_text
from sppnet.classification.evaluate import class_accuracies
from sppnet.data.formats.folder import read, split_parts
from sppnet.data.labelled import LabelledImages, shuffled_classes
from sppnet.errors import UserError
from sppnet.linear.svm import label_targets, solve_gram
from sppnet.models.backbones import RANDOM, build_backbone

TRAIN, TEST_AT_MOST = 30, 50  # images a class
ALL_LEVELS = ((1,), (2, 1), (3, 2, 1), (6, 3, 2, 1))
STORED = {"max": Pooling((6, 3, 2, 1), "max"), "mean": Pooling((2, 1), "mean")}  # what one pass over an image keeps
COSTS = (0.3, 1.0, 3.0, 10.0)
FIT_NAMES = {"native": "full", "crop": "crop", "squash": "warp", "pad": "pad"}  # as the paper calls them


@dataclass(frozen=True)
class Setting:
    """One row of the table: which features."""

    backbone: str
    layer: str
    levels: tuple[int, ...]
    fit: str
    short_sides: tuple[int, ...]
    mirrored: bool
    reduce: str
    power: float
    normalise: str

    def looks(self) -> list[Look]:
        return [
            Look(self.fit, side, turned) for side in self.short_sides for turned in (False, True)[: 1 + self.mirrored]
        ]

    def label(self) -> str:
        """All of it on one line, which is also its name in the JSON file."""
        extras = [", mirrored too"] if self.mirrored else []
        extras += [f", {self.reduce}"] if self.reduce != "max" else []
        extras += [f", power {self.power:g}"] if self.power != 1 else []
        extras += [f", normalised by {self.normalise}"] if self.normalise != "whole" else []
        sides = "+".join(map(str, self.short_sides))
        levels = ",".join(map(str, self.levels))
        return f"{self.backbone} layer {self.layer} ({levels}) {FIT_NAMES[self.fit]} {sides}{''.join(extras)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks of features take."""
    parser.add_argument("--backbone", default="mobilenet_v2", help="efficientnet_lite0, or a torchvision model")
    parser.add_argument("--weights", help="a name that torchvision knows, or a file; random weights without it")
    parser.add_argument("--layers", nargs="+", help="names of modules; the last alone if not given")
    parser.add_argument("--levels", nargs="+", default=["1", "2,1", "3,2,1", "6,3,2,1"], help="such as 1 2,1")
    parser.add_argument("--fits", nargs="+", default=["crop", "squash", "native"], choices=list(FIT_NAMES))
    parser.add_argument("--short-sides", type=int, nargs="+", default=[224], help="of several, features are averaged")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image's features")
    parser.add_argument("--reduce", nargs="+", default=["max"], choices=["max", "mean", "max+mean"])
    parser.add_argument("--power", type=float, nargs="+", default=[1.0], help="of each value, before the normalisation")
    parser.add_argument("--normalise", nargs="+", default=["whole"], choices=["whole", "level"])
    parser.add_argument("--costs", type=float, nargs="+", default=list(COSTS), help="of the SVMs, to choose from")
    parser.add_argument("--cache", type=Path, required=True, help="a folder for pooled maps")
    parser.add_argument("--limit", type=int, help="only so many classes, or images: to try it out")
    parser.add_argument("--json", type=Path, required=True, help="add the results to this file")
    parser.add_argument("--markdown", type=Path, help="write the page and its plot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of class folders, or of train and test")
    parser.add_argument("--splits", type=int, default=5, help="how many random splits; each has its number as its seed")
    add_arguments(parser)
    arguments = parser.parse_args()
    images = read(arguments.data)
    if "test" in split_parts(arguments.data):
        images = merged(images, read(arguments.data, "test"))
    if arguments.limit:
        images = images.subset(np.flatnonzero(images.labels < arguments.limit))
        images = replace(images, class_names=images.class_names[: arguments.limit])
    splits = [_indices(images, seed) for seed in range(arguments.splits)]
    known = read_results(arguments.json)
    backbone = build_backbone(arguments.backbone, arguments.weights or RANDOM)

    def measure(gram: np.ndarray) -> dict[str, Any]:
        return accuracy_of_splits(gram, images, splits, arguments.costs)

    run_rows(
        images.paths,
        backbone,
        arguments,
        known,
        measure,
        f"{arguments.splits} splits, {len(images.class_names)} classes",
    )
    if arguments.markdown:
        write_page(arguments.markdown, page(known), known, "accuracy", "mean accuracy of the classes")


def merged(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """Two parts of one set as one, to draw other splits from the whole."""
    return LabelledImages(first.paths + second.paths, np.concatenate([first.labels, second.labels]), first.class_names)


def per_class(
    images: LabelledImages, count: int, *, seed: int, at_most: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """As many images of every class, and, of the others, all or at most so many of each: Caltech-101's protocol.

    Source: He, Zhang, Ren, Sun, arXiv:1406.4729, section 3.3 (30 of each class to train, up to 50 to test, 10 random splits).
    """
    few = [f"{name} ({n})" for name, n in zip(images.class_names, images.counts(), strict=True) if n < count]
    if few:
        raise UserError(f"expected at least {count} images of every class; fewer in: {', '.join(few)}")
    orders = list(shuffled_classes(images, seed))
    chosen = np.sort(np.concatenate([order[:count] for order in orders]))
    rest = np.sort(np.concatenate([order[count:][:at_most] for order in orders]))
    return images.subset(chosen), images.subset(rest)


def _indices(images: LabelledImages, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the images of one split are: of those to train, two thirds and a third of every class; to test."""
    place = {path: i for i, path in enumerate(images.paths)}
    chosen, rest = per_class(images, TRAIN, seed=seed, at_most=TEST_AT_MOST)
    learn, look = per_class(chosen, TRAIN * 2 // 3, seed=seed)
    return tuple(np.array([place[path] for path in part.paths]) for part in (learn, look, rest))  # type: ignore[return-value]


def accuracy_of_splits(
    gram: np.ndarray, images: LabelledImages, splits: Sequence[tuple[np.ndarray, ...]], costs: Sequence[float]
) -> dict[str, Any]:
    """The row's figures: of every split its accuracies, the C that was chosen, and how good that was on the third."""
    targets = label_targets(images.labels, len(images.class_names))
    result: dict[str, Any] = {"accuracy": [], "overall": [], "held_out": [], "cost": []}
    for learn, look, test in splits:
        train = np.concatenate([learn, look])
        places = np.arange(len(train))
        truth = images.labels[look]

        def good(margins: np.ndarray, truth: np.ndarray = truth) -> float:
            return _mean_class(truth, margins, images)

        cost, measured = choose_cost(
            gram[np.ix_(train, train)], targets[train], places[: len(learn)], places[len(learn) :], good, costs
        )
        coefficients, biases = solve_gram(gram[np.ix_(train, train)], targets[train], cost)
        margins = gram[np.ix_(test, train)] @ coefficients + biases
        result["accuracy"].append(_mean_class(images.labels[test], margins, images))
        result["overall"].append(float((margins.argmax(1) == images.labels[test]).mean()))
        result["held_out"].append(max(measured))
        result["cost"].append(cost)
    return result


def _mean_class(truth: np.ndarray, margins: np.ndarray, images: LabelledImages) -> float:
    confusion = confusion_matrix(truth, margins.argmax(1), labels=range(len(images.class_names)))
    return float(np.nanmean(class_accuracies(confusion)))


# For both benchmarks


def run_rows(
    paths: Sequence[Path],
    backbone: nn.Module,
    arguments: argparse.Namespace,
    known: dict[str, Any],
    measure: Callable[[np.ndarray], dict[str, Any]],
    protocol: str,
) -> None:
    """Compute the rows that are asked for and not in the file, which is written after each."""
    layers = arguments.layers or layer_names(backbone)[-1:]
    for fit in arguments.fits:
        settings = [
            Setting(arguments.backbone, layer, levels, fit, tuple(arguments.short_sides), arguments.mirrored, reduce, power, normalise)
            for layer in layers
            for levels in (tuple(map(int, text.split(","))) for text in arguments.levels)
            for reduce in arguments.reduce
            for power in arguments.power
            for normalise in arguments.normalise
            if "mean" not in reduce or set(levels) <= set(STORED["mean"].levels)
        ]  # fmt: skip
        missing = [setting for setting in settings if known.get(setting.label(), {}).get("protocol") != protocol]
        if not missing:
            continue
        for look in missing[0].looks():
            fill_features(
                paths, backbone, layers=layers, poolings=list(STORED.values()), look=look, cache=arguments.cache,
                progress=lambda done, total, look=look: _tell(f"{look}: {done} of {total}") if done % 500 == 0 else None,
            )  # fmt: skip
        for setting, vectors in _vectors(paths, backbone, missing, arguments.cache):
            started = time.process_time()
            gram = vectors @ vectors.T
            row = measure(gram)
            seconds = time.process_time() - started
            known[setting.label()] = {
                "setting": asdict(setting), "protocol": protocol, "dimensions": vectors.shape[1], **row,
                "processor_seconds": seconds, "environment": environment(),
            }  # fmt: skip
            write_results(arguments.json, known)
            shown = {key: np.round(np.mean(value), 4) for key, value in row.items() if key not in ("scores", "classes")}
            _tell(f"{setting.label()}: {shown} in {seconds:.0f} s")


def _vectors(
    paths: Sequence[Path], backbone: nn.Module, settings: Sequence[Setting], cache: Path
) -> Iterator[tuple[Setting, np.ndarray]]:
    """The features of each row [N, D]. Rows that differ by levels alone are made from the same stored maps."""
    stored: dict[tuple[str, Look, str], np.ndarray] = {}
    layer = None
    for setting in settings:
        if setting.layer != layer:
            stored, layer = {}, setting.layer  # those of another layer are no longer wanted
        total = np.zeros((), np.float32)
        for look in setting.looks():
            parts = []
            for reduce in setting.reduce.split("+"):
                pooling, which = STORED[reduce], (setting.layer, look, reduce)
                if which not in stored:
                    stored[which] = pooled_features(
                        paths, backbone, layers=[setting.layer], poolings=[pooling], look=look, cache=cache
                    )[setting.layer, pooling]
                taken = take_levels(stored[which], pooling.levels, setting.levels)
                parts.append(to_vectors(taken, setting.levels, setting.power, setting.normalise))
            total = total + (unit_length(np.concatenate(parts, 1)) if len(parts) > 1 else parts[0])
        yield setting, unit_length(total) if len(setting.looks()) > 1 else total


def write_page(path: Path, text: str, known: dict[str, Any], key: str, axis: str) -> None:
    """The page, and beside it a plot of layers and levels with the name of the page."""
    write_text(path, text)
    plot_layers(known, key, axis, path.with_suffix(".png"))
    _tell(f"wrote {path} and {path.with_suffix('.png')}")


def plain(row: dict[str, Any]) -> bool:
    """Whether a row belongs to the table of layers, fits and levels, rather than to that of other settings."""
    setting = row["setting"]
    rest = tuple(setting[name] for name in ("mirrored", "reduce", "power", "normalise"))
    return list(setting["short_sides"]) == [224] and rest == (False, "max", 1, "whole")


def plot_layers(known: dict[str, Any], key: str, axis: str, path: Path) -> None:
    """One panel a backbone; one line for each fit, at the levels that serve its layers best; bars are deviations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in known.values() if plain(row)]
    backbones = list(dict.fromkeys(row["setting"]["backbone"] for row in rows))
    if not backbones:
        return
    figure, panels = plt.subplots(1, 2 * len(backbones), figsize=(11 * len(backbones), 4), sharey=True, squeeze=False)
    for place, backbone in enumerate(backbones):
        own = [row for row in rows if row["setting"]["backbone"] == backbone]
        layers = sorted({row["setting"]["layer"] for row in own}, key=lambda name: (len(name), name))
        by_fit, by_levels = panels[0][2 * place], panels[0][2 * place + 1]
        for fit in FIT_NAMES:
            _line(by_fit, own, layers, key, FIT_NAMES[fit], fit=fit, levels=[2, 1])
        for levels in ALL_LEVELS:
            _line(by_levels, own, layers, key, str(levels), fit="native", levels=list(levels))
        by_fit.set(title=f"{backbone}, levels (2, 1)", xlabel="layer", ylabel=axis)
        by_levels.set(title=f"{backbone}, full image", xlabel="layer")
        for panel in (by_fit, by_levels):
            panel.grid(alpha=0.3)
            panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(panel: Any, rows: list[dict[str, Any]], layers: list[str], key: str, label: str, **wanted: Any) -> None:
    chosen = {
        row["setting"]["layer"]: row
        for row in rows
        if all(list(np.ravel(row["setting"][name])) == list(np.ravel(value)) for name, value in wanted.items())
    }
    found = [layer for layer in layers if layer in chosen]
    if found:
        means = [float(np.mean(chosen[layer][key])) for layer in found]
        panel.errorbar([layers.index(layer) for layer in found], means, [_deviation(chosen[layer], key) for layer in found],
                       marker="o", capsize=3, label=label)  # fmt: skip
        panel.set_xticks(range(len(layers)), layers)


def _deviation(row: dict[str, Any], key: str) -> float:
    return float(row.get(f"{key}_deviation", deviation(np.ravel(row[key]).tolist())))


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def grid(known: dict[str, Any], cell: Callable[[dict[str, Any]], str]) -> list[str]:
    """The table of backbones, layers and fits by levels."""
    lines = ["| backbone | layer | image | " + " | ".join(str(levels) for levels in ALL_LEVELS) + " |"]
    lines.append("|---" * (3 + len(ALL_LEVELS)) + "|")
    cells: dict[tuple[str, str, str], dict[tuple[int, ...], str]] = {}
    for row in known.values():
        if plain(row):
            setting = row["setting"]
            where = (setting["backbone"], setting["layer"], setting["fit"])
            cells.setdefault(where, {})[tuple(setting["levels"])] = cell(row)
    order = list(FIT_NAMES)
    for where in sorted(cells, key=lambda where: (where[0], len(where[1]), where[1], order.index(where[2]))):
        backbone, layer, fit = where
        shown = " | ".join(cells[where].get(levels, "") for levels in ALL_LEVELS)
        lines.append(f"| {backbone} | {layer} | {FIT_NAMES[fit]} | {shown} |")
    return lines


def environments(known: dict[str, Any]) -> list[str]:
    """Where the rows ran."""
    return [f"- {text}" for text in dict.fromkeys(row["environment"]["text"] for row in known.values())]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# The page


def page(known: dict[str, Any]) -> str:
    """The results as a page for people."""
    lines = ["# Caltech-101, layer by layer", "",
             "Made by `python -m benchmarks.caltech101`; every figure is in its JSON file.", "",
             "Maps of a backbone trained on ImageNet, pooled by a pyramid (maximum), made vectors of length 1; one linear SVM a",
             "class. 30 images a class to train, the rest (at most 50) to test; each class counts the same. Mean and standard",
             "deviation over the splits, in %. *full*: the whole image at its own shape, short side 224; *warp*: squashed",
             "to 224 x 224; *crop*: its middle, 224 x 224. Splits draw from the same images, and so overlap: other photos would",
             "vary more than the deviations say. C is chosen in each split on a third of its training images. *full* has more pixels",
             "than the squares, so that its gain is of shape and of resolution together.", ""]  # fmt: skip
    lines += [f"- {text}" for text in dict.fromkeys(row["protocol"] for row in known.values())]
    lines += ["", "![accuracy by layer](caltech101.png)", "", "## Layers, images and levels", ""]
    lines += grid(known, _percent)
    lines += ["", "## What helps", "",
              "Differences between rows on the same splits, in percentage points: mean, standard deviation, and in how many splits",
              "the first was better.", ""]  # fmt: skip
    lines += differences(known)
    best = max(known.values(), key=lambda row: np.mean(row["held_out"]), default=None)
    lines += ["", "## Other settings", "", "| features | numbers | held out of training | test | all images alike | C |", "|---|---|---|---|---|---|"]  # fmt: skip
    others = [row for row in known.values() if not plain(row)] + ([best] if best and plain(best) else [])
    for label, row in known.items():
        if row in others:
            mark = "**" if row is best else ""
            lines.append(f"| {mark}{label}{mark} | {row['dimensions']} | {100 * np.mean(row['held_out']):.2f} | {mark}{_percent(row)}{mark} | "
                         f"{100 * np.mean(row['overall']):.2f} | {', '.join(f'{cost:g}' for cost in sorted(set(row['cost'])))} |")  # fmt: skip
    if best:
        lines += [
            "",
            "In bold: the row that was best on what is held out of the training images, where settings may be chosen.",
        ]
    lines += ["", "## Where this ran", "", *environments(known)]
    return "\n".join(lines) + "\n"


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * np.mean(row['accuracy']):.2f} ± {100 * deviation(row['accuracy']):.2f}"


def differences(known: dict[str, Any]) -> list[str]:
    """Every level against the single one, and full against crop and warp, for each layer."""
    lines = ["| backbone | layer | comparison | difference | better in |", "|---|---|---|---|---|"]
    for row in known.values():
        if not plain(row):
            continue
        lists = {name: tuple(row["setting"][name]) for name in ("levels", "short_sides")}
        setting = Setting(**(row["setting"] | lists))
        if setting.fit != "native":
            continue
        against = [
            (f"full against {FIT_NAMES[fit]}, {setting.levels}", replace(setting, fit=fit))
            for fit in ("crop", "squash")
        ]
        if setting.levels != (1,):
            against.insert(0, (f"{setting.levels} against (1,), full", replace(setting, levels=(1,))))
        for text, other in against:
            reference = known.get(other.label())
            if reference and reference["protocol"] == row["protocol"]:
                change = 100 * (np.array(row["accuracy"]) - np.array(reference["accuracy"]))
                lines.append(f"| {setting.backbone} | {setting.layer} | {text} | {change.mean():+.2f} ± {deviation(change.tolist()):.2f} | "
                             f"{int((change > 0).sum())} of {len(change)} |")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
