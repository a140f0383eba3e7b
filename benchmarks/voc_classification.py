"""VOC 2007 classification, layer by layer: linear SVMs on pooled maps; crop against warp against full image, pyramid against one level.

    uv run python -m benchmarks.voc_classification --data ../shared/data/VOCdevkit/VOC2007 --backbone mobilenet_v2 --weights FILE \\
        --layers 6 10 13 16 17 18 --json benchmarks/results/voc_classification.json --markdown docs/voc-classification.md --cache FOLDER
    uv run python -m benchmarks.voc_classification ... --fits native --short-sides 320 --mirrored --reduce max+mean --layers 18

The protocol of arXiv:1406.4729, section 3.2: l2-normalised features, 20 linear SVMs, each against the rest; trained on one
split, measured on another by mean average precision, by the 11-point rule and by area. Images that show a class only as
difficult objects are left out of that class, in training and in measuring. C is chosen for each row on a quarter of the
training images. Deviations come from drawing the measured images anew, with replacement. Every call adds its rows to the
JSON file, as each is done, and makes the page from all of it: kill it, and start it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.caltech101 import (
    FIT_NAMES,
    Setting,
    add_arguments,
    deviation,
    environments,
    grid,
    plain,
    run_rows,
    write_page,
)
from benchmarks.image_features import choose_cost, object_targets
from benchmarks.results_file import read_results
from sppnet.data.annotations import AnnotatedImage
from sppnet.data.formats.voc import read as read_voc
from sppnet.linear.svm import solve_gram
from sppnet.metrics.voc import evaluate_voc_images
from sppnet.models.backbones import RANDOM, build_backbone

DECIMALS = 5  # of the margins that are kept to compare rows with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a VOC folder")
    parser.add_argument("--train", default="train", help="the split that is learnt from")
    parser.add_argument("--test", default="val", help="the split that is measured on")
    parser.add_argument("--resamples", type=int, default=100, help="how many times the measured images are drawn anew")
    parser.add_argument("--held-out-only", action="store_true", help="do not look at the test split: to try settings")
    add_arguments(parser)
    arguments = parser.parse_args()
    train = read_voc(arguments.data, arguments.train, arguments.limit)
    names = train.class_names
    images = train.images
    if not arguments.held_out_only:
        images += read_voc(arguments.data, arguments.test, arguments.limit).images
    known = read_results(arguments.json)
    backbone = build_backbone(arguments.backbone, arguments.weights or RANDOM)
    learnt = len(train.images)
    protocol = f"{arguments.train} ({learnt} images) -> "
    protocol += f"{arguments.test} ({len(images) - learnt} images)" if len(images) > learnt else "a quarter of it"

    def measure(gram: np.ndarray) -> dict[str, Any]:
        return precision_of_row(gram, images, learnt, names, arguments.costs, arguments.resamples)

    run_rows([image.path for image in images], backbone, arguments, known, measure, protocol)
    if arguments.markdown:
        measured = {label: row for label, row in known.items() if "area" in row}
        write_page(arguments.markdown, page(measured), measured, "area", "mean average precision (area)")


def precision_of_row(
    gram: np.ndarray,
    images: Sequence[AnnotatedImage],
    learnt: int,
    names: Sequence[str],
    costs: Sequence[float],
    resamples: int,
) -> dict[str, Any]:
    """The row's figures; with no image to measure on, only how good it was on what is held out of the training images."""
    truth = [(image.gt_labels, image.difficult) for image in images]
    targets = object_targets(truth[:learnt], len(names))
    order = np.random.default_rng(0).permutation(learnt)
    look, learn = np.sort(order[: learnt // 4]), np.sort(order[learnt // 4 :])

    def good(margins: np.ndarray) -> float:
        return evaluate_voc_images(margins, [truth[i] for i in look], names).map_area

    cost, measured = choose_cost(gram[:learnt, :learnt], targets, learn, look, good, costs)
    result: dict[str, Any] = {"cost": cost, "held_out": max(measured)}
    if len(images) == learnt:
        return result
    coefficients, biases = solve_gram(gram[:learnt, :learnt], targets, cost)
    margins = gram[learnt:, :learnt] @ coefficients + biases
    found = evaluate_voc_images(margins, truth[learnt:], names)
    drawn = [_redrawn(margins, truth[learnt:], names, seed) for seed in range(resamples)]
    return result | {
        "voc07": found.map07,
        "area": found.map_area,
        "redrawn": np.round(drawn, DECIMALS).tolist(),  # areas; the same seeds in every row, so that they compare
        "area_deviation": deviation(drawn),
        "classes": {each.name: {"voc07": each.ap07, "area": each.ap_area} for each in found.classes},
    }


def _redrawn(margins: np.ndarray, truth: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str], seed: int) -> float:  # fmt: skip
    drawn = np.random.default_rng(seed).integers(len(truth), size=len(truth))
    return evaluate_voc_images(margins[drawn], [truth[i] for i in drawn], names).map_area


def page(known: dict[str, Any]) -> str:
    """The results as a page for people."""
    lines = ["# VOC 2007 classification, layer by layer", "",
             "Made by `python -m benchmarks.voc_classification`; every figure is in its JSON file.", "",
             "Maps of a backbone trained on ImageNet, pooled by a pyramid (maximum), made vectors of length 1; twenty linear SVMs.",
             "Mean average precision by area, in %, and its deviation when the measured images are drawn anew. *full*: the whole",
             "image at its own shape, short side 224; *warp*: squashed to 224 x 224; *crop*: its middle, 224 x 224. Images that",
             "show a class only as difficult objects are left out of that class. C is chosen on a quarter of the training",
             "images. *full* has more pixels than the squares, so that its gain is of shape and of resolution together.", ""]  # fmt: skip
    lines += [f"- {text}" for text in dict.fromkeys(row["protocol"] for row in known.values())]
    lines += ["", "![mean average precision by layer](voc-classification.png)", "", "## Layers, images and levels", ""]
    lines += grid(known, lambda row: f"{100 * row['area']:.2f} ± {100 * row['area_deviation']:.2f}")
    lines += ["", "By the 11-point rule of VOC 2007:", ""]
    lines += grid(known, lambda row: f"{100 * row['voc07']:.2f}")
    lines += ["", "## What helps", "",
              "Differences between rows on the same images, in percentage points; 95 % of the draws lie in the interval.", "",
              "| backbone | layer | comparison | difference | interval |", "|---|---|---|---|---|"]  # fmt: skip
    lines += _differences(known)
    best = max(known.values(), key=lambda row: row["held_out"], default=None)
    lines += ["", "## Other settings", "", "| features | numbers | held out of training | area | 11-point | C |", "|---|---|---|---|---|---|"]  # fmt: skip
    for label, row in known.items():
        if not plain(row) or row is best:
            mark = "**" if row is best else ""
            lines.append(f"| {mark}{label}{mark} | {row['dimensions']} | {100 * row['held_out']:.2f} | "
                         f"{mark}{100 * row['area']:.2f} ± {100 * row['area_deviation']:.2f}{mark} | {100 * row['voc07']:.2f} | {row['cost']:g} |")  # fmt: skip
    if best:
        lines += ["", "In bold: the row that was best on what is held out of the training images, where settings may be chosen.",
                  "", "## Class by class, of that row", "", "| class | area | 11-point |", "|---|---|---|"]  # fmt: skip
        lines += [f"| {name} | {100 * each['area']:.1f} | {100 * each['voc07']:.1f} |" for name, each in best["classes"].items()]  # fmt: skip
    lines += ["", "## Where this ran", "", *environments(known)]
    return "\n".join(lines) + "\n"


def _differences(known: dict[str, Any]) -> list[str]:
    lines = []
    for row in known.values():
        if not plain(row) or row["setting"]["fit"] != "native":
            continue
        levels, sides = tuple(row["setting"]["levels"]), tuple(row["setting"]["short_sides"])
        setting = Setting(**{**row["setting"], "levels": levels, "short_sides": sides})
        others = [(f"{levels} against (1,), full", replace(setting, levels=(1,)))] if levels != (1,) else []
        others += [
            (f"full against {FIT_NAMES[fit]}, {levels}", replace(setting, fit=fit)) for fit in ("crop", "squash")
        ]
        for text, other in others:
            reference = known.get(other.label())
            if reference and reference["protocol"] == row["protocol"]:
                change = 100 * (np.array(row["redrawn"]) - np.array(reference["redrawn"]))
                low, high = np.percentile(change, [2.5, 97.5])
                lines.append(f"| {setting.backbone} | {setting.layer} | {text} | {100 * (row['area'] - reference['area']):+.2f} | "
                             f"{low:+.2f} to {high:+.2f} |")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
