"""Where a command keeps what it computes on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def work_folder(output: Path) -> Path:
    """The folder beside a command's output, where nothing else was said.

    Example:
        >>> work_folder(Path("models/birds.safetensors")).as_posix()
        'models/birds.work'
    """
    return output.with_name(f"{output.stem}.work")


@contextmanager
def work_or_temporary(work: Path | None) -> Iterator[Path]:
    """The folder that was asked for; without one, a folder that is gone afterwards."""
    if work is not None:
        yield work
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="sppnet-") as folder:
        yield Path(folder)
