"""The files that a benchmark leaves: results as one JSON object, to which later runs add, and pages. For every benchmark here.

A result stands under the name of what was measured (a network, a rung, a row), with the settings and the machine that it was measured
with; what is there is not measured again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sppnet.errors import UserError
from sppnet.files import atomic_write


def read_results(file: Path | None) -> dict[str, Any]:
    """What earlier runs wrote; nothing where there is no file.

    Raises:
        UserError: a file that holds something else.
    """
    if file is None or not file.exists():
        return {}
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        results = None
    if not isinstance(results, dict):
        raise UserError(f"{file} does not hold results of a benchmark: give another file, or move it away")
    return results


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Write results as JSON in place of earlier ones."""
    write_text(file, json.dumps(results, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file at once or not at all; missing folders are made."""
    with atomic_write(file, replace="any") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
