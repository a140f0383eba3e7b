"""What goes wrong because of what was given: a small tree, so that a caller catches what it can mend."""

from __future__ import annotations

import copyreg
import re
from pathlib import Path
from typing import Any

LONGEST_MESSAGE = 1000  # characters
# Control characters, lines that end, directions of writing that turn.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    r"""A text, such as a file's name, as it may be printed: what would command a terminal or break the line is escaped.

    Example:
        >>> print(printable("red\x1b[31m.jpg"), printable("two\nlines"), printable("naïve 犬.jpg"))
        red\x1b[31m.jpg two\nlines naïve 犬.jpg
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was expected, what came, what to do. The command line prints it and exits with 2.
    """

    def __init__(self, message: object = "") -> None:
        told = printable(message)
        super().__init__(told if len(told) <= LONGEST_MESSAGE else f"{told[:700]} ... {told[-250:]}")

    def __reduce__(self) -> Any:  # comes whole out of a worker, whatever its class is made from
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class ImageError(UserError):
    """An image, or a place to look for images, cannot be used."""


class ModelError(UserError):
    """A model file, its weights or a backbone cannot be used."""


class SettingsError(UserError):
    """A setting is out of its range, or contradicts another."""


class OutputError(UserError):
    """A file cannot be written where it was asked for."""


class DataError(UserError):
    """A data set's file cannot be used; the message begins with the file and, where known, the line.

    Example:
        >>> error = DataError(Path("labels/a.txt"), "box is empty", line=3)
        >>> str(error), error.reason
        ('labels/a.txt:3: box is empty', 'box is empty')
    """

    def __init__(self, path: Path, reason: str, line: int | None = None) -> None:
        super().__init__(f"{path}: {reason}" if line is None else f"{path}:{line}: {reason}")
        self.path, self.reason, self.line = path, reason, line  # line counted from 1
