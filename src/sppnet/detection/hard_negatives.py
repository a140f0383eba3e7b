"""Windows without an object that a class's SVM gets wrong, or nearly: found, cached, dropped when they have become easy.

Of a million windows nearly all are easy, and change nothing; a few hundred a class are mistaken for an object, and decide.
`hard_windows` finds an image's, `NegativeCache` holds them. A window that is hard for several classes is stored once:

features [N, D], held [N, K] (for which classes), scores [N, K] (as last computed).

Source: arXiv:1406.4729, section 4.1; the recipe's numbers are in `sppnet.detection.svm.SVMSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sppnet.boxes import non_maximum_suppression


def hard_windows(boxes: Tensor, scores: Tensor, eligible: Tensor, hard_score: float, duplicate_iou: float) -> Tensor:
    """Which windows of an image each class should learn from.

    Of hard windows that overlap each other, the hardest stays: they say the same.

    Args:
        boxes: [R, 4] in pixels.
        scores: [R, K], decision scores.
        eligible: [R, K] bool: no object of the class is in the window.
        hard_score: windows with a decision score above this are hard.
        duplicate_iou: a window that overlaps a harder one by more is left out.

    Returns:
        [R, K] bool.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]])
        >>> scores = torch.tensor([[-0.5], [0.3], [-2.0]])
        >>> hard_windows(boxes, scores, torch.ones(3, 1).bool(), hard_score=-1.0001, duplicate_iou=0.7).flatten()
        tensor([False,  True, False])
    """
    rows, columns = (eligible & (scores > hard_score)).nonzero(as_tuple=True)
    kept = non_maximum_suppression(boxes[rows], scores[rows, columns], columns, duplicate_iou)
    hard = torch.zeros_like(eligible)
    hard[rows[kept], columns[kept]] = True
    return hard


class NegativeCache:
    """The hard negatives of K classes, in bounded memory.

    Args:
        num_classes: K.
        bytes_per_class: of features; a class that has more drops its easiest. All K together never take more than K times
            this and one image's.

    Attributes:
        features: [N, D], in the precision in which they came.
        held: [N, K] bool: which classes hold the window.
        scores: [N, K] float32: of the classes that hold it, by the SVM that found it, or by the last one trained on it.

    Raises:
        ValueError: less than one window's bytes (known when the first comes).
    """

    def __init__(self, num_classes: int, bytes_per_class: int) -> None:
        self.bytes_per_class = bytes_per_class
        scores = torch.zeros(0, num_classes)
        self.restore({"features": torch.zeros(0, 0), "held": scores.bool(), "scores": scores})

    @property
    def max_windows(self) -> int:
        """How many windows a class may hold; known when the first has come, 0 before."""
        width = self.features.shape[1] * self.features.element_size()
        if width > self.bytes_per_class:
            raise ValueError(f"{self.bytes_per_class} bytes hold no window of {width} bytes: allow more for negatives")
        return self.bytes_per_class // width if width else 0

    def rows_of(self, column: int) -> Tensor:
        """Indices of the windows that a class holds, in the order in which they came."""
        return self.held[:, column].nonzero().flatten()

    def add(self, features: Tensor, hard: Tensor, scores: Tensor) -> None:
        """Take in an image's windows: features [n, D], for which classes each is hard [n, K] bool, scores [n, K]."""
        new = hard.any(1)
        added = int(new.sum())
        if not self.features.shape[1]:
            self._rows["features"] = features.new_zeros(0, features.shape[1])
            self._use(0)
        most = self.max_windows * self.held.shape[1]
        if len(self.held) + added > len(self._rows["held"]):
            self.compact()
        count = len(self.held)
        if count + added > len(self._rows["held"]):
            room = max(count + added, min(count * 3 // 2, most))
            for name, part in self._rows.items():
                self._rows[name] = part.new_zeros(room, *part.shape[1:])
                self._rows[name][:count] = part[:count]
        self._use(count + added)
        self.features[count:], self.held[count:], self.scores[count:] = features[new], hard[new], scores[new].float()

    def too_many(self) -> Tensor:
        """[K] bool: classes that hold more than they may."""
        return self.held.sum(0) > self.max_windows

    def limit(self) -> None:
        """Have the classes that hold more than they may drop the easiest."""
        for column in self.too_many().nonzero().flatten().tolist():
            rows = self.rows_of(column)
            easiest_last = self.scores[rows, column].argsort(descending=True, stable=True)
            self.held[rows[easiest_last[self.max_windows :]], column] = False

    def evict(self, column: int, easy_score: float) -> None:
        """Have a class drop what scores below ``easy_score``."""
        self.held[:, column] &= self.scores[:, column] >= easy_score

    def compact(self) -> None:
        """Forget windows that no class holds; the others keep their order."""
        kept = self.held.any(1).nonzero().flatten()
        if len(kept) < len(self.held):
            for part in self._rows.values():
                for start in range(0, len(kept), 1024):  # moved to the front, with no second copy of all
                    rows = kept[start : start + 1024]
                    part[start : start + len(rows)] = part[rows]
            self._use(len(kept))

    def arrays(self) -> dict[str, Tensor]:
        """All that is held, for a file; `restore` takes it."""
        self.compact()
        return {"features": self.features, "held": self.held, "scores": self.scores}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Put back what `arrays` gave."""
        self._rows = {name: arrays[name] for name in ("features", "held", "scores")}  # with room for more
        self._use(len(self._rows["held"]))

    def _use(self, count: int) -> None:
        """Let the first ``count`` rows be those in use."""
        self.features, self.held, self.scores = (part[:count] for part in self._rows.values())
