"""Where a long computation stands, in one file that is whole or not there: tensors and a few words, with a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sppnet.models.fingerprint import Part, fingerprint
from sppnet.whole_file import whole_file


def write_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, or leave the one that is there as it is.

    Args:
        path: missing folders are made.
        tensors: of any dtype and size, on the CPU.
        metadata: by any name but "checksum".

    Raises:
        UserError: it cannot be written.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as unfinished:
        save_file(whole, unfinished, {**metadata, "checksum": _checksum(whole, metadata)})


def read_state(path: Path) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """What `write_state` wrote, metadata and tensors; None where there is no such file, or it is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> write_state(path, {"sums": torch.tensor([1.0, 2.0])}, {"done": "7"})
        >>> read_state(path)
        ({'done': '7'}, {'sums': tensor([1., 2.])})
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    checksum = metadata.pop("checksum", None)
    return (metadata, tensors) if checksum == _checksum(tensors, metadata) else None


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    parts: list[Part] = [repr(sorted(metadata.items()))]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {list(tensor.shape)} {tensor.dtype}", tensor]
    return fingerprint(parts, size=16)
