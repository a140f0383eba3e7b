"""A mistake in a data set's text files that knows its place: readers raise it, the check lists it."""

from pathlib import Path

from sppnet.errors import UserError


class PlacedError(UserError):
    """Something in a file cannot be used. The message begins with the file and, where known, the line.

    Example:
        >>> error = PlacedError(Path("labels/a.txt"), "box is empty", line=3)
        >>> str(error), error.reason
        ('labels/a.txt:3: box is empty', 'box is empty')
    """

    def __init__(self, path: Path, reason: str, line: int | None = None) -> None:
        super().__init__(f"{path}: {reason}" if line is None else f"{path}:{line}: {reason}")
        self.path, self.reason, self.line = path, reason, line  # line counted from 1
