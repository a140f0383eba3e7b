"""Make a trained model smaller and faster: its fully connected layers as products of two thin ones.

A layer's weights W [outputs, inputs] are close to the nearest matrix of a low rank r, which its r largest singular values give:
W = U S V', truncated. Two layers, inputs -> r -> outputs, then take r (inputs + outputs) multiplications for inputs * outputs.
Thousands of windows go through these layers, so it is there that a detector's time goes. Source: Fast R-CNN,
arXiv:1504.08083, section 3.1.

Nearest in all directions alike is more than is needed: windows of photos lie in few of them. Where some are given, the layer is
made nearest in what it says of *them*, and keeps much more at the same rank: with y = W x of mean m and covariance
U S U', W becomes U_r U_r' W, and the bias takes m - U_r U_r' m. Source: Zhang, Zou, He, Sun, arXiv:1505.06798, section 3.1.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sppnet.errors import SettingsError
from sppnet.models.sppnet import SPPNet


def truncate_layers(
    model: SPPNet, ranks: Sequence[int] | None = None, *, energy: float | None = None, pooled: Tensor | None = None
) -> tuple[SPPNet, list[float]]:
    """A copy of a model with fully connected layers of lower rank; nothing is learned anew.

    Args:
        model: stays as it is. Its SVMs and box regressors, if any, are kept: they see nearly the same features.
        ranks: of each fully connected layer, from 1 to the lesser of its two sides; 0 leaves that layer whole.
        energy: instead of ``ranks``: the smallest rank of each layer that keeps this share, above 0 and at most 1. A layer that
            would not get smaller stays whole.
        pooled: [R, M, C] windows of photos, some thousands, such as `sppnet.detection.sample_windows` gives; for the second way.

    Returns:
        The model, on the same device, and the share that each layer keeps: of its squared weights, or, with ``pooled``, of the
        variance of what it says of these windows.

    Raises:
        SettingsError: neither or both of the two, a number that cannot be, or a model that was truncated before.

    Example:
        >>> from sppnet.models.sppnet import Architecture, build_model
        >>> net = build_model(Architecture(("cat", "dog"), levels=(2, 1), hidden=(64, 32)))
        >>> small, kept = truncate_layers(net, (8, 0))
        >>> small.architecture.ranks, kept[1]
        ((8, 0), 1.0)
    """
    hidden = model.architecture.hidden
    if any(model.architecture.ranks):
        raise SettingsError(
            f"this model was truncated before, to ranks {model.architecture.ranks}: take the one it came from"
        )
    if (ranks is None) == (energy is None):
        raise SettingsError("expected either ranks, one for each fully connected layer, or an energy to keep")
    if ranks is not None and len(ranks) != len(hidden):
        raise SettingsError(f"expected {len(hidden)} ranks, one for each fully connected layer, got {len(ranks)}")
    if energy is not None and not 0 < energy <= 1:
        raise SettingsError(f"the energy to keep must be above 0 and at most 1: got {energy}")
    if pooled is not None and (pooled.ndim != 3 or len(pooled) < 2):
        raise SettingsError(f"expected at least two pooled windows [R, M, C], got shape {list(pooled.shape)}")
    small = copy.deepcopy(model)
    chosen: list[int] = []
    kept: list[float] = []
    places = [place for place, layer in enumerate(model.fully_connected) if isinstance(layer, nn.Linear)]
    for number, place in enumerate(places):
        layer = model.fully_connected[place]
        assert isinstance(layer, nn.Linear)
        if ranks is not None and not 0 <= ranks[number] <= min(layer.weight.shape):
            raise SettingsError(
                f"the rank of fully connected layer {number + 1} must be from 1 to {min(layer.weight.shape)}, or 0 for whole: "
                f"got {ranks[number]}"
            )
        if ranks is not None and ranks[number] == 0:
            chosen, kept = [*chosen, 0], [*kept, 1.0]
            continue
        whole = (
            _Factors.of_weights(layer) if pooled is None else _Factors.of_outputs(layer, _inputs(model, place, pooled))
        )
        shares = whole.energies.cumsum(0) / whole.energies.sum().clamp(min=torch.finfo(torch.float64).tiny)
        if ranks is not None:
            rank = ranks[number]
        else:
            rank = min(len(shares), 1 + int((shares < (energy or 1) - 1e-12).sum()))
            if rank * sum(layer.weight.shape) >= layer.weight.numel():
                chosen, kept = [*chosen, 0], [*kept, 1.0]
                continue
        small.fully_connected[place] = whole.thin(layer, rank)
        chosen, kept = [*chosen, rank], [*kept, float(shares[rank - 1])]
    small.architecture = dataclasses.replace(model.architecture, ranks=tuple(chosen) if any(chosen) else ())
    return small.eval(), kept


@dataclass(frozen=True)
class _Factors:
    """A layer as a sum of products, the weightiest first."""

    wide: Tensor  # [outputs, n], orthonormal columns
    narrow: Tensor  # [n, inputs]
    energies: Tensor  # [n], falling
    mean: Tensor  # [outputs]: what is added by the parts that are left out, on average

    @classmethod
    def of_weights(cls, layer: nn.Linear) -> _Factors:
        weight = layer.weight.detach().double().cpu()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return cls(left, values[:, None] * right, values.square(), weight.new_zeros(len(weight)))

    @classmethod
    def of_outputs(cls, layer: nn.Linear, inputs: Tensor) -> _Factors:
        """inputs [R, D]."""
        weight = layer.weight.detach()
        said = torch.cat([part.to(weight) @ weight.T for part in inputs.split(1024)]).double().cpu()
        mean = said.mean(0)
        energies, vectors = torch.linalg.eigh((said - mean).T @ (said - mean))
        vectors = vectors.flip(1)[:, : min(weight.shape)]
        return cls(vectors, vectors.T @ weight.double().cpu(), energies.flip(0)[: min(weight.shape)].clamp(min=0), mean)

    def thin(self, layer: nn.Linear, rank: int) -> nn.Sequential:
        """inputs -> rank -> outputs."""
        narrow, wide = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
        kept = self.wide[:, :rank]
        lost = self.mean - kept @ (kept.T @ self.mean)
        with torch.no_grad():
            # shared out evenly, so that half precision holds both parts
            root = self.narrow[:rank].norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
            narrow.weight.copy_(self.narrow[:rank] / root[:, None])
            wide.weight.copy_(kept * root)
            wide.bias.copy_(layer.bias.detach().double().cpu() + lost)
        return nn.Sequential(narrow, wide).to(layer.weight.device)


def _inputs(model: SPPNet, place: int, pooled: Tensor) -> Tensor:
    """What reaches a layer of ``model`` from these windows: [R, D]."""
    with torch.no_grad():
        parts = [model.fully_connected[:place](part.float().to(model.device)).half() for part in pooled.split(1024)]
    return torch.cat(parts)
