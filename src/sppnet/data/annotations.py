"""What every reader of an annotated image set returns: the one form that training and evaluation work on.

Readers (``voc`` and its siblings) convert to this on reading; nothing behind them knows any file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sppnet.errors import UserError


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image and the objects in it.

    Example:
        >>> image = AnnotatedImage("000005", Path("000005.jpg"), (375, 500), np.array([[0, 0, 9, 9]], np.float32),
        ...                        np.array([1]), np.array([False]))
        >>> len(image.gt_labels)
        1
    """

    image_id: str  # unique in its set; file names are made from it
    path: Path
    size: tuple[int, int]  # (height, width) in pixels, upright
    gt_boxes: np.ndarray  # [G, 4] float32, xyxy, pixels, half-open; G may be 0
    gt_labels: np.ndarray  # [G] int64, 1..K; 0 would be background
    difficult: np.ndarray  # [G] bool; such objects neither help nor harm in evaluation

    def __post_init__(self) -> None:
        count = len(self.gt_labels)
        shapes = (self.gt_boxes.shape, self.gt_labels.shape, self.difficult.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(
                f"{self.image_id}: expected gt_boxes [G, 4], gt_labels [G], difficult [G], got shapes {shapes}"
            )


@dataclass(frozen=True, eq=False)
class DetectionData:
    """One split of an annotated image set.

    Example:
        >>> len(DetectionData(names=("cat", "dog"), images=(), split="train"))
        0
    """

    names: tuple[str, ...]  # the K class names without background; label 1 is names[0]
    images: tuple[AnnotatedImage, ...]
    split: str

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise a UserError, which says what differs, unless a model's classes are those of the data, in any order."""
        if set(names) != set(self.names):
            raise UserError(
                f"the model knows {len(names)} classes and the data has {len(self.names)}, and they differ: "
                f"only in the model {sorted(set(names) - set(self.names))[:5]}, only in the data "
                f"{sorted(set(self.names) - set(names))[:5]}"
            )

    def relabelled(self, names: Sequence[str]) -> DetectionData:
        """The same images, with labels that count the classes in another order, such as a model's.

        Args:
            names: the same class names.

        Raises:
            UserError: other classes; the message says which.

        Example:
            >>> DetectionData(names=("cat", "dog"), images=(), split="train").relabelled(("dog", "cat")).names
            ('dog', 'cat')
        """
        self.check_names(names)
        label_of = np.array([0] + [names.index(name) + 1 for name in self.names])
        images = tuple(replace(image, gt_labels=label_of[image.gt_labels]) for image in self.images)
        return replace(self, names=tuple(names), images=images)
