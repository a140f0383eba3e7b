"""Feature maps computed once and read from disk: what makes training everything behind the pooling cheap.

One .safetensors file for each image, and one for the image flipped, with a map [h, w, C] for each scale, in half precision and read
through a memory map. Maps are cached, not the windows pooled from them, which filled the paper's disks: 1.4 MB against 102 MB
an image. A file is named by the image's content, in a folder named by the weights and sizes that it was computed with, so a
stale one is never used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sppnet.cache import check_room, fingerprint, read_tensors, write_tensors
from sppnet.data.images import content_key, image_size, read_image
from sppnet.detection.feature_maps import FeatureMaps, compute_feature_maps
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress

Stamp = tuple[int, int]  # of a file: when it was written, in ns, and its size in bytes


class FeatureMapCache:
    """The cached feature maps of one model's backbone, at the model's scales.

    A file is checked against its checksum when it is first read in a run, and again if it has changed since; a damaged one is
    computed anew. So nothing is read twice only to be checked, and nothing damaged is ever used.

    Args:
        model: computes the maps. Its backbone counts as what a model file holds of it, so that a model that was loaded shares the
            maps it was trained on; it must not change while the cache is in use.
        folder: several backbones' maps may lie below it.
    """

    def __init__(self, model: SPPNet, folder: Path) -> None:
        self.model = model
        preprocess, state = model.preprocess, model.backbone.state_dict()
        stored = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        pixels = f"mean {preprocess.mean}, std {preprocess.std}, resized by {preprocess.resize_mode}"
        weights = fingerprint([stored, pixels, f"feature scale {float(model.feature_scale)}"], size=8)
        sides = [preprocess.sides(side) for side in model.short_sides]
        self.folder = folder / f"{weights}-{'+'.join(f'{short}-{long}' for short, long in sides)}"
        self._verified: dict[Path, Stamp | None] = {}

    def path(self, image: Path, *, flip: bool = False) -> Path:
        """Where the maps of an image file lie, or will lie."""
        return self.folder / f"{_content_key(image, _stamp(image))}{'-flipped' if flip else ''}.safetensors"

    def read(self, image: Path, *, flip: bool = False) -> FeatureMaps:
        """The maps of an image file, through a memory map: what is not pooled is not loaded. Computed where there are none."""
        path = self.path(image, flip=flip)
        stamp = _stamp(path)
        found = read_tensors(path, verify=stamp is None or self._verified.get(path) != stamp)
        if found is None:
            self._write(image, flip)
            stamp, found = _stamp(path), read_tensors(path)
            assert found is not None
        self._verified[path] = stamp
        tensors, metadata = found
        scales, size, whole = (json.loads(metadata[name]) for name in ("scales", "size", "whole"))
        features = tuple(tensors[str(index)].permute(2, 0, 1)[None] for index in range(len(scales)))
        return FeatureMaps(
            features, tuple((vertical, horizontal) for vertical, horizontal in scales), tuple(size), whole
        )

    def fill(self, images: Sequence[Path], *, flip: bool = False, progress: Progress = no_progress) -> None:
        """Compute what is missing; an interrupted call is taken up by the next.

        Args:
            images: files.
            flip: also the maps of the flipped images.
            progress: called with "feature maps", images done, all.

        Raises:
            OutputError: the disk has less room than the missing maps need, known before the first is computed; or a map
                cannot be written.
        """
        flips = (False, True) if flip else (False,)
        lacking = {image: [each for each in flips if not self.path(image, flip=each).exists()] for image in images}
        sizes = [image_size(image) for image, missing in lacking.items() for _ in missing]
        if sizes:
            count = sum(map(bool, lacking.values()))
            check_room(self.folder, self.bytes_needed(sizes), f"the feature maps of {count} images")
        for done, (image, missing) in enumerate(lacking.items(), start=1):
            for each in missing:
                self._write(image, each)
            progress("feature maps", done, len(lacking))

    def bytes_needed(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Bytes that the maps of images of these sizes (height, width) take on disk, but for some hundred of each file."""
        backbone = deepcopy(self.model.backbone).to("meta")
        input_size, sides = self.model.preprocess.input_size, self.model.short_sides
        inputs = Counter(input_size(size, side) for size in sizes for side in sides)
        with torch.no_grad():
            maps = {size: backbone(torch.empty(1, 3, *size, device="meta")) for size in inputs}
        return sum(2 * count * maps[size].numel() for size, count in inputs.items())

    def _write(self, image: Path, flip: bool) -> None:
        pixels = read_image(image)
        maps = compute_feature_maps(self.model, np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels)
        tensors = {str(index): part[0].permute(1, 2, 0) for index, part in enumerate(maps.features)}
        facts = {name: json.dumps(getattr(maps, name)) for name in ("scales", "size", "whole")}
        write_tensors(self.path(image, flip=flip), tensors, facts)


@cache
def _content_key(image: Path, stamp: Stamp | None) -> str:
    """Hash a file's content once, until it changes."""
    return content_key(image)


def _stamp(path: Path) -> Stamp | None:
    status = path.stat() if path.exists() else None
    return status and (status.st_mtime_ns, status.st_size)
