"""Feature maps computed once and kept on disk: what makes training the fully connected layers cheap.

One .safetensors file per image (and one more for its mirror image) with a map [h, w, C] for each scale, half precision, channels
last, read through a memory map. A file is keyed by the image's content, the backbone's weights and the sizes it was computed
at, so a stale one is never used, and holds a checksum, so a damaged one is not either. The maps are kept, not the windows
pooled from them: those are what filled the paper's disks.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sppnet.cache import fingerprint
from sppnet.data.images import content_key, image_size, read_image
from sppnet.detection.feature_maps import FeatureMaps, compute_feature_maps
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress
from sppnet.whole_file import whole_file

ENTRY = "image_maps"  # of the files' metadata: what else `FeatureMaps` holds, and the checksum


@dataclass(frozen=True)
class MapCache:
    """The maps of one backbone at some sizes, in one folder.

    Args:
        folder: created when the first map is written; holds nothing but maps.
    """

    folder: Path

    @classmethod
    def of(cls, model: SPPNet, folder: Path) -> MapCache:
        """The cache below ``folder`` for the backbone of ``model`` and the image sizes it works at.

        The backbone counts as what a model file holds of it, so that a model that was read shares the maps it was trained on.
        """
        settings = model.architecture
        stored = {
            name: value.half() if value.is_floating_point() else value
            for name, value in model.backbone.state_dict().items()
        }
        name = fingerprint([stored, repr((settings.mean, settings.std, float(model.feature_scale)))], size=8)
        sizes = [settings.sides(side) for side in settings.short_sides]
        size = "+".join(f"{short}-{long}" for short, long in sizes)
        return cls(folder / f"{settings.backbone}-{name}-{size}")

    def path(self, image: Path, *, mirrored: bool = False) -> Path:
        """Where the maps of an image file lie, or will lie."""
        return self._path_of(content_key(image), mirrored)

    def read(self, path: Path) -> FeatureMaps:
        """The maps of an image, through a memory map: what is not pooled is not loaded."""
        features, entry = _read(path)
        return FeatureMaps(
            tuple(part.permute(2, 0, 1)[None] for part in features),
            tuple((vertical, horizontal) for vertical, horizontal in entry["scales"]),
            (entry["size"][0], entry["size"][1]),
            entry["whole"],
        )

    def get(self, model: SPPNet, image: Path, pixels: np.ndarray) -> FeatureMaps:
        """The maps of an image file, read where they are whole, else computed from its ``pixels`` [H, W, 3] uint8 and kept."""
        path = self.path(image)
        if not is_whole(path):
            write_maps(path, compute_feature_maps(model, pixels))
        return self.read(path)

    def fill(
        self, model: SPPNet, images: Sequence[Path], *, mirrored: bool = True, progress: Progress | None = None
    ) -> dict[Path, tuple[Path, ...]]:
        """Compute what is missing or damaged; interrupted, the next call goes on where this one stopped.

        Args:
            model: gives the backbone, and prepares the images.
            images: files.
            mirrored: also the maps of the mirror images.
            progress: called with images done, and all.

        Returns:
            For every image its maps' file, and its mirror image's. Each was read and agrees with its checksum, or is new.

        Raises:
            UserError: the disk has less room than the missing maps need (known before the first is computed).
        """
        sides = (False, True) if mirrored else (False,)
        wanted: dict[Path, tuple[Path, ...]] = {}
        for image in images:
            key = content_key(image)
            wanted[image] = tuple(self._path_of(key, side) for side in sides)
        missing = [image for image, paths in wanted.items() if not all(path.exists() for path in paths)]
        self._check_room(model, missing, copies=len(sides))
        for done, (image, paths) in enumerate(wanted.items()):
            lacking = [(side, path) for side, path in zip(sides, paths, strict=True) if not is_whole(path)]
            pixels = read_image(image) if lacking else None
            for side, path in lacking:
                assert pixels is not None
                write_maps(path, compute_feature_maps(model, pixels[:, ::-1] if side else pixels))
            if progress:
                progress(done + 1, len(wanted))
        return wanted

    def bytes_needed(self, model: SPPNet, sizes: Sequence[tuple[int, int]]) -> int:
        """Bytes that the maps of images of these sizes (height, width) take on disk, but for some hundred of each file."""
        backbone = deepcopy(model.backbone).to("meta")
        known: dict[tuple[int, int], int] = {}
        total = 0
        for size in sizes:
            for side in model.architecture.short_sides:
                scaled = model.input_size(size, side)
                if scaled not in known:
                    with torch.no_grad():
                        known[scaled] = 2 * backbone(torch.empty(1, 3, *scaled, device="meta")).numel()
                total += known[scaled]
        return total

    def _path_of(self, key: str, mirrored: bool) -> Path:
        return self.folder / f"{key}{'-mirrored' if mirrored else ''}.safetensors"

    def _check_room(self, model: SPPNet, missing: Sequence[Path], copies: int) -> None:
        if not missing:
            return
        needed = copies * self.bytes_needed(model, [image_size(image) for image in missing])
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the maps of {len(missing)} images need {needed / 1e9:.1f} GB below {self.folder}, where "
                f"{free / 1e9:.1f} GB are free: make room, give another folder with --work, or a smaller --short-side or fewer "
                "--scales"
            )


def is_whole(path: Path) -> bool:
    """Whether a file of maps is there, and holds what was written."""
    try:
        features, entry = _read(path)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return False
    return entry["crc32"] == _checksum(features)


def write_maps(path: Path, maps: FeatureMaps) -> None:
    """Write the maps of an image as one file that is there whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    features = [part[0].permute(1, 2, 0).contiguous().cpu() for part in maps.features]
    entry = {"scales": maps.scales, "size": maps.size, "whole": maps.whole, "crc32": _checksum(features)}
    parts = {str(index): part for index, part in enumerate(features)}
    with whole_file(path) as unfinished:
        save_file(parts, unfinished, metadata={ENTRY: json.dumps(entry)})


def _read(path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        entry = json.loads((file.metadata() or {})[ENTRY])
        return [file.get_tensor(str(index)) for index in range(len(entry["scales"]))], entry


def _checksum(features: Sequence[Tensor]) -> int:
    checksum = 0
    for part in features:
        checksum = zlib.crc32(part.view(torch.uint8).numpy().data, checksum)
    return checksum
