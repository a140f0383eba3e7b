"""A file that is there whole or not at all: written under another name, and renamed at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from sppnet.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; what was written there becomes ``path`` at the end, and vanishes if an error ends it.

    Args:
        path: missing folders are made; a file that is there is replaced at once.

    Yields:
        A name in the same folder, of this thread alone, so that two writers of one file do not write into each other's.

    Raises:
        UserError: it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "notes.txt"
        >>> with whole_file(path) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        ...     path.exists()
        False
        >>> path.read_text()
        'all of it'
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path}: cannot be written: {reason}; make room, or choose another place") from error
    finally:
        with suppress(OSError):  # still there only where writing failed
            unfinished.unlink(missing_ok=True)
