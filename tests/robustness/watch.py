"""A child process that reads mutants, watched: what it answers, and what becomes of it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from sppnet.errors import UserError, printable
from tests.robustness.kinds import KINDS, TRAP, OtherAnswer

PROCESSOR_SECONDS = 20  # of one mutant; beyond it hangs
DEADLOCK_SECONDS = 900  # by the clock, for a child that no longer computes
MEMORY = 2_000_000_000  # bytes
CLEAN = ("right", "refused")


class Verdict(NamedTuple):
    """What became of one mutant."""

    kind: str  # right, refused; or traceback, crash, hang, memory, other-answer, message, noise
    told: str
    peak: int = 0  # bytes


class Watched:
    """A child that reads mutants, begun anew where one brings it down.

    Args:
        seconds: of processor time for one mutant; one that takes longer hangs.
        memory: bytes that the child may hold at once.
    """

    def __init__(self, seconds: float = PROCESSOR_SECONDS, memory: int = MEMORY) -> None:
        self.limits = seconds, memory
        self.folder = tempfile.TemporaryDirectory(prefix="robustness-")
        self.process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self.folder.cleanup()

    def read(self, kind: str, name: str, content: bytes) -> Verdict:
        """Have one mutant read in place of the sound file of that kind and name."""
        if self.process is None:
            self._begin()
        self.connection.send((kind, name, content))
        if not self.connection.poll(DEADLOCK_SECONDS):
            self._end()
            return Verdict("hang", "the process sleeps")
        try:
            return Verdict(*self.connection.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            told = Path(self.folder.name, "printed").read_text(errors="replace")
            self._end()
            what = signal.Signals(-code).name if code < 0 else f"status {code}"
            return Verdict("hang" if code == -signal.SIGPROF else "crash", f"{what}\n{told[-3000:]}")

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *self.limits, self.folder.name), daemon=True)
        self.process.start()
        theirs.close()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection: Connection, seconds: float, memory: int, scratch: str) -> None:
    """The child: read what comes, and say what became of it, until the connection closes."""
    printed = Path(scratch, "printed")
    descriptor = os.open(printed, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * memory,) * 2)
    sound: dict[Path, bytes] = {}
    while True:
        try:
            kind_name, name, content = connection.recv()
        except EOFError:
            return
        kind, folder = KINDS.get(kind_name, TRAP), Path(scratch, kind_name)
        path = folder / name
        if path not in sound:
            folder.mkdir(exist_ok=True)
            sound |= {each: each.read_bytes() for each in kind.sound(folder)}
        path.write_bytes(kind.wrap(content))
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        signal.setitimer(signal.ITIMER_PROF, seconds)
        found, told = "right", ""
        try:
            kind.read(path, folder)
        except UserError as error:
            found, told = ("refused" if _is_one_line(str(error)) else "message"), str(error)
        except OtherAnswer as error:
            found, told = "other-answer", str(error)
        except Exception:
            found, told = "traceback", traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = _peak()
        if found in CLEAN and peak > memory:
            found, told = "memory", f"{peak / 1e9:.2f} GB; {told}"
        if found in CLEAN and printed.stat().st_size:
            found, told = "noise", printed.read_text(errors="replace")[:1000]
        path.write_bytes(sound[path])
        connection.send((found, told, peak))


def _is_one_line(message: str) -> bool:
    return 0 < len(message) < 2000 and printable(message) == message


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
