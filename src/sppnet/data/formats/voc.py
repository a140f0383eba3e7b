"""Pascal VOC folders, the devkit's layout.

``JPEGImages/<id>.jpg``, ``Annotations/<id>.xml``, ``ImageSets/Main/<split>.txt``. VOC counts pixels from 1 and its
boxes include their last pixel; here, and only here, that becomes half-open boxes that count from 0.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from xml.parsers import expat

from sppnet.data import formats
from sppnet.data.annotations import DetectionData
from sppnet.data.find import IMAGE_ENDINGS, is_hidden
from sppnet.data.formats import Entry, Fault, Finding, Object, Parsed, Place
from sppnet.errors import DataError

NAME, LAYOUT = "VOC", "Annotations, ImageSets, JPEGImages"
VOC_CLASSES: tuple[str, ...] = (  # the devkit's order
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_OFFICIAL = frozenset(VOC_CLASSES)
_PARTS = ("Annotations", "ImageSets", "JPEGImages")
_RARE = 10  # a name that is so many times rarer than one that looks like it is probably a slip


def recognize(root: Path) -> bool:
    """Tell whether a folder is a VOC folder, or holds one.

    Example:
        >>> for part in ("Annotations", "JPEGImages"):
        ...     Path("devkit/VOC2007", part).mkdir(parents=True)
        >>> recognize(Path("devkit")), recognize(Path("devkit/VOC2007/JPEGImages"))
        (True, False)
    """
    return any(
        (folder / "Annotations").is_dir() and ((folder / "JPEGImages").is_dir() or (folder / "ImageSets").is_dir())
        for folder in (root, *(root.glob("VOC*") if root.is_dir() else ()))
    )


def read(root: str | os.PathLike[str], split: str = "train", limit: int | None = None) -> DetectionData:
    """Read one split of a Pascal VOC folder.

    A box of VOC (counted from 1, last pixel included) becomes ``(xmin - 1, ymin - 1, xmax, ymax)``. Class names are
    ``VOC_CLASSES`` where those cover the split, and else all names in the folder's annotations, sorted, so that every
    split of one folder has the same labels.

    Args:
        root: the folder that holds Annotations, ImageSets and JPEGImages; or its parent, where only one VOC* folder
            lies in that.
        split: name of a list in ImageSets/Main, without ``.txt``, such as ``"train"`` or ``"val"``.
        limit: take only the first so many images of the list, at least 1; None takes all.

    Returns:
        The split, images in the order of its list. Image files are looked for but not opened, unless an annotation
        does not state the size.

    Raises:
        DataError: a part of the folder, the split, an annotation or an image is missing; an annotation cannot be read;
            a box is empty, swapped or more than a pixel outside its image. The message names the file, line and object.

    Example:
        >>> read("no/such/folder")
        Traceback (most recent call last):
        sppnet.errors.DataError: no/such/folder: no such folder; expected a folder with Annotations, ImageSets, JPEGImages
    """
    return _Parser(Path(root)).parse(split, formats.checked_limit(limit)).data(split)


def check(root: Path) -> Parsed:
    """Parse all lists and annotations of a VOC folder.

    Raises:
        DataError: a part of the folder is missing.
    """
    parser = _Parser(root)
    parsed, names, folder = parser.parse(), parser.names, parser.folder
    parsed.class_names = sorted(names)
    known = {entry.image_id for entry in parsed.entries()}
    alone = [entry for entry in parsed.splits[""] if entry.path is None]
    parsed.findings += [entry.place("warning", "missing", "no image in JPEGImages belongs to it") for entry in alone]
    bare = [path for image_id, path in parser.images.items() if image_id not in known]
    if bare:
        message = f"{len(bare)} images have no annotation, and are in no list ({bare[0].name} ...)"
        parsed.found(folder / "JPEGImages", "note", "unannotated", message)
        parsed.splits[""] += [Entry(path.stem, path, partial(Finding, path, None)) for path in bare]
    if parser.zeros:
        message = f"{parser.zeros} times xmin or ymin is 0, but VOC counts from 1: do boxes lie a pixel too far left?"
        parsed.found(folder / "Annotations", "note", "from-zero", message)
    parsed.findings += _name_findings(names)
    return parsed


class _Parser:
    """One pass over the lists and annotations of a folder."""

    def __init__(self, root: Path) -> None:
        self.folder = _find_folder(root)
        self.parsed = Parsed("VOC, without lists", self.folder / "Annotations")
        self.names: dict[str, list[Place]] = {}  # of all objects: the places of each
        self.zeros = 0
        self.images: dict[str, Path] = {}  # one listing of the folder instead of a look-up for each image
        for path in sorted((self.folder / "JPEGImages").iterdir()):
            preferred = path.stem not in self.images or path.suffix == ".jpg"
            if path.suffix.lower() in IMAGE_ENDINGS and not is_hidden(path.name) and preferred:
                self.images[path.stem] = path

    def parse(self, split: str | None = None, limit: int | None = None) -> Parsed:
        """One split, or all of them and, as the split "", what no list names."""
        entries: dict[str, Entry] = {}
        for name, ids in self._lists(split).items():
            for index, (image_id, place) in enumerate(ids.items()):
                if image_id not in entries:
                    entries[image_id] = self._listed(image_id, place, limit is None or index < limit)
            self.parsed.splits[name] = [entries[image_id] for image_id in list(ids)[:limit]]
        if split is None or not _OFFICIAL.issuperset(self.names):
            paths = sorted((self.folder / "Annotations").glob("*.xml"))
            others = [path for path in paths if path.stem not in entries and not is_hidden(path.name)]
            unlisted = [self._annotation(path, split is None) for path in others]
            self.parsed.splits |= {"": unlisted} if split is None else {}
        self.parsed.class_names = VOC_CLASSES if _OFFICIAL.issuperset(self.names) else sorted(self.names)
        return self.parsed

    def _lists(self, split: str | None) -> dict[str, dict[str, Place]]:
        """The lists of images, and where each image stands; not the devkit's lists of one class, of two columns."""
        folder = self.folder / "ImageSets" / "Main"
        paths = {path.stem: path for path in sorted(folder.glob("*.txt")) if not is_hidden(path.name)}
        names = sorted(paths, key=lambda name: (name != "train", name))
        lists: dict[str, dict[str, Place]] = {}
        for name in names if split is None else [formats.choose_split(folder, split, names)]:
            path, ids = paths[name], dict[str, Place]()
            try:
                lines = [line.strip() for line in formats.read_text(path).splitlines()]
            except DataError as error:
                self.parsed.found(path, "error", "list", error.reason)
                continue
            if split is None and any(line.split()[1:] in (["1"], ["-1"], ["0"]) for line in lines):
                continue
            for number, image_id in enumerate(lines, start=1):
                if image_id in ids:
                    self.parsed.found(path, "error", "list", f"{image_id!r} is listed twice; list it once", number)
                elif image_id:
                    ids[image_id] = partial(Finding, path, number)
            if not ids:
                self.parsed.found(path, "error", "list", "the list is empty; expected one image id a line")
            lists[name] = ids
        if lists:
            self.parsed.layout = f"VOC, split into {', '.join(lists)}"
        elif not self.parsed.findings:
            self.parsed.found(folder, "error", "list", "no list of images, such as train.txt")
        return lists

    def _listed(self, image_id: str, place: Place, wanted: bool) -> Entry:
        path = self.folder / "Annotations" / f"{image_id}.xml"
        if image_id not in self.images and wanted:
            message = f"no image for {formats.shown(image_id)!r} in {self.folder / 'JPEGImages'}; expected {formats.shown(image_id)}.jpg"
            self.parsed.findings.append(place("error", "missing", message))
        try:
            formats.check_inside(path, path.parent)
        except Fault as fault:
            self.parsed.findings.append(place("error", fault.kind, str(fault)))
            return Entry(image_id, None, place)
        if os.path.isfile(path):
            return self._annotation(path, wanted)
        self.parsed.findings.append(
            place("error", "missing", f"no annotation {formats.shown(path.name)} in {path.parent}")
        )
        return Entry(image_id, self.images.get(image_id), place)

    def _annotation(self, path: Path, wanted: bool) -> Entry:
        """One file; of one that is not wanted only the names are read, which labels depend on."""
        entry = Entry(path.stem, self.images.get(path.stem), partial(Finding, path, None))
        try:
            tree, lines = _parse_xml(path)
        except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: a false encoding
            reason, line = f"not readable as a VOC annotation: {error}", getattr(error, "lineno", None)
            self.parsed.found(path, "error", "annotation", reason, line)
            return entry
        place = partial(_place, path, lines)
        entry.place, entry.stated = place(tree, "size"), _stated_size(tree)
        for item in tree.iter("object"):
            if name := _text(item, "name"):
                self.names.setdefault(name, []).append(place(item, "name"))
            self.zeros += [_text(item, f"bndbox/{key}") in ("0", "0.0") for key in ("xmin", "ymin")].count(True)
            if wanted:
                self.parsed.add(entry, place(item, "bndbox"), partial(_object, item, entry.size))
        return entry


