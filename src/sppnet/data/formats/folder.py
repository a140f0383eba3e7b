"""Anyone's folder of class folders: ``photos/cat/1.jpg`` says that 1.jpg is a cat. Nothing is opened here."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from sppnet.data.find import Listing, checked_folder, is_hidden, list_images
from sppnet.data.formats import Entry, Finding, Parsed, Severity, checked_limit, choose_split, raise_first_error, some
from sppnet.data.labelled import LabelledImages
from sppnet.errors import DataError

NAME, LAYOUT = "class folders", "a folder for each class"
TRAIN = "train"
VALIDATION = ("val", "valid", "validation", "test")  # the first of these that is there is the validation part
_ALL = 10**6  # names that a message of `check` writes out


def recognize(root: Path) -> bool:
    """Tell whether images lie in folders here.

    Example:
        >>> recognize(Path("no/such/folder"))
        False
    """
    return root.is_dir() and (bool(split_parts(root)) or any(path.parent != root for path in list_images(root).images))


def read(root: str | os.PathLike[str], split: str = TRAIN, limit: int | None = None) -> LabelledImages:
    """Read one part of a folder of class folders. A folder that is not split is all "train".

    Args:
        root: the folder that holds the class folders, or a folder of them for each part, such as "train" and "val".
        split: such as ``"train"``; "val" finds "valid" too.
        limit: take only so many images, of every class in turn, at least 1; None takes all.

    Raises:
        DataError: no such part, or as `read_folder`.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        sppnet.errors.UserError: no/such/folder: no such folder; expected a folder of images
    """
    checked_limit(limit)
    parts = split_parts(root)
    if parts:
        name = choose_split(Path(root), split, parts)
        images = _read_parts(Path(root), list(dict.fromkeys((parts[TRAIN], parts[name]))))[-1]
    elif split == TRAIN:
        images = read_folder(root)
    else:
        raise DataError(Path(root), f"no split {split!r}: it is not split; take 'train', which is all of it")
    turn = np.concatenate([np.arange(count) for count in images.counts()])  # of each image within its class
    return images if limit is None else images.subset(np.sort(np.argsort(turn, kind="stable")[:limit]))


def read_folder(root: str | os.PathLike[str], *, class_names: Sequence[str] | None = None) -> LabelledImages:
    """Read a folder of class folders: ``photos/cat/1.jpg``, ``photos/cat/more/2.PNG``, ``photos/dog/3.jpg``.

    Every visible folder in ``root`` is a class. Images are found in it at any depth, by the usual endings in any case; links are
    followed. Hidden and other files are passed over (``check`` counts them). A class folder without images is refused rather
    than left out: a class that silently vanished would shift the labels.

    Args:
        root: the folder that holds the class folders.
        class_names: in the order of their labels, such as those of a trained model. A class without a folder then has no
            images here. None: the folders' names, sorted without regard to case.

    Returns:
        The images, by class and then by path; names in Unicode's composed form (NFC), whatever the disk uses.

    Raises:
        ValueError: a name that stands twice in ``class_names``.
        UserError: no such folder; no class folder; one class only (unless ``class_names`` is given); images that lie
            directly in ``root``; class folders without images; folders that ``class_names`` does not name; two folders of
            one name or a name that is not text; a folder that cannot be listed. The message names them.

    Example:
        >>> for name in ("cat/1.jpg", "Dog/2.jpg", "Dog/puppies/3.PNG"):
        ...     Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("photos", name).touch()
        >>> images = read_folder("photos")
        >>> images.class_names, images.labels.tolist(), images.paths[2].name
        (('cat', 'Dog'), [0, 1, 1], '3.PNG')
    """
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise ValueError(f"read_folder: expected class names to be different, got {list(class_names)}")
    part = _list_part(Path(root))
    raise_first_error(_findings(part, class_names))
    return _labelled(part, part.class_names if class_names is None else tuple(class_names))


def split_folder(root: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages | None]:
    """Read a folder of class folders, and its validation part, where there is one.

    Args:
        root: the folder that holds the class folders; or a folder with "train" and perhaps one of val, valid, validation, test
            in it, each of class folders.

    Returns:
        (train, validation); None where the folder is not split.

    Raises:
        UserError: as `read_folder`, and a validation part whose classes are others.

    Example:
        >>> for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg"):
        ...     Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("photos", name).touch()
        >>> [len(part) for part in split_folder("photos")]
        [2, 2]
    """
    parts = split_parts(root)
    if not parts:
        return read_folder(root), None
    train, *validation = _read_parts(Path(root), list(parts.values())[:2])
    return train, validation[0] if validation else None


def training_images(root: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages | None]:
    """`split_folder`, but for a "test" part, which chooses nothing."""
    train, validation = split_folder(root)
    return train, None if list(split_parts(root)) == [TRAIN, "test"] else validation


def evaluation_images(root: str | os.PathLike[str], split: str, class_names: Sequence[str]) -> LabelledImages:
    """The images of a split to score a model on, labels in the order of its classes; all, where the folder is not split.

    Raises:
        UserError: a folder that is split, but not so; or as `read_folder`.
    """
    folder = Path(root, split)
    if not folder.is_dir():
        parts = split_parts(root)
        if parts and split not in parts:
            raise DataError(Path(root), f"no split {split!r}, but {' and '.join(parts)}: give --split {[*parts][-1]}")
        folder = parts.get(split, Path(root))
    return read_folder(folder, class_names=class_names)


def check(root: Path) -> Parsed:
    """Parse all class folders of all parts: what a training would refuse are errors, the same of further parts warnings."""
    folders = split_parts(root)
    parts = {name: _list_part(folder) for name, folder in (folders or {"": root}).items()}
    train, *others = parts.values()
    parsed = Parsed("class folders" + (f", split into {', '.join(parts)}" if folders else ""), root)
    parsed.class_names = list(dict.fromkeys(name for part in parts.values() for name in part.class_names))
    if folders:
        parsed.findings += _stray_findings(root, list_images(root, deep=False).images)
    parsed.findings += _findings(train, most=_ALL)
    for index, other in enumerate(others):
        severity: Severity = "error" if index == 0 else "warning"  # training reads the first
        parsed.findings += [replace(found, severity=severity) for found in _validation_findings(train, other, _ALL)]
    parsed.findings += _name_findings(train, lone=not others)
    for name, part in parts.items():
        entries = [(path, label) for label, _, listing in part.classes for path in listing.images]
        parsed.splits[name] = [
            Entry(str(path), path, partial(Finding, path, None), label=label) for path, label in entries
        ]
    return parsed


def split_parts(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the parts of a folder that is already split: those of train, val, valid, validation, test that are there.

    A folder "train" makes it split where a validation part lies beside it, or nothing else does; elsewhere it is a class
    (of trains).

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
    parts = {name: by_name[name] for name in (TRAIN, *VALIDATION) if name in by_name}
    split = TRAIN in parts and (len(parts) > 1 or len(folders) == 1)
    return parts if split else {}


@dataclass(frozen=True)
class _Part:
    """A folder of class folders as it lies on disk."""

    root: Path
    classes: tuple[tuple[str, Path, Listing], ...]  # (name in NFC, folder, what is in it), sorted by name
    beside: Listing  # what lies in the root itself

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.classes)


def _list_part(root: Path) -> _Part:
    folders = _visible_folders(root)
    classes = [(unicodedata.normalize("NFC", path.name), path, list_images(path, outside=root)) for path in folders]
    classes.sort(key=lambda entry: (entry[0].casefold(), entry[0], entry[1].name))
    return _Part(root, tuple(classes), list_images(root, deep=False))


def _visible_folders(root: Path) -> list[Path]:
    checked_folder(root)
    try:
        return sorted(path for path in root.iterdir() if not is_hidden(path.name) and os.path.isdir(path))
    except OSError as error:
        raise DataError(root, f"cannot be listed: {error.strerror or error}") from error


def _read_parts(root: Path, folders: Sequence[Path]) -> list[LabelledImages]:
    """The training part and, where there is one, another with the same classes."""
    train, *others = (_list_part(folder) for folder in folders)
    raise_first_error([*_stray_findings(root, list_images(root, deep=False).images), *_findings(train)])
    for other in others:
        raise_first_error(_validation_findings(train, other))
    return [_labelled(part, train.class_names) for part in (train, *others)]


def _labelled(part: _Part, class_names: tuple[str, ...]) -> LabelledImages:
    label_of = {unicodedata.normalize("NFC", name): label for label, name in enumerate(class_names)}
    pairs = [(label_of[name], path) for name, _, listing in part.classes for path in listing.images]
    pairs.sort(key=lambda pair: pair[0])  # by class; within it the paths stay sorted
    labels = np.array([label for label, _ in pairs], dtype=np.int64)
    return LabelledImages(tuple(path for _, path in pairs), labels, class_names)


def _findings(part: _Part, known: Sequence[str] | None = None, most: int = 10) -> Iterator[Finding]:
    """Everything that keeps a folder from being read, the gravest first; ``known`` are the names that folders may have."""
    root, names = part.root, part.class_names
    error = partial(_error, root)
    for listing in (part.beside, *(listing for _, _, listing in part.classes)):
        for path, why in listing.unreadable:
            yield _error(path, "unreadable", f"cannot be listed: {why}")
    example = f"expected one folder for each class, such as {root / 'cat' / '1.jpg'} and {root / 'dog' / '2.jpg'}"
    if not part.classes:
        here = f"{_count_images(part.beside.images)} here, but no class folder" if part.beside.images else None
        yield error("no-class", f"{here or 'no class folder'}; {example}")
        return
    yield from _stray_findings(root, part.beside.images)
    for name, folder, _ in part.classes:
        if not _is_text(name):
            yield _error(folder, "class-name", f"the name {name!r} is not valid UTF-8; rename the folder")
    twice = sorted({repr(name) for name, following in pairwise(names) if name == following})
    if twice:
        message = f"two folders are called {some(twice, most)}, spelt with different Unicode characters; make them one"
        yield error("class-name", message)
    empty = [repr(name) for name, _, listing in part.classes if not (listing.images or listing.unreadable)]
    if empty:
        yield error("empty-class", f"no images in {_folders(empty, most)}; add images, or move what has none away")
    if known is None and len(names) == 1:
        yield error("one-class", f"one class only, {names[0]!r}; a classifier needs at least two; {example}")
    expected = {unicodedata.normalize("NFC", name) for name in known or ()}
    unknown = [] if known is None else [repr(name) for name in names if name not in expected]
    if unknown:
        classes = some([repr(name) for name in known or ()])
        message = f"{_folders(unknown, most)} not expected; the classes are {classes}; rename or move away"
        yield error("unknown-class", message)


def _validation_findings(train: _Part, other: _Part, most: int = 10) -> Iterator[Finding]:
    """Everything that keeps a validation part from being read beside its training part, the gravest first."""
    remedy = f"; or give {train.root} alone, and a part of it is split off for validation"
    only = {
        train.root.name: [repr(name) for name in train.class_names if name not in set(other.class_names)],
        other.root.name: [repr(name) for name in other.class_names if name not in set(train.class_names)],
    }
    if other.classes and train.classes and any(only.values()):
        differences = "; ".join(f"only in {part}: {some(names, most)}" for part, names in only.items() if names)
        message = f"expected the same classes as in {train.root}; {differences}"
        yield _error(other.root, "differing-classes", message + remedy)
    for found in _findings(other, other.class_names or train.class_names, most):
        yield replace(found, message=found.message + remedy)


def _name_findings(part: _Part, *, lone: bool) -> Iterator[Finding]:
    """Warnings: names that are nearly the same, and classes of a single image."""
    spelt: dict[str, str] = {}
    for name, folder, listing in part.classes:
        plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
        if spelt.setdefault(plain, name) != name:
            message = f"the class {name!r} is spelt almost like {spelt[plain]!r}: if they are one, make them one folder"
            yield Finding(folder, None, "warning", "alike", message)
        if lone and len(listing.images) == 1:
            message = "the only image of its class: none can be split off for validation"
            yield Finding(folder, None, "warning", "lone", message)


def _stray_findings(root: Path, images: Sequence[Path]) -> Iterator[Finding]:
    if images:
        where = f"beside the folders ({some([path.name for path in images], most=3)})"
        yield _error(root, "stray", f"{_count_images(images)} {where}; move each into the folder of its class, or away")


def _error(path: Path, kind: str, message: str) -> Finding:
    return Finding(path, None, "error", kind, message)


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
