"""Read plain data out of a pickle, and run nothing that is in it.

A pickle names functions to be called while it is read, and so can do anything at all. Here the only names it may use are
those that NumPy arrays, ordered dictionaries and sets are made with, and for these stand-ins of this file are called,
not NumPy's; any other name is refused before a thing is done. Arrays come back as NumPy's, made from their bytes here.
"""

import io
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.errors import UserError

_KINDS = frozenset("biufSU")  # of numbers and text; never objects, which would hold more of the pickle
_NUMPY = tuple(
    f"numpy{part}" for part in ("", ".core.multiarray", "._core.multiarray", ".core.numeric", "._core.numeric")
)


class _Refused(Exception):
    """A pickle asks for what plain data does not need."""


class _Name:
    """What stands for a name in the pickle: it may be called, and nothing in it can be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *values: Any) -> Any:
        return self._make(*values)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes a function")


class _Type:
    """An array's type, as the pickle describes it."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        dtype = np.dtype(code) if isinstance(code, str) and len(code) < 8 else None
        if dtype is None or dtype.kind not in _KINDS:
            raise _Refused(f"an array of type {code!r}")
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        """Only the byte order is taken: the second of (version, order, ...)."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise _Refused("a type that is not a number's")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array whose content is still to come."""

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        """(version, shape, type, Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise _Refused("an array that is not made as NumPy makes them")
        _, shape, kind, fortran, content = state
        if isinstance(content, str):  # of Python 2
            content = content.encode("latin1")
        self.value = _filled(content, kind.dtype, shape, "F" if fortran else "C")


def load_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of dictionaries, lists, tuples, sets, numbers, text and NumPy arrays.

    Args:
        path: of the file; of any protocol, and of Python 2 as well.

    Returns:
        What it holds. Arrays hold numbers or text. ``detectron2``'s box modes are their numbers.

    Raises:
        UserError: no such file, not a pickle, or one that holds or does anything else. It is then left alone: no name in
            it has been imported or called.

    Example:
        >>> _ = Path("boxes.pkl").write_bytes(pickle.dumps({"ids": ["a"], "boxes": [np.ones((1, 4))]}))
        >>> load_plain_pickle("boxes.pkl")
        {'ids': ['a'], 'boxes': [array([[1., 1., 1., 1.]])]}
        >>> _ = Path("evil.pkl").write_bytes(pickle.dumps(print))
        >>> load_plain_pickle("evil.pkl")
        Traceback (most recent call last):
        sppnet.errors.UserError: evil.pkl: refused: it asks for builtins.print, and plain data needs no such thing; ...
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    advice = "expected dictionaries, lists, numbers, text and NumPy arrays"
    try:
        return _unwrapped(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except _Refused as error:
        raise UserError(f"{path}: refused: {error}; {advice}") from error
    except Exception as error:  # a damaged pickle may raise whatever
        raise UserError(f"{path}: not a pickle of plain data, or damaged: {error}; {advice}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it asks for {module}.{name}, and plain data needs no such thing")
        return _Name(_ALLOWED[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to something outside the file")


def _array(*ignored: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    if not isinstance(kind, _Type):
        raise _Refused("an array that is not made as NumPy makes them")
    return _Array(_filled(content, kind.dtype, shape, order))


def _number(kind: Any, content: Any = b"") -> Any:
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(kind, _Type) or len(content) != kind.dtype.itemsize:
        raise _Refused("a number that is not made as NumPy makes them")
    return np.frombuffer(content, kind.dtype)[0].item()


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("bytes in an unusual encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocols 0 to 2 write bytes of no length."""
    return b""


def _byte_array(content: Any = b"", encoding: Any = "latin-1") -> bytearray:
    if not isinstance(content, str | bytes) or encoding != "latin-1":  # of a number, it would take that much memory
        raise _Refused("bytes in an unusual encoding")
    return bytearray(content.encode("latin1") if isinstance(content, str) else content)


def _box_mode(number: Any) -> int:
    return int(number)


def _not_to_be_called(*ignored: Any) -> Any:
    raise _Refused("an array that is not made as NumPy makes them")


def _filled(content: Any, dtype: np.dtype, shape: Any, order: str) -> np.ndarray:
    if not isinstance(content, bytes | bytearray | memoryview):
        raise _Refused("an array without bytes")
    if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise _Refused(f"an array of shape {shape!r}")
    return np.frombuffer(bytes(content), dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _allowed() -> Mapping[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("_codecs", "encode"): _bytes,
        ("collections", "OrderedDict"): dict,
        ("detectron2.structures.boxes", "BoxMode"): _box_mode,
    }
    for module in _NUMPY:
        names |= {
            (module, "ndarray"): _not_to_be_called,
            (module, "dtype"): _Type,
            (module, "_reconstruct"): _array,
            (module, "_frombuffer"): _from_buffer,
            (module, "scalar"): _number,
        }
    for module in ("builtins", "__builtin__"):
        names |= {(module, "set"): set, (module, "frozenset"): frozenset}
        names |= {(module, "bytes"): _no_bytes, (module, "bytearray"): _byte_array}
    return names


_ALLOWED = _allowed()


def _unwrapped(value: Any) -> Any:
    """Put the arrays themselves in place of their stand-ins."""
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refused("an array without content")
        return value.value
    if isinstance(value, _Name | _Type):
        raise _Refused("a function or a type as data")
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unwrapped(item) for item in value)
    return value
