"""What was measured during a training: ``<folder>/log.csv``, and ``<folder>/tensorboard`` where that package is installed."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sppnet.errors import OutputError
from sppnet.files import atomic_write


class TrainingLog:
    """The log of a training that may have been stopped and resumed, as if it had never been.

    Args:
        folder: of the training.
        step: steps done; what earlier runs logged beyond it is dropped, as it is done again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "log.csv"
        log = read_log(self.path)
        rows = [dict(zip(log, values, strict=True)) for values in zip(*log.values(), strict=True)]
        self.rows = [row for row in rows if row["step"] <= step]
        write_log(self.columns(), self.path)
        self._tensorboard: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def columns(self) -> dict[str, list[float]]:
        """Values by name, all of one length, ``step`` first; NaN where a row has no such value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name, math.nan) for row in self.rows] for name in names}

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row, which begins with its ``step``; on the disk when this returns."""
        known = self.columns()
        self.rows.append(dict(row))
        if row.keys() <= known.keys():
            try:
                with self.path.open("a", encoding="utf-8", newline="") as file:
                    file.write(_line(_text(row.get(name, math.nan)) for name in known))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written: {error.strerror}; make room") from error
        else:
            write_log(self.columns(), self.path)
        if self._tensorboard is not None:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, int(row["step"]))

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a log; a last line that was cut off is left out. Empty if there is none.

    Example:
        >>> _ = Path("log.csv").write_text("step,train_loss,val_loss\\n10,1.5,\\n20,0.7,0.8\\n30,0")
        >>> read_log(Path("log.csv"))
        {'step': [10.0, 20.0], 'train_loss': [1.5, 0.7], 'val_loss': [nan, 0.8]}
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    header, *rows = list(csv.reader(text.splitlines(keepends=True))) or [[]]
    if text and not text.endswith("\n"):
        rows = rows[:-1]
    return {
        name: [float(value) if value else math.nan for value in column]
        for name, *column in zip(header, *rows, strict=True)
    }


def write_log(log: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write columns as a CSV file with a line of names; NaN is an empty field.

    Example:
        >>> write_log({"step": [0.0, 10.0], "val_loss": [math.nan, 0.5]}, Path("log.csv"))
        >>> Path("log.csv").read_text().split()
        ['step,val_loss', '0,', '10,0.5']
    """
    lines = [_line(log), *(_line(map(_text, row)) for row in zip(*log.values(), strict=True))]
    with atomic_write(path, replace="any") as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")


def _line(fields: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}"
