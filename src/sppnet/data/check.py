"""Check a folder before training on it: every bad file is named, with the reason.

Five layouts: class folders (split into train and val, or not), a plain folder of images, and VOC, COCO and YOLO with
annotations. Every image is decoded completely, as training would. What passes here without an error can be read by
`sppnet.read_dataset`: both use the same parser.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from PIL import Image

from sppnet.data import annotated_layout
from sppnet.data.decode import EXIF_ORIENTATION, UnusableImage, exif_orientation, open_image
from sppnet.data.find import list_images
from sppnet.data.formats import Entry, Finding, Parsed, Severity, coco, folder, plain_split, some, voc, yolo
from sppnet.data.images import content_key, read_image
from sppnet.errors import ImageError, UserError, printable
from sppnet.progress import Progress, no_progress

Layout = Literal["auto", "classes", "images", "voc", "coco", "yolo"]
NOTES_OF_A_KIND = 3  # that are written out; further ones are counted
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_WITH_OBJECTS = ("VOC", "COCO", "YOLO")
SMALL = 32  # pixels: the least side that images are resized to, so that a smaller one is magnified
LONG = 30  # beyond about 1:30, 1000 x 32 pixels, an image is stretched rather than kept in shape
USUAL = 10  # objects of a class, or images: fewer have no usual size or number
FAR = 20  # times as long, or as many, is unusual
DARK = 17  # of 255: 12-bit values in 16 bits reach 16
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}  # written and read alike, and named alike by cameras and programs


@dataclass(frozen=True)
class ImageFacts:
    """What reading one image completely has shown."""

    size: tuple[int, int]  # (height, width), upright
    stored_size: tuple[int, int]  # as in the file, before its EXIF orientation
    orientation: int  # EXIF: 1 upright, 2 to 8 turned or flipped
    key: str  # of the upright RGB pixels: the same picture has the same key, in whatever format it is stored


@dataclass(frozen=True)
class CheckReport:
    """What a check has found."""

    root: Path
    layout: str  # in words, such as "class folders"
    images: int  # files that were opened
    sizes: tuple[tuple[int, int], ...]  # (height, width), upright, of those that could be read
    classes: Mapping[str, int]  # images (with annotations: objects) of each class
    findings: tuple[Finding, ...]  # errors, warnings, notes; within each by path and line

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What cannot be used."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What can be used, but hardly as meant."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What is worth knowing."""
        return self._of("note")

    @property
    def exit_status(self) -> int:
        """0 where there is no error, whatever the warnings; else 2."""
        return 2 if self.errors else 0

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the findings by severity and kind, as in ``{"error": {"damaged": 2}, "warning": {}, "note": {}}``."""
        return {level: dict(sorted(Counter(f.kind for f in self._of(level)).items())) for level in _SEVERITIES}

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain lists and numbers, ready for JSON."""
        findings: dict[str, list[dict[str, Any]]] = {f"{level}s": [] for level in _SEVERITIES}
        for of in self.findings:
            entry = {"file": str(of.path), "line": of.line, "kind": of.kind, "message": of.message}
            findings[f"{of.severity}s"].append(entry)
        about = {"data": str(self.root), "layout": self.layout, "images": self.images, "readable": len(self.sizes)}
        summary = {"classes": dict(self.classes), "sizes": _size_summary(self.sizes), "counts": self.counts()}
        return {**about, **summary, **findings}

    def lines(self) -> list[str]:
        """Write the report as text: every error and warning, the first few notes of each kind, and a summary."""
        lines = [str(finding) for finding in (*self.errors, *self.warnings)]
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        for note in self.notes:
            by_kind[note.kind].append(note)
        for kind, notes in by_kind.items():
            lines += [str(note) for note in notes[:NOTES_OF_A_KIND]]
            if len(notes) > NOTES_OF_A_KIND:
                lines.append(f"note: ... and {len(notes) - NOTES_OF_A_KIND} more such notes ({kind!r})")
        if self.classes:
            fewest, most = min(self.classes.values()), max(self.classes.values())
            rarest = some([repr(name) for name, count in self.classes.items() if count == fewest], most=3)
            what = "objects" if self.layout.startswith(_WITH_OBJECTS) else "images"
            spread = f"{fewest} {what} each" if fewest == most else f"{fewest} ({rarest}) to {most} {what}"
            lines.append(f"{_number(len(self.classes), 'class', 'classes')} of {spread}")
        if self.sizes:
            summary = _size_summary(self.sizes).items()
            ranges = (f"{name} {v['min']:g} to {v['max']:g}, median {v['median']:g}" for name, v in summary)
            lines.append("; ".join(ranges).replace("_", " ") + " (pixels; width / height)")
        found = ", ".join(_number(len(self._of(level)), level) for level in _SEVERITIES)
        lines.append(f"{printable(self.root)}: {self.layout}, {_number(self.images, 'image')}: {found}")
        return lines

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def check_folder(
    root: str | os.PathLike[str], *, layout: Layout = "auto", progress: Progress = no_progress
) -> CheckReport:
    """Check every image in a folder, its labels and its annotations.

    *Errors*, which training would stop at: files that are empty, damaged, cut short, not images, unreadable, of more
    than 1.4 GB in memory; class folders and annotations that `sppnet.read_dataset` refuses, each
    box with file and line. *Warnings*: content of another format than the ending says; images passed over for their ending;
    the same picture under two labels, or on both sides of a split; boxes on pictures that EXIF turns; and what looks
    like a slip in class names. *Notes*: tiny, very long, turned, animated images; copies; hidden and other files.

    Args:
        root: the folder; or one JSON of COCO annotations, or the YAML of a YOLO folder.
        layout: "classes" (class folders), "images" (a plain folder, at any depth), "voc", "coco", "yolo"; "auto" looks:
            one of the last three where there are annotations, a plain folder where no subfolder holds an image, else
            class folders.
        progress: of the stage "images".

    Returns:
        The report. Memory stays small, except for the one largest image at a time; pictures are compared by hashes.

    Raises:
        UserError: no such folder, a file, an incomplete VOC folder, no image at all in a plain folder, or a folder that may
            be read in two ways.

    Example:
        >>> for name in ("cat/1.png", "dog/2.png"):
        ...     Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        ...     Path("photos", name).touch()
        >>> found = check_folder("photos")
        >>> found.exit_status, str(found.errors[0])
        (2, 'error: photos/cat/1.png: the file is empty (0 bytes)')
    """
    root = Path(root)
    if layout == "auto":
        layout = annotated_layout(root) or ("classes" if folder.recognize(root) else "images")
    check = {"classes": folder.check, "images": _plain_folder, "voc": voc.check, "coco": coco.check, "yolo": yolo.check}
    parsed = check[layout](root)
    groups, leaks = _groups(parsed)
    facts, of_images = inspect_images(list(groups), progress)
    findings = [*parsed.findings, *leaks, *of_images, *_passed_over(parsed), *_same_pictures(facts, groups)]
    if parsed.layout.startswith(_WITH_OBJECTS):
        findings += [*_object_findings(parsed, facts), *_unusual_objects(parsed)]
    findings.sort(key=lambda f: (_SEVERITIES.index(f.severity), str(f.path), f.line or 0))
    sizes = tuple(fact.size for fact in facts.values())
    return CheckReport(root, parsed.layout, len(groups), sizes, parsed.counts(), tuple(findings))


