"""What is cached comes back bit for bit, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sppnet.cache import check_room, fingerprint, read_tensors, write_tensors
from sppnet.errors import OutputError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "c": torch.rand(3).half()}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.safetensors"
    write_tensors(path, TENSORS, {"done": "7"})
    stored = read_tensors(path)
    assert stored is not None
    tensors, metadata = stored
    assert metadata == {"done": "7"}
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, TENSORS, {"done": "7"})
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert read_tensors(path) is None, position
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        assert read_tensors(path) is None, length
    assert read_tensors(tmp_path / "none") is None


def test_a_disk_without_room_is_said_before_the_work(tmp_path: Path) -> None:
    check_room(tmp_path, 1, "feature maps of 3 images")
    with pytest.raises(OutputError, match=r"feature maps of 3 images need .* GB below .*--cache"):
        check_room(tmp_path, 10**18, "feature maps of 3 images")


# Names: by content alone, and the same for ever, as folders on people's disks bear them


def test_the_name_is_the_digest_of_all_bytes_one_after_the_other() -> None:
    """By hand: so that what was kept by earlier versions is found again."""
    weights = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3)}
    values = np.array([[1, 2], [3, 4]], np.int16)
    told = b"told" + b"a" + np.int64(3).tobytes() + b"b" + np.float32([1, 2]).tobytes() + values.tobytes() + b"\x01\x00"
    parts = ["told", weights, values, torch.tensor([True, False])]
    assert fingerprint(parts, size=8) == hashlib.blake2b(told, digest_size=8).hexdigest()
    assert fingerprint(iter(parts), size=8) == fingerprint(parts, size=8)


@given(st.permutations(["weight", "bias", "running_mean"]))
def test_the_order_of_weights_does_not_count(order: list[str]) -> None:
    norm = nn.BatchNorm2d(3).state_dict()
    assert fingerprint([{name: norm[name] for name in order}], 8) == fingerprint(
        [{name: norm[name] for name in ("weight", "bias", "running_mean")}], 8
    )


def test_the_order_in_memory_does_not_count() -> None:
    values = torch.rand(2, 3, 4, 5)
    last = values.to(memory_format=torch.channels_last)
    assert fingerprint([last], 8) == fingerprint([values], 8) == fingerprint([values.numpy()], 8)
    assert fingerprint([np.asfortranarray(values.numpy())], 8) == fingerprint([values], 8)


@pytest.mark.parametrize("change", ["name", "value", "text", "size"])
def test_all_else_counts(change: str) -> None:
    def named(name: str = "weight", value: float = 1.0, text: str = "short side 224", size: int = 8) -> str:
        return fingerprint([text, {name: torch.tensor([value])}], size)

    other: dict[str, object] = {"name": "bias", "value": 1.0000001, "text": "short side 225", "size": 6}
    assert named(**{change: other[change]}) != named()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_dtype_and_shape(dtype: torch.dtype) -> None:
    names = {fingerprint(["", torch.zeros(shape, dtype=dtype)], 8) for shape in ((0,), (), (2, 3))}
    assert len(names) == 3


def test_a_file_name_that_is_no_text() -> None:
    assert fingerprint(["caf\udce9.jpg"], 8) != fingerprint(["café.jpg"], 8)
