"""What every reader of an annotated image set returns: the one form that training and evaluation work on.

Readers (`sppnet.data.formats`) convert to this on reading; nothing behind them knows any file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.data.images import read_image
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
            expected = "gt_boxes [G, 4], gt_labels [G], difficult [G]"
            raise ValueError(f"{self.image_id}: expected {expected}, got shapes {shapes}")


@dataclass(frozen=True, eq=False)
class DetectionData:
    """One split of an annotated image set: a data set as PyTorch's ``DataLoader`` takes it.

    ``data[i]`` reads one image. Sizes differ, so give the loader a ``collate_fn``, such as ``list``.

    Example:
        >>> len(DetectionData(class_names=("cat", "dog"), images=(), split="train"))
        0
    """

    class_names: tuple[str, ...]  # K, without background; label 1 is class_names[0]
    images: tuple[AnnotatedImage, ...]
    split: str

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Read one image [H, W, 3] uint8, with its "boxes" [G, 4] float32, "labels" [G], "difficult" [G] and "image_id".

        Raises:
            ImageError: the image cannot be read.
        """
        of = self.images[index]
        boxes, labels, difficult = of.gt_boxes.copy(), of.gt_labels.copy(), of.difficult.copy()
        return read_image(of.path), {"boxes": boxes, "labels": labels, "difficult": difficult, "image_id": of.image_id}

    def check_class_names(self, class_names: Sequence[str]) -> None:
        """Raise a UserError, which says what differs, unless a model's classes are those of the data, in any order."""
        if set(class_names) != set(self.class_names):
            model = sorted(set(class_names) - set(self.class_names))[:5]
            data = sorted(set(self.class_names) - set(class_names))[:5]
            counts = f"the model knows {len(class_names)} classes and the data has {len(self.class_names)}"
            raise UserError(f"{counts}, and they differ: only in the model {model}, only in the data {data}")

    def relabelled(self, class_names: Sequence[str]) -> DetectionData:
        """The same images, with labels that count the classes in another order, such as a model's.

        Args:
            class_names: the same names.

        Raises:
            UserError: other classes; the message says which.

        Example:
            >>> DetectionData(class_names=("cat", "dog"), images=(), split="train").relabelled(("dog", "cat")).class_names
            ('dog', 'cat')
        """
        self.check_class_names(class_names)
        label_of = np.array([0] + [class_names.index(name) + 1 for name in self.class_names])
        images = tuple(replace(image, gt_labels=label_of[image.gt_labels]) for image in self.images)
        return replace(self, class_names=tuple(class_names), images=images)
