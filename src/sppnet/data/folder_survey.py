"""What lies in a folder of class folders, whatever its state: listed once, for reading it and for checking it.

``folder`` refuses a folder for the first of the problems found here, ``check`` reports them all; so what passes the
check can be read. Nothing is opened.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from sppnet.data.image_files import IMAGE_ENDINGS
from sppnet.errors import UserError

TRAIN = "train"
HELD_OUT = ("val", "valid", "validation", "test")  # the first of these that is there is the held-out part
_MADE_BY_MACHINES = {"__MACOSX", "@eaDir"}  # by macOS when it zips, by network drives for thumbnails: as good as hidden


class Problem(NamedTuple):
    """One reason why a folder cannot be read as class folders."""

    kind: str  # one word, to count and to filter by
    path: Path
    message: str  # one line, without the path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, at any depth."""

    images: list[Path] = field(default_factory=list)  # by their ending
    others: list[Path] = field(default_factory=list)  # files of other endings
    hidden: list[Path] = field(default_factory=list)  # files and folders, these not looked into
    unreadable: list[tuple[Path, str]] = field(default_factory=list)  # folders that could not be listed, and why


@dataclass(frozen=True)
class FolderSurvey:
    """A folder of class folders as it lies on disk, before anything is asked of it."""

    root: Path
    classes: tuple[tuple[str, Path, Listing], ...]  # (name in NFC, folder, what is in it), sorted by name
    beside: Listing  # what lies in the root itself

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, sorted."""
        return tuple(name for name, _, _ in self.classes)

    def problems(self, classes: Sequence[str] | None = None, most: int = 10) -> list[Problem]:
        """Say everything that keeps this folder from being read, the gravest first; nothing: it is fine.

        Args:
            classes: the names that folders may have; None: any, but at least two.
            most: how many names one message writes out.
        """
        root, names = self.root, self.names
        problems = [
            Problem("unreadable", path, f"cannot be listed: {why}")
            for listing in (self.beside, *(listing for _, _, listing in self.classes))
            for path, why in listing.unreadable
        ]
        example = f"expected one folder for each class, such as {root / 'cat' / '1.jpg'} and {root / 'dog' / '2.jpg'}"
        if not self.classes:
            here = f"{_count_images(self.beside.images)} here, but no class folder" if self.beside.images else None
            return [*problems, Problem("no-class", root, f"{here or 'no class folder'}; {example}")]
        problems += _stray_problems(root, self.beside.images)
        for name, folder, _ in self.classes:
            if not _is_text(name):
                problems.append(
                    Problem("class-name", folder, f"the name {name!r} is not valid UTF-8; rename the folder")
                )
        twice = sorted({repr(name) for name, following in pairwise(names) if name == following})
        if twice:
            message = (
                f"two folders are called {some(twice, most)}, spelt with different Unicode characters; make them one"
            )
            problems.append(Problem("class-name", root, message))
        empty = [repr(name) for name, _, listing in self.classes if not (listing.images or listing.unreadable)]
        if empty:
            message = f"no images in {_folders(empty, most)}; add images, or move what has none away"
            problems.append(Problem("empty-class", root, message))
        if classes is None and len(names) == 1:
            message = f"one class only, {names[0]!r}; a classifier needs at least two; {example}"
            problems.append(Problem("one-class", root, message))
        known = {unicodedata.normalize("NFC", name) for name in classes or ()}
        unknown = [] if classes is None else [repr(name) for name in names if name not in known]
        if unknown:
            expected = some([repr(name) for name in classes or ()])
            message = f"{_folders(unknown, most)} not expected; the classes are {expected}; rename or move away"
            problems.append(Problem("unknown-class", root, message))
        return problems


def survey_folder(root: str | os.PathLike[str]) -> FolderSurvey:
    """List a folder of class folders, whatever its state.

    Args:
        root: the folder that holds the class folders.

    Returns:
        What is there; ask its ``problems``.

    Raises:
        UserError: no such folder, or a file.

    Example:
        >>> Path("photos/cat").mkdir(parents=True)
        >>> str(survey_folder("photos").problems()[0])
        "photos: no images in the class folder 'cat'; add images, or move what has none away"
    """
    root = Path(root)
    folders = _visible_folders(root)
    beside = _list(root, deep=False)
    here = os.path.realpath(root)
    classes = [(unicodedata.normalize("NFC", path.name), path, _list(path, not_into=here)) for path in folders]
    classes.sort(key=lambda entry: (entry[0].casefold(), entry[0], entry[1].name))
    return FolderSurvey(root, tuple(classes), beside)


def list_images(folder: str | os.PathLike[str], *, deep: bool = True) -> Listing:
    """List the files in a folder: images by their ending, and the rest.

    Linked folders are followed, each once.

    Args:
        folder: where to look.
        deep: look into its subfolders too.

    Returns:
        Paths sorted, as reachable from ``folder``.

    Raises:
        UserError: no such folder, or a file.

    Example:
        >>> for name in ("b.JPG", "a.txt", ".c.jpg"):
        ...     Path(name).touch()
        >>> found = list_images(".")
        >>> [path.name for path in found.images + found.others + found.hidden]
        ['b.JPG', 'a.txt', '.c.jpg']
    """
    _check_folder(Path(folder))
    return _list(Path(folder), deep=deep)


def split_parts(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the parts of a folder that is already split: those of train, val, valid, validation, test that are there.

    A folder "train" makes it split where a held-out part lies beside it, or nothing else does; elsewhere it is a class
    (of trains).

    Args:
        root: the folder to look into.

    Returns:
        Part to folder, train first; empty where the folder is not split.

    Raises:
        UserError: no such folder, or a file.

    Example:
        >>> for name in ("Train", "test"):
        ...     Path("photos", name).mkdir(parents=True)
        >>> list(split_parts("photos"))
        ['train', 'test']
    """
    folders = _visible_folders(Path(root))
    by_name = {path.name.casefold(): path for path in folders}
    parts = {name: by_name[name] for name in (TRAIN, *HELD_OUT) if name in by_name}
    split = TRAIN in parts and (len(parts) > 1 or len(folders) == 1)
    return parts if split else {}


