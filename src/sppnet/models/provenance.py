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
    with suppress(OSError, subprocess.CalledProcessError):
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    return None
