"""Features of whole images, layer by layer, for the benchmarks of linear classifiers: several poolings and normalizations of them.

images [H, W, 3] of any sizes -> maps [C, h, w] of several layers, in one pass -> pooled [N, M, C] by a pyramid, cached in half
precision -> vectors [N, D] of length 1. Source: arXiv:1406.4729, sections 3.2 and 3.3: "image representations", layer by layer.
The package itself pools the last layer alone: `sppnet.classification.features`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sppnet.cache import fingerprint, read_tensors, write_tensors
from sppnet.data.images import content_key, read_image
from sppnet.linear.svm import solve_gram
from sppnet.models.geometry import backbone_geometry
from sppnet.models.precision import autocast, precision_of, to_half
from sppnet.models.preprocess import Preprocess
from sppnet.ops.bins import bin_count
from sppnet.ops.pyramid_pool import pyramid_pool

LARGEST_ASPECT = 4  # longer images are looked at smaller: one may be 20000 x 20
RESIZE_MODES = {"native": "keep-aspect", "crop": "crop", "squash": "warp", "pad": "letterbox"}  # names in the results
COSTS = (0.1, 1.0, 10.0)  # of vectors of length 1: tried by `choose_cost`, if no others are given

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Pooling:
    """How a map becomes a vector."""

    levels: tuple[int, ...] = (6, 3, 2, 1)  # bins per side
    reduce: str = "max"  # or "mean"


@dataclass(frozen=True)
class Look:
    """In what form a backbone is shown an image."""

    fit: str = "native"  # or a square: "crop", "squash", "pad"
    short_side: int = 224  # pixels; a native image's long side is at most four times as long
    mirrored: bool = False  # whether it is the horizontal flip that is shown


def layer_names(backbone: nn.Module) -> list[str]:
    """The outermost modules of a backbone, in their order; any name of ``named_modules`` will do as a layer, too."""
    return [name for name, _ in backbone.named_children()]


def pooled_features(
    images: Sequence[Path],
    backbone: nn.Module,
    *,
    layers: Sequence[str],
    poolings: Sequence[Pooling],
    look: Look,
    cache: Path,
    progress: Progress | None = None,
) -> dict[tuple[str, Pooling], np.ndarray]:
    """The maps of several layers, each pooled in several ways, before any normalization: for each [N, M, C] float16."""
    files = fill_features(images, backbone, layers=layers, poolings=poolings, look=look, cache=cache, progress=progress)
    stored = [_read(file) for file in files]
    return {
        (layer, each): np.stack([tensors[_part(layer, each)].numpy() for tensors in stored])
        for layer in layers
        for each in poolings
    }


def fill_features(
    images: Sequence[Path],
    backbone: nn.Module,
    *,
    layers: Sequence[str],
    poolings: Sequence[Pooling],
    look: Look,
    cache: Path,
    progress: Progress | None = None,
) -> list[Path]:
    """Compute what the cache lacks of `pooled_features`; interrupted, the next call goes on. The images' files, in order."""
    device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
    name = fingerprint([str(backbone), str(look), precision_of(device), backbone.state_dict()], size=8)
    files = [cache / name / f"{content_key(image)}.safetensors" for image in images]
    parts = {_part(layer, pooling) for layer in layers for pooling in poolings}
    for done, (image, file) in enumerate(zip(images, files, strict=True), start=1):
        there = _read(file)
        if not parts <= there.keys():
            write_tensors(file, {**there, **_compute(image, backbone, layers, poolings, look)}, {})
        if progress:
            progress(done, len(images))
    return files


def _compute(
    image: Path, backbone: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling], look: Look
) -> dict[str, Tensor]:
    geometry = backbone_geometry(backbone)
    least = max(geometry.stride, geometry.smallest_side)
    preprocess = Preprocess(
        look.short_side, max(LARGEST_ASPECT * look.short_side, least), RESIZE_MODES[look.fit], smallest_side=least
    )
    device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
    pixels, _ = preprocess(read_image(image))
    pixels = pixels.flip(3) if look.mirrored else pixels
    pooled: dict[str, Tensor] = {}
    with _pooling_hooks(backbone, layers, poolings, pooled), torch.inference_mode(), autocast(device):
        backbone(pixels.to(device).contiguous(memory_format=torch.channels_last))
    return pooled


