"""Check a folder before training on it: every bad file is named, with the reason.

Five layouts: class folders (split into train and val, or not), a plain folder of images, and VOC, COCO and YOLO with annotations.
Every image is decoded completely, as training would. What passes here without an error can be read by `sppnet.read_dataset`: the
same parsers decide.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sppnet.data.check_images import ImageFacts, hidden_image, inspect_images, same_pictures
from sppnet.data.dataset import ANNOTATED, annotated_layout
from sppnet.data.find import list_images
from sppnet.data.formats import Entry, Finding, Parsed, Severity, folder, plain_split, some
from sppnet.errors import UserError
from sppnet.progress import Progress, no_progress

Layout = Literal["auto", "classes", "images", "voc", "coco", "yolo"]
_WITH_OBJECTS = ("VOC", "COCO", "YOLO")


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
        levels: tuple[Severity, ...] = ("error", "warning", "note")
        return {level: dict(sorted(Counter(f.kind for f in self._of(level)).items())) for level in levels}

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain lists and numbers, ready for JSON."""
        return {
            "data": str(self.root),
            "layout": self.layout,
            "images": self.images,
            "readable": len(self.sizes),
            "classes": dict(self.classes),
            "sizes": _size_summary(self.sizes),
            "counts": self.counts(),
            "errors": [_as_dict(finding) for finding in self.errors],
            "warnings": [_as_dict(finding) for finding in self.warnings],
            "notes": [_as_dict(finding) for finding in self.notes],
        }

    def lines(self, notes_of_a_kind: int = 3) -> list[str]:
        """Write the report as text: every error and warning, the first few notes of each kind, and a summary.

        Args:
            notes_of_a_kind: how many notes of each kind are written out before the rest is only counted.
        """
        lines = [str(finding) for finding in (*self.errors, *self.warnings)]
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        for note in self.notes:
            by_kind[note.kind].append(note)
        for kind, notes in by_kind.items():
            lines += [str(note) for note in notes[:notes_of_a_kind]]
            if len(notes) > notes_of_a_kind:
                lines.append(f"note: ... and {len(notes) - notes_of_a_kind} more such notes ({kind!r})")
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
        counted = {"error": self.errors, "warning": self.warnings, "note": self.notes}
        found = ", ".join(_number(len(findings), word) for word, findings in counted.items())
        lines.append(f"{self.root}: {self.layout}, {_number(self.images, 'image')}: {found}")
        return lines

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def check_folder(
    root: str | os.PathLike[str],
    *,
    layout: Layout = "auto",
    progress: Progress = no_progress,
    workers: int | None = None,
) -> CheckReport:
    """Check every image in a folder, its labels and its annotations.

    *Errors*, which training would stop at: files that are empty, damaged, cut short, not images, unreadable, of more than 500
    megapixels; class folders and annotations that `sppnet.read_dataset` refuses, each box with file and line. *Warnings*: content of
    another format than the ending says; images passed over for their ending; the same picture under two labels, or on both sides of
    a split; boxes on pictures that EXIF turns; and what looks like a slip in class names. *Notes*: tiny, very long, turned, animated
    images; copies; images without an object; hidden and other files.

    Args:
        root: the folder; or one JSON of COCO annotations, or the YAML of a YOLO folder.
        layout: "classes" (class folders), "images" (a plain folder, at any depth), "voc", "coco", "yolo"; "auto" looks: one of the
            last three where there are annotations, a plain folder where no subfolder holds an image, else class folders.
        progress: called after every image.
        workers: number of threads; None: one a processor core, at most 8.

    Returns:
        The report. Memory stays small, except for the one largest image at a time; pictures are compared by hashes.

    Raises:
        UserError: no such folder, a file, an incomplete VOC folder, or no image at all in a plain folder.

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
        layout = annotated_layout(root) or ("classes" if _has_class_folders(root) else "images")
    annotated = ANNOTATED[layout] if layout in ("voc", "coco", "yolo") else None
    parsed: Parsed = annotated.check(root) if annotated else folder.check(root) if layout == "classes" else _plain(root)
    groups = _groups(parsed)
    listing = None if annotated else list_images(root)
    strays = [path for path in listing.images if path not in groups] if listing and layout == "classes" else []
    facts, of_images = inspect_images([*groups, *strays], progress, workers)
    findings = [*parsed.findings, *of_images, *same_pictures(facts, groups)]
    if annotated:
        findings += [*_shared(parsed), *_object_findings(parsed, facts)]
    else:
        findings += _passed_over(root)
    severities = ("error", "warning", "note")
    findings.sort(key=lambda found: (severities.index(found.severity), str(found.path), found.line or 0))
    sizes = tuple(fact.size for fact in facts.values())
    counts = {} if layout == "images" else parsed.counts()
    return CheckReport(root, parsed.layout, len(groups) + len(strays), sizes, counts, tuple(findings))


def _has_class_folders(root: Path) -> bool:
    return bool(folder.split_parts(root)) or any(path.parent != root for path in list_images(root).images)


def _plain(root: Path) -> Parsed:
    listing = list_images(root)
    if not listing.images:
        raise UserError(f"{root}: no image found there; looked for files ending in .jpg, .png, .webp, .tif ...")
    parsed = Parsed("images", root)
    parsed.splits[""] = [Entry(str(path), path, partial(Finding, path, None)) for path in listing.images]
    reasons = ((path, f"cannot be listed: {why}") for path, why in listing.unreadable)
    parsed.findings = [Finding(path, None, "error", "unreadable", message) for path, message in reasons]
    return parsed


def _apart(parsed: Parsed) -> list[str]:
    """The splits that must not share images, train first: not such lists as VOC's trainval."""
    order = ("train", "val", "test")
    names = [name for name in parsed.splits if plain_split(name) in order]
    return sorted(names, key=lambda name: order.index(plain_split(name)))


