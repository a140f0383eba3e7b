"""`sppnet check`: every bad file and box of a data set."""

from __future__ import annotations

from pathlib import Path

from sppnet.cli.options import AsJson
from sppnet.data.check import check_folder
from sppnet.files import to_json
from sppnet.progress import progress_bars


def check(data: Path, /, *, as_json: AsJson = False) -> int:
    """Name every bad file and box of a data set, and why; exit status 2 if there are any.

    Args:
        data: A folder of class folders, a folder of images, or an annotated data set.
    """
    with progress_bars() as progress:
        found = check_folder(data, progress=progress)
    print(to_json(found.to_dict()) if as_json else "\n".join(found.lines()))
    return found.exit_status
