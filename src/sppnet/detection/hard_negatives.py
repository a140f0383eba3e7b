"""Windows without an object that a class's SVM gets wrong, or nearly: found, kept, dropped when they have become easy.

Of a million windows nearly all are easy, and change nothing; a few hundred a class are mistaken for an object, and decide.
`hard_windows` finds an image's, `NegativeCache` keeps them. A window that is hard for several classes is stored once:

features [N, D], held [N, K] (for which classes), margins [N, K] (as last computed), keys [N, 2] (image, row in its windows).

Source: arXiv:1406.4729, section 4.1; the recipe's numbers are in `sppnet.detection.svm.SVMSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def hard_windows(
    boxes: Tensor, margins: Tensor, eligible: Tensor, held: Tensor, hard_margin: float, duplicate_iou: float
) -> Tensor:
    """Which windows of an image each class should learn from and does not hold yet.

    Of hard windows that overlap each other, the hardest stays: they say the same.

    Args:
        boxes: [R, 4] in pixels.
        margins: [R, K].
        eligible: [R, K] bool: no object of the class is in the window.
        held: [R, K] bool: windows that the class holds already; they stay, and push others out.
        hard_margin: windows with a margin above this are hard.
        duplicate_iou: a window that overlaps a harder one by more is left out.

    Returns:
        [R, K] bool.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]])
        >>> margins, yes, no = torch.tensor([[-0.5], [0.3], [-2.0]]), torch.ones(3, 1).bool(), torch.zeros(3, 1).bool()
        >>> hard_windows(boxes, margins, yes, no, hard_margin=-1.0001, duplicate_iou=0.7).flatten()
        tensor([False,  True, False])
    """
    rows, columns = (held | (eligible & (margins > hard_margin))).nonzero(as_tuple=True)
    order = torch.where(held, torch.inf, margins)[rows, columns]
    kept = batched_nms(boxes[rows], order, columns, duplicate_iou)
    hard = torch.zeros_like(held)
    hard[rows[kept], columns[kept]] = True
    return hard & ~held


class NegativeCache:
    """The hard negatives of K classes, in bounded memory.

    Args:
        classes: K.
        bytes_per_class: of features; a class that has more drops its easiest. All K together never take more than K times
            this and one image's.

    Raises:
        ValueError: less than one window's bytes (known when the first comes).
    """

    def __init__(self, classes: int, bytes_per_class: int) -> None:
        self.bytes_per_class = bytes_per_class
        self.count = 0  # rows in use, of those that there is room for
        self._features = torch.zeros(0, 0)
        self._held = torch.zeros(0, classes, dtype=torch.bool)
        self._margins = torch.zeros(0, classes)
        self._keys = torch.zeros(0, 2, dtype=torch.int64)

    @property
    def features(self) -> Tensor:
        """[N, D], in the precision in which they came."""
        return self._features[: self.count]

    @property
    def held(self) -> Tensor:
        """[N, K] bool: which classes hold the window."""
        return self._held[: self.count]

    @property
    def margins(self) -> Tensor:
        """[N, K] float32: of the classes that hold it, by the SVM that found it, or by the last one trained on it."""
        return self._margins[: self.count]

    @property
    def keys(self) -> Tensor:
        """[N, 2] int64: the image, the row among its windows."""
        return self._keys[: self.count]

    @property
    def bytes(self) -> int:
        """What the features take in memory, with the room that is kept for more."""
        return self._features.nbytes

    @property
    def most(self) -> int | None:
        """How many windows a class may hold; None before the first has come."""
        width = self._features.shape[1] * self._features.element_size()
        if not width:
            return None
        if self.bytes_per_class < width:
            raise ValueError(
                f"expected room for at least one window of {width} bytes, got {self.bytes_per_class} bytes: "
                "allow more bytes for each class's negatives"
            )
        return self.bytes_per_class // width

    def held_of(self, image: int, count: int) -> Tensor:
        """[count, K] bool: which of an image's ``count`` windows each class holds."""
        held = torch.zeros(count, self._held.shape[1], dtype=torch.bool)
        here = (self.keys[:, 0] == image).nonzero().flatten()
        held[self.keys[here, 1]] = self.held[here]
        return held

    def rows_of(self, column: int) -> Tensor:
        """Indices of the windows that a class holds, in the order in which they came."""
        return self.held[:, column].nonzero().flatten()

    def add(self, image: int, rows: Tensor, features: Tensor, hard: Tensor, margins: Tensor) -> None:
        """Keep windows of one image.

        Args:
            image: its number.
            rows: [n] int64, each once, of its windows.
            features: [n, D] of these.
            hard: [n, K] bool: for which classes.
            margins: [n, K].
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
        self._features[fresh] = features[new]
        self._keys[fresh] = torch.stack([torch.full((added,), image), rows[new]], dim=1)
        self._held[fresh] = False
        rows_, columns = (hard & (where >= 0)[:, None]).nonzero(as_tuple=True)
        self._held[where[rows_], columns] = True
        self._margins[where[rows_], columns] = margins[rows_, columns].float()

    def too_many(self) -> Tensor:
        """[K] bool: classes that hold more than they may."""
        most = self.most
        if most is None or self.count <= most:
            return torch.zeros(self._held.shape[1], dtype=torch.bool)
        return self.held.sum(0) > most

    def limit(self) -> None:
        """Have the classes that hold more than they may drop the easiest."""
        for column in self.too_many().nonzero().flatten().tolist():
            rows = self.rows_of(column)
            easiest_last = self.margins[rows, column].argsort(descending=True, stable=True)
            self._held[rows[easiest_last[self.most :]], column] = False

    def evict(self, column: int, easy_margin: float) -> None:
        """Have a class drop what has a margin below ``easy_margin``."""
        self.held[:, column] &= self.margins[:, column] >= easy_margin

    def compact(self) -> None:
        """Forget windows that no class holds; the others keep their order."""
        kept = self.held.any(1).nonzero().flatten()
        if len(kept) < self.count:
            for part in (self._features, self._held, self._margins, self._keys):
                for start in range(0, len(kept), 1024):  # moved to the front, with no second copy of all
                    rows = kept[start : start + 1024]
                    part[start : start + len(rows)] = part[rows]
            self.count = len(kept)

    def arrays(self) -> dict[str, Tensor]:
        """All that is kept, for a file; `restore` takes it."""
        self.compact()
        return {"features": self.features, "held": self.held, "margins": self.margins, "keys": self.keys}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Put back what `arrays` gave."""
        self._features, self._held = arrays["features"], arrays["held"]
        self._margins, self._keys = arrays["margins"], arrays["keys"]
        self.count = len(self._keys)

    def _reserve(self, added: int, features: Tensor) -> int:
        """The first of ``added`` free rows."""
        if not self._features.shape[1]:
            self._features = features.new_zeros(0, features.shape[1])
        if (features.dtype, features.shape[1]) != (self._features.dtype, self._features.shape[1]):
            raise ValueError(
                f"expected features [n, {self._features.shape[1]}] {self._features.dtype} as before, "
                f"got {list(features.shape)} {features.dtype}"
            )
        most = self.most or 0
        if self.count + added > len(self._features):
            self.compact()
        if self.count + added > len(self._features):
            room = max(self.count + added, min(self.count * 3 // 2, self._held.shape[1] * most))
            self._features = _longer(self._features, room)
            self._held = _longer(self._held, room)
            self._margins = _longer(self._margins, room)
            self._keys = _longer(self._keys, room)
        self.count += added
        return self.count - added


def _longer(part: Tensor, length: int) -> Tensor:
    longer = part.new_zeros(length, *part.shape[1:])
    longer[: len(part)] = part
    return longer
