"""Check COCO annotations: every entry that is wrong is named by file, line and id.

``coco`` reads, and stops at the first fault; this module goes on, and lets the reader itself judge each entry, so that
the two cannot disagree.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sppnet.data import coco, coco_file
from sppnet.data.check_images import Collection, Finding, ImageFacts, Severity, same_pictures
from sppnet.data.coco_file import CocoFile
from sppnet.data.folder_survey import some
from sppnet.data.placed import PlacedError
from sppnet.errors import UserError

Size = tuple[int, int]


@dataclass(frozen=True)
class _Entry:
    """One image of a file whose entry could be read."""

    index: int
    path: Path | None  # None: the image is missing
    stated: Size | None


def coco_collection(root: Path) -> Collection:
    """Gather the images that COCO annotations name, and what these show; boxes are judged once sizes are known.

    Args:
        root: the folder that holds the annotations, or one JSON file.

    Returns:
        All images that are named; ``classes`` counts objects by name.

    Raises:
        UserError: no annotations.
    """
    paths = {root.stem: root} if root.is_file() else coco_file.annotation_files(root)
    if not paths:
        raise UserError(f"{root}: no COCO annotations; expected {coco_file.LAYOUT}, or give the JSON file itself")
    files: list[CocoFile] = []
    findings: list[Finding] = []
    entries: dict[str, dict[int | str, _Entry]] = {}
    counts: Counter[str] = Counter()
    order = sorted(paths, key=lambda name: (not name.startswith("train"), name))
    for split in order:
        try:
            file = coco_file.load_file(paths[split], split)
            names = file.classes
        except PlacedError as error:
            findings.append(Finding("error", "annotations", error.path, error.reason, error.line))
            continue
        files.append(file)
        counts.update(dict.fromkeys(names.values(), 0))
        entries[split], of_images = _read_images(file)
        findings += of_images
        numbers = (a.get("category_id") for a in file.annotations if isinstance(a, dict))
        counts.update(names[number] for number in numbers if isinstance(number, int) and number in names)
    findings += _names_differ(files)
    groups: dict[Path, tuple[str, str]] = {}
    for split, of_split in entries.items():
        for entry in of_split.values():
            if entry.path is not None and groups.setdefault(entry.path, (split, ""))[0] != split:
                message = f"in the annotations of {groups[entry.path][0]} and of {split}"
                findings.append(Finding("warning", "leak", entry.path, message))

    def judge(facts: Mapping[Path, ImageFacts]) -> Iterator[Finding]:
        for file in files:
            yield from _annotation_findings(file, entries[file.split], facts)
        yield from same_pictures(facts, groups)

    layout = f"COCO, split into {', '.join(order)}" if len(order) > 1 else f"COCO, {order[0]}"
    return Collection(layout, list(groups), dict(counts), findings, judge)


def _read_images(file: CocoFile) -> tuple[dict[int | str, _Entry], list[Finding]]:
    find = coco_file.ImageFinder(file)
    found: dict[int | str, _Entry] = {}
    findings = []
    for index, content in enumerate(file.images):
        kind = "image-entry"
        try:
            number, name, stated = coco.read_image_entry(content)
            if number in found:
                raise UserError(f"the image id {number} is given twice; every image needs its own")
            found[number] = _Entry(index, None, stated)
            kind = "missing"
            found[number] = _Entry(index, find(name), stated)
        except UserError as error:
            findings.append(_finding("error", kind, file, "images", index, str(error)))
    if not found:
        findings.append(Finding("error", "list", file.path, "no images in it"))
    return found, findings


def _annotation_findings(
    file: CocoFile, entries: Mapping[int | str, _Entry], facts: Mapping[Path, ImageFacts]
) -> Iterator[Finding]:
    label_of = {number: label for label, number in enumerate(file.classes, start=1)}
    of_image: dict[int | str, set[coco.Object]] = defaultdict(set)
    for index, annotation in enumerate(file.annotations):
        number = coco.image_of(annotation)
        if number is None or number not in entries:
            given = annotation.get("image_id") if isinstance(annotation, dict) else None
            message = f"image_id {given!r} is none of the {len(entries)} images' ids"
            yield _finding("error", "image-id", file, "annotations", index, message)
            continue
        entry = entries[number]
        fact = facts.get(entry.path) if entry.path is not None else None
        size = entry.stated or (fact.size if fact is not None else (sys.maxsize, sys.maxsize))
        try:
            read = coco.read_annotation(annotation, label_of, size)
        except UserError as error:
            kind = "box" if "box" in str(error) else "annotation"
            yield _finding("error", kind, file, "annotations", index, str(error))
            continue
        if read in of_image[number]:
            yield _finding("warning", "box-twice", file, "annotations", index, "the same box for the second time")
        of_image[number].add(read)
    for number, entry in entries.items():
        fact = facts.get(entry.path) if entry.path is not None else None
        if fact is not None and of_image[number]:
            yield from _size_findings(file, entry, fact)
    without = [str(entry.path or number) for number, entry in entries.items() if not of_image[number]]
    if without:
        yield Finding("note", "no-object", file.path, f"{len(without)} images without an object ({some(without, 3)})")


def _size_findings(file: CocoFile, entry: _Entry, fact: ImageFacts) -> Iterator[Finding]:
    """Boxes belong to a picture of one size and one way up; say so where that is not the picture that is read."""
    stated = entry.stated
    turned = f"the image is stored turned or mirrored (EXIF orientation {fact.orientation})"
    if stated is not None and stated != fact.size:
        message = f"it states {stated[1]} x {stated[0]} pixels, the image has {fact.size[1]} x {fact.size[0]}"
        if stated == fact.stored_size:
            message += f" once upright: {turned}, and the boxes were drawn on it as stored; take the orientation out"
            yield _finding("error", "turned-boxes", file, "images", entry.index, message)
        else:
            message += ": the boxes belong to another picture"
            yield _finding("error", "size", file, "images", entry.index, message)
    elif fact.orientation != 1:
        message = f"{turned} and set upright on reading: look whether its boxes were drawn on the upright picture"
        yield _finding("warning", "turned-boxes", file, "images", entry.index, message)


def _names_differ(files: list[CocoFile]) -> Iterator[Finding]:
    for file in files[1:]:
        here, first = set(file.classes.values()), set(files[0].classes.values())
        if list(file.classes.values()) != list(files[0].classes.values()):
            only = some([repr(name) for name in sorted(here ^ first)]) or "their order"
            message = f"its classes are not those of {files[0].path.name} ({only}): labels would not mean the same"
            yield Finding("error", "classes", file.path, message)


def _finding(severity: Severity, kind: str, file: CocoFile, key: str, index: int, message: str) -> Finding:
    error = file.error(key, index, message)
    return Finding(severity, kind, error.path, error.reason, error.line)
