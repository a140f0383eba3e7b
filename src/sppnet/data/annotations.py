"""What every reader of an annotated image set returns: the one form that training and evaluation work on.

Readers (``voc`` and its siblings) convert to this on reading; nothing behind them knows any file format.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
