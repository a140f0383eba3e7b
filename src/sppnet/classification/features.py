"""What the layers of a backbone say about whole images, as vectors of one length: the input of a linear classifier.

images [H, W, 3] of any sizes -> maps [C, h, w] of several layers, in one pass -> pooled [N, M, C] by a pyramid -> [N, D],
of length 1. Pooled maps can be kept on disk (`sppnet.classification.feature_cache`), in half precision. Source:
arXiv:1406.4729, sections 3.2 and 3.3: "image representations", layer by layer.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sppnet.classification.feature_cache import FeatureCache, net_digest
from sppnet.classification.vectors import to_vectors, unit_length
from sppnet.data.fit import FITS, fit_image
from sppnet.data.images import content_key, read_image
from sppnet.errors import UserError
from sppnet.models.backbones import smallest_side
from sppnet.models.geometry import backbone_geometry
from sppnet.models.precision import autocast, precision_of
from sppnet.models.sppnet import IMAGENET_MEAN, IMAGENET_STD, SPPNet
from sppnet.ops.bins import bin_count, check_levels
from sppnet.ops.pyramid_pool import pyramid_pool

Progress = Callable[[int, int], None]  # done, total
Image = str | os.PathLike[str] | np.ndarray  # a file, or [H, W, 3] uint8

LARGEST_ASPECT = 4  # longer images are looked at smaller: one may be 20000 x 20
_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Pooling:
    """How a map becomes a vector.

    Example:
        >>> Pooling((2, 1)).bins
        5
    """

    levels: tuple[int, ...] = (6, 3, 2, 1)  # bins per side
    reduce: str = "max"  # or "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        if self.reduce not in ("max", "mean"):
            raise ValueError(f"reduce must be 'max' or 'mean': got {self.reduce!r}")

    @property
    def bins(self) -> int:
        """M, over all levels."""
        return bin_count(self.levels)


@dataclass(frozen=True)
class Look:
    """In what form a backbone is shown an image; see `sppnet.data.fit`.

    Example:
        >>> Look("squash", 180)
        Look(fit='squash', short_side=180, mirrored=False)
    """

    fit: str = "native"  # "crop", "squash" (the paper's warping) or "pad": a square of short_side
    short_side: int = 224  # pixels; a native image's long side is at most four times as long
    mirrored: bool = False  # whether it is the mirror image that is shown

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}: got {self.fit!r}")
        if self.short_side < 1:
            raise ValueError(f"short_side must be at least 1 pixel, got {self.short_side}")


def image_features(
    images: Sequence[Image],
    backbone: nn.Module,
    *,
    layers: Sequence[str] | None = None,
    levels: Sequence[int] = (2, 1),
    reduce: str = "max",
    fit: str = "native",
    short_side: int | Sequence[int] = 224,
    mirrored: bool = False,
    power: float = 1.0,
    normalise: str = "whole",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Describe whole images by what several layers of a backbone say about them.

    Args:
        images: N files, or arrays [H, W, 3] uint8, of any sizes.
        backbone: images [B, 3, H, W] -> a map, such as of `build_backbone`; or an `SPPNet`, whose backbone is taken, and
            whose normalisation of pixels instead of ImageNet's. In evaluation mode.
        layers: names of modules whose outputs are maps; `layer_names` has the outermost. The last of these, if not given.
        levels: bins per side of each level of the pyramid.
        reduce: ``"max"``, ``"mean"``, or ``"max+mean"``: both, one after the other.
        fit: ``"native"`` shows the whole image at its own shape, ``"crop"`` its middle, ``"squash"`` all of it, distorted.
        short_side: pixels; of several, the features are averaged (each being normalised first).
        mirrored: whether the mirror images are averaged in, likewise.
        power: each value v becomes sign(v) |v|^power before it is normalised; 1 changes nothing.
        normalise: ``"whole"`` makes the vector's length 1, ``"level"`` that of each level's part, and then of the whole,
            ``"none"`` leaves it.
        cache: a folder that keeps the pooled maps.
        progress: called with images done, and all; anew for each short side, and each mirrored one.

    Returns:
        For each layer [N, D] float32, D = M x C, twice that with ``"max+mean"``; bins then channels.

    Raises:
        UserError: a layer that the backbone does not have, or whose output is no map; an image that cannot be read.
        ValueError: no images, or another argument that is not one of those above.

    Source: arXiv:1406.4729, sections 3.2 (l2-normalised features for a linear SVM) and 3.3 (crop, warp and full image).

    Example:
        >>> backbone = sppnet.load("voc").backbone
        >>> features = image_features([np.zeros((90, 120, 3), np.uint8)], backbone, levels=(2, 1), short_side=64)
        >>> {name: vectors.shape for name, vectors in features.items()}
        {'8': (1, 1920)}
    """
    sides = (short_side,) if isinstance(short_side, int) else tuple(short_side)
    if not sides:
        raise ValueError("short_side: expected a number of pixels, or several, got none")
    poolings = [Pooling(tuple(levels), each) for each in reduce.split("+")]
    chosen = list(layers) if layers is not None else layer_names(backbone)[-1:]
    looks = [Look(fit, side, turned) for side in sides for turned in ((False, True) if mirrored else (False,))]
    sums: dict[str, np.ndarray] = {}
    for look in looks:
        pooled = pooled_features(
            images, backbone, layers=chosen, poolings=poolings, look=look, cache=cache, progress=progress
        )
        for layer in chosen:
            parts = [to_vectors(pooled[layer, each], each.levels, power, normalise) for each in poolings]
            vectors = unit_length(np.concatenate(parts, 1)) if normalise != "none" else np.concatenate(parts, 1)
            sums[layer] = sums[layer] + vectors if layer in sums else vectors
    if len(looks) > 1:
        sums = {layer: vectors / np.float32(len(looks)) for layer, vectors in sums.items()}
        if normalise != "none":
            sums = {layer: unit_length(vectors) for layer, vectors in sums.items()}
    return sums


