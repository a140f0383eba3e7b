"""One answer after another about the images that `detect` and `classify` are given, however bad some of them are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.terminal import complain, progress, write_json

if TYPE_CHECKING:
    import numpy as np


def each_image(
    sources: Sequence[Path],
    one: Callable[[Path, np.ndarray], tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]],
    output: Path | None,
    document_name: str,
    as_json: bool,
) -> int:
    """Answer about every image; name the bad and the missing ones, do the rest, and then end with status 2.

    Args:
        sources: files, folders and patterns.
        one: a file and its image [H, W, 3] uint8 -> its entry in the document, lines to print, and how to draw the answer.
        output: folder for pictures and the document, or None.
        document_name: of the JSON file there.
        as_json: print the document instead of lines.

    Returns:
        The exit status.
    """
    from sppnet.data.images import ImageError, read_image
    from sppnet.visualize import save_image

    document: dict[str, Any] = {"images": [], "errors": []}

    def name_bad(file: Path, reason: str) -> None:
        document["errors"].append({"file": str(file), "error": reason})
        complain(reason)

    files = _find_each(sources, name_bad)
    taken: set[str] = set()
    with progress() as report:
        for done, file in enumerate(files):
            try:
                image = read_image(file)
                answer, lines, draw = one(file, image)
            except (ImageError, MemoryError) as error:
                reason = str(error) if isinstance(error, ImageError) else f"{file}: not enough memory for this image"
                name_bad(file, reason)
                continue
            entry = {"file": str(file), "height": image.shape[0], "width": image.shape[1], **answer}
            if output is not None:
                entry["picture"] = _free_name(file, taken)
                save_image(draw(), output / entry["picture"])
            document["images"].append(entry)
            if not as_json:
                for line in lines:
                    print(f"{file}: {line}", flush=True)
            if len(files) > 1:
                report("images", done + 1, len(files))
    if output is not None and files:
        write_json(output / document_name, document)
        print(f"{len(document['images'])} annotated pictures and {document_name} in {output}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=1))
    return 2 if document["errors"] else 0


def _find_each(sources: Sequence[Path], name_bad: Callable[[Path, str], None]) -> list[Path]:
    """The images of all sources, as `find_images` lists them; a source without any does not stop the others."""
    from sppnet.data.image_files import find_images
    from sppnet.data.images import ImageError

    found: dict[str, Path] = {}
    for source in sources:
        try:
            for file in find_images([source]):
                found.setdefault(os.path.abspath(file), file)
        except ImageError as error:
            name_bad(source, str(error))
    return sorted(found.values())


def _free_name(file: Path, taken: set[str]) -> str:
    name, number = f"{file.stem}.jpg", 2
    while name.lower() in taken:
        name, number = f"{file.stem}-{number}.jpg", number + 1
    taken.add(name.lower())
    return name
