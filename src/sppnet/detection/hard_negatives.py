"""Windows without an object that a class's SVM gets wrong, or nearly: found, cached, dropped when they have become easy.

Of a million windows nearly all are easy, and change nothing; a few hundred a class are mistaken for an object, and decide.
`hard_windows` finds an image's, `NegativeCache` holds them. A window that is hard for several classes is stored once:

features [N, D], held [N, K] (for which classes), scores [N, K] (as last computed), keys [N, 2] (image, row in its windows).

Source: arXiv:1406.4729, section 4.1; the recipe's numbers are in `sppnet.detection.svm.SVMSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sppnet.boxes import non_maximum_suppression


def hard_windows(
    boxes: Tensor, scores: Tensor, eligible: Tensor, held: Tensor, hard_score: float, duplicate_iou: float
) -> Tensor:
    """Which windows of an image each class should learn from and does not hold yet.

    Of hard windows that overlap each other, the hardest stays: they say the same.

    Args:
        boxes: [R, 4] in pixels.
        scores: [R, K], decision scores.
        eligible: [R, K] bool: no object of the class is in the window.
        held: [R, K] bool: windows that the class holds already; they stay, and push others out.
        hard_score: windows with a decision score above this are hard.
        duplicate_iou: a window that overlaps a harder one by more is left out.

    Returns:
        [R, K] bool.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]])
        >>> scores, yes, no = torch.tensor([[-0.5], [0.3], [-2.0]]), torch.ones(3, 1).bool(), torch.zeros(3, 1).bool()
        >>> hard_windows(boxes, scores, yes, no, hard_score=-1.0001, duplicate_iou=0.7).flatten()
        tensor([False,  True, False])
    """
    rows, columns = (held | (eligible & (scores > hard_score))).nonzero(as_tuple=True)
    order = torch.where(held, torch.inf, scores)[rows, columns]
    kept = non_maximum_suppression(boxes[rows], order, columns, duplicate_iou)
    hard = torch.zeros_like(held)
    hard[rows[kept], columns[kept]] = True
    return hard & ~held


class NegativeCache:
    """The hard negatives of K classes, in bounded memory.

    Args:
        num_classes: K.
        bytes_per_class: of features; a class that has more drops its easiest. All K together never take more than K times
            this and one image's.

    Raises:
        ValueError: less than one window's bytes (known when the first comes).
    """

    def __init__(self, num_classes: int, bytes_per_class: int) -> None:
        self.bytes_per_class = bytes_per_class
        self.count = 0  # rows in use, of those that there is room for
        self._rows = {
            "features": torch.zeros(0, 0),
            "held": torch.zeros(0, num_classes, dtype=torch.bool),
            "scores": torch.zeros(0, num_classes),
            "keys": torch.zeros(0, 2, dtype=torch.int64),
        }

    @property
    def features(self) -> Tensor:
        """[N, D], in the precision in which they came."""
        return self._rows["features"][: self.count]

    @property
    def held(self) -> Tensor:
        """[N, K] bool: which classes hold the window."""
        return self._rows["held"][: self.count]

    @property
    def scores(self) -> Tensor:
        """[N, K] float32: of the classes that hold it, by the SVM that found it, or by the last one trained on it."""
        return self._rows["scores"][: self.count]

    @property
    def keys(self) -> Tensor:
        """[N, 2] int64: the image, the row among its windows."""
        return self._rows["keys"][: self.count]

    @property
    def bytes(self) -> int:
        """What the features take in memory, with the room that there is for more."""
        return self._rows["features"].nbytes

    @property
    def max_windows(self) -> int:
        """How many windows a class may hold; known when the first has come, 0 before."""
        features = self._rows["features"]
        width = features.shape[1] * features.element_size()
        if width > self.bytes_per_class:
            raise ValueError(
                f"expected room for at least one window of {width} bytes, got {self.bytes_per_class} bytes: "
                "allow more bytes for negatives"
            )
        return self.bytes_per_class // width if width else 0

    def held_of(self, image: int, count: int) -> Tensor:
        """[count, K] bool: which of an image's ``count`` windows each class holds."""
        held = torch.zeros(count, self.held.shape[1], dtype=torch.bool)
        here = (self.keys[:, 0] == image).nonzero().flatten()
        held[self.keys[here, 1]] = self.held[here]
        return held

    def rows_of(self, column: int) -> Tensor:
        """Indices of the windows that a class holds, in the order in which they came."""
        return self.held[:, column].nonzero().flatten()

    def add(self, image: int, rows: Tensor, features: Tensor, hard: Tensor, scores: Tensor) -> None:
        """Take in windows of one image.

        Args:
            image: its index.
            rows: [n] int64, each once, of its windows.
            features: [n, D] of these.
            hard: [n, K] bool: for which classes.
            scores: [n, K].
        """
        where = torch.full((len(rows),), -1)  # the row of the cache where a window lies already, for other classes
        here = (self.keys[:, 0] == image).nonzero().flatten()
        if len(here):
            same = rows[:, None] == self.keys[here, 1]
            found = same.any(1)
            where[found] = here[same[found].int().argmax(1)]
        new = (where < 0) & hard.any(1)
        added = int(new.sum())
        where[new] = torch.arange(added) + self._reserve(added, features)
        fresh = where[new]
        self.features[fresh] = features[new]
        self.keys[fresh] = torch.stack([torch.full((added,), image), rows[new]], dim=1)
        self.held[fresh] = False
        from_, columns = (hard & (where >= 0)[:, None]).nonzero(as_tuple=True)
        self.held[where[from_], columns] = True
        self.scores[where[from_], columns] = scores[from_, columns].float()

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
        if len(kept) < self.count:
            for part in self._rows.values():
                for start in range(0, len(kept), 1024):  # moved to the front, with no second copy of all
                    rows = kept[start : start + 1024]
                    part[start : start + len(rows)] = part[rows]
            self.count = len(kept)

    def arrays(self) -> dict[str, Tensor]:
        """All that is held, for a file; `restore` takes it."""
        self.compact()
        return {name: part[: self.count] for name, part in self._rows.items()}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Put back what `arrays` gave."""
        self._rows = {name: arrays[name] for name in self._rows}
        self.count = len(self._rows["keys"])

    def _reserve(self, added: int, features: Tensor) -> int:
        """The first of ``added`` free rows."""
        known = self._rows["features"]
        if not known.shape[1]:
            known = self._rows["features"] = features.new_zeros(0, features.shape[1])
        if (features.dtype, features.shape[1]) != (known.dtype, known.shape[1]):
            raise ValueError(
                f"expected features [n, {known.shape[1]}] {known.dtype} as before, "
                f"got {list(features.shape)} {features.dtype}"
            )
        most = self.max_windows * self.held.shape[1]
        if self.count + added > len(known):
            self.compact()
        if self.count + added > len(known):
            room = max(self.count + added, min(self.count * 3 // 2, most))
            for name, part in self._rows.items():
                self._rows[name] = part.new_zeros(room, *part.shape[1:])
                self._rows[name][: self.count] = part[: self.count]
        self.count += added
        return self.count - added
