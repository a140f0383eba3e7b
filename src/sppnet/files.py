"""Files that are there whole or not at all, and that never replace what somebody else wrote."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from sppnet.errors import OutputError

MADE_BY = "made by sppnet"  # stands in every file that is written for the user, so that it may be written again
_MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
SEARCHED = 64 * 2**10  # bytes at a file's beginning and end in which the mark is looked for


@contextmanager
def atomic_write(path: Path, *, replace: Literal["ours", "any"] = "ours") -> Iterator[Path]:
    """A temporary name to write to; it becomes ``path`` at the end, and vanishes if an error ends it.

    The file is flushed to the disk before it is renamed, so that a crash leaves the old file or the new one.

    Args:
        path: missing folders are made.
        replace: ``"ours"`` refuses to replace a file without our mark (`MADE_BY`); ``"any"`` is for files whose names are
            ours alone, in cache directories.

    Yields:
        A name in the same folder, of this thread alone, so that two writers of one file do not write into each other's.

    Raises:
        OutputError: it cannot be written, or is somebody else's.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "notes.txt"
        >>> with atomic_write(path) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        ...     path.exists()
        False
        >>> with atomic_write(path) as unfinished:
        ...     pass
        Traceback (most recent call last):
        sppnet.errors.OutputError: ...notes.txt is there and was not written by sppnet: choose another name, or move it away
    """
    if replace == "ours":
        check_replaceable(path)
    unfinished = _unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OutputError(f"{path}: cannot be written: {reason}; choose another place, or make room") from error
    finally:
        with suppress(OSError):  # still there only where writing failed
            unfinished.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder where it is missing; an `OutputError` where it cannot be, known before the work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path}: cannot be a folder to write to: {reason}; choose another place") from error


def check_outputs(*paths: Path) -> None:
    """Raise an `OutputError`, before long work, for a place that takes no file, or holds one that does not bear our mark.

    Example:
        >>> check_outputs(Path("/dev/null/model.safetensors"))
        Traceback (most recent call last):
        sppnet.errors.OutputError: /dev/null: cannot be a folder to write to: ...; choose another place
    """
    for path in paths:
        check_replaceable(path)
        make_folder(path.parent)
        remove_unfinished(path.parent, deep=False)
        trial = _unfinished(path)
        try:
            trial.touch()
            trial.unlink()
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error


def check_replaceable(path: Path) -> None:
    """Raise an `OutputError` for a file that is there and does not bear our mark."""
    if os.path.exists(path) and not is_ours(path):
        raise OutputError(f"{path} is there and was not written by sppnet: choose another name, or move it away")


def _unfinished(path: Path) -> Path:
    """A name beside a file, of this thread alone; short, whatever the file's is."""
    name = f".{zlib.crc32(os.fsencode(path.name)):08x}-{_MACHINE}-{os.getpid()}-{threading.get_ident()}.tmp"
    return path.with_name(name)


def remove_unfinished(folder: Path, *, deep: bool = True) -> None:
    """Remove what processes of this machine left unfinished when they were killed."""
    if os.name != "posix":  # a process cannot be asked whether it is there
        return
    for path in (folder.rglob if deep else folder.glob)(f".*-{_MACHINE}-*.tmp"):
        try:
            os.kill(int(path.name.split("-")[2]), 0)  # only asks
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, OSError):
            pass


def is_ours(path: Path) -> bool:
    """Whether a file bears the mark of what sppnet writes."""
    try:
        with open(path if os.path.isfile(path) else os.devnull, "rb") as file:  # a pipe would wait for ever
            beginning = file.read(SEARCHED)
            file.seek(max(0, file.seek(0, os.SEEK_END) - SEARCHED))
            return MADE_BY.encode() in beginning or MADE_BY.encode() in file.read()
    except OSError:
        return False


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document atomically, with our mark in it."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(to_json({"made_by": MADE_BY, **document}), encoding="utf-8")


def to_json(document: Any) -> str:
    """The text of a JSON document. JSON has no NaN and no infinity: they become null.

    Example:
        >>> print(to_json({"ap": float("nan"), "counts": (1, 2)}))
        {
         "ap": null,
         "counts": [
          1,
          2
         ]
        }
    """
    return json.dumps(_finite(document), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
