"""Checkpoints that survive crashes, full disks and torn files, and the lock that keeps two trainings out of one folder.

``<folder>/step-<number>.safetensors``: tensors and a few facts, with a checksum; the newest two are kept.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from torch import Tensor

from sppnet.cache import read_tensors, write_tensors
from sppnet.errors import SettingsError

GENERATIONS = 2  # checkpoints that are kept: the newest, and the one before in case that is damaged
LOCK, HOLDER = "training.lock", "training.holder"


class Checkpoint(NamedTuple):
    """Where a training stands."""

    step: int  # steps done
    tensors: dict[str, Tensor]
    best: dict[str, float]  # figures of the best validation so far; empty: there was none


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: of this training alone.
        key: what it starts from, by name: a checkpoint with another key is never used.

    Example:
        >>> import torch, tempfile
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()), {"learning rate": "0.1"})
        >>> for step in (100, 200, 300):
        ...     checkpoints.write(Checkpoint(step, {"weight": torch.zeros(2)}, {}))
        >>> [path.name for path in checkpoints.paths()]
        ['step-00000300.safetensors', 'step-00000200.safetensors']
        >>> checkpoints.newest().step
        300
    """

    def __init__(self, folder: Path, key: Mapping[str, str]) -> None:
        self.folder, self.key = folder, dict(key)

    def paths(self) -> list[Path]:
        """The files, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def newest(self) -> Checkpoint | None:
        """The newest that is whole and of this training; None: begin anew.

        A damaged one is set aside as NAME.damaged, and named on standard error.
        """
        paths = self.paths()
        for path in paths:
            found = read_tensors(path)
            if found is None:
                damaged = path.with_name(f"{path.name}.damaged")
                os.replace(path, damaged)
                print(f"{path} is damaged: set aside as {damaged.name}; the one before is used", file=sys.stderr)
                continue
            tensors, facts = found
            key = json.loads(facts["key"])
            if key == self.key:
                return Checkpoint(int(facts["step"]), tensors, json.loads(facts["best"]))
            names = sorted(name for name in {*key, *self.key} if key.get(name) != self.key.get(name))
            print(f"{path} is of another training ({', '.join(names)} differ): not used", file=sys.stderr)
            path.unlink()
        if paths:
            print(f"no checkpoint in {self.folder} can be used: training begins anew", file=sys.stderr)
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write one atomically, then remove all but the newest.

        Raises:
            OutputError: it cannot be written; those before stay.
        """
        facts = {"step": str(checkpoint.step), "key": json.dumps(self.key), "best": json.dumps(checkpoint.best)}
        write_tensors(self.folder / f"step-{checkpoint.step:08d}.safetensors", checkpoint.tensors, facts)
        for path in self.paths()[GENERATIONS:]:
            path.unlink()


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for one training.

    The system drops the lock when its process ends, however that ends, so no lock is ever stale.

    Raises:
        SettingsError: another process trains in it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / HOLDER
    try:
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        with suppress(OSError):
            raise SettingsError(f"{folder} is in use by {holder.read_text()}: wait for it, or stop it") from None
        raise SettingsError(f"{folder} is in use by another training: wait for it, or stop it") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        for unfinished in folder.glob(".*.tmp"):  # left by a process that was killed while it wrote
            unfinished.unlink()
        yield
    finally:
        lock.release()
