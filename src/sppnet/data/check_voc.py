"""Check the annotations of a VOC folder: every box, name and list that is wrong is named by file and line.

``voc`` reads, and stops at the first fault; this module goes on, and lets the reader itself judge each object, so that
the two cannot disagree. XML is parsed once more here, because the reader's parser does not keep line numbers.
"""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from xml.parsers import expat

from sppnet.data import voc
from sppnet.data.check_images import Collection, Finding, ImageFacts, same_pictures
from sppnet.data.folder_survey import some
from sppnet.data.voc import VOC_CLASSES
from sppnet.errors import UserError

_PARTS_APART = ("train", "val", "test")  # lists that must not share a picture; trainval is made of two of them
_RARE = 10  # a name that is so many times rarer than one that looks like it is probably a slip


@dataclass(frozen=True)
class _Annotation:
    path: Path
    tree: ElementTree.Element
    lines: dict[ElementTree.Element, int]  # where each element starts, counted from 1

    def line(self, item: ElementTree.Element, part: str) -> int:
        element = item.find(part)
        return self.lines[item if element is None else element]


def is_voc(root: Path) -> bool:
    """Tell whether a folder is a VOC folder, or holds one.

    Example:
        >>> for part in ("Annotations", "JPEGImages"):
        ...     Path("devkit/VOC2007", part).mkdir(parents=True)
        >>> is_voc(Path("devkit")), is_voc(Path("devkit/VOC2007/JPEGImages"))
        (True, False)
    """
    return any(
        os.path.isdir(folder / "Annotations")
        and (os.path.isdir(folder / "JPEGImages") or os.path.isdir(folder / "ImageSets"))
        for folder in (root, *(root.glob("VOC*") if os.path.isdir(root) else ()))
    )


def voc_collection(root: Path) -> Collection:
    """Gather the images of a VOC folder, and what lists and annotations show; boxes are judged once sizes are known.

    Args:
        root: the folder that holds Annotations, ImageSets and JPEGImages, or its parent.

    Returns:
        All images of JPEGImages; ``classes`` counts objects by name.

    Raises:
        UserError: a part of the folder is missing.
    """
    folder = voc.voc_folder(root)
    files = voc.image_files(folder / "JPEGImages")
    annotations, findings = _read_annotations(folder / "Annotations")
    splits, split_findings = _read_splits(folder, files)
    listed = {image_id for ids in splits.values() for image_id in ids}
    for image_id in sorted(annotations.keys() - files.keys() - listed):
        findings.append(
            Finding("warning", "missing", annotations[image_id].path, "no image in JPEGImages belongs to it")
        )
    unannotated = sorted(files.keys() - {path.stem for path in (folder / "Annotations").glob("*.xml")} - listed)
    if unannotated:
        message = f"{len(unannotated)} images have no annotation, and are in no list ({files[unannotated[0]].name} ...)"
        findings.append(Finding("note", "unannotated", folder / "JPEGImages", message))

    names = Counter(
        item.findtext("name", "").strip() for note in annotations.values() for item in note.tree.iterfind("object")
    )
    del names[""]
    groups: dict[Path, tuple[str, str]] = {}  # train first: of two copies, its own is the original
    for part in _PARTS_APART:
        for image_id in splits.get(part, ()):
            if image_id in files:
                groups.setdefault(files[image_id], (part, ""))
    for path in files.values():
        groups.setdefault(path, ("", ""))

    def judge(facts: Mapping[Path, ImageFacts]) -> Iterator[Finding]:
        for image_id, annotation in annotations.items():
            yield from _object_findings(annotation, facts.get(files.get(image_id, Path())))
        yield from same_pictures(facts, groups)

    return Collection(
        f"VOC, split into {', '.join(splits)}" if splits else "VOC, without lists",
        list(files.values()),
        dict(sorted(names.items())),
        [
            *findings,
            *split_findings,
            *_shared_images(folder, splits),
            *_name_findings(annotations, names),
            *_count_from_zero(folder, annotations),
        ],
        judge,
    )


def _read_annotations(folder: Path) -> tuple[dict[str, _Annotation], list[Finding]]:
    annotations: dict[str, _Annotation] = {}
    findings = []
    for path in sorted(folder.glob("*.xml")):
        if path.name.startswith("."):
            continue
        try:
            annotations[path.stem] = _parse(path)
        except expat.ExpatError as error:
            message = f"not readable as a VOC annotation: {expat.ErrorString(error.code)}"
            findings.append(Finding("error", "annotation", path, message, error.lineno))
        except (OSError, ValueError, LookupError) as error:  # the last two: a false encoding
            findings.append(Finding("error", "annotation", path, f"not readable as a VOC annotation: {error}"))
    return annotations, findings


def _parse(path: Path) -> _Annotation:
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    lines: dict[ElementTree.Element, int] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    with open(path, "rb") as file:
        parser.ParseFile(file)
    return _Annotation(path, builder.close(), lines)


def _read_splits(folder: Path, files: Mapping[str, Path]) -> tuple[dict[str, list[str]], list[Finding]]:
    """Read the lists of images, and leave the devkit's lists of one class out, which have a second column."""
    splits: dict[str, list[str]] = {}
    findings: list[Finding] = []
    for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            findings.append(Finding("error", "list", path, f"cannot be read as text: {error}"))
            continue
        if any(line.split()[1:] in (["1"], ["-1"], ["0"]) for line in lines):
            continue
        splits[path.stem] = list(dict.fromkeys(line for line in lines if line))
        findings += _split_findings(path, lines, folder, files)
    if not splits:
        findings.append(Finding("error", "list", folder / "ImageSets/Main", "no list of images, such as train.txt"))
    return dict(sorted(splits.items(), key=lambda item: (item[0] != "train", item[0]))), findings


