"""Checkpoints that survive crashes, full disks and torn files, and the lock that keeps two trainings out of one folder.

``<folder>/step-<number>.safetensors``: all that changes while a training goes on, with a checksum. The newest two are kept.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from sppnet.cache import read_tensors, write_tensors
from sppnet.errors import SettingsError

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
        state = {int(part): _laid_out(parts[part], parameters[int(part)]) for part in parts}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _laid_out(state: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """An optimizer's tensors in the order in memory of their parameter: fused steps go through both side by side."""
    return {
        name: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        for name, value in state.items()
    }


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: of this training alone.
        key: what it starts from, by name: a checkpoint with another key is never used.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> state = TrainingState(layer, torch.optim.SGD(layer.parameters()))
        >>> checkpoints = Checkpoints(Path("training"), {"learning rate": "0.1"})
        >>> for state.step in (100, 200, 300):
        ...     checkpoints.write(state)
        >>> [path.name for path in checkpoints.paths()]
        ['step-00000300.safetensors', 'step-00000200.safetensors']
    """

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        self.folder, self.key = folder, dict(key)

    def paths(self) -> list[Path]:
        """The files, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def read(self, state: TrainingState) -> None:
        """Restore the newest that is whole and of this training; where there is none, ``state`` stays as it is.

        A damaged one is set aside as NAME.damaged, one of another training as NAME.other, with a line on standard error.
        """
        paths = self.paths()
        for path in paths:
            found = read_tensors(path)
            if found is None:
                _set_aside(path, "damaged", "is damaged")
                continue
            tensors, facts = found
            key = json.loads(facts["key"])
            if key == self.key:
                state.restore(int(facts["step"]), json.loads(facts["best"]), tensors)
                return
            names = sorted(name for name in {*key, *self.key} if key.get(name) != self.key.get(name))
            _set_aside(path, "other", f"is of another training (not the same: {', '.join(names)})")
        if paths:
            print(f"{self.folder}: no checkpoint can be used, so training begins anew", file=sys.stderr)

    def write(self, state: TrainingState) -> None:
        """Write one atomically, then remove all but the newest.

        Raises:
            OutputError: it cannot be written; those before stay.
        """
        facts = {"step": str(state.step), "key": json.dumps(self.key), "best": json.dumps(state.best)}
        write_tensors(self.folder / f"step-{state.step:08d}.safetensors", state.tensors(), facts)
        for path in self.paths()[GENERATIONS:]:
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
