"""What each bin of the pyramid adds to the answer about a photo: the head, asked again without it.

image [H, W, 3] -> features [1, C, h, w] -> pooled [1, M, C] -> the same with one bin set to zero, M times over [M, M, C]
-> logits. The convolutions run once; behind them it is exact, as the head sees nothing but the pooled bins. The idea of looking
what hiding a part does to the score: Zeiler and Fergus, arXiv:1311.2901, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sppnet.data.images import read_image
from sppnet.errors import SettingsError
from sppnet.models.sppnet import SPPNet
from sppnet.ops.bins import whole_windows
from sppnet.results import Classification

VALUES_CHUNK = 1 << 24  # of pooled bins in one pass of the head: 64 MB
DECIMALS = 4  # of logits


@dataclass(frozen=True, eq=False)
class BinContributions:
    """What the bins of the pyramid add to the logit of one class."""

    classification: Classification  # of the whole photo
    class_name: str
    score: float  # the probability of the class
    logit: float  # of the class, all bins seen
    levels: tuple[int, ...]  # bins per side
    bins: npt.NDArray[np.float32]  # [M] logit minus that without the bin: above 0, the bin speaks for the class
    together: npt.NDArray[np.float32]  # [L] the same for all bins of a level at once; their sum, if all is linear
    seen: npt.NDArray[np.uint8]  # [h, w, 3], the photo as the backbone saw it
    map_size: tuple[int, int]  # (height, width) in cells
    stride: int  # pixels of ``seen`` from one cell's center to the next
    offset: float  # pixels to the center of cell 0

    def draw(self) -> npt.NDArray[np.uint8]:
        """The bins over the photo, colored by what they add: [H', W', 3] uint8 RGB."""
        from sppnet.visualize.pyramid import draw_pyramid

        return draw_pyramid(
            self.seen, self.levels, self.map_size, self.stride, self.offset, contributions=self.bins,
            together=self.together, title=f"{self.class_name} {self.score:.2f} (logit {self.logit:+.2f})",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``.

        Returns:
            ``{"class", "logit", "levels": [{"level": n, "together", "bins": n rows of n}]}``.
        """
        ends = np.cumsum([level * level for level in self.levels])
        return {
            "class": self.class_name,
            "logit": round(self.logit, DECIMALS),
            "levels": [
                {
                    "level": level,
                    "together": round(float(together), DECIMALS),
                    "bins": [
                        [round(float(value), DECIMALS) for value in row]
                        for row in self.bins[end - level * level : end].reshape(level, level)
                    ],
                }
                for level, together, end in zip(self.levels, self.together, ends, strict=True)
            ],
        }


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
        ('cat', (14,), True)
    """
    names, levels = model.class_names, model.architecture.levels
    if class_name is not None and class_name not in names:
        raise SettingsError(f"expected one of the model's classes ({', '.join(names)}), got {class_name!r}")
    prepared, _ = model.preprocess(read_image(source))
    with model.inference():
        features = model.features(prepared.to(model.device).contiguous(memory_format=torch.channels_last))
        pooled = model.pool(features, whole_windows(features)).float()  # [1, M, C]
    groups = _groups(levels).to(pooled.device)
    with model.inference(bfloat16=False):
        logits = model.image_classifier(model.fully_connected(pooled))[0]
        scores = model.image_classifier.probabilities(logits)
        classification = Classification(scores.cpu().numpy(), names, model.architecture.multi_label)
        answer = classification.label if class_name is None else class_name
        column, rows = names.index(answer), max(1, VALUES_CHUNK // pooled.numel())
        without = [
            model.image_classifier(model.fully_connected(pooled * keeps[..., None]))[:, column]
            for keeps in (~groups).split(rows)
        ]
        added = (logits[column] - torch.cat(without)).float().cpu().numpy()
    return BinContributions(
        classification=classification,
        class_name=answer,
        score=float(scores[column]),
        logit=float(logits[column]),
        levels=levels,
        bins=added[: model.pool.bins],
        together=added[model.pool.bins :],
        seen=model.preprocess.pixels(prepared),
        map_size=(features.shape[2], features.shape[3]),
        stride=model.geometry.stride,
        offset=model.geometry.offset,
    )


def _groups(levels: tuple[int, ...]) -> Tensor:
    """[M + L, M] bool: each bin alone, and then all bins of each level."""
    level_of = torch.tensor([index for index, level in enumerate(levels) for _ in range(level * level)])
    return torch.cat([torch.eye(len(level_of), dtype=torch.bool), torch.arange(len(levels))[:, None] == level_of])