def layer_names(backbone: nn.Module) -> list[str]:
    """The outermost modules of a backbone, in their order; any name of ``named_modules`` will do as a layer, too.

    Example:
        >>> layer_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        ['0', '1']
    """
    return [name for name, _ in _inner(backbone).named_children()]


def pooled_features(
    images: Sequence[Image],
    backbone: nn.Module,
    *,
    layers: Sequence[str],
    poolings: Sequence[Pooling],
    look: Look,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, Pooling], np.ndarray]:
    """The maps of several layers, each pooled in several ways, before any normalisation: what the cache holds.

    Args:
        images, backbone, layers, cache, progress: as of `image_features`.
        poolings: all of them are computed in the same pass over the images.
        look: how the images are shown to the backbone.

    Returns:
        For each layer and pooling [N, M, C] float16. `sppnet.classification.vectors.take_levels` picks levels of it.

    Raises:
        UserError, ValueError: as `image_features`.

    Example:
        >>> backbone, pooling = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), Pooling((2, 1))
        >>> images = [np.zeros((40, 60, 3), np.uint8), np.zeros((70, 30, 3), np.uint8)]
        >>> pooled = pooled_features(images, backbone, layers=["0", "1"], poolings=[pooling], look=Look(short_side=32))
        >>> pooled["1", pooling].shape
        (2, 5, 8)
    """
    if cache is not None:
        keys = fill_features(
            images, backbone, layers=layers, poolings=poolings, look=look, cache=cache, progress=progress
        )
        kept = _kept(cache, backbone, look)
        return {(layer, each): kept.read(_part(layer, each), keys) for layer in layers for each in poolings}
    _check(images, layers, poolings)
    found: dict[tuple[str, Pooling], list[np.ndarray]] = defaultdict(list)
    for done, pooled in enumerate(_compute(images, backbone, layers, poolings, look), start=1):
        for which, values in pooled.items():
            found[which].append(values)
        if progress:
            progress(done, len(images))
    return {which: np.stack(values) for which, values in found.items()}


def fill_features(
    images: Sequence[Image],
    backbone: nn.Module,
    *,
    layers: Sequence[str],
    poolings: Sequence[Pooling],
    look: Look,
    cache: Path,
    progress: Progress | None = None,
) -> list[str]:
    """Compute what the cache lacks of `pooled_features`; interrupted, the next call goes on where this one stopped.

    Returns:
        The images' content keys, which are the names of their files in the cache.

    Raises:
        UserError, ValueError: as `image_features`; or the cache cannot be written.
    """
    _check(images, layers, poolings)
    kept, keys = _kept(cache, backbone, look), [content_key(image) for image in images]
    missing = kept.missing(keys, [_part(layer, pooling) for layer in layers for pooling in poolings])
    computed = _compute([images[place] for place in missing], backbone, layers, poolings, look)
    for done, (place, pooled) in enumerate(zip(missing, computed, strict=True), start=len(images) - len(missing) + 1):
        for which, values in pooled.items():
            kept.write(_part(*which), keys[place], values)
        if progress:
            progress(done, len(images))
    return keys


