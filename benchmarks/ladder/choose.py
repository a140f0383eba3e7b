"""Some images of an annotated set, with its classes in about the shares that they have in all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sppnet.data.annotations import DetectionData
from sppnet.errors import UserError


def choose_images(data: DetectionData, count: int | None, seed: int) -> DetectionData:
    """Choose images, the same for the same seed.

    One after another: the class that lacks most of its share gives the next of its images, in an order drawn by ``seed``. An image
    counts for every class in it; images without objects are a class of their own. So rare classes are there in small choices too.

    Args:
        data: to choose from.
        count: at least 1; None, or as many as there are or more: all.
        seed: of the order.

    Returns:
        The images in the order that they have in ``data``.

    Raises:
        UserError: a count below 1.

    Example:
        >>> len(choose_images(DetectionData(class_names=("cat",), images=(), split="train"), 5, seed=0))
        0
    """
    if count is not None and count < 1:
        raise UserError(f"expected at least one image, or none named for all: got {count}")
    total = len(data.images)
    if count is None or count >= total:
        return data
    shows = np.zeros((total, 1 + len(data.class_names)), bool)  # [N, 1 + K]; column 0: no objects
    for row, image in enumerate(data.images):
        easy = image.gt_labels[~image.difficult]
        shows[row, easy if len(easy) else 0] = True
    wanted = shows.sum(0) * (count / total)
    order = np.random.default_rng(seed).permutation(total)
    left = shows[order]  # rows that are taken become empty
    taken: list[int] = []
    have = np.zeros(shows.shape[1])
    for _ in range(count):
        lack = np.where(left.any(0), (wanted - have) / np.maximum(wanted, 1e-9), -np.inf)
        place = int(left[:, int(lack.argmax())].argmax())
        have += left[place]
        left[place] = False
        taken.append(int(order[place]))
    return replace(data, images=tuple(data.images[row] for row in sorted(taken)))
