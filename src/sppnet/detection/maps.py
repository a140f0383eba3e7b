"""Feature maps computed once and kept on disk: what makes training the fully connected layers cheap.

One .npy per image (and one more for its mirror image), [h, w, C] half precision, channels last, read through a memory map.
A map is keyed by the image's content, the backbone's weights and the size it was computed at, so a stale one is never
used. The maps are kept, not the windows pooled from them: those are what filled the paper's disks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sppnet.data.images import content_key, image_size, read_image
from sppnet.errors import UserError
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class MapCache:
    """The maps of one backbone at one size, in one folder.

    Args:
        folder: created when the first map is written; holds nothing but maps.
    """

    folder: Path

    @classmethod
    def of(cls, model: SPPNet, folder: Path) -> MapCache:
        """The cache below ``folder`` for the backbone of ``model`` and the image size it works at.

        The backbone counts as what a model file holds of it, so that a model that was read shares the maps it was trained on.
        """
        settings = model.architecture
        fingerprint = hashlib.blake2b(digest_size=8)
        for name, value in sorted(model.backbone.state_dict().items()):
            stored = value.half() if value.is_floating_point() else value
            fingerprint.update(name.encode() + stored.detach().cpu().numpy().tobytes())
        fingerprint.update(repr((settings.mean, settings.std, float(model.feature_scale))).encode())
        size = f"{settings.short_side}-{settings.long_side}"
        return cls(folder / f"{settings.backbone}-{fingerprint.hexdigest()}-{size}")

    def path(self, image: Path, *, mirrored: bool = False) -> Path:
        """Where the map of an image file lies, or will lie."""
        return self._path_of(content_key(image), mirrored)

    def read(self, path: Path) -> Tensor:
        """A map as features [1, C, h, w], half precision, channels last in memory, without loading it whole."""
        stored = np.load(path, mmap_mode="c")  # copy on write: torch wants an array it could write to
        return torch.from_numpy(stored).permute(2, 0, 1)[None]

    def fill(
        self, model: SPPNet, images: Sequence[Path], *, mirrored: bool = True, progress: Progress | None = None
    ) -> dict[Path, tuple[Path, ...]]:
        """Compute what is missing; interrupted, the next call goes on where this one stopped.

        Args:
            model: gives the backbone, and prepares the images.
            images: files.
            mirrored: also the maps of the mirror images.
            progress: called with images done, and all.

        Returns:
            For every image its map's file, and its mirror image's.

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
        for done, image in enumerate(missing):
            pixels = read_image(image)
            for side, path in zip(sides, wanted[image], strict=True):
                if not path.exists():
                    _write(path, compute_map(model, pixels[:, ::-1] if side else pixels)[0])
            if progress:
                progress(len(images) - len(missing) + done + 1, len(images))
        return wanted

    def bytes_needed(self, model: SPPNet, sizes: Sequence[tuple[int, int]]) -> int:
        """Bytes that the maps of images of these sizes (height, width) take on disk."""
        backbone = deepcopy(model.backbone).to("meta")
        known: dict[tuple[int, int], int] = {}
        total = 0
        for size in sizes:
            scaled = model.input_size(size)
            if scaled not in known:
                with torch.no_grad():
                    known[scaled] = 2 * backbone(torch.empty(1, 3, *scaled, device="meta")).numel()
            total += known[scaled]
        return total

    def _path_of(self, key: str, mirrored: bool) -> Path:
        return self.folder / f"{key}{'-mirrored' if mirrored else ''}.npy"

    def _check_room(self, model: SPPNet, missing: Sequence[Path], copies: int) -> None:
        if not missing:
            return
        needed = copies * self.bytes_needed(model, [image_size(image) for image in missing])
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the maps of {len(missing)} images need {needed / 1e9:.1f} GB below {self.folder}, where "
                f"{free / 1e9:.1f} GB are free: make room, give another folder with --work, or a smaller --short-side"
            )


def compute_map(model: SPPNet, image: np.ndarray) -> tuple[Tensor, tuple[float, float]]:
    """The map of one image [H, W, 3] uint8: features [1, C, h, w] half precision, channels last; and the resize factor."""
    prepared, scale = model.prepare(image)
    with torch.inference_mode(), autocast(model.device):
        features = model.features(prepared.contiguous(memory_format=torch.channels_last))
    limit = torch.finfo(torch.float16).max
    features = features.float().clamp(-limit, limit).half()
    return features.contiguous(memory_format=torch.channels_last), scale


def _write(path: Path, features: Tensor) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, features[0].permute(1, 2, 0).cpu().numpy())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # still there only where writing failed
