"""What the model answers about one image: `Classification` (what is in it) and `Detections` (what, and where).

The last stop on the way from a photo to boxes. Plain NumPy arrays in frozen dataclasses, so that they can be pickled,
drawn (`sppnet.visualize`), scored (`sppnet.metrics`) or written as JSON without torch.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sppnet.errors import UserError

BOX_DECIMALS = 2  # a hundredth of a pixel
SCORE_DECIMALS = 4  # of probabilities and margins; the fifth digit is noise

ScoreKind = Literal["probability", "decision"]


class Detection(NamedTuple):
    """One detected object: what iterating over `Detections` gives."""

    box: npt.NDArray[np.float32]  # [4] x0, y0, x1, y1, half-open pixels of the upright image
    score: float
    label: int  # 1..K
    name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image.

    Args:
        boxes: [R, 4] float32, (x0, y0, x1, y1), continuous pixels of the upright original image, half-open.
        scores: [R] float32, larger is surer; the producer sorts them falling.
        labels: [R] int64, 1..K; 0, the background, is never detected.
        names: R class names, one for each box.
        score_kind: what the scores are. "probability": 0..1, of a softmax over the classes and the background. "margin": of any
            size, of an SVM: surely above 0, background at about -1. Comparable within a class, less so between classes.

    Lists and other dtypes are converted; the arrays kept are read-only copies.

    Raises:
        ValueError: shapes that do not agree, or a label below 1. The message shows which.

    Example:
        >>> found = Detections([[10, 20, 110, 220], [0, 0, 5, 5]], [0.9, 0.2], [15, 8], ("person", "cat"))
        >>> len(found), found.above(0.5).names
        (2, ('person',))
        >>> [detection.name for detection in found]
        ['person', 'cat']
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    score_kind: ScoreKind = "probability"

    def __post_init__(self) -> None:
        boxes = _frozen_array(self.boxes, np.float32)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        scores = _frozen_array(self.scores, np.float32)
        labels = _frozen_array(self.labels, np.int64)
        names = tuple(self.names)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes: expected shape [R, 4] (x0, y0, x1, y1), got {list(boxes.shape)}")
        count = len(boxes)
        for field, shape in (
            ("scores", scores.shape),
            ("labels", labels.shape),
            ("names", (len(names),)),
        ):
            if shape != (count,):
                raise ValueError(f"{field}: expected one for each of the {count} boxes, got shape {list(shape)}")
        if count and labels.min() < 1:
            raise ValueError(f"labels: expected 1..K (0 is the background), got {labels.min()}")
        if self.score_kind not in ("probability", "decision"):
            raise ValueError(f"score_kind: expected probability or decision, got {self.score_kind!r}")
        _set(self, boxes=boxes, scores=scores, labels=labels, names=names)

    @classmethod
    def empty(cls) -> "Detections":
        """No objects at all.

        Returns:
            Detections of length 0.

        Example:
            >>> len(Detections.empty())
            0
        """
        return cls(
            np.empty((0, 4), np.float32),
            np.empty(0, np.float32),
            np.empty(0, np.int64),
            (),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label, name in zip(self.boxes, self.scores, self.labels, self.names, strict=True):
            yield Detection(box, float(score), int(label), name)

    def select(self, index: npt.ArrayLike) -> "Detections":
        """The detections at the given places.

        Args:
            index: [R] bool mask, or the wanted positions as integers, in the wanted order.

        Returns:
            New Detections; this one is unchanged.

        Example:
            >>> Detections([[0, 0, 1, 1], [0, 0, 2, 2]], [0.9, 0.2], [1, 2], ("a", "b")).select([1]).names
            ('b',)
        """
        index = np.asarray(index)
        index = index.astype(np.int64) if index.size == 0 else index  # an empty list reads as float
        places = np.arange(len(self))[index]
        return Detections(
            self.boxes[places],
            self.scores[places],
            self.labels[places],
            tuple(self.names[i] for i in places),
            self.score_kind,
        )

    def above(self, score_threshold: float) -> "Detections":
        """The detections that are sure enough.

        Args:
            score_threshold: the lowest score to keep (a score equal to it is kept).

        Returns:
            New Detections in the same order; this one is unchanged.

        Example:
            >>> len(Detections([[0, 0, 1, 1]], [0.3], [1], ("cat",)).above(0.5))
            0
        """
        return self.select(self.scores >= np.float32(score_threshold))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, ready for ``json.dumps``: boxes to 1/100 pixel, scores to four decimals.

        Returns:
            ``{"boxes": [[x0, y0, x1, y1], ..], "scores": [..], "score_kind": .., "labels": [..], "names": [..]}``.

        Example:
            >>> Detections([[0, 0, 1.234, 1]], [1 / 3], [8], ["cat"]).to_dict()
            {'boxes': [[0.0, 0.0, 1.23, 1.0]], 'scores': [0.3333], 'score_kind': 'probability', 'labels': [8], 'names': ['cat']}
        """
        return {
            "boxes": [[round(float(side), BOX_DECIMALS) for side in box] for box in self.boxes],
            "scores": [round(float(score), SCORE_DECIMALS) for score in self.scores],
            "score_kind": self.score_kind,
            "labels": [int(label) for label in self.labels],
            "names": list(self.names),
        }

    def to_supervision(self) -> Any:
        """The same boxes for the `supervision` package: trackers, zones, annotators.

        Labels become ``class_id`` counted from 0 (label 1 is class 0), names ``data["class_name"]``.

        Returns:
            A ``supervision.Detections`` of the same length and order.

        Raises:
            UserError: the `supervision` package is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")  # optional, heavy: only here
        except ImportError as error:
            raise UserError("to_supervision needs the package 'supervision': pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True, eq=False)
class Classification:
    """How well each class of the model fits one image.

    Args:
        scores: [K] float32; probabilities that sum to 1, or, when ``multi_label``, one in 0..1 for each class by itself.
        names: the K class names, in the model's order (background left out).
        multi_label: whether several classes may be in the image at once.

    Raises:
        ValueError: no classes, or scores and names of different lengths.

    Example:
        >>> answer = Classification([0.1, 0.7, 0.6], ("bird", "cat", "sofa"), multi_label=True)
        >>> answer.label, answer.present()
        ('cat', [('cat', 0.7), ('sofa', 0.6)])
    """

    scores: npt.NDArray[np.float32]
    names: tuple[str, ...]
    multi_label: bool = False

    def __post_init__(self) -> None:
        scores = _frozen_array(self.scores, np.float32)
        names = tuple(self.names)
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(f"scores: expected shape [K] with at least one class, got {list(scores.shape)}")
        if len(names) != len(scores):
            raise ValueError(f"names: expected one for each of the {len(scores)} scores, got {len(names)}")
        _set(self, scores=scores, names=names)

    @property
    def label(self) -> str:
        """The name of the best class (the first of equals)."""
        return self.names[int(np.argmax(self.scores))]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The best classes.

        Args:
            k: how many, at least 0; more than there are classes gives all.

        Returns:
            (name, score) pairs, falling score; equal scores in the model's order.

        Raises:
            ValueError: k below 0.

        Example:
            >>> Classification([0.25, 0.75], ("dog", "cat")).top(1)
            [('cat', 0.75)]
        """
        if k < 0:
            raise ValueError(f"k: expected at least 0, got {k}")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.names[place], _plain(self.scores[place])) for place in order]

    def present(self, threshold: float = 0.5) -> list[tuple[str, float]]:
        """The classes that are in the image, for a model that may see several at once.

        Args:
            threshold: the lowest score to call present (a score equal to it counts).

        Returns:
            (name, score) pairs, falling score; may be empty.

        Example:
            >>> Classification([0.5, 0.25], ("dog", "cat"), multi_label=True).present()
            [('dog', 0.5)]
        """
        sure = int(np.count_nonzero(self.scores >= np.float32(threshold)))
        return self.top(sure)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``.

        Returns:
            ``{"label": best, "scores": {name: score, ..} by falling score, "multi_label": bool}``; when
            ``multi_label`` also ``"present": [name, ..]`` at threshold .5.

        Example:
            >>> Classification([0.25, 0.75], ("dog", "cat")).to_dict()
            {'label': 'cat', 'scores': {'cat': 0.75, 'dog': 0.25}, 'multi_label': False}
        """
        answer: dict[str, Any] = {
            "label": self.label,
            "scores": dict(self.top(len(self.names))),
            "multi_label": self.multi_label,
        }
        if self.multi_label:
            answer["present"] = [name for name, _ in self.present()]
        return answer


def _frozen_array(values: npt.ArrayLike | Sequence[Any], dtype: type) -> npt.NDArray[Any]:
    """A read-only array of the wanted type; a copy unless it was read-only already."""
    array = np.asarray(values)
    if array.dtype != dtype or array.flags.writeable:
        array = array.astype(dtype)
        array.flags.writeable = False
    return array


def _plain(score: np.float32) -> float:
    """A float32 score as a short Python float: .7 and not .699999988079071."""
    return round(float(score), SCORE_DECIMALS)


def _set(frozen: object, **fields: object) -> None:
    """Store converted fields in a frozen dataclass, during its construction only."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)