def split_problems(root: Path, train: FolderSurvey, held_out: FolderSurvey | None, most: int = 10) -> list[Problem]:
    """Say everything that keeps a split folder from being read, the gravest first; nothing: it is fine.

    Args:
        root: the folder that holds both parts.
        train: the training part.
        held_out: the other part, if there is one: its classes must be those of ``train``.
        most: how many names one message writes out.
    """
    problems = [*_stray_problems(root, _list(root, deep=False).images), *train.problems(most=most)]
    if held_out is not None:
        problems += held_out_problems(train, held_out, most)
    return problems


def held_out_problems(train: FolderSurvey, held_out: FolderSurvey, most: int = 10) -> list[Problem]:
    """Say everything that keeps a held-out part from being read beside its training part, the gravest first."""
    problems = []
    only = {
        train.root.name: [repr(name) for name in train.names if name not in set(held_out.names)],
        held_out.root.name: [repr(name) for name in held_out.names if name not in set(train.names)],
    }
    if held_out.classes and train.classes and any(only.values()):
        differences = "; ".join(f"only in {part}: {some(names, most)}" for part, names in only.items() if names)
        message = f"expected the same classes as in {train.root}; {differences}"
        problems.append(Problem("differing-classes", held_out.root, message))
    others = held_out.problems(held_out.names or train.names, most)
    remedy = f"; or give {train.root} alone, and a part of it is held out"
    return [Problem(kind, path, message + remedy) for kind, path, message in (*problems, *others)]


def some(names: Sequence[str], most: int = 10) -> str:
    """Write out a list for a message: the first few, and how many more.

    Example:
        >>> some(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_folder(folder: Path) -> None:
    if not os.path.isdir(folder):
        what = "this is a file" if os.path.exists(folder) else "no such folder"
        raise UserError(f"{folder}: {what}; expected a folder of images")


def _visible_folders(root: Path) -> list[Path]:
    _check_folder(root)
    try:
        return sorted(path for path in root.iterdir() if not _is_hidden(path.name) and os.path.isdir(path))
    except OSError as error:
        raise UserError(f"{root}: cannot be listed: {error.strerror or error}") from error


def _list(folder: Path, deep: bool = True, not_into: str | None = None) -> Listing:
    found = Listing()
    seen = {not_into or ""}  # a link back to the root would bring in all other classes
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(parent))
        except OSError as error:
            found.unreadable.append((parent, error.strerror or str(error)))
            continue
        folders = []
        for name in names:
            path = parent / name
            if _is_hidden(name):
                found.hidden.append(path)
            elif os.path.isdir(path):
                folders.append(path)
            elif path.suffix.lower() in IMAGE_ENDINGS:
                found.images.append(path)
            else:
                found.others.append(path)
        if deep:
            waiting.extend(reversed(folders))
    for paths in (found.images, found.others, found.hidden):
        paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return found


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _MADE_BY_MACHINES


def _stray_problems(root: Path, images: Sequence[Path]) -> list[Problem]:
    if not images:
        return []
    where = f"beside the folders ({some([path.name for path in images], most=3)})"
    message = f"{_count_images(images)} {where}; move each into the folder of its class, or away"
    return [Problem("stray", root, message)]


def _count_images(images: Sequence[Path]) -> str:
    return "1 image lies" if len(images) == 1 else f"{len(images)} images lie"


def _folders(names: Sequence[str], most: int) -> str:
    """Write "the class folder x", "the class folders x, y"."""
    return f"the class folder{'s' if len(names) > 1 else ''} {some(names, most)}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