def _plain_folder(root: Path) -> Parsed:
    listing = list_images(root)
    if not listing.images:
        raise UserError(f"{root}: no image found there; looked for files ending in .jpg, .png, .webp, .tif ...")
    parsed = Parsed("images", root, listings=[listing])
    parsed.splits[""] = [Entry(path.stem, path, partial(Finding, path, None)) for path in listing.images]
    for path, why in listing.unreadable:
        parsed.found(path, "error", "unreadable", f"cannot be listed: {why}")
    return parsed


def _groups(parsed: Parsed) -> tuple[dict[Path, tuple[str, str]], list[Finding]]:
    """(part, class) of each image, and warnings of images that are in two parts; lists such as "trainval" are none."""
    groups: dict[Path, tuple[str, str]] = {}
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    in_parts = sorted(parsed.splits.items(), key=lambda item: plain_split(item[0]) not in folder.PARTS)
    for name, entries in in_parts:
        part = name if plain_split(name) in folder.PARTS else ""
        for entry in entries:
            if entry.path is not None:
                first, _ = groups.setdefault(entry.path, (part, entry.label))
                if part and first != part:
                    shared[first, part].append(entry.path.name)
    find = partial(Finding, parsed.place, None, "warning", "leak")
    said = (f"{len(names)} images of {b} are in {a} too ({some(names)})" for (a, b), names in shared.items())
    return groups, [find(message) for message in said]


