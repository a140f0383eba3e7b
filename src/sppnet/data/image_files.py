"""Which files are images: by their endings, in folders at any depth, and as people name several at once. Nothing is opened."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppnet.data.images import ImageError

IMAGE_ENDINGS = frozenset(
    (
        *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    )
)


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
        sppnet.data.images.ImageError: no/such/folder: no such file or folder
    """
    found: dict[str, Path] = {}
    for source in sources:
        paths = list(_paths_of(os.fspath(source)))
        if not paths:
            raise ImageError(f"{source}: no image found there; looked for files ending in .jpg, .png, .webp, .tif ...")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return sorted(found.values())


def images_below(folder: Path) -> Iterator[Path]:
    """The images in a folder and all its subfolders, by their endings (any case); what is hidden is passed over.

    Example:
        >>> for name in ("b.JPG", "a.txt", ".thumbnails/c.jpg"):
        ...     Path(name).parent.mkdir(exist_ok=True)
        ...     Path(name).touch()
        >>> list(images_below(Path()))
        [PosixPath('b.JPG')]
    """
    seen: set[str] = set()  # linked folders are followed, each once, so that a link to a parent ends
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in seen
        )
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_ENDINGS:
                yield Path(parent, name)


def _paths_of(source: str) -> Iterator[Path]:
    path = Path(source)
    if source and path.is_dir():
        yield from images_below(path)
    elif source and path.exists():
        yield path
    elif any(sign in source for sign in "*?["):
        for match in glob.iglob(source, recursive=True):
            if os.path.isdir(match):
                yield from images_below(Path(match))
            elif Path(match).suffix.lower() in IMAGE_ENDINGS:
                yield Path(match)
    else:
        raise ImageError(f"{source or repr(source)}: no such file or folder")
