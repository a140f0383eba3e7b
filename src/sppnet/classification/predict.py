"""A photo in, the classes of the whole photo out; or its embedding; or what each bin of the pyramid adds to the answer.

image [H, W, 3] -> features [1, C, h, w] -> pooled [1, M, C], the map as a single window -> embedding [D] -> logits [K].

*Contributions of bins* are those of the same with one bin set to zero, M times over [M, M, C]. The convolutions run once; behind
them it is exact, as the head sees nothing but the pooled bins. The idea of looking what hiding a part does to the score: Zeiler and
Fergus, arXiv:1311.2901, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.classification.views import Views, view_scores, views_for
from sppnet.data.images import read_ahead, read_image
from sppnet.errors import SettingsError
from sppnet.metrics import rounded
from sppnet.models.geometry import Geometry
from sppnet.models.sppnet import SPPNet
from sppnet.ops.bins import whole_windows
from sppnet.results import Classification

VALUES_CHUNK = 1 << 24  # of pooled bins in one pass of the head: 64 MB


def classify(source: Any, model: SPPNet, *, views: Views | str = "single") -> Classification:
    """Say what is in one image of any size.

    Args:
        source: what `sppnet.data.images.read_image` takes: a path, bytes, an open file, a PIL image, an array, a tensor. EXIF rotation
            is applied.
        model: any model, such as ``load("voc")``.
        views: how the image is looked at; by name, it is that `sppnet.classification.views.view_set` with windows as large as the
            model's own short side, so that things are seen at about the size that they had in training.

    Returns:
        `Classification`: for every class a probability, the mean over all views. Those of a multi-label model are independent of
        one another; those of a single-label model add up to 1.

    Raises:
        ImageError: no such file, or not an image.
        SettingsError: no views of that name.

    Source: arXiv:1406.4729, sections 3.1 (several views) and 3.2 (the full image in one view).

    Example:
        >>> from skimage.data import chelsea
        >>> classify(chelsea(), sppnet.load("voc")).label
        'cat'
    """
    scores = view_scores(read_image(source), model, views_for(model, views)).mean(0)
    return Classification(scores.numpy(), model.class_names, model.architecture.multi_label)


def classify_each(sources: Iterable[Any], model: SPPNet, *, views: Views | str = "single") -> Iterator[Classification]:
    """`classify` for many images, in order, in bounded memory: threads decode a few ahead, whatever the iterator's length."""
    for image in read_ahead(sources, read_image):
        yield classify(image, model, views=views)


def classify_map(model: SPPNet, features: Tensor) -> Classification:
    """`classify` where the feature map [1, C, h, w] of the image is computed already, because something else needs it too.

    Example:
        >>> model = sppnet.load("voc")
        >>> prepared, _ = model.preprocess(np.zeros((60, 80, 3), np.uint8))
        >>> classify_map(model, model.features(prepared)).scores.shape
        (20,)
    """
    with model.inference():
        return _classification(model, model.image_logits(model.pool(features, whole_windows(features)))[0])


def _classification(model: SPPNet, logits: Tensor) -> Classification:
    scores = model.image_classifier.probabilities(logits).cpu().numpy()
    return Classification(scores, model.class_names, model.architecture.multi_label)


def embed(source: Any, model: SPPNet, boxes: Any = None) -> np.ndarray:
    """Vectors of one length for images of any size, or for boxes of one image: what stands before the last layer.

    Args:
        source: one image, as `classify` takes it; or a list or an iterator of them, which are read a few at a time.
        model: any model.
        boxes: [R, 4] in pixels of the one image; None: the whole of each.

    Returns:
        [N, D] float32, a row for each image; or [R, D], a row for each box.

    Raises:
        ImageError: no such file, or not an image.
        ValueError: boxes of another shape, or boxes of several images.

    Example:
        >>> model, photo = sppnet.load("voc"), np.zeros((60, 80, 3), np.uint8)
        >>> embed([photo, photo[:, :30]], model).shape, embed(photo, model, boxes=[[0, 0, 40, 30]]).shape
        ((2, 1024), (1, 1024))
    """
    one = hasattr(source, "read") or not isinstance(source, (list, tuple, Iterator))
    if boxes is not None:
        boxes = np.asarray(boxes, np.float32)
        if not one or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"expected one image and boxes [R, 4] of it in pixels: got boxes {list(boxes.shape)}")
        return _embed(model, read_image(source), torch.from_numpy(boxes))
    rows = [_embed(model, image)[0] for image in read_ahead([source] if one else source, read_image)]
    return np.stack(rows) if rows else np.zeros((0, model.fully_connected.width), np.float32)


