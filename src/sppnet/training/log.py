"""What was measured during a training: ``<folder>/log.csv``, and ``<folder>/tensorboard`` where that package is installed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sppnet.files import atomic_write


class TrainingLog:
    """The log of a training that may have been stopped and resumed, as if it had never been.

    Args:
        folder: of the training.
        step: steps done; what earlier runs logged beyond it is dropped, as it is done again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        log = read_log(folder / "log.csv")
        rows = (dict(zip(log, values, strict=True)) for values in zip(*log.values(), strict=True))
        self.rows = [row for row in rows if row["step"] <= step]
        self._tensorboard: Any = None

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def columns(self) -> dict[str, list[float]]:
        """Values by name, all of one length, ``step`` first; NaN where a row has no such value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name, math.nan) for row in self.rows] for name in names}

    def add(self, row: dict[str, float]) -> None:
        """Add a row, which begins with its ``step``; the file is whole before, and after.

        Raises:
            OutputError: it cannot be written.
        """
        self.rows.append(row)
        write_log(self.columns(), self.folder / "log.csv")
        if self._tensorboard is None and find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter  # takes seconds

            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        if self._tensorboard is not None:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, int(row["step"]))


def read_log(path: Path) -> dict[str, list[float]]:
    """The columns of a log. Empty if there is none.

    Example:
        >>> _ = Path("log.csv").write_text("step,train_loss,val_loss\\n10,1.5,\\n20,0.7,0.8\\n")
        >>> read_log(Path("log.csv"))
        {'step': [10.0, 20.0], 'train_loss': [1.5, 0.7], 'val_loss': [nan, 0.8]}
    """
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        columns = zip(*csv.reader(file), strict=True)
        return {name: [float(value or math.nan) for value in values] for name, *values in columns}


def write_log(log: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write columns as a CSV file with a line of names, atomically; NaN is an empty field.

    Example:
        >>> write_log({"step": [0.0, 10.0], "val_loss": [math.nan, 0.5]}, Path("log.csv"))
        >>> Path("log.csv").read_text().split()
        ['step,val_loss', '0,', '10,0.5']
    """
    with atomic_write(path, replace="any") as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(log)
        for row in zip(*log.values(), strict=True):
            writer.writerow(["" if math.isnan(value) else str(float(value)).removesuffix(".0") for value in row])
