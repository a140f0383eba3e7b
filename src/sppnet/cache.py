"""What is computed once and read again: how it is named, written and checked.

A name says what a result comes from: equal for equal weights, settings and data, and else another. So a stale file is never
used; and every file holds a checksum, so that a damaged one counts as none and is made anew.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sppnet.errors import OutputError
from sppnet.files import atomic_write, make_folder, remove_unfinished

Part = str | np.ndarray | Tensor | Mapping[str, Tensor]


def fingerprint(parts: Iterable[Part], size: int) -> str:
    """Name text, arrays and weights by their content.

    Args:
        parts: text, such as the ``repr`` of settings; values, whose shape and dtype do not count; and weights, as a
            module's ``state_dict()`` gives them, whose names count and whose order does not. Tensors on any device. They
            follow each other with nothing between, and are looked at one after the other, so a generator needs to hold one.
        size: of the name, in bytes, 1 to 64.

    Returns:
        Two hexadecimal digits for each byte (BLAKE2b).

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> name = fingerprint(["learning rate 0.1", layer.state_dict()], size=6)
        >>> len(name), name == fingerprint(["learning rate 0.2", layer.state_dict()], size=6)
        (12, False)
    """
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode("utf-8", "surrogatepass"))  # a file's name may hold bytes that are no text
        elif isinstance(part, np.ndarray):
            digest.update(part.tobytes())
        elif isinstance(part, Tensor):
            digest.update(_bytes(part))
        else:
            for name, value in sorted(part.items()):
                digest.update(name.encode())
                digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    """In row order, whatever the order in memory."""
    flat = values.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data  # NumPy has no bfloat16


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any dtype and device, and a few words, atomically, with a checksum over both.

    Raises:
        OutputError: it cannot be written; a file that was there before stays as it was.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path, replace="any") as unfinished:
        save_file(whole, unfinished, {**metadata, "checksum": _checksum(whole, metadata)})


def read_tensors(path: Path, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `write_tensors` wrote, tensors and metadata; None where there is no such file, or it is damaged.

    Args:
        path: the file. Tensors are read through a memory map: what is not looked at is not loaded.
        verify: look at every byte; else a damaged head is found, and damaged numbers are not.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> write_tensors(path, {"sums": torch.tensor([1.0, 2.0])}, {"done": "7"})
        >>> read_tensors(path)
        ({'sums': tensor([1., 2.])}, {'done': '7'})
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    checksum = metadata.pop("checksum", None)
    if checksum is None or (verify and checksum != _checksum(tensors, metadata)):
        return None
    return tensors, metadata


@contextmanager
def cache_directory(cache: str | Path | None) -> Iterator[Path]:
    """The folder that was asked for; without one, a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="sppnet-") if cache is None else nullcontext(cache) as folder:
        remove_unfinished(Path(folder))
        yield Path(folder)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise an `OutputError`, before the work, where the disk has less room than ``needed`` bytes for ``what``."""
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        remedy = f"where {free / 1e9:.1f} GB are free: make room, or give another folder with --cache"
        raise OutputError(f"{what} need {needed / 1e9:.1f} GB below {folder}, {remedy}")


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    checksum = zlib.crc32(repr(sorted(metadata.items())).encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {list(tensor.shape)} {tensor.dtype}".encode(), checksum)
        checksum = zlib.crc32(_bytes(tensor), checksum)
    return f"{checksum:08x}"
