"""What the command line prints: complaints and progress on standard error, tables on standard output; and JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sppnet.whole_file import whole_file


def complain(message: str) -> int:
    """One line on standard error; the exit status of a user's mistake."""
    print(f"sppnet: {' '.join(message.split())}", file=sys.stderr)
    return 2


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a file at once or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1), encoding="utf-8")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage, on standard error; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The first row holds the titles."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)
