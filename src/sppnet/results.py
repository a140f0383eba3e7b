"""What the model answers about one image: `Classification` (what is in it) and `Detections` (what, and where).

The last stop on the way from a photo to boxes. Plain NumPy arrays in frozen dataclasses: they can be pickled, drawn, scored
(`sppnet.metrics`), or handed on in the forms that other tools read, all without torch.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from sppnet.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    ImageSource = str | Path | Image.Image | npt.NDArray[np.uint8]

BOX_DECIMALS = 2  # a hundredth of a pixel
SCORE_DECIMALS = 4  # of probabilities and decision scores; the fifth digit is noise

ScoreKind = Literal["probability", "decision"]


class Detection(NamedTuple):
    """One detected object: what iterating over `Detections` gives."""

    box: npt.NDArray[np.float32]  # [4] x0, y0, x1, y1, half-open pixels of the upright image
    score: float
    label: int  # 1..K
    class_name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image.

    Args:
        boxes: [R, 4] float32, (x0, y0, x1, y1), continuous pixels of the upright original image, half-open.
        scores: [R] float32, larger is more confident; the producer sorts them falling.
        labels: [R] int64, 1..K; 0, the background, is never detected.
        class_names: R class names, one for each box.
        score_kind: what the scores are. "probability": 0..1, of a softmax over the classes and the background. "decision": the
            decision score of an SVM, of any size: above 0 for an object, about -1 for background. Comparable within a class,
            less so between classes.

    Lists and other dtypes are converted; the arrays kept are read-only copies.

    Raises:
        ValueError: shapes that do not agree, or a label below 1. The message shows which.

    Example:
        >>> found = Detections([[10, 20, 110, 220], [0, 0, 5, 5]], [0.9, 0.2], [15, 8], ("person", "cat"))
        >>> len(found), found.above(0.5).class_names
        (2, ('person',))
        >>> [detection.class_name for detection in found]
        ['person', 'cat']
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    score_kind: ScoreKind = "probability"

    def __post_init__(self) -> None:
        boxes = _frozen_array(self.boxes, np.float32)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        scores, labels = _frozen_array(self.scores, np.float32), _frozen_array(self.labels, np.int64)
        class_names = tuple(self.class_names)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes: expected shape [R, 4] (x0, y0, x1, y1), got {list(boxes.shape)}")
        for field, shape in (("scores", scores.shape), ("labels", labels.shape), ("class_names", (len(class_names),))):
            if shape != (len(boxes),):
                raise ValueError(f"{field}: expected one for each of the {len(boxes)} boxes, got shape {list(shape)}")
        if len(boxes) and labels.min() < 1:
            raise ValueError(f"labels: expected 1..K (0 is the background), got {labels.min()}")
        if self.score_kind not in ("probability", "decision"):
            raise ValueError(f"score_kind: expected probability or decision, got {self.score_kind!r}")
        _set(self, boxes=boxes, scores=scores, labels=labels, class_names=class_names)

    @classmethod
    def empty(cls) -> Detections:
        """No objects at all."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64), ())

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label, name in zip(self.boxes, self.scores, self.labels, self.class_names, strict=True):
            yield Detection(box, float(score), int(label), name)

    def select(self, index: npt.ArrayLike) -> Detections:
        """The detections that a bool mask [R] or indices pick, in the order of the indices; this object is unchanged.

        Example:
            >>> Detections([[0, 0, 1, 1], [0, 0, 2, 2]], [0.9, 0.2], [1, 2], ("a", "b")).select([1]).class_names
            ('b',)
        """
        index = np.asarray(index) if np.size(index) else np.empty(0, np.int64)  # an empty list reads as float
        rows = np.arange(len(self))[index]
        class_names = tuple(self.class_names[row] for row in rows)
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], class_names, self.score_kind)

    def above(self, score_threshold: float) -> Detections:
        """The detections that score at least ``score_threshold``, in the same order; this object is unchanged.

        Example:
            >>> len(Detections([[0, 0, 1, 1]], [0.3], [1], ("cat",)).above(0.5))
            0
        """
        return self.select(self.scores >= np.float32(score_threshold))

    def draw(self, image: ImageSource, title: str | None = None) -> Image.Image:
        """The image with a box and a label for each detection (`sppnet.visualize.draw.draw_detections`); notebooks show it.

        Args:
            image: a path, a PIL image or an array [H, W, 3] uint8 RGB: the image the detections are of.
            title: a line above the picture.

        Example:
            >>> Detections([[50, 60, 200, 300]], [0.9], [8], ["cat"]).draw(np.zeros((480, 640, 3), np.uint8)).size
            (640, 480)
        """
        from PIL import Image

        from sppnet.data.images import read_image
        from sppnet.visualize.draw import draw_detections

        return Image.fromarray(draw_detections(read_image(image), self, title))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, ready for ``json.dumps``: boxes to 1/100 pixel, scores to four decimals.

        Example:
            >>> Detections([[0, 0, 1.234, 1]], [1 / 3], [8], ["cat"]).to_dict()
            {'boxes': [[0.0, 0.0, 1.23, 1.0]], 'scores': [0.3333], 'score_kind': 'probability', 'labels': [8], 'class_names': ['cat']}
        """
        return {
            "boxes": [[round(float(side), BOX_DECIMALS) for side in box] for box in self.boxes],
            "scores": [_plain(score) for score in self.scores],
            "score_kind": self.score_kind,
            "labels": [int(label) for label in self.labels],
            "class_names": list(self.class_names),
        }

    def to_coco(self, image_id: int | str, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """COCO's results format: one entry for each box, ``bbox`` as x, y, width, height in pixels.

        Args:
            image_id: as in the annotations that the results are scored against.
            category_ids: of each class by name; None: the labels, 1..K.

        Raises:
            ValueError: a class without a category id.

        Example:
            >>> Detections([[10, 20, 40, 60]], [0.9], [8], ["cat"]).to_coco(139, {"cat": 17})
            [{'image_id': 139, 'category_id': 17, 'bbox': [10.0, 20.0, 30.0, 40.0], 'score': 0.9}]
        """
        if missing := set() if category_ids is None else set(self.class_names) - category_ids.keys():
            raise ValueError(f"category_ids: expected an id for each class, got none for {sorted(missing)}")
        entries = []
        for box, score, label, name in self:
            x0, y0, x1, y1 = box.tolist()
            bbox = [round(side, BOX_DECIMALS) for side in (x0, y0, x1 - x0, y1 - y0)]
            category = label if category_ids is None else category_ids[name]
            entries.append({"image_id": image_id, "category_id": category, "bbox": bbox, "score": _plain(score)})
        return entries

    def to_yolo(self, size: tuple[int, int]) -> str:
        """YOLO's text: a line for each box with class index (from 0), center x, center y, width, height, score.

        Boxes are cut to an image of ``size`` (height, width) and given as shares of it.

        Example:
            >>> print(Detections([[10, 20, 40, 60]], [0.9], [8], ["cat"]).to_yolo((100, 100)), end="")
            7 0.250000 0.400000 0.300000 0.400000 0.9
        """
        lines = []
        for (x0, y0, x1, y1), score, label in zip(self._shares(size), self.scores, self.labels, strict=True):
            numbers = " ".join(f"{share:.6f}" for share in ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
            lines.append(f"{label - 1} {numbers} {_plain(score)}\n")
        return "".join(lines)

    def to_voc(self, filename: str, size: tuple[int, int]) -> str:
        """PASCAL VOC's XML: whole pixels counted from 1, the last one included; scores as ``confidence``.

        Boxes are cut to an image of ``size`` (height, width), whose name is ``filename``.

        Example:
            >>> "<xmin>11</xmin>" in Detections([[10, 20, 40, 60]], [0.9], [8], ["cat"]).to_voc("a.jpg", (100, 100))
            True
        """
        height, width = size
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = filename
        _add_fields(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
        for box, score, _, name in self:
            item = ElementTree.SubElement(root, "object")
            _add_fields(item, {"name": name, "difficult": 0, "confidence": _plain(score)})
            x0, y0, x1, y1 = (round(float(side)) for side in np.clip(box, 0, [width, height, width, height]))
            x0, y0 = min(x0, width - 1), min(y0, height - 1)
            corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": max(x1, x0 + 1), "ymax": max(y1, y0 + 1)}
            _add_fields(ElementTree.SubElement(item, "bndbox"), corners)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def to_label_studio(self, size: tuple[int, int], image: str = "") -> dict[str, Any]:
        """A task for Label Studio whose predictions are these boxes, in per cent of the image's sides.

        Args:
            size: (height, width) of the image in pixels; boxes are cut to it.
            image: the URL at which Label Studio finds the image.

        Returns:
            A task for a labeling interface with ``<Image name="image" value="$image"/>`` and ``<RectangleLabels name="label"
            toName="image">``.

        Example:
            >>> task = Detections([[10, 20, 40, 60]], [0.9], [8], ["cat"]).to_label_studio((100, 200))
            >>> task["predictions"][0]["result"][0]["value"]
            {'x': 5.0, 'y': 20.0, 'width': 15.0, 'height': 40.0, 'rotation': 0, 'rectanglelabels': ['cat']}
        """
        common = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "image_rotation": 0}
        common |= {"original_width": size[1], "original_height": size[0]}
        result = []
        for (x0, y0, x1, y1), score, name in zip(100 * self._shares(size), self.scores, self.class_names, strict=True):
            percent = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
            sides = {key: round(float(side), 4) for key, side in percent.items()}
            value = {**sides, "rotation": 0, "rectanglelabels": [name]}
            result.append(common | {"value": value, "score": _plain(score)})
        return {"data": {"image": image}, "predictions": [{"model_version": "sppnet", "result": result}]}

    def to_supervision(self) -> Any:
        """The same boxes for the `supervision` package: trackers, zones, annotators.

        Labels become ``class_id`` counted from 0 (label 1 is class 0), class names ``data["class_name"]``.

        Raises:
            UserError: the `supervision` package is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")  # optional, heavy: only here
        except ImportError as error:
            raise UserError("to_supervision needs the package 'supervision': pip install supervision") from error
        columns = {"xyxy": self.boxes.copy(), "confidence": self.scores.copy(), "class_id": self.labels - 1}
        return supervision.Detections(**columns, data={"class_name": np.array(self.class_names, dtype=str)})

    def _repr_html_(self) -> str:
        rows = [(name, f"{score:.2f}", " ".join(f"{side:.0f}" for side in box)) for box, score, _, name in self]
        return _html_table(("class", self.score_kind, "box (x0 y0 x1 y1)"), rows)

    def _shares(self, size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """[R, 4] boxes cut to the image, as shares of its sides."""
        sides = np.array([size[1], size[0], size[1], size[0]], np.float64)
        return np.clip(self.boxes / sides, 0, 1)


@dataclass(frozen=True, eq=False)
class Classification:
    """How well each class of the model fits one image.

    Args:
        scores: [K] float32; probabilities that sum to 1, or, when ``multi_label``, one in 0..1 for each class by itself.
        class_names: the K class names, in the model's order (background left out).
        multi_label: whether several classes may be in the image at once.

    Raises:
        ValueError: no classes, or scores and class names of different lengths.

    Example:
        >>> answer = Classification([0.1, 0.7, 0.6], ("bird", "cat", "sofa"), multi_label=True)
        >>> answer.label, answer.present()
        ('cat', [('cat', 0.7), ('sofa', 0.6)])
    """

    scores: npt.NDArray[np.float32]
    class_names: tuple[str, ...]
    multi_label: bool = False

    def __post_init__(self) -> None:
        scores = _frozen_array(self.scores, np.float32)
        class_names = tuple(self.class_names)
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(f"scores: expected shape [K] with at least one class, got {list(scores.shape)}")
        if len(class_names) != len(scores):
            raise ValueError(f"class_names: expected one for each of the {len(scores)} scores, got {len(class_names)}")
        _set(self, scores=scores, class_names=class_names)

    @property
    def label(self) -> str:
        """The name of the best class (the first of equals)."""
        return self.class_names[int(np.argmax(self.scores))]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` best classes as (name, score), falling score; equal scores in the model's order.

        Raises:
            ValueError: k below 0.

        Example:
            >>> Classification([0.25, 0.75], ("dog", "cat")).top(1)
            [('cat', 0.75)]
        """
        if k < 0:
            raise ValueError(f"k: expected at least 0, got {k}")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.class_names[index], _plain(self.scores[index])) for index in order]

    def present(self, threshold: float = 0.5) -> list[tuple[str, float]]:
        """The classes that score at least ``threshold``, as `top` gives them: what is in the image, for a multi-label model.

        Example:
            >>> Classification([0.5, 0.25], ("dog", "cat"), multi_label=True).present()
            [('dog', 0.5)]
        """
        return self.top(int(np.count_nonzero(self.scores >= np.float32(threshold))))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``; when ``multi_label`` also ``"present": [name, ..]`` at threshold .5.

        Example:
            >>> Classification([0.25, 0.75], ("dog", "cat")).to_dict()
            {'label': 'cat', 'scores': {'cat': 0.75, 'dog': 0.25}, 'multi_label': False}
        """
        scores = dict(self.top(len(self.class_names)))
        present = {"present": [name for name, _ in self.present()]} if self.multi_label else {}
        return {"label": self.label, "scores": scores, "multi_label": self.multi_label, **present}

    def draw(self, image: ImageSource, title: str | None = None) -> Image.Image:
        """The image, as `Detections.draw` takes it, with bars for its best classes.

        Example:
            >>> Classification([0.8, 0.2], ("cat", "dog")).draw(np.zeros((480, 640, 3), np.uint8)).width
            640
        """
        from PIL import Image

        from sppnet.data.images import read_image
        from sppnet.visualize.draw import draw_classification

        return Image.fromarray(draw_classification(read_image(image), self, title))

    def _repr_html_(self) -> str:
        return _html_table(("class", "score"), [(name, f"{score:.2f}") for name, score in self.top(5)])


def _frozen_array(values: npt.ArrayLike | Sequence[Any], dtype: type) -> npt.NDArray[Any]:
    """A read-only array of the wanted type; a copy unless it was read-only already."""
    array = np.asarray(values)
    if array.dtype != dtype or array.flags.writeable:
        array = array.astype(dtype)
        array.flags.writeable = False
    return array


def _plain(score: float | np.float32) -> float:
    """A float32 score as a short Python float: .7 and not .699999988079071."""
    return round(float(score), SCORE_DECIMALS)


def _add_fields(parent: ElementTree.Element, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [("th", titles), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line) for tag, line in lines)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _set(frozen: object, **fields: object) -> None:
    """Store converted fields in a frozen dataclass, during its construction only."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)