@dataclass(frozen=True, eq=False)
class BinContributions:
    """What the bins of the pyramid add to the logit of one class."""

    class_name: str
    score: float  # the probability of the class
    logit: float  # of the class, all bins seen
    levels: tuple[int, ...]  # bins per side
    bins: npt.NDArray[np.float32]  # [M] logit minus that without the bin: above 0, the bin speaks for the class
    together: npt.NDArray[np.float32]  # [L] the same for all bins of a level at once; their sum, if all is linear
    seen: npt.NDArray[np.uint8]  # [h, w, 3], the photo as the backbone saw it
    map_size: tuple[int, int]  # (height, width) in cells
    geometry: Geometry  # where the cells are in ``seen``

    def draw(self) -> npt.NDArray[np.uint8]:
        """The bins over the photo, colored by what they add: [H', W', 3] uint8 RGB."""
        from sppnet.visualize.pyramid import draw_pyramid

        return draw_pyramid(
            self.seen, self.levels, self.map_size, self.geometry.stride, self.geometry.offset, contributions=self.bins,
            together=self.together, title=f"{self.class_name} {self.score:.2f} (logit {self.logit:+.2f})",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``.

        Returns:
            ``{"class", "logit", "levels": [{"level": n, "together", "bins": n rows of n}]}``.
        """
        starts, levels = np.cumsum([level * level for level in self.levels])[:-1], []
        for level, together, bins in zip(self.levels, self.together, np.split(self.bins, starts), strict=True):
            rows = bins.reshape(level, level).astype(float).round(4).tolist()
            levels.append({"level": level, "together": rounded(together), "bins": rows})
        return {"class": self.class_name, "logit": rounded(self.logit), "levels": levels}


def bin_contributions(model: SPPNet, source: Any, class_name: str | None = None) -> BinContributions:
    """Ask what each bin of the pyramid adds to the answer about one image.

    A bin's contribution is the class's logit minus the logit without the bin: its features set to zero, which is what
    features after a ReLU are where nothing is found. The head works in single precision.

    Args:
        model: any model.
        source: an image, as `sppnet.classify` takes it.
        class_name: the class asked about; the most probable one where it is not given.

    Returns:
        `BinContributions`.

    Raises:
        ImageError: no such file, or not an image.
        SettingsError: a class that the model does not have.

    Example:
        >>> from skimage.data import chelsea
        >>> answer = bin_contributions(sppnet.load("voc"), chelsea())
        >>> answer.class_name, answer.bins.shape, bool((answer.bins > 0).any())
        ('cat', (21,), True)
    """
    names, levels = model.class_names, model.architecture.levels
    if class_name is not None and class_name not in names:
        raise SettingsError(f"expected one of the model's classes ({', '.join(names)}), got {class_name!r}")
    prepared, _ = model.preprocess(read_image(source))
    with model.inference():
        features = model.image_features(prepared)
        pooled = model.pool(features, whole_windows(features)).float()  # [1, M, C]
    sides = torch.tensor(levels)
    level_of = torch.arange(len(levels)).repeat_interleave(sides * sides)
    groups = torch.cat([torch.eye(len(level_of), dtype=torch.bool), torch.arange(len(levels))[:, None] == level_of])
    groups = groups.to(pooled.device)  # [M + L, M]: each bin alone, and then all bins of each level
    with model.inference(bfloat16=False):
        logits = model.image_logits(pooled)[0]
        classification = _classification(model, logits)
        answer = classification.label if class_name is None else class_name
        column, rows = names.index(answer), max(1, VALUES_CHUNK // pooled.numel())
        without = [model.image_logits(pooled * keeps[..., None])[:, column] for keeps in (~groups).split(rows)]
        added = (logits[column] - torch.cat(without)).float().cpu().numpy()
    return BinContributions(
        class_name=answer,
        score=float(classification.scores[column]),
        logit=float(logits[column]),
        levels=levels,
        bins=added[: model.pool.bins],
        together=added[model.pool.bins :],
        seen=model.preprocess.pixels(prepared),
        map_size=(features.shape[2], features.shape[3]),
        geometry=model.geometry,
    )


def _embed(model: SPPNet, image: np.ndarray, boxes: Tensor | None = None) -> np.ndarray:
    prepared, scale = model.preprocess(image)
    with model.inference():
        features = model.image_features(prepared)
        if boxes is None:
            windows = whole_windows(features)
        else:
            windows, _ = model.windows(boxes, (features.shape[2], features.shape[3]), scale)
            windows = F.pad(windows, (1, 0)).to(features.device)
        embedded: np.ndarray = model.fully_connected(model.pool(features, windows)).float().cpu().numpy()
    return embedded
