"""What each bin of the pyramid adds to the answer about a photo: the head, asked again without it.

image [H, W, 3] -> features [1, C, h, w] -> pooled [1, M, C] -> the same with one bin set to zero, M times over [M, M, C]
-> logits. The convolutions run once; behind them it is exact, as the head sees nothing but the pooled bins.
`sppnet.visualize.draw_pyramid` shows the answer over the photo. The idea of looking what hiding a part does to the score:
Zeiler and Fergus, arXiv:1311.2901, section 4.2.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sppnet.data.images import read_image
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet
from sppnet.ops.windows import whole_windows
from sppnet.results import Classification

VALUES_AT_ONCE = 1 << 24  # of pooled bins in one pass of the head: 64 MB
DECIMALS = 4  # of logits


@dataclass(frozen=True, eq=False)
class BinContributions:
    """What the bins of the pyramid add to the logit of one class."""

    classification: Classification  # of the whole photo
    name: str  # the class
    logit: float  # of the class, all bins seen
    levels: tuple[int, ...]  # bins per side
    bins: npt.NDArray[np.float32]  # [M] logit minus that without the bin: above 0, the bin speaks for the class
    together: npt.NDArray[np.float32]  # [L] the same for all bins of a level at once; their sum, if all is linear
    seen: npt.NDArray[np.uint8]  # [h, w, 3], the photo as the backbone saw it
    map_size: tuple[int, int]  # (height, width) in cells
    stride: int  # pixels of ``seen`` from one cell's centre to the next
    offset: float  # pixels to the centre of cell 0

    @property
    def score(self) -> float:
        """The probability of the class."""
        return float(self.classification.scores[self.classification.class_names.index(self.name)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``.

        Returns:
            ``{"class", "logit", "levels": [{"level": n, "together", "bins": n rows of n}]}``.
        """
        ends = np.cumsum([level * level for level in self.levels])
        return {
            "class": self.name,
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


def bin_contributions(
    model: SPPNet, source: str | os.PathLike[str] | Image.Image | np.ndarray, name: str | None = None
) -> BinContributions:
    """Ask what each bin of the pyramid adds to the answer about one image.

    A bin's contribution is the class's logit minus the logit without the bin: its features set to zero, which is what
    features after a ReLU are where nothing is found. The head works in single precision.

    Args:
        model: any model, in evaluation mode.
        source: path, PIL image, or [H, W, 3] uint8 array, as `sppnet.classify` takes it.
        name: the class asked about; the best one where it is not given.

    Returns:
        `BinContributions`.

    Raises:
        UserError: no such file, or not an image.
        ValueError: a class that the model does not have.

    Example:
        >>> from skimage.data import chelsea
        >>> answer = bin_contributions(sppnet.load("voc"), chelsea())
        >>> answer.name, answer.bins.shape, bool((answer.bins > 0).any())
        ('cat', (14,), True)
    """
    settings = model.architecture
    if name is not None and name not in settings.names:
        raise ValueError(f"name: expected one of the model's classes ({', '.join(settings.names)}), got {name!r}")
    prepared, _ = model.prepare(read_image(source))
    with torch.inference_mode(), autocast(model.device):
        features = model.features(prepared.contiguous(memory_format=torch.channels_last))
        pooled = model.pool(features, whole_windows(features)).float()  # [1, M, C]
    groups = _groups(settings.levels).to(pooled.device)
    with torch.inference_mode():
        logits = _logits(model, pooled)[0]
        scores = logits.sigmoid() if settings.multi_label else logits.softmax(0)
        classification = Classification(scores.cpu().numpy(), settings.names, settings.multi_label)
        answer = classification.label if name is None else name
        column = settings.names.index(answer)
        rows = max(1, VALUES_AT_ONCE // pooled.numel())
        without = [_logits(model, pooled * keeps[..., None])[:, column] for keeps in (~groups).split(rows)]
    added = (logits[column] - torch.cat(without)).cpu().numpy()
    return BinContributions(
        classification=classification,
        name=answer,
        logit=float(logits[column]),
        levels=settings.levels,
        bins=added[: model.pool.bins],
        together=added[model.pool.bins :],
        seen=_pixels(model, prepared),
        map_size=(features.shape[2], features.shape[3]),
        stride=model.geometry.stride,
        offset=model.geometry.offset,
    )


def _groups(levels: tuple[int, ...]) -> Tensor:
    """[M + L, M] bool: each bin alone, and then all bins of each level."""
    level_of = torch.tensor([place for place, level in enumerate(levels) for _ in range(level * level)])
    return torch.cat([torch.eye(len(level_of), dtype=torch.bool), torch.arange(len(levels))[:, None] == level_of])


def _logits(model: SPPNet, pooled: Tensor) -> Tensor:
    logits: Tensor = model.image_classifier(model.fully_connected(pooled))
    return logits


def _pixels(model: SPPNet, prepared: Tensor) -> npt.NDArray[np.uint8]:
    """The image that `SPPNet.prepare` has normalised: [1, 3, h, w] -> [h, w, 3] uint8."""
    mean, std = (
        prepared.new_tensor(values)[:, None, None] for values in (model.architecture.mean, model.architecture.std)
    )
    values = ((prepared[0] * std + mean) * 255).round().clamp(0, 255)
    pixels: npt.NDArray[np.uint8] = values.byte().permute(1, 2, 0).cpu().numpy()
    return pixels