def _object_findings(parsed: Parsed, facts: Mapping[Path, ImageFacts]) -> Iterator[Finding]:
    """Boxes belong to a picture of one size and one way up; say so where that is not the picture that is read."""
    for entry in parsed.entries():
        fact, stated = facts.get(entry.path or Path()), entry.stated
        if fact is None or not entry.objects:
            continue
        turned = f"the image is stored turned or flipped (EXIF orientation {fact.orientation})"
        if stated is not None and stated != fact.size:
            message = f"it states {stated[1]} x {stated[0]} pixels, the image has {fact.size[1]} x {fact.size[0]}"
            if stated == fact.stored_size:
                message += f" once upright: {turned}, and the boxes were drawn on it as stored"
                yield entry.place("error", "turned-boxes", f"{message}; take the orientation out")
            else:
                yield entry.place("error", "size", f"{message}: the boxes belong to another picture")
        elif fact.orientation != 1:
            message = f"{turned} and set upright on reading: look whether its boxes were drawn on the upright picture"
            yield entry.place("warning", "turned-boxes", message)
    named = (entry for split, entries in parsed.splits.items() if split for entry in entries)
    without = dict.fromkeys(entry.image_id for entry in named if not entry.objects)
    if without:
        message = f"{len(without)} images without an object ({some(list(without), 3)})"
        yield Finding(parsed.place, None, "note", "no-object", message)


def _unusual_objects(parsed: Parsed) -> Iterator[Finding]:
    """Legal, and yet probably slips: boxes of next to no area, and images with far more or fewer objects than the others."""
    entries = [entry for entry in parsed.entries() if entry.objects]
    areas: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        for name, (x0, y0, x1, y1), _ in entry.objects:
            areas[name].append((x1 - x0) * (y1 - y0))
    usual = {name: median(of_class) for name, of_class in areas.items() if len(of_class) >= USUAL}
    number = median(len(entry.objects) for entry in entries) if len(entries) >= USUAL else 0
    for entry in entries:
        find, place = partial(entry.place, "warning"), Counter[str]()
        for name, (x0, y0, x1, y1), _ in entry.objects:
            place[name] += 1
            box, area = f"box {place[name]} of {name!r}", (x1 - x0) * (y1 - y0)
            if min(x1 - x0, y1 - y0) <= 1:
                yield find("tiny-box", f"{box} is {x1 - x0:g} x {y1 - y0:g} pixels: drawn by a slip?")
            elif area * FAR**2 < usual.get(name, 0):
                message = f"{box} has {area:.0f} pixels, where {usual[name]:.0f} are usual: drawn by a slip?"
                yield find("small-box", message)
        if number and not number / FAR <= len(entry.objects) <= number * FAR:
            yield find(
                "number", f"{len(entry.objects)} objects, where {number:g} are usual: were all marked, and once?"
            )


def _passed_over(parsed: Parsed) -> Iterator[Finding]:
    hidden = [path for listing in parsed.listings for path in listing.hidden]
    others = [path for listing in parsed.listings for path in listing.others]
    disguised = {path: finding for path in others if (finding := _disguised_image(path)) is not None}
    yield from disguised.values()
    others = [path for path in others if path not in disguised]
    groups = (("hidden", "hidden files or folders", hidden), ("other", "files without an image's ending", others))
    for kind, what, paths in groups:
        if paths:
            names = some([os.path.relpath(path, parsed.place) for path in paths], most=3)
            yield Finding(parsed.place, None, "note", kind, f"{len(paths)} {what} passed over ({names})")


def _same_pictures(facts: Mapping[Path, ImageFacts], groups: Mapping[Path, tuple[str, str]]) -> Iterator[Finding]:
    """Files that show the same picture, pixel for pixel: further copies of the first in ``groups`` (part, class)."""
    originals: dict[str, Path] = {}
    for path, (part, label) in groups.items():
        original = originals.setdefault(facts[path].key, path) if path in facts else path
        if original == path:
            continue
        first_part, first_label = groups[original]
        find, same = partial(Finding, path, None), f"the same picture as {original}"
        if label != first_label:
            yield find("warning", "two-labels", f"{same}, which is labeled {first_label!r}, not {label!r}")
        if part != first_part:
            yield find("warning", "leak", f"{same}: {part} would be judged by a picture that {first_part} holds too")
        if (part, label) == (first_part, first_label):
            yield find("note", "copy", same)


