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
from typing import cast

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
        pooled: [R, M, C] windows of photos, some thousands, such as `sppnet.detection.predict.sample_windows` gives; for the second way.

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
    before, layers = model.architecture, len(model.architecture.hidden)
    if any(before.ranks):
        raise SettingsError(f"this model was truncated before, to ranks {before.ranks}: take the one it came from")
    if (ranks is None) == (energy is None):
        raise SettingsError("expected either ranks, one for each fully connected layer, or an energy to keep")
    if ranks is not None and len(ranks) != layers:
        raise SettingsError(f"expected {layers} ranks, one for each fully connected layer, got {len(ranks)}")
    if energy is not None and not 0 < energy <= 1:
        raise SettingsError(f"the energy to keep must be above 0 and at most 1: got {energy}")
    if pooled is not None and (pooled.ndim != 3 or len(pooled) < 2):
        raise SettingsError(f"expected at least two pooled windows [R, M, C], got shape {list(pooled.shape)}")
    small = copy.deepcopy(model).eval()
    chosen, kept = [0] * layers, [1.0] * layers
    for number, index in enumerate(i for i, each in enumerate(model.fully_connected) if isinstance(each, nn.Linear)):
        layer, rank = cast(nn.Linear, model.fully_connected[index]), ranks[number] if ranks is not None else None
        if rank == 0:
            continue
        if rank is not None and not 0 < rank <= min(layer.weight.shape):
            bounds = f"from 1 to {min(layer.weight.shape)}, or 0 for whole"
            raise SettingsError(f"the rank of fully connected layer {number + 1} must be {bounds}: got {rank}")
        weight = layer.weight.detach()
        # Without windows, what it says of one in each direction: U_r U_r' W is then the nearest matrix of rank r.
        outputs = weight.double().cpu().T if pooled is None else _outputs(model, index, weight, pooled)
        mean = torch.zeros_like(outputs[0]) if pooled is None else outputs.mean(0)
        energies, directions = torch.linalg.eigh((outputs - mean).T @ (outputs - mean))
        energies, directions = energies.flip(0)[: min(weight.shape)].clamp(min=0), directions.flip(1)
        shares = energies.cumsum(0) / energies.sum().clamp(min=torch.finfo(torch.float64).tiny)
        if energy is not None:
            rank = min(len(shares), 1 + int((shares < energy - 1e-12).sum()))
            if rank * sum(layer.weight.shape) >= layer.weight.numel():
                continue
        assert rank is not None
        small.fully_connected[index] = _thin(layer, directions[:, :rank], mean)
        chosen[number], kept[number] = rank, float(shares[rank - 1])
    small.architecture = dataclasses.replace(before, ranks=tuple(chosen) if any(chosen) else ())
    return small, kept


def _outputs(model: SPPNet, index: int, weight: Tensor, pooled: Tensor) -> Tensor:
    """What a layer says of windows [R, outputs], without its bias."""
    before = nn.Sequential(*list(model.fully_connected)[:index])
    with torch.no_grad():
        parts = [before(part.to(weight)).half().to(weight) @ weight.T for part in pooled.split(1024)]
    return torch.cat(parts).double().cpu()


def _thin(layer: nn.Linear, kept: Tensor, mean: Tensor) -> nn.Sequential:
    """inputs -> rank -> outputs, by the directions of the outputs that are kept [outputs, rank] and the outputs' mean."""
    narrow, wide = nn.Linear(layer.in_features, kept.shape[1], bias=False), nn.Linear(kept.shape[1], layer.out_features)
    weight, bias = (value.detach().double().cpu() for value in (layer.weight, layer.bias))
    projected = kept.T @ weight
    with torch.no_grad():
        # shared out evenly, so that half precision holds both parts
        root = projected.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        narrow.weight.copy_(projected / root[:, None])
        wide.weight.copy_(kept * root)
        wide.bias.copy_(bias + mean - kept @ (kept.T @ mean))
    return nn.Sequential(narrow, wide).to(layer.weight.device)
