"""`sppnet compare`: native, warped, cropped or letterboxed images, on the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sppnet.classification.compare import CompareSettings, compare_resize_modes
from sppnet.cli import complain
from sppnet.cli.options import AsJson, Cache, Device, SkipBad, cache_folder, chosen_device
from sppnet.data.formats.folder import training_images
from sppnet.progress import progress_bars
from sppnet.visualize.plots import plot_format


def compare(
    data: Path,
    /,
    *,
    settings: Annotated[CompareSettings, Parameter(name="*")] = CompareSettings(),
    skip_bad: SkipBad = False,
    output: Path = Path("comparison.png"),
    cache: Cache = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Warp, crop, letterbox, or native shape: which serves your images? A table, a bar chart and a sentence.

    Args:
        data: A folder of class folders; of one that is split, its 'train' is used.
        output: The bar chart to write: .png, .jpg, .pdf or .svg.
    """
    plot_format(output)
    images, _ = training_images(data)
    cache = cache or cache_folder(output)
    with progress_bars() as progress:
        comparison = compare_resize_modes(
            images, settings, skip_bad=skip_bad, cache=cache, device=chosen_device(device), progress=progress
        )
    for _, reason in comparison.broken:
        complain(f"left out: {reason}")
    comparison.plot(output)
    document = {"data": str(data), **comparison.to_dict()}
    print(json.dumps(document, indent=1) if as_json else f"{comparison.table()}\n\n{comparison.advice}")
    print(f"chart in {output}; features, for the next time, in {cache}", file=sys.stderr)
    return 0