def _groups(parsed: Parsed) -> dict[Path, tuple[str, str]]:
    """(split, class) of each image, train first: of two copies, its own is the original."""
    groups: dict[Path, tuple[str, str]] = {}
    apart = _apart(parsed)
    for name in [*apart, *(name for name in parsed.splits if name not in apart)]:
        for entry in parsed.splits[name]:
            if entry.path is not None:
                groups.setdefault(entry.path, (name if name in apart else "", entry.label))
    return groups


def _shared(parsed: Parsed) -> Iterator[Finding]:
    first: dict[Path, str] = {}
    for name in _apart(parsed):
        for entry in parsed.splits[name]:
            if entry.path is not None and first.setdefault(entry.path, name) != name:
                message = f"in {first[entry.path]} and in {name}: {name} would be judged by what {first[entry.path]} holds too"
                yield Finding(entry.path, None, "warning", "leak", message)


def _object_findings(parsed: Parsed, facts: Mapping[Path, ImageFacts]) -> Iterator[Finding]:
    """Boxes belong to a picture of one size and one way up; say so where that is not the picture that is read."""
    empty = []
    for entry in parsed.entries():
        fact = None if entry.path is None else facts.get(entry.path)
        if entry.path is not None and entry.annotated and not entry.seen:
            empty.append(entry.path.name)
        elif fact is not None:
            yield from _size_findings(entry, fact)
    if empty:
        message = f"{len(empty)} images without an object ({some(empty, 3)})"
        yield Finding(parsed.place, None, "note", "no-object", message)


def _size_findings(entry: Entry, fact: ImageFacts) -> Iterator[Finding]:
    turned, stated = f"the image is stored turned or mirrored (EXIF orientation {fact.orientation})", entry.stated
    if stated is not None and stated != fact.size:
        sizes = f"it states {stated[1]} x {stated[0]} pixels, the image has {fact.size[1]} x {fact.size[0]}"
        if stated == fact.stored_size:
            message = (
                f"{sizes} once upright: {turned}, and the boxes were drawn on it as stored; take the orientation out"
            )
            yield entry.place("error", "turned-boxes", message)
        else:
            yield entry.place("error", "size", f"{sizes}: the boxes belong to another picture")
    elif fact.orientation != 1:
        message = f"{turned} and set upright on reading: look whether its boxes were drawn on the upright picture"
        yield entry.place("warning", "turned-boxes", message)


def _passed_over(root: Path) -> Iterator[Finding]:
    listing = list_images(root)
    disguised = {path: found for path in listing.others if (found := hidden_image(path)) is not None}
    yield from disguised.values()
    for kind, what, paths in (
        ("hidden", "hidden file or folder", listing.hidden),
        ("other", "file without an image's ending", [path for path in listing.others if path not in disguised]),
    ):
        if paths:
            names = some([os.path.relpath(path, root) for path in paths], most=3)
            verb = "is" if len(paths) == 1 else "are"
            what = what if len(paths) == 1 else what.replace("file", "files").replace("folder", "folders")
            yield Finding(root, None, "note", kind, f"{len(paths)} {what} {verb} passed over ({names})")


def _size_summary(sizes: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
    if not sizes:
        return {}
    measures = {
        "short_side": [float(min(size)) for size in sizes],
        "long_side": [float(max(size)) for size in sizes],
        "aspect": [round(width / height, 3) for height, width in sizes],
    }
    return {
        name: {"min": min(values), "median": round(median(values), 3), "max": max(values)}
        for name, values in measures.items()
    }


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {"file": str(finding.path), "line": finding.line, "kind": finding.kind, "message": finding.message}


def _number(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
