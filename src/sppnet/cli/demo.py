"""`sppnet demo`: sample photos in, annotated pictures and JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sppnet.terminal import print_table, progress


def demo(output: Annotated[Path, Parameter(help="Folder for pictures and results.")] = Path("sppnet-demo")) -> int:
    """Try it out: sample photos in, annotated pictures and JSON out. Works offline."""
    from sppnet.demo import run_demo

    with progress() as report:
        rows, written = run_demo(output, report)
    table = [("photo", "size", "what is in it", "where")] + rows
    print_table(table)
    print(
        f"\n{len(written)} files in {output}: look at {written[0].name} first; everything as JSON in {written[-1].name}"
    )
    return 0
