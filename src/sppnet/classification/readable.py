"""Which of the listed images can be read, and how large they are: before anything is computed from them.

Between listing a folder and training on it. A file that cannot be read ends the work before it begins, or is left out and
named; it is never passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppnet.data.images import image_size, read_image
from sppnet.data.labelled import LabelledImages
from sppnet.errors import ImageError, UserError

NAMED = 5  # bad files that one message lists
Report = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, eq=False)
class ReadableImages:
    """Images that can be read, and those that cannot."""

    images: LabelledImages
    sizes: np.ndarray  # [N, 2] int64, (height, width) in pixels, upright
    broken: tuple[tuple[Path, str], ...]  # left out, and why


def readable_images(
    images: LabelledImages, *, skip_bad: bool = False, report: Report | None = None, stage: str = "checking images"
) -> ReadableImages:
    """Measure every image, and see that it can be read.

    Args:
        images: what to look at.
        skip_bad: False: only the heads of the files are read (moments), and one that is bad raises. True: every file is
            read to its end, and what is bad is left out and listed.
        report: told of the progress: stage, done, total.
        stage: what ``report`` calls it.

    Returns:
        `ReadableImages`, in the order given.

    Raises:
        UserError: images that cannot be read, by name; with ``skip_bad``, only if none can be.

    Example:
        >>> readable_images(LabelledImages((Path("no.jpg"),), np.array([0]), ("cat", "dog")))
        Traceback (most recent call last):
        sppnet.errors.UserError: 1 of 1 images cannot be read: no.jpg: no such file. Mend or remove ...
    """
    kept: list[int] = []
    sizes: list[tuple[int, int]] = []
    broken: list[tuple[Path, str]] = []
    for place, path in enumerate(images.paths):
        try:
            height, width = read_image(path).shape[:2] if skip_bad else image_size(path)
        except ImageError as error:
            broken.append((path, str(error)))
        else:
            kept.append(place)
            sizes.append((height, width))
        if report:
            report(stage, place + 1, len(images))
    if broken and not (skip_bad and kept):
        listed = "; ".join(reason for _, reason in broken[:NAMED])
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UserError(
            f"{len(broken)} of {len(images)} images cannot be read: {listed}{more}. Mend or remove them "
            "('sppnet check' looks at every file), or leave them out with --skip-bad"
        )
    return ReadableImages(
        images.subset(kept) if broken else images, np.array(sizes, np.int64).reshape(-1, 2), tuple(broken)
    )
