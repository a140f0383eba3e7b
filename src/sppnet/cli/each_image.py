"""One answer after another about the images that `detect` and `classify` are given, however bad some of them are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.cli import complain
from sppnet.data.find import find_images
from sppnet.data.images import read_image
from sppnet.errors import ImageError, OutputError, printable
from sppnet.files import check_outputs, check_replaceable, to_json, write_json
from sppnet.progress import progress_bars

Answer = tuple[
    dict[str, Any], list[str], Callable[[], np.ndarray]
]  # entry in the document, lines to print, how to draw it


def each_image(
    sources: Sequence[Path],
    one: Callable[[Path, np.ndarray], Answer],
    output: Path | None,
    document_name: str,
    as_json: bool,
) -> int:
    """Answer about every image; name the bad and the missing ones, do the rest, and then end with status 2.

    Args:
        sources: files, folders and patterns.
        one: a file and its image [H, W, 3] uint8 -> the answer about it.
        output: folder for pictures and the document, or None.
        document_name: of the JSON file there.
        as_json: print the document instead of lines.

    Returns:
        The exit status.

    Raises:
        OutputError: a file in the output folder that sppnet did not write is in the way; known before the work.
    """
    document: dict[str, Any] = {"images": [], "errors": []}

    def name_bad(file: Path, reason: str) -> None:
        document["errors"].append({"file": str(file), "error": reason})
        complain(reason)

    files = find_each(sources, name_bad)
    pictures: dict[Path, Path] = {} if output is None else _pictures(files, output)
    if output is not None and files:
        check_outputs(output / document_name)
        for path in pictures.values():
            check_replaceable(path)
    with progress_bars() as progress:
        for done, file in enumerate(files):
            try:
                image = read_image(file)
                answer, lines, draw = one(file, image)
            except ImageError as error:
                name_bad(file, str(error))
                continue
            except MemoryError:
                name_bad(file, f"{file}: not enough memory for this image")
                continue
            entry = {"file": str(file), "height": image.shape[0], "width": image.shape[1], **answer}
            if file in pictures:
                from sppnet.visualize.draw import save_image  # Pillow's drawing and its font: only where needed

                try:
                    save_image(draw(), pictures[file])
                    entry["picture"] = pictures[file].name
                except OutputError as error:  # one name that cannot be written does not end a run of many
                    name_bad(file, str(error))
            document["images"].append(entry)
            if not as_json:
                for line in lines:
                    print(f"{printable(file)}: {line}", flush=True)
            if len(files) > 1:
                progress("images", done + 1, len(files))
    if output is not None and files:
        write_json(output / document_name, document)
        print(f"{len(document['images'])} annotated pictures and {document_name} in {output}", file=sys.stderr)
    if as_json:
        print(to_json(document))
    return 2 if document["errors"] else 0


def find_each(sources: Sequence[Path], name_bad: Callable[[Path, str], None]) -> list[Path]:
    """The images of all sources, as `find_images` lists them; a source without any does not stop the others."""
    found: dict[str, Path] = {}
    for source in sources:
        try:
            for file in find_images([source]):
                found.setdefault(os.path.abspath(file), file)
        except ImageError as error:
            name_bad(source, str(error))
    return sorted(found.values())


def _pictures(files: Sequence[Path], output: Path) -> dict[Path, Path]:
    """For each image the picture to write, all of different names."""
    taken: set[str] = set()
    pictures = {}
    for file in files:
        name, number = f"{file.stem}.jpg", 2
        while name.lower() in taken:
            name, number = f"{file.stem}-{number}.jpg", number + 1
        taken.add(name.lower())
        pictures[file] = output / name
    return pictures