def _disguised_image(path: Path) -> Finding | None:
    """What to say of a file that is passed over for its ending, and holds an image all the same."""
    try:
        with open_image(path) as image:
            kind = image.format or "image"
    except ImageError:
        return None
    ending = f"its ending {path.suffix!r} is not an image's" if path.suffix else "it has no ending"
    message = f"passed over, though it is a {kind} image: {ending}; rename it"
    return Finding(path, None, "warning", "passed-over", message)


def inspect_images(
    paths: Sequence[Path], progress: Progress = no_progress
) -> tuple[dict[Path, ImageFacts], list[Finding]]:
    """Read many image files completely, in threads (decoders let go of Python's lock): one a processor core, at most 8.

    Args:
        paths: the files, each once.
        progress: of the stage "images", in the caller's thread.

    Returns:
        (facts of the files that could be read, findings), both in the order of ``paths``.

    Example:
        >>> inspect_images([])
        ({}, [])
    """
    facts: dict[Path, ImageFacts] = {}
    findings: list[Finding] = []
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "check")
    try:
        results = pool.map(_inspect_image, paths)
        for done, (path, (fact, of_image)) in enumerate(zip(paths, results, strict=True), start=1):
            if fact is not None:
                facts[path] = fact
            findings += of_image
            progress("images", done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return facts, findings


def _inspect_image(path: Path) -> tuple[ImageFacts | None, list[Finding]]:
    """Facts of one image, None where it cannot be read, and findings."""
    find = partial(Finding, path, None)
    try:
        with open_image(path) as image:
            orientation, deep = _stored_orientation(image), image.mode.startswith("I;16")
            findings = list(_head_findings(path, image, orientation))
        array = read_image(path)
    except UnusableImage as error:
        return None, [find("error", error.kind, error.reason)]
    if deep and array.max() < DARK:
        message = (
            f"its 16 bits hold values up to about {257 * int(array.max())}: seen almost black; stretch it to 0..65535"
        )
        findings.append(find("warning", "dark", message))
    upright = height, width = array.shape[0], array.shape[1]
    facts = ImageFacts(upright, upright[::-1] if orientation >= 5 else upright, orientation, content_key(array))
    if min(upright) < SMALL:
        findings.append(find("note", "small", f"only {width} x {height} pixels; sides below {SMALL} are magnified"))
    if max(upright) > LONG * min(upright):
        message = f"{width} x {height} pixels, longer than 1:{LONG}: it is stretched rather than kept in shape"
        findings.append(find("note", "long", message))
    return facts, findings


def _stored_orientation(image: Image.Image) -> int:
    if image.format != "TIFF":
        return exif_orientation(image)
    try:  # Pillow turns TIFF by itself, and `image.size` is already the turned one
        return int(image.tag_v2.get(EXIF_ORIENTATION, 1))  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return 1


def _head_findings(path: Path, image: Image.Image, orientation: int) -> Iterator[Finding]:
    find, ending, kind = partial(Finding, path, None), path.suffix.lower(), image.format or ""
    expected = Image.registered_extensions().get(ending, ending[1:].upper())  # Pillow does not know all, such as HEIC
    if expected and _SAME_FORMAT.get(kind, kind) != _SAME_FORMAT.get(expected, expected):
        message = f"a {kind} image under the ending {path.suffix}: read all the same, but other programs may refuse it"
        yield find("warning", "misnamed", message)
    if orientation != 1:
        message = f"stored turned or flipped (EXIF orientation {orientation}); it is set upright on reading"
        yield find("note", "turned", message)
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame: the first is what counts, and that is read next
        frames = 1
    if kind != "MPO" and frames > 1:  # the second picture of an MPO is the camera's own preview or depth map
        yield find("note", "animated", f"holds {frames} frames or pages; only the first is used")


def _size_summary(sizes: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
    if not sizes:
        return {}
    sides = {"short_side": [float(min(size)) for size in sizes], "long_side": [float(max(size)) for size in sizes]}
    measures = {**sides, "aspect": [round(width / height, 3) for height, width in sizes]}
    return {name: {"min": min(v), "median": round(median(v), 3), "max": max(v)} for name, v in measures.items()}


def _number(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