def _split_findings(path: Path, lines: list[str], folder: Path, files: Mapping[str, Path]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for number, image_id in enumerate(lines, start=1):
        if not image_id:
            continue
        if image_id in first:
            message = f"{image_id!r} is listed twice, first in line {first[image_id]}"
            yield Finding("error", "list", path, message, number)
            continue
        first[image_id] = number
        if image_id not in files:
            message = f"no image for {image_id!r} in {folder / 'JPEGImages'}; expected {image_id}.jpg"
            yield Finding("error", "missing", path, message, number)
        if not os.path.exists(folder / "Annotations" / f"{image_id}.xml"):
            yield Finding("error", "missing", path, f"no annotation {image_id}.xml in {folder / 'Annotations'}", number)
    if not first:
        yield Finding("error", "list", path, "the list is empty; expected one image id a line")


def _shared_images(folder: Path, splits: Mapping[str, list[str]]) -> Iterator[Finding]:
    for index, part in enumerate(_PARTS_APART):
        for earlier in _PARTS_APART[:index]:
            shared = sorted(set(splits.get(part, ())) & set(splits.get(earlier, ())))
            if shared:
                message = f"{len(shared)} of its images are in {earlier}.txt too ({some(shared)})"
                yield Finding("warning", "leak", folder / "ImageSets/Main" / f"{part}.txt", message)


def _object_findings(annotation: _Annotation, fact: ImageFacts | None) -> Iterator[Finding]:
    path, stated = annotation.path, voc.stated_size(annotation.tree)
    objects = annotation.tree.findall("object")
    if not objects:
        yield Finding("note", "no-object", path, "no object in it")
    elif fact is not None:
        yield from _size_findings(annotation, fact, stated)
    size = stated or (fact.size if fact is not None else (sys.maxsize, sys.maxsize))
    seen: set[tuple[object, ...]] = set()
    for item in objects:
        line = annotation.line(item, "bndbox")
        try:
            read = voc.read_object(item, size, path)
        except UserError as error:
            yield Finding("error", "box", path, str(error).removeprefix(f"{path}: "), line)
            continue
        if read in seen:
            yield Finding("warning", "box-twice", path, f"the same box of {read.name!r} for the second time", line)
        seen.add(read)


def _size_findings(annotation: _Annotation, fact: ImageFacts, stated: tuple[int, int] | None) -> Iterator[Finding]:
    """Boxes belong to a picture of one size and one way up; say so where that is not the picture that is read."""
    path, line = annotation.path, annotation.line(annotation.tree, "size")
    turned = f"the image is stored turned or mirrored (EXIF orientation {fact.orientation})"
    if stated is not None and stated != fact.size:
        sizes = f"it states {stated[1]} x {stated[0]} pixels, the image has {fact.size[1]} x {fact.size[0]}"
        if stated == fact.stored_size:
            message = (
                f"{sizes} once upright: {turned}, and the boxes were drawn on it as stored; take the orientation out"
            )
            yield Finding("error", "turned-boxes", path, message, line)
        else:
            yield Finding("error", "size", path, f"{sizes}: the boxes belong to another picture", line)
    elif fact.orientation != 1:
        message = f"{turned} and set upright on reading: look whether its boxes were drawn on the upright picture"
        yield Finding("warning", "turned-boxes", path, message, line)


def _name_findings(annotations: Mapping[str, _Annotation], names: Mapping[str, int]) -> Iterator[Finding]:
    """Names that are probably slips: strangers among VOC's own classes, or rare ones that look like a common one."""
    official = not set(VOC_CLASSES).isdisjoint(names)
    for name, count in names.items():
        if official and name in VOC_CLASSES:
            continue
        models = VOC_CLASSES if official else [other for other in names if names[other] >= _RARE * count]
        alike = get_close_matches(name.casefold(), models, n=1, cutoff=0.8)
        hint = f"; is it {alike[0]!r}?" if alike else ""
        if official:
            message = (
                f"{name!r} is not one of VOC's 20 classes ({count} such objects): labels become the folder's own names"
            )
        else:
            message = f"{name!r} stands here only {'once' if count == 1 else f'{count} times'}"
        if official or alike:
            path, line = _first(annotations, name)
            yield Finding("warning", "class-name", path, message + hint, line)


def _first(annotations: Mapping[str, _Annotation], name: str) -> tuple[Path, int]:
    return next(
        (annotation.path, annotation.line(item, "name"))
        for annotation in annotations.values()
        for item in annotation.tree.iterfind("object")
        if item.findtext("name", "").strip() == name
    )


def _count_from_zero(folder: Path, annotations: Mapping[str, _Annotation]) -> Iterator[Finding]:
    corners = (
        item.findtext(f"bndbox/{key}", "").strip()
        for annotation in annotations.values()
        for item in annotation.tree.iterfind("object")
        for key in ("xmin", "ymin")
    )
    zeros = sum(text in ("0", "0.0") for text in corners)
    if zeros:
        message = (
            f"{zeros} times xmin or ymin is 0, but VOC counts from 1: do these boxes lie a pixel too far up and left?"
        )
        yield Finding("note", "from-zero", folder / "Annotations", message)
