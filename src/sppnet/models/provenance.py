"""What a model file says about the program that made it."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from sppnet import __version__


def trained_by() -> dict[str, str | None]:
    """The version of this package, and the commit of its source where it runs from a checkout; else None.

    Example:
        >>> sorted(trained_by())
        ['commit', 'sppnet']
    """
    return {"sppnet": __version__, "commit": _commit()}


def _commit() -> str | None:
    """Of the repository that this file is tracked in: an installed copy may lie inside somebody else's."""
    here = Path(__file__)
    with suppress(OSError, subprocess.CalledProcessError):
        _git(here, "ls-files", "--error-unmatch", here.name)
        return _git(here, "rev-parse", "--short=12", "HEAD")
    return None


def _git(file: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, check=True).stdout.strip()
