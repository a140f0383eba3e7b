"""How long work says how far it is: one callback for all of it, and the bars or lines that show it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

Progress = Callable[[str, int, int], None]  # stage, done, total
LINE_INTERVAL = 30.0  # seconds between the lines of a log


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing: the default wherever a `Progress` is asked for."""


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show progress on standard error: a bar for each stage on a terminal, a line every half minute elsewhere.

    Example:
        >>> with progress_bars() as progress:
        ...     progress("images", 1, 2)
    """
    if not sys.stderr.isatty():
        yield _log_lines()
        return
    from rich import console, progress

    name, count = progress.TextColumn("{task.description}"), progress.MofNCompleteColumn()
    columns = (name, progress.BarColumn(), count, progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=console.Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _log_lines() -> Progress:
    last = time.monotonic()

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_INTERVAL:
            last = time.monotonic()
            print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)

    return show


@contextmanager
def timed(seconds: MutableMapping[str, float], stage: str) -> Iterator[None]:
    """Add the time that is spent within it to that of a stage.

    Example:
        >>> seconds = {}
        >>> with timed(seconds, "maps"):
        ...     pass
        >>> list(seconds)
        ['maps']
    """
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
