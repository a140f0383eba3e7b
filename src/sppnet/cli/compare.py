"""`sppnet compare`: native, squashed, cropped or padded images, on the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sppnet.cli.loading import pretrained
from sppnet.cli.parameters import AsJson, Backbone, Device, SkipBad
from sppnet.cli.work import work_folder
from sppnet.errors import UserError
from sppnet.terminal import complain, progress


def compare(
    folder: Annotated[Path, Parameter(help="A folder of class folders; of one that is split, its 'train' is used.")],
    /,
    *,
    backbone: Backbone = "compact",
    weights: Annotated[
        str | None,
        Parameter(
            help="The backbone's: a file, or a name torchvision knows. Left out: compact's as in 'voc', or DEFAULT."
        ),
    ] = None,
    side: Annotated[
        int, Parameter(help="Of the squares, in pixels; native images have as many pixels on average.")
    ] = 224,
    folds: Annotated[
        int, Parameter(help="Parts of the images; each is asked about by what learned from the others.")
    ] = 5,
    repeats: Annotated[int, Parameter(help="How often that is done, with other parts.")] = 3,
    at_most: Annotated[int, Parameter(help="Of more images, so many are drawn at random.")] = 2000,
    seed: int = 0,
    skip_bad: SkipBad = False,
    output: Annotated[Path, Parameter(help="The bar chart to write: .png, .jpg, .pdf or .svg.")] = Path(
        "comparison.png"
    ),
    work: Annotated[
        Path | None, Parameter(help="Folder for features; left out: beside the chart. A stopped run goes on.")
    ] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Squash, crop, pad, or native: which serves your images? A table, a bar chart and a sentence."""
    from sppnet.classification.compare import compare_fits
    from sppnet.data.folder import split_folder
    from sppnet.visualize import plot_comparison, plot_format

    for name, number, least in (("side", side, 1), ("folds", folds, 2), ("repeats", repeats, 1), ("seed", seed, 0)):
        if number < least:
            raise UserError(f"--{name} must be at least {least}: got {number}")
    if at_most < 2 * folds:
        raise UserError(f"--at-most must be at least {2 * folds} with {folds} folds: got {at_most}")
    plot_format(output)
    images, _ = split_folder(folder)
    work = work or work_folder(output)
    with progress() as report:
        comparison = compare_fits(
            images,
            pretrained(backbone, weights, images.names, device),
            side=side,
            folds=folds,
            repeats=repeats,
            at_most=at_most,
            seed=seed,
            skip_bad=skip_bad,
            cache=work,
            report=report,
        )
    for _, reason in comparison.broken:
        complain(f"left out: {reason}")
    differences = {
        each.fit: comparison.difference(each.fit, "native") for each in comparison.fits if each.fit != "native"
    }
    plot_comparison(
        {each.fit: (each.accuracy, each.interval) for each in comparison.fits},
        {fit: (difference.mean, difference.interval) for fit, difference in differences.items()},
        output,
        images=comparison.images,
        title=comparison.advice,
    )
    document = {"data": str(folder), "backbone": backbone, "weights": weights, "seed": seed, **comparison.to_dict()}
    print(json.dumps(document, indent=1) if as_json else f"{comparison.table()}\n\n{comparison.advice}")
    print(f"chart in {output}; features, for the next time, in {work}", file=sys.stderr)
    return 0
