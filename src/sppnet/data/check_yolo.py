"""Check a YOLO folder: every line that is wrong is named by file and line.

``yolo`` reads, and stops at the first fault; this module goes on, and lets the reader itself judge each line, so that
the two cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from sppnet.data import yolo
from sppnet.data.check_images import Collection, Finding, ImageFacts, Severity, same_pictures
from sppnet.data.folder_survey import some
from sppnet.data.placed import PlacedError

_NEEDED = ("train", "val", "valid")  # a YAML names a test part even where an export has none

_LARGE = (1_000_000, 1_000_000)  # pixels, for an image that could not be read: a pixel's tolerance means little there


def yolo_collection(root: Path) -> Collection:
    """Gather the images of a YOLO folder and its label files; boxes are judged once sizes are known.

    Args:
        root: the folder, or its YAML file.

    Returns:
        All images of all splits; ``classes`` counts objects by name.

    Raises:
        UserError: not a YOLO folder, or one without class names.
    """
    folder = yolo.yolo_folder(root)
    groups: dict[Path, tuple[str, str]] = {}
    findings: list[Finding] = []
    for split in folder.splits:
        try:
            found = yolo.split_images(folder, split)
        except PlacedError as error:
            severity: Severity = "error" if split in _NEEDED else "warning"
            findings.append(Finding(severity, "missing", error.path, error.reason, error.line))
            continue
        for path in found.values():
            if groups.setdefault(path, (split, ""))[0] != split:
                findings.append(Finding("warning", "leak", path, f"in {groups[path][0]} and in {split}"))
    lines, of_files = _read_labels(list(groups))
    findings += of_files
    findings += _labels_without_image({yolo.label_path(path) for path in groups})
    counts = Counter(dict.fromkeys(folder.names, 0))
    for of_file in lines.values():
        for _, line in of_file:
            first = line.split()[0]
            if first.isdecimal() and int(first) < len(folder.names):
                counts[folder.names[int(first)]] += 1

    def judge(facts: Mapping[Path, ImageFacts]) -> Iterator[Finding]:
        empty = []
        for image in groups:
            label_file = yolo.label_path(image)
            of_image = lines.get(label_file, [])
            if not of_image:
                empty.append(image.name)
            yield from _line_findings(label_file, of_image, folder.names, facts.get(image))
        if empty:
            message = f"{len(empty)} images without an object ({some(empty, 3)})"
            yield Finding("note", "no-object", folder.root, message)
        yield from same_pictures(facts, groups)

    layout = f"YOLO, split into {', '.join(folder.splits)}" if len(folder.splits) > 1 else "YOLO, not split"
    return Collection(layout, list(groups), dict(counts), findings, judge)


def _read_labels(images: list[Path]) -> tuple[dict[Path, list[tuple[int, str]]], list[Finding]]:
    lines: dict[Path, list[tuple[int, str]]] = {}
    findings = []
    for path in dict.fromkeys(map(yolo.label_path, images)):
        try:
            lines[path] = yolo.label_lines(path)
        except PlacedError as error:
            findings.append(Finding("error", "annotation", path, error.reason))
    return lines, findings


def _labels_without_image(with_image: set[Path]) -> Iterator[Finding]:
    names = {Path(name).name for name in yolo.NAMES_FILES}
    for folder in sorted({path.parent for path in with_image}):
        for path in sorted(folder.glob("*.txt")):
            if path not in with_image and path.name not in names:
                yield Finding("warning", "missing", path, "no image belongs to it")


def _line_findings(
    path: Path, lines: list[tuple[int, str]], names: tuple[str, ...], fact: ImageFacts | None
) -> Iterator[Finding]:
    seen: set[yolo.Object] = set()
    for number, line in lines:
        try:
            read = yolo.read_line(line, names, fact.size if fact is not None else _LARGE, path, number)
        except PlacedError as error:
            yield Finding("error", "box", path, error.reason, number)
            continue
        if read in seen:
            message = f"the same box of {names[read.label - 1]!r} for the second time"
            yield Finding("warning", "box-twice", path, message, number)
        seen.add(read)
    if lines and fact is not None and fact.orientation != 1:
        message = (
            f"the image is stored turned or mirrored (EXIF orientation {fact.orientation}) and set upright on reading: "
            "look whether its boxes were drawn on the upright picture"
        )
        yield Finding("warning", "turned-boxes", path, message)
