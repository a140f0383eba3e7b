"""Whole images through a frozen backbone: each becomes one pooled pyramid, computed once and cached on disk.

image [H, W, 3], perhaps with its horizontal flip -> features [1 or 2, C, h, w] -> pooled [1 or 2, M, C] in half precision, a file
for each image. What training a head starts from, and what ways of resizing are compared by: arXiv:1406.4729, sections 3.2 and 3.3.
A file is named for the image's content, its folder for the backbone's weights and all else that the numbers depend on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.cache import check_room, fingerprint, read_tensors, write_tensors
from sppnet.data.images import content_key, image_or_error, image_size, read_ahead, read_image
from sppnet.data.labelled import LabelledImages
from sppnet.errors import ImageError, ModelError
from sppnet.models.precision import precision_of, to_half
from sppnet.models.sppnet import SPPNet
from sppnet.ops.bins import whole_windows
from sppnet.progress import Progress, no_progress

IN_MEMORY = 1_000_000_000  # bytes of pooled pyramids up to which all of them are held in memory
SCALE_IMAGES = 32  # whose features set their scale
LARGEST_ASPECT = 4  # longer images are looked at smaller, squares cut from a squeezed image: one may be 20000 x 20
LISTED = 5  # bad files that one message names


@dataclass(frozen=True, eq=False)
class ReadableImages:
    """Images that can be read, and those that cannot."""

    images: LabelledImages
    sizes: np.ndarray  # [N, 2] int64, (height, width) in pixels, upright
    broken: tuple[tuple[Path, str], ...] = ()  # left out, and why


def readable_images(
    images: LabelledImages, *, skip_bad: bool = False, progress: Progress = no_progress, stage: str = "checking images"
) -> ReadableImages:
    """See which images can be read, and how large they are, before anything is computed from them.

    Args:
        images: the files.
        skip_bad: False: only the heads of the files are read (moments), and a bad one raises. True: every file is read to its
            end, and a bad one is left out and listed.
        progress: told of ``stage``.

    Raises:
        ImageError: images that cannot be read, by name; with ``skip_bad``, only if none can be.

    Example:
        >>> readable_images(LabelledImages((Path("no.jpg"),), np.array([0]), ("cat", "dog")))
        Traceback (most recent call last):
        sppnet.errors.ImageError: 1 of 1 images cannot be read: no.jpg: no such file. Repair or remove ...
    """
    sizes: dict[int, tuple[int, int]] = {}  # by index
    broken: list[tuple[Path, str]] = []
    look = partial(image_or_error, read=read_image if skip_bad else image_size)
    for index, seen in enumerate(read_ahead(images.paths, look)):
        if isinstance(seen, ImageError):
            broken.append((images.paths[index], str(seen)))
        else:
            sizes[index] = seen.shape[:2] if skip_bad else seen
        progress(stage, index + 1, len(images))
    if broken and not (skip_bad and sizes):
        raise _unreadable([reason for _, reason in broken], len(images))
    read = np.array([*sizes.values()], np.int64).reshape(-1, 2)
    return ReadableImages(images.subset(list(sizes)), read, tuple(broken))


@dataclass(frozen=True, eq=False)
class PooledFeatures:
    """The pooled pyramids of N images: in memory if there is room, else read from their files.

    Args:
        files: of each image, as `pooled_features` writes them.
        held: their content, if it is in memory: of each image [1 or 2, M, C] float16.
    """

    files: Sequence[Path]
    held: Sequence[Tensor] | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: slice) -> PooledFeatures:
        return PooledFeatures(self.files[part], None if self.held is None else self.held[part])

    def read(self, index: int, *, flip: bool = False) -> Tensor:
        """[M, C] float16: of the image, or of its horizontal flip."""
        stored = _stored(self.files[index], verify=False) if self.held is None else self.held[index]
        if stored is None:
            raise ModelError(f"{self.files[index]} has gone while it was in use: start again, and it is made anew")
        return stored[int(flip)]

    def unit_rows(self) -> np.ndarray:
        """[N, M * C] float32, each row of length 1: what linear SVMs see (arXiv:1406.4729, section 3.2)."""
        return np.stack([F.normalize(self.read(i).flatten().float(), dim=0).numpy() for i in range(len(self))])


def pooled_features(
    model: SPPNet, paths: Sequence[Path], cache: Path, *, flip: bool = False, progress: Progress = no_progress
) -> PooledFeatures:
    """Pool whole images, each once: what is cached and whole is read, the rest is computed and cached.

    Args:
        model: gives backbone, pyramid, preprocessing and scale of the features; its head makes no difference.
        paths: N files.
        cache: a folder, which several models may share. Interrupted, the next call goes on where this one stopped.
        flip: whether the horizontal flips are wanted, too; without them it takes half the time and room.
        progress: told of "features".

    Returns:
        `PooledFeatures`, in the order of ``paths``.

    Raises:
        ImageError: images that cannot be read, by name, once all others are cached.
        ModelError: the backbone's features are not finite.
        OutputError: a disk with less room than the features need (known before the first is computed).
    """
    folder, views = _folder(model, cache), 1 + flip
    keys = [content_key(path) for path in paths]
    files = {key: folder / f"{key}.safetensors" for key in keys}
    needed = views * model.pool.bins * model.geometry.channels * 2  # bytes of an image
    held: dict[str, Tensor] | None = {} if needed * len(files) <= IN_MEMORY else None
    missing: dict[str, Path] = {}
    for key, path in dict(zip(keys, paths, strict=True)).items():
        stored = _stored(files[key])
        if stored is None or len(stored) < views:
            missing[key] = path
        elif held is not None:
            held[key] = stored
    check_room(folder, len(missing) * needed, "the features")
    broken = set()
    images = read_ahead(missing.values(), image_or_error)
    for done, (key, image) in enumerate(zip(missing, images, strict=True), start=len(files) - len(missing) + 1):
        if isinstance(image, ImageError):
            broken.add(key)
        else:
            features = _features(model, image, flip)  # one by one: batches of equal sizes are no faster on a CPU
            with model.inference():
                pooled = model.pool(features, whole_windows(features))
                if not pooled.isfinite().all():
                    raise ModelError("the backbone's features are not finite: its weights are damaged; get them again")
                pooled = to_half(pooled).cpu()
            write_tensors(files[key], {"pooled": pooled}, {})
            if held is not None:
                held[key] = pooled
        progress("features", done, len(files))
    if broken:
        bad = [path for path, key in zip(paths, keys, strict=True) if key in broken]  # each by its own name
        raise _unreadable([str(image_or_error(path)) for path in bad], len(paths))
    return PooledFeatures([files[key] for key in keys], None if held is None else [held[key] for key in keys])


def scale_features(model: SPPNet, paths: Sequence[Path]) -> None:
    """Scale a model's features so that their mean square over some of these images is about 1, if they were never scaled."""
    if float(model.feature_scale) != 1 or not paths:
        return
    chosen = np.linspace(0, len(paths) - 1, min(SCALE_IMAGES, len(paths))).round().astype(int)
    images = read_ahead((paths[index] for index in chosen), read_image)
    squares = [_features(model, image, flip=False).float().square().mean().item() for image in images]
    model.set_feature_scale(float(np.mean(squares)))


