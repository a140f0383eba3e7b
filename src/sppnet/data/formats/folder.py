"""Anyone's folder of class folders: ``photos/cat/1.jpg`` says that 1.jpg is a cat. Nothing is opened here."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from sppnet.data.find import Listing, checked_folder, is_hidden, list_images
from sppnet.data.formats import Entry, Finding, Parsed, checked_limit, choose_split, raise_first_error, some
from sppnet.data.labelled import LabelledImages
from sppnet.errors import DataError

TRAIN = "train"
PARTS = (TRAIN, "val", "test")
_Classes = Sequence[tuple[str, Path, Listing]]
VALIDATION = ("val", "valid", "validation", "test")  # the first of these that is there is the validation part


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
    root, parts, limit = Path(root), split_parts(root), checked_limit(limit)
    if parts:
        name = choose_split(root, split, parts)
        parsed = _parse_parts(root, {part: parts[part] for part in (TRAIN, name)})
        images = _labelled(parsed, name, parsed.class_names)
    elif split == TRAIN:
        images = read_folder(root)
    else:
        remedy = "take 'train', which is all of it, and `split_off`"
        raise DataError(root, f"no split {split!r}, as it is not split; {remedy}")
    turns = np.concatenate([np.arange(count) for count in images.counts()])  # of each image within its class
    return images if limit is None else images.subset(np.sort(np.argsort(turns, kind="stable")[:limit]))


def read_folder(root: str | os.PathLike[str], *, class_names: Sequence[str] | None = None) -> LabelledImages:
    """Read a folder of class folders: ``photos/cat/1.jpg``, ``photos/cat/more/2.PNG``, ``photos/dog/3.jpg``.

    Every visible folder in ``root`` is a class. Images are found in it at any depth, by the usual endings in any case;
    links are followed. Hidden files and folders and other files are passed over (``check`` counts them). A class folder
    without images is refused rather than left out: it is a slip far more often than a wish, and a class that silently
    vanished would shift the labels.

    Args:
        root: the folder that holds the class folders.
        class_names: in the order of their labels, such as those of a trained model. A class without a
            folder then has no images here. None: the folders' names, sorted without regard to case.

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
    parsed = _parse(Path(root), class_names)
    return _labelled(parsed, "", parsed.class_names if class_names is None else class_names)


def training_images(root: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages | None]:
    """Read what a training takes of a folder that may be split: ``photos/train/cat/1.jpg`` beside ``photos/val/cat/2.jpg``.

    The validation part is the first of val, valid, validation that is there (any case). Images called "test" choose nothing;
    without a validation part they are checked, and left out. Other folders beside "train" are passed over. Without a
    folder "train", or where "train" is a class among others, the whole is the training part.

    Args:
        root: the folder that holds train and the validation part, or the class folders themselves.

    Returns:
        (train, validation), with the same classes; validation is None where there is no such folder (see ``split_off``).

    Raises:
        UserError: as ``read_folder``; or the two parts do not have the same classes. The message names those.

    Example:
        >>> for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg"):
        ...     Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("photos", name).touch()
        >>> train, validation = training_images("photos")
        >>> len(train), len(validation)
        (2, 2)
    """
    parts = split_parts(root)
    if not parts:
        return read_folder(root), None
    names = list(parts)[:2]
    parsed = _parse_parts(Path(root), {name: parts[name] for name in names})
    train, *validation = (_labelled(parsed, name, parsed.class_names) for name in names)
    return train, validation[0] if validation and names != [TRAIN, "test"] else None


def evaluation_images(root: str | os.PathLike[str], split: str, class_names: Sequence[str]) -> LabelledImages:
    """The images of a split to score a model on, labels in the order of its classes; all, where the folder is not split.

    Raises:
        UserError: a folder that is split, but not so; or as `read_folder`.
    """
    part, parts = Path(root, split), split_parts(root)
    if not part.is_dir():
        if parts and split not in parts:
            raise DataError(Path(root), f"no split {split!r}, but {' and '.join(parts)}: give --split {[*parts][-1]}")
        part = parts.get(split, Path(root))
    return read_folder(part, class_names=class_names)


def check(root: Path) -> Parsed:
    """Parse all class folders, of all parts where there are several."""
    parts = split_parts(root)
    parsed = _parse_parts(root, parts) if parts else _parse(root)
    parsed.findings += _name_findings(parts.get(TRAIN, root), parsed)
    return parsed


