"""Check a folder before training on it: every bad file is named, with the reason.

Five layouts: class folders (split into train and val, or not), a plain folder of images, and VOC, COCO and YOLO with
annotations. Every image is decoded completely, as training would. What passes here without an error can be read by
``split_folder`` or ``read_annotated``: the same code decides.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sppnet.data.annotated import annotated_layout
from sppnet.data.check_coco import coco_collection
from sppnet.data.check_images import Collection, Finding, Severity, hidden_image, inspect_images, same_pictures
from sppnet.data.check_voc import voc_collection
from sppnet.data.check_yolo import yolo_collection
from sppnet.data.folder_survey import (
    TRAIN,
    FolderSurvey,
    Listing,
    held_out_problems,
    list_images,
    some,
    split_parts,
    split_problems,
    survey_folder,
)
from sppnet.errors import UserError

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
    report: Callable[[str, int, int], None] | None = None,
    workers: int | None = None,
) -> CheckReport:
    """Check every image in a folder, its labels and its annotations.

    *Errors*, which training would stop at: files that are empty, damaged, cut short, not images, unreadable, of more
    than 500 megapixels; class folders that ``split_folder`` refuses; annotations that ``read_annotated`` refuses, each
    box with file and line. *Warnings*: content of another format than the ending says; images passed over for their ending;
    the same picture under two labels, or on both sides of a split; boxes on pictures that EXIF turns; and what looks
    like a slip in class names. *Notes*: tiny, very long, turned, animated images; copies; hidden and other files.

    Args:
        root: the folder; or one JSON of COCO annotations, or the YAML of a YOLO folder.
        layout: "classes" (class folders), "images" (a plain folder, at any depth), "voc", "coco", "yolo"; "auto" looks:
            one of the last three where there are annotations, a plain folder where no subfolder holds an image, else
            class folders.
        report: called with ("images", done, total) after every image.
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
    make = {
        "classes": _class_collection,
        "images": _image_collection,
        "voc": voc_collection,
        "coco": coco_collection,
        "yolo": yolo_collection,
    }
    collection = make[_layout_of(root) if layout == "auto" else layout](root)
    facts, findings = inspect_images(collection.images, report, workers)
    findings = [*collection.findings, *findings, *collection.judge(facts)]
    severities = ("error", "warning", "note")
    findings.sort(key=lambda f: (severities.index(f.severity), str(f.path), f.line or 0))
    sizes = tuple(fact.size for fact in facts.values())
    return CheckReport(root, collection.layout, len(collection.images), sizes, collection.classes, tuple(findings))


def _layout_of(root: Path) -> Literal["classes", "images", "voc", "coco", "yolo"]:
    annotated = annotated_layout(root)
    if annotated is not None:
        return annotated
    listing = list_images(root)
    inside = any(path.parent != root for path in listing.images)
    return "classes" if inside or split_parts(root) else "images"


def _image_collection(root: Path) -> Collection:
    listing = list_images(root)
    if not listing.images:
        raise UserError(f"{root}: no image found there; looked for files ending in .jpg, .png, .webp, .tif ...")
    unreadable = [Finding("error", "unreadable", path, f"cannot be listed: {why}") for path, why in listing.unreadable]
    groups = dict.fromkeys(listing.images, ("", ""))
    findings = [*unreadable, *_passed_over(root, [listing])]
    return Collection("images", listing.images, {}, findings, lambda facts: same_pictures(facts, groups))


def _class_collection(root: Path) -> Collection:
    parts = split_parts(root)
    surveys = {part: survey_folder(folder) for part, folder in parts.items()} or {"": survey_folder(root)}
    listings = [listing for survey in surveys.values() for listing in (survey.beside, *(c[2] for c in survey.classes))]
    if parts:
        listings.append(list_images(root, deep=False))
    groups = {
        path: (part, name)
        for part, survey in surveys.items()
        for name, _, listing in survey.classes
        for path in listing.images
    }
    counts = dict.fromkeys((name for survey in surveys.values() for name in survey.names), 0)
    for _, name in groups.values():
        counts[name] += 1
    strays = [path for listing in listings for path in listing.images if path not in groups]
    return Collection(
        f"class folders, split into {', '.join(parts)}" if parts else "class folders",
        [*groups, *strays],
        counts,
        [*_layout_findings(root, surveys), *_name_findings(surveys), *_passed_over(root, listings)],
        lambda facts: same_pictures(facts, groups),
    )


def _layout_findings(root: Path, surveys: Mapping[str, FolderSurvey]) -> Iterator[Finding]:
    """Errors: what ``split_folder`` refuses, in its own words. Warnings: the same of parts that it does not read."""
    every = sys.maxsize  # names are written out, however many
    first, *held_out = surveys.values()
    if TRAIN not in surveys:
        problems = first.problems(most=every)
    else:
        problems = split_problems(root, first, held_out[0] if held_out else None, every)
    yield from (Finding("error", problem.kind, problem.path, problem.message) for problem in problems)
    for survey in held_out[1:]:
        for problem in held_out_problems(first, survey, every):
            yield Finding("warning", problem.kind, problem.path, problem.message)


def _name_findings(surveys: Mapping[str, FolderSurvey]) -> Iterator[Finding]:
    first = next(iter(surveys.values()))
    spelt: dict[str, str] = {}
    for name, folder, listing in first.classes:
        plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
        if spelt.setdefault(plain, name) != name:
            message = f"the class {name!r} is spelt almost like {spelt[plain]!r}: if they are one, make them one folder"
            yield Finding("warning", "alike", folder, message)
        if len(surveys) == 1 and len(listing.images) == 1:
            yield Finding("warning", "lone", folder, "the only image of its class: none can be held out to test on")


def _passed_over(root: Path, listings: Sequence[Listing]) -> Iterator[Finding]:
    hidden = [path for listing in listings for path in listing.hidden]
    others = [path for listing in listings for path in listing.others]
    disguised = {path: finding for path in others if (finding := hidden_image(path)) is not None}
    yield from disguised.values()
    for kind, what, paths in (
        ("hidden", "hidden file or folder", hidden),
        ("other", "file without an image's ending", [path for path in others if path not in disguised]),
    ):
        if paths:
            names = some([os.path.relpath(path, root) for path in paths], most=3)
            verb = "is" if len(paths) == 1 else "are"
            what = what if len(paths) == 1 else what.replace("file", "files").replace("folder", "folders")
            yield Finding("note", kind, root, f"{len(paths)} {what} {verb} passed over ({names})")


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