@contextmanager
def _pooling_hooks(
    net: nn.Module, layers: Sequence[str], poolings: Sequence[Pooling], pooled: dict[str, Tensor]
) -> Iterator[None]:
    """Within it, every run of the backbone leaves the pooled maps of these layers in ``pooled``.

    They are pooled at once: the next layer may work in place.
    """

    def pool(layer: str, module: nn.Module, arguments: Any, features: Tensor) -> None:
        for pooling in poolings:
            values = pyramid_pool(features, pooling.levels, reduce=pooling.reduce)[0]
            pooled[_part(layer, pooling)] = to_half(values).cpu()

    modules = dict(net.named_modules())
    handles = [modules[layer].register_forward_hook(partial(pool, layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _part(layer: str, pooling: Pooling) -> str:
    return f"{layer}-{pooling.reduce}-{'.'.join(map(str, pooling.levels))}"


def _read(file: Path) -> dict[str, Tensor]:
    found = read_tensors(file)
    return {} if found is None else {name: tensor.clone() for name, tensor in found[0].items()}


# Vectors


def take_levels(pooled: np.ndarray, levels: Sequence[int], wanted: Sequence[int]) -> np.ndarray:
    """Some levels of pooled maps [N, M, C].

    Example:
        >>> take_levels(np.arange(14).reshape(1, 14, 1), (3, 2, 1), (2, 1)).ravel()
        array([ 9, 10, 11, 12, 13])
    """
    ends = np.cumsum([level * level for level in levels]).tolist()
    bins = {level: slice(end - level * level, end) for level, end in zip(levels, ends, strict=True)}
    slices = [bins[level] for level in wanted]
    if all(before.stop == after.start for before, after in pairwise(slices)):
        return pooled[:, slices[0].start : slices[-1].stop]
    return np.concatenate([pooled[:, each] for each in slices], 1)


def to_vectors(pooled: np.ndarray, levels: Sequence[int], power: float = 1.0, normalise: str = "whole") -> np.ndarray:
    """Pooled maps [N, M, C] as vectors [N, M x C] float32.

    Args:
        pooled: by ``levels``. Not modified.
        power: each value v becomes sign(v) |v|^power before it is normalized; 1 changes nothing.
        normalise: ``"whole"`` makes the vector's length 1, ``"level"`` that of each level's part, and then of the whole,
            ``"none"`` leaves it.

    Example:
        >>> to_vectors(np.array([[[3.0, 4.0]]]), (1,))
        array([[0.6, 0.8]], dtype=float32)
    """
    assert pooled.shape[1] == bin_count(levels)
    values = pooled.astype(np.float32)
    if power != 1:
        values = np.sign(values) * np.abs(values) ** np.float32(power)
    if normalise == "level":
        end = 0
        for level in levels:
            start, end = end, end + level * level
            flat = values[:, start:end].reshape(len(values), -1)
            values[:, start:end] = unit_length(flat).reshape(len(values), level * level, -1)
    flat = values.reshape(len(values), -1)
    return flat if normalise == "none" else unit_length(flat)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] divided by their lengths; one of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(vectors.dtype)


# SVMs


def object_targets(ground_truth: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], classes: int) -> npt.NDArray[np.int8]:
    """Targets of images that hold any number of objects, some of them difficult.

    Args:
        ground_truth: for each of N images gt_labels [G], 1..classes, and difficult [G].
        classes: K.

    Returns:
        [N, K]: +1 where there is an object that is not difficult, 0 (left out) where there are only difficult ones, -1 where there is
        none: how `sppnet.metrics.voc.evaluate_voc_images` counts.

    Example:
        >>> object_targets([([1, 2, 2], [False, True, False]), ([2], [True])], 2).tolist()
        [[1, 1], [-1, 0]]
    """
    targets = np.full((len(ground_truth), classes), -1, np.int8)
    for row, (labels, difficult) in zip(targets, ground_truth, strict=True):
        columns, hard = np.asarray(labels, np.int64) - 1, np.asarray(difficult, np.bool_)
        row[columns[hard]] = 0
        row[columns[~hard]] = 1
    return targets


def choose_cost(
    gram: np.ndarray,
    targets: np.ndarray,
    train: npt.ArrayLike,
    held_out: npt.ArrayLike,
    measure: Callable[[np.ndarray], float],
    costs: Sequence[float] = COSTS,
) -> tuple[float, list[float]]:
    """The cost whose decision scores [T, K] of held-out images measure best, the smallest of equals; and the measure of each."""
    learn, look = np.asarray(train, np.int64), np.asarray(held_out, np.int64)
    inner, outer = gram[np.ix_(learn, learn)], gram[np.ix_(look, learn)]
    measured = []
    for cost in sorted(costs):
        coefficients, biases = solve_gram(inner, targets[learn], cost)
        measured.append(float(measure(outer @ coefficients + biases)))
    return sorted(costs)[int(np.argmax(measured))], measured