# One pass


def _compute(
    images: Sequence[Image], backbone: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling], look: Look
) -> Iterator[dict[tuple[str, Pooling], np.ndarray]]:
    """The pooled maps [M, C] float16 of each image in turn. One by one: batches of equal sizes were no faster on a CPU."""
    net = _inner(backbone)
    device = next((value.device for value in net.parameters()), torch.device("cpu"))
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in _pixel_normalisation(backbone))
    minimum = _smallest_side(backbone)
    red, green, blue = (round(255 * value) for value in _pixel_normalisation(backbone)[0])
    pooled: dict[tuple[str, Pooling], Tensor] = {}
    with _pooling_hooks(net, layers, poolings, pooled), torch.inference_mode(), autocast(device):
        for image in images:
            long_side = max(LARGEST_ASPECT * look.short_side, minimum)
            fitted = fit_image(
                read_image(image), look.fit, look.short_side, long_side, minimum=minimum, fill=(red, green, blue)
            )
            shown = np.ascontiguousarray(fitted[:, ::-1]) if look.mirrored else np.require(fitted, requirements="W")
            pixels = torch.from_numpy(shown).to(device).permute(2, 0, 1)[None]
            net(((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last))
            yield {
                which: values[0].float().clamp(-_HALF, _HALF).half().cpu().numpy() for which, values in pooled.items()
            }


@contextmanager
def _pooling_hooks(
    net: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling], pooled: dict[tuple[str, Pooling], Tensor]
) -> Iterator[None]:
    """While this is entered, every run of the backbone leaves the pooled maps of these layers in ``pooled``.

    They are pooled at once: the next layer may work in place.
    """

    def hook_of(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, features: Any) -> None:
            if not isinstance(features, Tensor) or features.ndim != 4:
                raise UserError(f"layer {layer!r} gives no map [N, C, h, w] to pool from: name another")
            for pooling in poolings:
                pooled[layer, pooling] = pyramid_pool(features, pooling.levels, reduce=pooling.reduce)

        return hook

    modules = dict(net.named_modules())
    unknown = [layer for layer in layers if layer not in modules or not layer]
    if unknown:
        raise UserError(
            f"the backbone has no layer {unknown[0]!r}; its outermost are {', '.join(layer_names(net)) or 'none'}"
        )
    handles = [modules[layer].register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inner(backbone: nn.Module) -> nn.Module:
    return backbone.backbone if isinstance(backbone, SPPNet) else backbone


def _smallest_side(backbone: nn.Module) -> int:
    """Pixels of an image's sides below which it is enlarged: a cell, or more where the layers need it for one."""
    if isinstance(backbone, SPPNet):
        return backbone.smallest_side
    return max(backbone_geometry(backbone).stride, smallest_side(backbone))


def _pixel_normalisation(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if isinstance(backbone, SPPNet):
        return backbone.architecture.mean, backbone.architecture.std
    return IMAGENET_MEAN, IMAGENET_STD


def _check(images: Sequence[Image], layers: Sequence[str], poolings: Sequence[Pooling]) -> None:
    if not len(images) or not len(layers) or not len(poolings):
        raise ValueError(
            f"expected at least one image, layer and pooling, got {len(images)}, {len(layers)} and {len(poolings)}"
        )


def _kept(cache: Path, backbone: nn.Module, look: Look) -> FeatureCache:
    """What the cache holds of one backbone, shown images in one way."""
    net = _inner(backbone)
    device = next((value.device for value in net.parameters()), torch.device("cpu"))
    digest = net_digest(net, _pixel_normalisation(backbone), precision_of(device))
    return FeatureCache(cache / f"{digest}-{look.fit}-{look.short_side}{'-mirrored' if look.mirrored else ''}")


def _part(layer: str, pooling: Pooling) -> str:
    return f"{layer}-{pooling.reduce}-{'.'.join(map(str, pooling.levels))}"
