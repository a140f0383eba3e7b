"""What a training leaves in its folder, which a lock keeps others out of: checkpoints that survive crashes, full disks and
torn files, and a log.

``<folder>/step-<number>.safetensors``: all that changes while a training goes on, with a checksum; the newest two are kept.
``<folder>/log.csv``, and ``<folder>/tensorboard`` where that package is installed: what was measured.
"""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from sppnet.cache import read_tensors, write_tensors
from sppnet.errors import SettingsError
from sppnet.files import atomic_write

GENERATIONS = 2  # checkpoints that are kept: the newest, and the one before in case that is damaged


class TrainingState:
    """All that changes while a training goes on.

    Args:
        trainable: what is trained of it is its parameters that require a gradient, and the buffers of its modules in
            training mode.
        optimizer: of those parameters.
    """

    def __init__(self, trainable: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        modes = {name: module.training for name, module in trainable.named_modules()}
        parameters = {name: value.data for name, value in trainable.named_parameters() if value.requires_grad}
        buffers = {name: value for name, value in trainable.named_buffers() if modes[name.rpartition(".")[0]]}
        self.trained: dict[str, Tensor] = parameters | buffers
        self.optimizer = optimizer
        self.step = 0  # steps done
        self.best: dict[str, float] = {}  # figures of the best validation so far, with its step
        self.best_weights: dict[str, Tensor] = {}

    def keep_best(self, figures: Mapping[str, float], minimize: tuple[str, ...]) -> None:
        """Copy the weights if they are the best so far: the smallest figures, those named first before others."""
        if not self.best or [figures[name] for name in minimize] < [self.best[name] for name in minimize]:
            self.best = {"step": float(self.step), **figures}
            self.best_weights = {name: value.to("cpu", copy=True) for name, value in self.trained.items()}

    def take_best(self) -> None:
        """Give the module the best weights, if there was a validation."""
        for name, value in self.best_weights.items():
            self.trained[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, ``<part>/<name>``."""
        state = self.optimizer.state_dict()["state"]
        parts = {"trained": self.trained, "best": self.best_weights, **{str(index): state[index] for index in state}}
        return {f"{part}/{name}": value for part in parts for name, value in parts[part].items() if value is not None}

    def restore(self, step: int, best: dict[str, float], tensors: Mapping[str, Tensor]) -> None:
        """Take up an earlier state: as ``step``, ``best`` and ``tensors()`` were."""
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value.clone()  # it is mapped from the file, which will be removed
        for name, value in parts.pop("trained").items():
            self.trained[name].copy_(value)
        self.step, self.best, self.best_weights = step, best, parts.pop("best", {})
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for part, state in parts.items():
            parameter = parameters[int(part)]
            for name, value in state.items():
                # In the parameter's order in memory: fused steps go through both at once.
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
        self.optimizer.load_state_dict({"state": {int(part): parts[part] for part in parts}, "param_groups": groups})


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a training, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def read_checkpoint(folder: Path, key: Mapping[str, str], state: TrainingState) -> None:
    """Restore the newest that is whole and of this training; where there is none, ``state`` stays as it is.

    A damaged one is set aside as NAME.damaged, one of another training as NAME.other, with a line on standard error.

    Args:
        folder: of this training alone.
        key: what it starts from, by name: a checkpoint with another key is never used.
        state: is restored.
    """
    paths = checkpoints(folder)
    for path in paths:
        found = read_tensors(path)
        if found is None:
            _set_aside(path, "damaged", "is damaged")
            continue
        tensors, facts = found
        other = json.loads(facts["key"])
        if other == key:
            state.restore(int(facts["step"]), json.loads(facts["best"]), tensors)
            return
        names = sorted(name for name in {*other, *key} if other.get(name) != key.get(name))
        _set_aside(path, "other", f"is of another training (not the same: {', '.join(names)})")
    if paths:
        print(f"{folder}: no checkpoint can be used, so training begins anew", file=sys.stderr)


def write_checkpoint(folder: Path, key: Mapping[str, str], state: TrainingState) -> None:
    """Write one atomically, then remove all but the newest.

    Raises:
        OutputError: it cannot be written; those before stay.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> state = TrainingState(layer, torch.optim.SGD(layer.parameters()))
        >>> for state.step in (100, 200, 300):
        ...     write_checkpoint(Path("training"), {"learning rate": "0.1"}, state)
        >>> [path.name for path in checkpoints(Path("training"))]
        ['step-00000300.safetensors', 'step-00000200.safetensors']
    """
    facts = {"step": str(state.step), "key": json.dumps(key), "best": json.dumps(state.best)}
    write_tensors(folder / f"step-{state.step:08d}.safetensors", state.tensors(), facts)
    for path in checkpoints(folder)[GENERATIONS:]:
        path.unlink()


def _set_aside(path: Path, suffix: str, reason: str) -> None:
    aside = path.with_name(f"{path.name}.{suffix}")
    os.replace(path, aside)
    print(f"{path} {reason}: set aside as {aside.name}, not used", file=sys.stderr)


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for one training.

    The system drops the lock when its process ends, however that ends: a crash leaves none behind.

    Raises:
        SettingsError: another process trains in it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "training.holder"
    try:
        lock = FileLock(folder / "training.lock", timeout=0)
        lock.acquire()
    except Timeout:
        name = holder.read_text() if holder.exists() else "another training"
        raise SettingsError(f"{folder} is in use by {name}: wait until it ends, or stop it") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        for unfinished in folder.glob(".*.tmp"):  # left by a process that was killed while it wrote
            unfinished.unlink()
        yield
    finally:
        lock.release()


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

    def close(self) -> None:
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