def split_parts(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the parts of a folder that is already split: those of train, val, valid, validation, test that are there.

    A folder "train" makes it split where a validation part lies beside it, or nothing else does; elsewhere it is a class
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
    folders = _folders(Path(root))
    by_name = {path.name.casefold(): path for path in folders}
    parts = {name: by_name[name] for name in (TRAIN, *VALIDATION) if name in by_name}
    return parts if TRAIN in parts and (len(parts) > 1 or len(folders) == 1) else {}


def _parse(root: Path, class_names: Sequence[str] | None = None) -> Parsed:
    """One folder of class folders, which may have these names only (None: any, but at least two); it is the split ""."""
    beside = list_images(root, deep=False)
    folders = _folders(root)
    classes = [(unicodedata.normalize("NFC", path.name), path, list_images(path, outside=root)) for path in folders]
    classes.sort(key=lambda entry: (entry[0].casefold(), entry[0], entry[1].name))
    parsed = Parsed("class folders", root, tuple(dict.fromkeys(name for name, _, _ in classes)))
    parsed.listings = [beside, *(listing for _, _, listing in classes)]
    parsed.splits[""] = [
        Entry(path.stem, path, partial(Finding, path, None), label=name)
        for name, _, listing in classes
        for path in listing.images
    ]
    parsed.findings += _findings(root, beside, classes, class_names)
    return parsed


def _parse_parts(root: Path, parts: Mapping[str, Path]) -> Parsed:
    """The training part, and those beside it, whose classes must be the same; faults of all but the first are warnings."""
    beside = list_images(root, deep=False)
    parsed = Parsed(f"class folders, split into {', '.join(parts)}", root, listings=[beside])
    parsed.findings += _stray_findings(root, beside)
    train: Parsed | None = None
    for name, folder in parts.items():
        part = _parse(folder)
        findings = part.findings
        if train is not None:
            remedy = f"; or give {train.place} alone, and a part of it is split off"
            findings = [*_differences(train, part), *(finding for finding in findings if finding.kind != "one-class")]
            findings = [replace(finding, message=finding.message + remedy) for finding in findings]
        if len(parsed.splits) > 1:
            findings = [replace(finding, severity="warning") for finding in findings]
        train = train or part
        parsed.findings += findings
        parsed.listings += part.listings
        parsed.splits[name] = part.splits[""]
        parsed.class_names = tuple(dict.fromkeys((*parsed.class_names, *part.class_names)))
    return parsed


def _labelled(parsed: Parsed, part: str, class_names: Sequence[str]) -> LabelledImages:
    raise_first_error(parsed.findings)
    label_of = {unicodedata.normalize("NFC", name): label for label, name in enumerate(class_names)}
    entries = sorted(parsed.splits[part], key=lambda entry: label_of[entry.label])
    paths = tuple(entry.path for entry in entries if entry.path is not None)
    return LabelledImages(paths, np.array([label_of[entry.label] for entry in entries], np.int64), tuple(class_names))


def _folders(root: Path) -> list[Path]:
    checked_folder(root)
    try:
        return sorted(path for path in root.iterdir() if not is_hidden(path.name) and os.path.isdir(path))
    except OSError as error:
        raise DataError(root, f"cannot be listed: {error.strerror or error}") from error


def _findings(root: Path, beside: Listing, classes: _Classes, class_names: Sequence[str] | None) -> Iterator[Finding]:
    """What keeps this folder from being read, the gravest first."""
    for listing in (beside, *(listing for _, _, listing in classes)):
        for path, why in listing.unreadable:
            yield _error(path, "unreadable", f"cannot be listed: {why}")
    example = f"expected one folder for each class, such as {root / 'cat' / '1.jpg'} and {root / 'dog' / '2.jpg'}"
    names = [name for name, _, _ in classes]
    if not classes:
        here = f"{_count_images(beside)} here, but " if beside.images else ""
        yield _error(root, "no-class", f"{here}no class folder; {example}")
        return
    yield from _stray_findings(root, beside)
    for name, folder, _ in classes:
        if name != name.encode(errors="replace").decode():
            yield _error(folder, "class-name", f"the name {name!r} is not valid UTF-8; rename the folder")
    for name in sorted({name for name, following in pairwise(names) if name == following}):
        alike = "spelled with different Unicode characters; make them one"
        yield _error(root, "class-name", f"two folders are called {name!r}, {alike}")
    for _, folder, listing in classes:
        if not listing.images and not listing.unreadable:
            yield _error(folder, "empty-class", "no images in this class folder; add images, or move it away")
    if class_names is None and len(names) == 1:
        yield _error(root, "one-class", f"one class only, {names[0]!r}; a classifier needs at least two; {example}")
    known = {unicodedata.normalize("NFC", name) for name in (names if class_names is None else class_names)}
    for folder in (folder for name, folder, _ in classes if name not in known):
        what = f"not expected; the classes are {some([repr(name) for name in class_names or ()])}"
        yield _error(folder, "unknown-class", f"a class folder that is {what}; rename it or move it away")


def _stray_findings(root: Path, beside: Listing) -> Iterator[Finding]:
    if beside.images:
        where = f"beside the folders ({some([path.name for path in beside.images], most=3)})"
        yield _error(root, "stray", f"{_count_images(beside)} {where}; move each into the folder of its class, or away")


def _differences(train: Parsed, part: Parsed) -> Iterator[Finding]:
    only = {
        train.place.name: [repr(name) for name in train.class_names if name not in part.class_names],
        part.place.name: [repr(name) for name in part.class_names if name not in train.class_names],
    }
    if part.class_names and train.class_names and any(only.values()):
        differences = "; ".join(f"only in {name}: {some(names)}" for name, names in only.items() if names)
        yield _error(part.place, "differing-classes", f"expected the same classes as in {train.place}; {differences}")


def _name_findings(root: Path, parsed: Parsed) -> Iterator[Finding]:
    first = next(iter(parsed.splits.values()))
    spelled: dict[str, str] = {}
    for name, count in Counter(entry.label for entry in first).items():
        plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
        if spelled.setdefault(plain, name) != name:
            alike = f"spelled almost like {spelled[plain]!r}: if they are one, make them one folder"
            yield Finding(root / name, None, "warning", "alike", f"the class {name!r} is {alike}")
        if len(parsed.splits) == 1 and count == 1:
            yield Finding(root / name, None, "warning", "lone", "the only image of its class: none is left to test on")


def _error(path: Path, kind: str, message: str) -> Finding:
    return Finding(path, None, "error", kind, message)


def _count_images(listing: Listing) -> str:
    return "1 image lies" if len(listing.images) == 1 else f"{len(listing.images)} images lie"
