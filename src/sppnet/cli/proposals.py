"""`sppnet proposals`: boxes for every image of a data set, computed or imported, and their recall."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sppnet.cache import cache_directory
from sppnet.cli import complain
from sppnet.cli.options import AsJson, Data, Limit, Split, checked_limit
from sppnet.data.dataset import read_annotated
from sppnet.errors import SettingsError
from sppnet.progress import progress_bars
from sppnet.proposals.compute import check_method, proposals_of
from sppnet.proposals.files import IMPORTED, import_proposals, load_proposals
from sppnet.proposals.recall import format_recall, recall_report


def proposals(
    data: Data,
    /,
    *,
    split: Split = "train",
    method: Annotated[str, Parameter(name="--proposals")] = "selective-search",
    source: Annotated[Path | None, Parameter(name="--import")] = None,
    limit: Limit = None,
    cache: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Propose boxes for every image of a data set, or bring in others', and say how many of its objects they find.

    Args:
        method: selective-search, edge-boxes, grid, or several joined by +.
        source: Bring in boxes made elsewhere: an .npz of arrays [R, 4] of x0 y0 x1 y1, each named by its image.
        cache: Folder that keeps the boxes; give it to training, too.
    """
    check_method(method)
    if source is not None and cache is None:
        raise SettingsError(
            "--import brings boxes to where training looks for them: give the same --cache FOLDER as there"
        )
    annotated = read_annotated(data, split, checked_limit(limit))
    missing: tuple[str, ...] = ()
    with progress_bars() as progress, cache_directory(cache) as folder:
        if source is None:
            found = proposals_of(annotated, method, folder, progress)
            boxes = {image.image_id: boxes for image, boxes in zip(annotated.images, found, strict=True)}
        else:
            cached = folder / "proposals" / IMPORTED
            imported = import_proposals(source, annotated, cached, progress)
            boxes = {image_id: load_proposals(file)[0] for image_id, file in imported.files.items()}
            missing = imported.missing
    answer = recall_report(annotated, boxes)
    print(json.dumps(answer, indent=1) if as_json else format_recall(answer))
    if source is not None:
        dropped = f"{imported.dropped} empty or outside their image"
        print(f"{imported.boxes} boxes of {len(boxes)} images in {cached}; {dropped}", file=sys.stderr)
    if missing:
        some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        return complain(f"{source} has no boxes of {len(missing)} of {len(annotated)} images, which need some: {some}")
    return 0
