"""Which files are images: by their endings, in folders at any depth, and as people name several at once. Nothing is opened."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sppnet.errors import ImageError, UserError

_FORMATS = "avif bmp dib gif heic heif j2k jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_ENDINGS = frozenset(f".{name}" for name in _FORMATS.split())
_MADE_BY_MACHINES = {"__MACOSX", "@eaDir"}  # by macOS when it zips, by network drives for thumbnails: as good as hidden


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, at any depth; each list is sorted."""

    images: list[Path] = field(default_factory=list)  # by their ending
    others: list[Path] = field(default_factory=list)  # files of other endings
    hidden: list[Path] = field(default_factory=list)  # files and folders, these not looked into
    unreadable: list[tuple[Path, str]] = field(default_factory=list)  # folders that could not be listed, and why


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that files, folders and glob patterns stand for.

    A file is taken as given. A folder is searched with all its subfolders for the usual image endings (any case);
    hidden files and folders are passed over. A pattern such as ``photos/**/*.jpg`` is expanded; folders that it matches
    are searched, other files are taken by their ending.

    Args:
        sources: paths or patterns, at least one.

    Returns:
        Sorted paths, each once, as reachable from the given source (not made absolute).

    Raises:
        ImageError: a source that stands for no file. The message names it.

    Example:
        >>> find_images(["no/such/folder"])
        Traceback (most recent call last):
        sppnet.errors.ImageError: no/such/folder: no such file or folder
    """
    found: dict[str, Path] = {}
    for source in sources:
        paths = list(_paths_of(os.fspath(source)))
        if not paths:
            raise ImageError(f"{source}: no image found there; looked for files ending in .jpg, .png, .webp, .tif ...")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return sorted(found.values())


def list_images(
    folder: str | os.PathLike[str], *, deep: bool = True, outside: str | os.PathLike[str] | None = None
) -> Listing:
    """List the files in a folder: images by their ending, and the rest. Linked folders are followed, each once.

    Args:
        folder: where to look.
        deep: look into its subfolders too.
        outside: a folder that no link leads into.

    Raises:
        UserError: no such folder, or a file.

    Example:
        >>> for name in ("b.JPG", "a.txt", ".c.jpg"):
        ...     Path(name).touch()
        >>> found = list_images(".")
        >>> [path.name for path in found.images + found.others + found.hidden]
        ['b.JPG', 'a.txt', '.c.jpg']
    """
    folder = checked_folder(folder)
    found = Listing()
    seen = set() if outside is None else {os.path.realpath(outside)}

    def unreadable(error: OSError) -> None:
        found.unreadable.append((Path(error.filename), error.strerror or str(error)))

    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found.hidden.extend(Path(parent, name) for name in (*folders, *files) if is_hidden(name))
        folders[:] = sorted(name for name in folders if deep and not is_hidden(name))
        for path in (Path(parent, name) for name in files if not is_hidden(name)):
            (found.images if path.suffix.lower() in IMAGE_ENDINGS else found.others).append(path)
    for paths in (found.images, found.others, found.hidden):
        paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return found


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder; a `UserError` where there is none."""
    if not os.path.isdir(folder):
        what = "this is a file" if os.path.exists(folder) else "no such folder"
        raise UserError(f"{folder}: {what}; expected a folder of images")
    return Path(folder)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over for its name, such as macOS' "._1.jpg"."""
    return name.startswith(".") or name in _MADE_BY_MACHINES


def _paths_of(source: str) -> Iterator[Path]:
    path = Path(source)
    if source and path.is_dir():
        yield from list_images(path).images
    elif source and path.exists():
        yield path
    elif any(sign in source for sign in "*?["):
        for match in map(Path, glob.iglob(source, recursive=True)):
            if match.is_dir():
                yield from list_images(match).images
            elif match.suffix.lower() in IMAGE_ENDINGS:
                yield match
    else:
        raise ImageError(f"{source or repr(source)}: no such file or folder")
