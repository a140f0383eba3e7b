"""What stands behind the pyramid: fully connected layers, and the heads that score and move boxes.

pooled [R, M, C] -> head features [R, D] -> logits [R, 1 + K] and box deltas [R, K, 4]. A head is a module of the network, whatever
it was trained by: softmax and the network's own regression together with the layers before them, SVMs and ridge regression after
them (arXiv:1406.4729, section 4.1). Inference, export and compression see them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.models.networks import draw_normal
from sppnet.results import ScoreKind

# Spread of box deltas among foreground windows: divided by it, they vary by about 1 (arXiv:1504.08083).
DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)
RESIDUAL_SCALE = 0.025  # sides of a box: makes residuals so large that small weights will do


class FullyConnected(nn.Sequential):
    """Pooled windows [R, M, C] -> head features [R, D].

    Args:
        width: M * C.
        hidden: widths of the layers, each with a ReLU and dropout; none: the flattened pyramid itself.
        ranks: of each layer, 0 for whole; a layer of low rank is two thin ones (`sppnet.models.compress`).
        unit_length: divide every vector by its length, for linear SVMs on the pyramid (arXiv:1406.4729, section 3.2).
    """

    def __init__(self, width: int, hidden: Sequence[int], ranks: Sequence[int] = (), unit_length: bool = False) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for outputs, rank in zip(hidden, ranks or (0,) * len(hidden), strict=True):
            thin = [nn.Linear(width, rank, bias=False), nn.Linear(rank, outputs)] if rank else []
            layers += [nn.Sequential(*thin) if rank else nn.Linear(width, outputs), nn.ReLU(), nn.Dropout(0.5)]
            width = outputs
        super().__init__(*layers, *([UnitLength()] if unit_length else []))
        self.width = width  # D

    def forward(self, pooled: Tensor) -> Tensor:
        parameter = next(self.parameters(), None)
        pooled = pooled if parameter is None else in_dtype_of(parameter, pooled)
        for layer in self:
            pooled = layer(pooled)
        return pooled


class UnitLength(nn.Module):
    """Vectors [R, D] divided by their lengths; one of zeros stays as it is."""

    def forward(self, vectors: Tensor) -> Tensor:
        exact = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # half precision holds no large squares
        return F.normalize(exact, dim=1).to(vectors.dtype)


class _Linear(nn.Linear):
    """A linear layer that takes features of any precision."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(in_dtype_of(self.weight, input))


class ImageClassifier(_Linear):
    """Head features of whole images [N, D] -> logits [N, K].

    Args:
        width: D.
        num_classes: K.
        multi_label: whether an image may hold several classes (sigmoid) or holds one (softmax).
    """

    def __init__(self, width: int, num_classes: int, multi_label: bool) -> None:
        super().__init__(width, num_classes)
        self.multi_label = multi_label

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid() if self.multi_label else logits.float().softmax(-1)


class SoftmaxClassifier(_Linear):
    """Head features of windows [R, D] -> logits [R, 1 + K], background first."""

    score_kind: ScoreKind = "probability"

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, 1 + num_classes)

    def scores(self, logits: Tensor) -> Tensor:
        """[R, 1 + K] probabilities, float32."""
        return logits.float().softmax(1)


class SinglePrecisionBuffers(nn.Module):
    """A module whose own buffers keep their precision, whatever the network is cast to."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = self._buffers[name]
            self._buffers[name] = value if value is None or now is None else value.to(now.device)
        return self


class _LinearHead(SinglePrecisionBuffers):
    """Linear models that were trained after the network: adding a class leaves the others' bit for bit, also in a model file."""

    def __init__(self, weights: Tensor, biases: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.weights, self.biases = nn.Buffer(weights.float()), nn.Buffer(biases.float())
        self.scale = nn.Buffer(torch.tensor(scale, dtype=torch.float32))

    def outputs(self, features: Tensor) -> Tensor:
        """Features [R, D] -> [R, ..] in float32, whatever autocast says: decision scores are compared with fixed thresholds."""
        with torch.autocast(features.device.type, enabled=False):
            outputs = features.float() @ (self.weights * self.scale).flatten(0, -2).T
            return outputs.unflatten(1, self.biases.shape) + self.biases


class SVMClassifier(_LinearHead):
    """One linear SVM for each class: [R, D] -> decision scores [R, 1 + K], above 0 for yes, about -1 for background.

    The first column, the background's, is the negative of the largest.

    Args:
        weights: [K, D], for features times ``scale``.
        biases: [K].
        scale: that brought the features to the mean length that the SVMs were trained at.

    Example:
        >>> svms = SVMClassifier(torch.tensor([[1.0, 0.0]]), torch.tensor([-0.5]), scale=2.0)
        >>> svms(torch.tensor([[1.0, 7.0], [0.0, 7.0]]))
        tensor([[-1.5000,  1.5000],
                [ 0.5000, -0.5000]])
    """

    score_kind: ScoreKind = "decision"

    def forward(self, features: Tensor) -> Tensor:
        scores = self.outputs(features)
        return torch.cat([-scores.amax(1, keepdim=True), scores], dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        return logits


class BoxRegressor(nn.Module):
    """The network's own regression: head features [R, D] and window residuals [R, 4] -> box deltas [R, K, 4] over `DELTA_SCALE`.

    What moves boxes of any class is shared; what is special to a class is seldom seen, and slowly trained. The residuals, which
    the paper does not have, let boxes that fall on the same cells move by different deltas.
    """

    delta_scale = DELTA_SCALE

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.shared, self.per_class = nn.Linear(width, 4), nn.Linear(width, 4 * num_classes)
        self.residual = nn.Linear(4, 4, bias=False)
        for linear in (self.shared, self.per_class, self.residual):
            draw_normal(linear.weight, 0.001)
        for linear in (self.shared, self.per_class):
            nn.init.zeros_(linear.bias)

    def forward(self, features: Tensor, residuals: Tensor) -> Tensor:
        features = in_dtype_of(self.shared.weight, features)
        deltas = self.per_class(features).unflatten(1, (-1, 4)) + self.shared(features)[:, None]
        exact = torch.promote_types(deltas.dtype, torch.float32)  # residuals are small shares of a side
        with torch.autocast(deltas.device.type, enabled=False):
            moved = F.linear(residuals.to(exact) / RESIDUAL_SCALE, self.residual.weight.to(exact))
        return deltas.to(exact) + moved[:, None]


class RidgeRegressor(_LinearHead):
    """One ridge regression for each class: [R, D] -> box deltas [R, K, 4] (arXiv:1406.4729, section 4.1).

    Args:
        weights: [K, 4, D], for features times ``scale``.
        biases: [K, 4].
        scale: as of `SVMClassifier`.
    """

    delta_scale = (1.0, 1.0, 1.0, 1.0)

    def forward(self, features: Tensor, residuals: Tensor | None = None) -> Tensor:
        return self.outputs(features)


def in_dtype_of(weight: Tensor, features: Tensor) -> Tensor:
    """Features in the precision of the weights that they meet; under autocast, which on a CPU knows no half precision, as they are."""
    keeps = torch.is_autocast_enabled(features.device.type) and features.dtype != torch.float16
    return features if keeps else features.to(weight.dtype)
