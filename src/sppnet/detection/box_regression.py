"""How a box should move, told from what is in its window: one ridge regression a class, the paper's last stage.

features [R, D] -> box deltas [R, K, 4] (`sppnet.boxes`) -> boxes. Learned from windows that overlap an object of the class
by .6 or more: from the window's features to the deltas that lead to the object.

Memory is bounded: of a class's windows nothing but sums is kept, D x D numbers, or the windows themselves where they are
fewer than D (`sppnet.detection.ridge`); and where those of all classes together would take more than ``memory_bytes``, the
images are gone through again for the next classes. A class alone that needs more gets it.

Source: arXiv:1406.4729, section 4.2; arXiv:1311.2524, appendix C. The release takes lambda 4000 and overlap .5, R-CNN 1000
and .6; both on features of mean length 20. Both whiten the four deltas before fitting and undo it after: with one lambda
for all four this changes nothing (the tests show it), so it is left out. Both also shrink the constant, here left free
unless ``shrink_constant`` is set.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sppnet.boxes import box_iou, decode_boxes, encode_boxes
from sppnet.detection.image_windows import ImageWindows, feature_scale
from sppnet.detection.ridge import RidgeSums
from sppnet.detection.state_file import read_state, write_state
from sppnet.errors import UserError

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class BoxRegressionSettings:
    """How the regressors learn."""

    ridge: float = 1000.0  # lambda: the penalty on the squared weights, for features of ``feature_norm``
    overlap: float = 0.6  # windows learn from the object that they overlap most, if by this IoU or more
    feature_norm: float = 20.0  # mean length that features are scaled to
    shrink_constant: bool = (
        False  # whether the penalty is on the constant too, after the mean is taken off, as released
    )
    memory_bytes: int = 2 * 2**30  # for the sums of the classes that are fitted at the same time
    save_every: int = 500  # images; a fit that was stopped goes on from there
    seed: int = 0  # of the sample for the norm

    def __post_init__(self) -> None:
        if not self.ridge > 0 or not 0 < self.overlap <= 1:
            raise ValueError(f"expected ridge above 0 and overlap in 0..1, got {self.ridge} and {self.overlap}")


@dataclass(frozen=True, eq=False)
class BoxRegression:
    """K linear maps from features to box deltas; of a class without examples, one that moves nothing.

    Example:
        >>> right_by_half = BoxRegression(torch.zeros(1, 4, 3), torch.tensor([[0.5, 0, 0, 0]]), scale=1.0)
        >>> right_by_half.apply(torch.zeros(1, 3), torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([1]))
        tensor([[ 5.,  0., 15., 20.]])
    """

    weights: Tensor  # [K, 4, D] float32, for scaled features
    biases: Tensor  # [K, 4] float32
    scale: float  # that features are multiplied by

    def __post_init__(self) -> None:
        classes = len(self.biases)
        if self.weights.shape[:2] != (classes, 4) or self.biases.shape != (classes, 4) or self.weights.ndim != 3:
            raise ValueError(
                f"expected weights [K, 4, D] and biases [K, 4], got shapes {list(self.weights.shape)} "
                f"and {list(self.biases.shape)}"
            )

    def deltas(self, features: Tensor) -> Tensor:
        """Features [R, D], not scaled, to box deltas [R, K, 4] float32 of every class, as `decode_boxes` takes them.

        Raises:
            ValueError: features of another length.
        """
        if features.ndim != 2 or features.shape[1] != self.weights.shape[2]:
            raise ValueError(f"expected features [R, {self.weights.shape[2]}], got shape {list(features.shape)}")
        weights = self.weights.flatten(0, 1).to(features.device) * self.scale
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() @ weights.T).unflatten(1, (-1, 4)) + self.biases.to(features.device)

    def apply(self, features: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Move each box as its class says.

        Args:
            features: [R, D], not scaled, of the boxes' windows.
            boxes: [R, 4] in pixels.
            labels: [R], 1..K.

        Returns:
            [R, 4]; parts may lie outside the image.

        Raises:
            ValueError: a label that is no class.
        """
        if len(labels) and not (int(labels.min()) >= 1 and int(labels.max()) <= len(self.biases)):
            raise ValueError(f"expected labels 1..{len(self.biases)}, got {int(labels.min())}..{int(labels.max())}")
        return decode_boxes(boxes, self.deltas(features)[torch.arange(len(labels)), labels - 1])

    def arrays(self) -> dict[str, Tensor]:
        """For a .safetensors file; `of_arrays` takes it."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return {"weights": self.weights.contiguous(), "biases": self.biases.contiguous(), "scale": scale}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> BoxRegression:
        """What `arrays` gave."""
        return cls(arrays["weights"].float(), arrays["biases"].float(), float(arrays["scale"]))


def train_box_regression(
    images: Sequence[ImageWindows],
    classes: int,
    settings: BoxRegressionSettings | None = None,
    *,
    scale: float | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> BoxRegression:
    """Fit one ridge regression for each class.

    The same images, settings and state give the same numbers, also where the fit was killed and went on.

    Args:
        images: each is asked for when its turn comes, twice or more. Described are windows to learn from, once each, and a sample.
        classes: K.
        settings: see there.
        scale: that features are multiplied by; from a sample of them where it is not given.
        state: a .safetensors file, written as the fit goes on and read when it goes on from there: one for each training,
            so name it for all that the features come from. A damaged one counts as none.
        progress: called with steps done, and all: one for each image and each group of classes that fits in memory.

    Raises:
        ValueError: no windows, or labels above K.
        UserError: a state of another training.

    Source: arXiv:1406.4729, section 4.2; arXiv:1311.2524, appendix C.
    """
    settings = settings or BoxRegressionSettings()
    told = dataclasses.asdict(settings)
    del told["save_every"]  # decides nothing
    fit = _Fit(images, classes, settings, json.dumps(["sppnet-ridge/1", classes, len(images), scale, told]))
    if state is None or not fit.restore(state):
        fit.begin(scale)
    total = len(images) * len(fit.groups)
    for step in range(fit.done, total):
        turn, position = divmod(step, len(images))
        fit.look(fit.groups[turn], images[position])
        fit.done += 1
        if position == len(images) - 1:
            fit.solve(fit.groups[turn])
        if state is not None and (fit.done % settings.save_every == 0 or fit.done == total):
            fit.save(state)
        if progress:
            progress(fit.done, total)
    return BoxRegression(fit.weights, fit.biases, fit.scale)


def fit_box_regression(
    features: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    labels: Tensor,
    classes: int,
    settings: BoxRegressionSettings | None = None,
    *,
    scale: float = 1.0,
) -> BoxRegression:
    """Fit to windows that are all in memory.

    Args:
        features: [R, D].
        boxes: [R, 4] in pixels.
        gt_boxes: [R, 4]: the object that each box should become. Those that overlap it by less than
            ``settings.overlap`` are left out.
        labels: [R] int64: its class, 1..K.
        classes: K.
        settings: see there; ``feature_norm``, ``memory_bytes`` and ``seed`` do not matter here.
        scale: that features are multiplied by.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
        >>> objects = torch.tensor([[1.0, 0, 11, 10], [0, 1, 10, 11]])
        >>> told_apart = BoxRegressionSettings(ridge=1e-6)
        >>> fitted = fit_box_regression(torch.eye(2), boxes, objects, torch.tensor([1, 1]), 1, told_apart)
        >>> fitted.apply(torch.eye(2), boxes, torch.tensor([1, 1])).round(decimals=3)
        tensor([[ 1.,  0., 11., 10.],
                [ 0.,  1., 10., 11.]])
    """
    settings = settings or BoxRegressionSettings()
    if len(labels) and not (int(labels.min()) >= 1 and int(labels.max()) <= classes):
        raise ValueError(f"expected labels 1..{classes}, got {int(labels.min())}..{int(labels.max())}")
    near = _overlaps(boxes, gt_boxes) >= settings.overlap
    features, labels = features[near].float() * scale, labels[near]
    targets = encode_boxes(boxes[near], gt_boxes[near])
    weights, biases = torch.zeros(classes, 4, features.shape[1]), torch.zeros(classes, 4)
    for label in labels.unique().tolist():
        same = labels == label
        sums = RidgeSums(features.shape[1], rows=int(same.sum()))
        sums.add(features[same], targets[same])
        weights[label - 1], biases[label - 1] = sums.solve(settings.ridge, shrink_constant=settings.shrink_constant)
    return BoxRegression(weights, biases, scale)


def add_regressor(
    regression: BoxRegression,
    images: Sequence[ImageWindows],
    settings: BoxRegressionSettings | None = None,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> BoxRegression:
    """Fit the regressor of one more class; those of the others stay as they are, bit for bit.

    Args:
        regression: of K classes.
        images: with label 1 for the new class.
        settings, state, progress: as of `train_box_regression`; the state not that of the others.

    Returns:
        Of K + 1 classes, the new one last.
    """
    new = train_box_regression(images, 1, settings, scale=regression.scale, state=state, progress=progress)
    if new.weights.shape[2] != regression.weights.shape[2]:
        raise ValueError(
            f"expected features of length {regression.weights.shape[2]} as the others', got {new.weights.shape[2]}"
        )
    weights, biases = torch.cat([regression.weights, new.weights]), torch.cat([regression.biases, new.biases])
    return BoxRegression(weights, biases, regression.scale)


class _Fit:
    """All that a fit has reached: what is saved, and goes on."""

    def __init__(
        self, images: Sequence[ImageWindows], classes: int, settings: BoxRegressionSettings, identity: str
    ) -> None:
        self.images, self.classes, self.settings, self.identity = images, classes, settings, identity
        self.done, self.scale, self.width = 0, 1.0, 0
        self.counts = torch.zeros(classes + 1, dtype=torch.int64)  # of windows to learn from
        self.weights, self.biases = torch.zeros(classes, 4, 0), torch.zeros(classes, 4)
        self.sums: dict[int, RidgeSums] = {}  # by label, of the group that is being looked at

    @property
    def groups(self) -> list[list[int]]:
        return list(_groups(self.counts, self.width, self.settings.memory_bytes))

    def begin(self, scale: float | None) -> None:
        """Count what there is to learn from; nothing is described but the sample."""
        settings = self.settings
        self.scale = feature_scale(self.images, settings.feature_norm, settings.seed) if scale is None else scale
        for image in self.images:
            labels = _matches(image, settings.overlap)[2]
            if len(labels) and int(labels.max()) > self.classes:
                raise ValueError(f"expected labels 0..{self.classes}, got {int(labels.max())}")
            self.counts += labels.bincount(minlength=self.classes + 1)
            if not self.width and len(image.labels):
                self.width = image.features(torch.tensor([0])).shape[1]
        self.weights = torch.zeros(self.classes, 4, self.width)

    def look(self, group: list[int], image: ImageWindows) -> None:
        """Take an image's windows of these classes into the sums."""
        if not self.sums:
            self.sums = self._empty(group)
        rows, targets, labels = _matches(image, self.settings.overlap)
        here = torch.isin(labels, torch.tensor(group))
        if here.any():
            features = image.features(rows[here]).float() * self.scale
            for label in labels[here].unique().tolist():
                same = labels[here] == label
                self.sums[label].add(features[same], targets[here][same])

    def solve(self, group: list[int]) -> None:
        for label in group:
            self.weights[label - 1], self.biases[label - 1] = self.sums.pop(label).solve(
                self.settings.ridge, shrink_constant=self.settings.shrink_constant
            )

    def save(self, path: Path) -> None:
        """Write all of it, or nothing."""
        tensors = {"counts": self.counts, "weights": self.weights, "biases": self.biases}
        for label, sums in self.sums.items():
            tensors |= {f"sums.{label}.{name}": part for name, part in sums.arrays().items()}
        write_state(path, tensors, {"identity": self.identity, "done": str(self.done), "scale": repr(self.scale)})

    def restore(self, path: Path) -> bool:
        """Whether there was something to go on from."""
        stored = read_state(path)
        if stored is None:
            return False
        metadata, tensors = stored
        if metadata.get("identity") != self.identity:
            raise UserError(
                f"{path} is the state of another fit of box regressors (classes, images or settings differ): "
                "delete it, or name another file"
            )
        self.done, self.scale = int(metadata["done"]), float(metadata["scale"])
        self.counts, self.weights, self.biases = tensors["counts"], tensors["weights"], tensors["biases"]
        self.width = self.weights.shape[2]
        if self.groups and self.done % len(self.images):
            self.sums = self._empty(self.groups[self.done // len(self.images)])
            for label, sums in self.sums.items():
                prefix = f"sums.{label}."
                sums.restore(
                    {name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)}
                )
        return True

    def _empty(self, group: list[int]) -> dict[int, RidgeSums]:
        return {label: RidgeSums(self.width, rows=int(self.counts[label])) for label in group}


def _matches(image: ImageWindows, overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Windows to learn from: rows [n], the deltas to the object that each overlaps most [n, 4], its label [n]."""
    objects = image.labels.nonzero().flatten()
    if not len(objects):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    best, which = box_iou(image.boxes, image.boxes[objects]).max(1)
    rows = (best >= overlap).nonzero().flatten()
    matched = objects[which[rows]]
    return rows, encode_boxes(image.boxes[rows], image.boxes[matched]), image.labels[matched]


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU [R] of each box with the other of the same row."""
    common = (boxes[:, 2:].minimum(others[:, 2:]) - boxes[:, :2].maximum(others[:, :2])).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1)
    return common / (areas - common).clamp(min=torch.finfo(boxes.dtype).tiny)


def _groups(counts: Tensor, width: int, memory_bytes: int) -> Iterator[list[int]]:
    """Labels, so that the sums of those in one group fit in memory; one that does not fit is a group of its own."""
    group: list[int] = []
    used = 0
    for label, count in enumerate(counts.tolist()):
        if label == 0 or count == 0:
            continue
        needed = 4 * count * width if count < width else 8 * width * width
        if group and used + needed > memory_bytes:
            yield group
            group, used = [], 0
        group.append(label)
        used += needed
    if group:
        yield group