def _features(model: SPPNet, image: np.ndarray, flip: bool) -> Tensor:
    images, _ = model.preprocess(image)
    with model.inference():
        images = torch.cat([images, images.flip(3)]) if flip else images
        return model.image_features(images)


def _folder(model: SPPNet, cache: Path) -> Path:
    """Named for all that pooled features depend on, beside the image: they are looked for nowhere else."""
    preprocess = model.preprocess
    fields = {
        "sides": [preprocess.short_side, preprocess.long_side, preprocess.smallest_side],
        "resize_mode": preprocess.resize_mode,
        "pixels": [preprocess.mean, preprocess.std],
        "levels": model.architecture.levels,
        "feature_scale": float(model.feature_scale),
        "precision": precision_of(model.device),
        "layers": str(model.backbone),
    }
    name = fingerprint([json.dumps(fields, sort_keys=True), model.backbone.state_dict()], size=8)
    return cache / f"{model.architecture.backbone.replace(':', '-')}-{name}"


def _stored(path: Path, *, verify: bool = True) -> Tensor | None:
    """[1 or 2, M, C] float16; None where there is no whole file."""
    found = read_tensors(path, verify=verify)
    return None if found is None else found[0]["pooled"].clone()  # a copy, so that the file's memory map is closed


def _unreadable(reasons: Sequence[str], images: int) -> ImageError:
    bad, named = len(reasons), "; ".join(reasons[:LISTED])
    more = f"; and {bad - LISTED} more" if bad > LISTED else ""
    remedy = "Repair or remove them ('sppnet check' looks at every file), or leave them out with --skip-bad"
    return ImageError(f"{bad} of {images} images cannot be read: {named}{more}. {remedy}")
