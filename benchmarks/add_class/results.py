"""The JSON file of all comparisons: one entry for each settings, in it one row for each part, and for each race of Faster R-CNN.

``{key: {"settings": .., "parts": {"old": row, "add": row, ..}, "races": {label: row}}}``. Read anew before every write, so that
two runs of other settings may share it one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sppnet.terminal import write_json

from sppnet.errors import UserError

PARTS = ("old", "add", "add-from-all", "all", "faster-rcnn")


def read_entries(file: Path) -> dict[str, Any]:
    """All entries; none where there is no file.

    Raises:
        UserError: a file that holds something else.
    """
    try:
        entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if all({"settings", "parts", "races"} <= set(entry) for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        pass
    raise UserError(f"{file} does not hold results of this benchmark: give another --json, or move it away")


def keep_row(file: Path, key: str, settings: dict[str, Any], kind: str, name: str, row: dict[str, Any]) -> None:
    """Write one row; the others stay.

    Args:
        file: of results.
        key, settings: of the entry.
        kind: "parts" or "races".
        name: of the part, or the race's label.
        row: in JSON's types.
    """
    entries = read_entries(file)
    entry = entries.setdefault(key, {"settings": settings, "parts": {}, "races": {}})
    entry[kind][name] = row
    write_json(file, entries)


def target_of(entry: dict[str, Any], name: str) -> float | None:
    """The area AP of the class as it was added from its own images: what Faster R-CNN has to reach; None before that was measured."""
    row = entry["parts"].get("add")
    return None if row is None else row["test"]["classes"][name]["area"]
