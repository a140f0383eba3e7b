"""The files that a benchmark leaves: results as JSON, to which later runs add, and pages. For every script in this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sppnet.whole_file import whole_file


def read_results(file: Path | None) -> dict[str, Any]:
    """What earlier runs wrote; nothing where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Write results as JSON in the place of earlier ones."""
    write_text(file, json.dumps(results, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file at once or not at all; missing folders are made."""
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