def _find_folder(root: Path) -> Path:
    if not root.is_dir():
        what = "this is a file" if root.exists() else "no such folder"
        raise DataError(root, f"{what}; expected a folder with {LAYOUT}")
    missing = [part for part in _PARTS if not (root / part).is_dir()]
    if not missing:
        return root
    if len(missing) < len(_PARTS):
        raise DataError(root, f"not a complete VOC folder, {' and '.join(missing)} missing; expected {LAYOUT}")
    inside = sorted(path for path in root.glob("VOC*") if path.is_dir())
    if len(inside) == 1:
        return _find_folder(inside[0])
    if inside:
        raise DataError(root, f"holds several VOC folders ({', '.join(p.name for p in inside)}); give one of them")
    raise DataError(root, f"not a VOC folder; expected {LAYOUT} in it")


def _parse_xml(path: Path) -> tuple[ElementTree.Element, dict[ElementTree.Element, int]]:
    """The tree of a file, whatever namespace, case and wrapper its tags are in, and on which line each element begins."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    lines: dict[ElementTree.Element, int] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag.rpartition(":")[2].lower(), attributes)] = parser.CurrentLineNumber

    def declared(*entity: object) -> None:
        raise ValueError("it declares entities, which no annotation needs; take its DOCTYPE out")

    parser.StartElementHandler, parser.EntityDeclHandler = start, declared
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition(":")[2].lower())
    parser.CharacterDataHandler = builder.data
    parser.Parse(formats.read_bytes(path), True)
    tree = builder.close()
    inside = list(tree.iter("annotation"))
    if len(inside) > 1:
        raise ValueError(f"it holds {len(inside)} annotations; expected a file for each image")
    return (inside or [tree])[0], lines


def _place(path: Path, lines: Mapping[ElementTree.Element, int], item: ElementTree.Element, part: str) -> Place:
    element = item.find(part)
    return partial(Finding, path, lines[item if element is None else element])


def _text(item: ElementTree.Element, path: str) -> str:
    return item.findtext(path, "").strip()


def _stated_size(annotation: ElementTree.Element) -> tuple[int, int] | None:
    try:
        return formats.checked_size(
            *(int(formats.number(_text(annotation, f"size/{side}"))) for side in ("height", "width"))
        )
    except (ValueError, OverflowError):
        return None


def _object(item: ElementTree.Element, size: tuple[int, int]) -> Object:
    name, difficult = _text(item, "name"), _text(item, "difficult")
    if not name:
        raise Fault("an object has no name; expected <name> in each <object>", "box")
    texts = {key: _text(item, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")}
    shown = " ".join(f"{key}={text or 'missing'}" for key, text in texts.items())
    try:
        xmin, ymin, xmax, ymax = (formats.number(text) for text in texts.values())
    except ValueError as error:
        raise Fault(f"box of {name!r} is not four numbers: {shown}", "box") from error
    if difficult not in ("", "0", "1"):
        raise Fault(f"difficult of {name!r} is {difficult!r}; expected 0 or 1", "box")
    formats.check_pixels((xmin, ymin, xmax, ymax), name, shown)
    box = formats.cut_box((xmin - 1, ymin - 1, xmax, ymax), size, name, shown, "xmin <= xmax, ymin <= ymax")
    return Object(name, box, difficult == "1")


def _name_findings(names: Mapping[str, list[Place]]) -> Iterator[Finding]:
    """Names that are probably slips: strangers among VOC's own classes, or rare ones that look like a common one."""
    official = not _OFFICIAL.isdisjoint(names)
    for name, places in names.items():
        if official and name in VOC_CLASSES:
            continue
        count = len(places)
        models = VOC_CLASSES if official else [other for other in names if len(names[other]) >= _RARE * count]
        alike = get_close_matches(name.casefold(), models, n=1, cutoff=0.8)
        message = f"{name!r} stands here only {'once' if count == 1 else f'{count} times'}"
        if official:
            what = f"none of VOC's 20 classes ({count} such objects)"
            message = f"{name!r} is {what}: labels become the folder's own names"
        if official or alike:
            yield places[0]("warning", "class-name", message + (f"; is it {alike[0]!r}?" if alike else ""))
