"""Data comes out of a pickle, and nothing in it is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.errors import UserError
from sppnet.proposals.plain_pickle import load_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_back(tmp_path: Path, protocol: int) -> None:
    data = {
        "arrays": [
            np.arange(12, dtype=np.float32).reshape(3, 4),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(5, dtype=">i4"),
            np.empty((0, 4)),
            np.array(["a", "bcd"]),
            np.arange(20).reshape(4, 5)[::2, ::2],
        ],
        "number": np.int64(7),
        "share": np.float32(0.5),
        "plain": (1, 2.5, None, True, "é", b"\xff\0", {1, 2}, frozenset([3]), bytearray(b"z")),
        "ordered": OrderedDict(a=1),
    }
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    found = load_plain_pickle(path)
    for array, expected in zip(found["arrays"], data["arrays"], strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype  # type: ignore[attr-defined]
        assert np.array_equal(array, expected)
    assert (found["number"], found["share"], found["plain"]) == (7, 0.5, data["plain"])
    assert found["ordered"] == {"a": 1}


def test_of_python_2(tmp_path: Path) -> None:
    content = (  # numpy.ones(2) and a str, by cPickle of Python 2, protocol 2
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02"
        b"\x85cnumpy\ndtype\nq\x04U\x02f8K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x10\x00\x00\x00\x00\x00\x00\xf0?\x00\x00\x00\x00\x00\x00\xf0?tb."
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(content)
    assert load_plain_pickle(path).tolist() == [1, 1]


class Runs:
    """Runs something when it is read."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.made_by = (function, values)

    def __reduce__(self) -> Any:
        return self.made_by


@pytest.mark.parametrize(
    "make",
    [
        lambda mark: Runs(os.system, f"touch {mark}"),
        lambda mark: Runs(os.mkdir, str(mark)),
        lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Runs(open, str(mark), "w"),
        lambda mark: Runs(np.load, str(mark)),
        lambda mark: Runs(np.memmap, str(mark), "u1", "w+", 0, (4,)),
        lambda mark: {"boxes": [np.zeros((1, 4)), Runs(Path.touch, mark)]},
        lambda mark: np.array([Runs(os.mkdir, str(mark))], dtype=object),
        lambda mark: Path(mark),
        lambda mark: print,
        lambda mark: np.array([(1, 2)], dtype=[("a", "i4"), ("b", "O")]),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_else_is_read_and_nothing_runs(tmp_path: Path, make: Any, protocol: int) -> None:
    path, mark = tmp_path / "evil.pkl", tmp_path / "mark"
    path.write_bytes(pickle.dumps(make(mark), protocol=protocol))
    with pytest.raises(UserError, match=r"evil\.pkl: refused: .*; expected dictionaries") as caught:
        load_plain_pickle(path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"cposix\nsystem\n(S'touch mark'\ntR.", "it asks for posix.system"),
        (b"(S'touch mark'\nios\nsystem\n.", "it asks for os.system"),
        (b"cbuiltins\nset\n}S'__call__'\nNsb.", "it changes a function"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "an array of type 'O'"),
        (b"cnumpy\ndtype\n.", "a function or a type as data"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(tR.", "an array without content"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(tR(I1\n(I9\nI9\ntNI00\nS'x'\ntb.", "not made as NumPy makes them"),
        (b"cnumpy\nndarray\n)\x81.", "not a pickle of plain data"),
        (b"Pid\n.", "it refers to something outside the file"),
        (b"\x82\x01.", "not a pickle"),
        (b"", "not a pickle"),
        (b"PK\x03\x04", "not a pickle"),
        (pickle.dumps(np.ones((99, 4)))[:-40], "not a pickle of plain data, or damaged"),
    ],
)
def test_written_by_hand_and_damaged(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_plain_pickle(path)
    assert says in str(caught.value)


@given(st.binary(max_size=60))
def test_whatever_the_bytes_they_are_data_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    path.write_bytes(content)
    try:
        load_plain_pickle(path)
    except UserError:
        pass


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_plain_pickle(tmp_path / "gone.pkl")
