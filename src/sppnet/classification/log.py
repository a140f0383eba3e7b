"""What was measured during a training, over all its runs: a stopped run that goes on writes a log of its own.

``<folder>/log/<run>/metrics.csv``, and ``<folder>/tensorboard`` where the tensorboard package is installed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

METRICS = "metrics.csv"


def training_loggers(folder: Path, steps_done: int) -> list[Logger]:
    """The loggers of one run.

    Args:
        folder: of the training.
        steps_done: before this run, by earlier ones.
    """
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    runs = len(list((folder / "log").glob(f"*/{METRICS}")))
    loggers: list[Logger] = [CSVLogger(folder, name="log", version=f"{runs:04d}", flush_logs_every_n_steps=1000)]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        loggers.append(
            TensorBoardLogger(
                folder, name="tensorboard", version="", default_hp_metric=False, purge_step=steps_done or None
            )
        )
    return loggers


def training_log(folder: Path) -> dict[str, list[float]]:
    """The log of all runs of a training, as if it had never been stopped.

    Args:
        folder: of the training.

    Returns:
        Columns by name, all of one length, ``step`` first; NaN where a row has no such value. Ready for
        `sppnet.visualize.plot_training`. Empty if there is no log.

    Example:
        >>> for run, rows in enumerate(["0,1.5", "10,0.7", "10,0.6"]):
        ...     Path(f"log/{run}").mkdir(parents=True)
        ...     _ = Path(f"log/{run}/metrics.csv").write_text("step,train_loss\\n" + rows)
        >>> training_log(Path("."))
        {'step': [0.0, 10.0], 'train_loss': [1.5, 0.6]}
    """
    rows: list[dict[str, str]] = []
    for path in sorted((folder / "log").glob(f"*/{METRICS}")):
        with path.open(encoding="utf-8", newline="") as file:
            its_rows = list(csv.DictReader(file))
        if its_rows:  # what an earlier run did beyond the checkpoint that this one went on from was done again
            first = min(int(row["step"]) for row in its_rows)
            rows = [row for row in rows if int(row["step"]) < first] + its_rows
    names = dict.fromkeys(["step", *(name for row in rows for name in row)]) if rows else {}
    return {name: [float(row.get(name) or math.nan) for row in rows] for name in names}


def write_log(log: Mapping[str, Sequence[float]], path: Path) -> None:
    """Write a log as `training_log` gives it: a CSV file with a line of names; NaN is an empty field.

    Example:
        >>> write_log({"step": [0.0, 10.0], "val_loss": [math.nan, 0.5]}, Path("log.csv"))
        >>> Path("log.csv").read_text().split()
        ['step,val_loss', '0,', '10,0.5']
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(log)
        for row in zip(*log.values(), strict=True):
            writer.writerow(["" if math.isnan(value) else f"{value:.8g}" for value in row])
