"""Pooled vectors of images and of their mirror images, kept on disk: what makes training a head quick without a GPU.

While the backbone stays as it is, an image's vector never changes: it is computed once, and each epoch only reads it. One
array per image (`sppnet.classification.feature_cache`), [2, M, C] half precision: the image's own vector and its mirror
image's; or, where nobody asks for mirror images, [1, M, C].
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sppnet.classification.feature_cache import FeatureCache, net_digest
from sppnet.classification.pooled import pool_images
from sppnet.classification.readable import Report
from sppnet.data.images import content_key, read_image
from sppnet.errors import ImageError, UserError
from sppnet.models.backbones import map_shape
from sppnet.models.precision import precision_of
from sppnet.models.sppnet import SPPNet

PAIR, OWN = "pair", "own"  # the parts of the cache: an image's vector and its mirror image's; its own alone
AT_ONCE = 32  # images read before they go through the backbone: enough to sort by size
IN_MEMORY = 1_000_000_000  # bytes of vectors up to which all of them are held in memory
NAMED = 5  # bad files that one message lists


@dataclass(frozen=True)
class KeptFeatures:
    """The vectors that one model pools from whole images.

    Args:
        cache: of this model's; holds nothing else.
    """

    cache: FeatureCache

    @classmethod
    def of(cls, model: SPPNet, folder: Path) -> KeptFeatures:
        """Those of ``model`` as it is now, below ``folder``."""
        settings = model.architecture
        sizes = (settings.fit, settings.short_side, settings.long_side)
        shown = (settings.levels, sizes, settings.mean, settings.std, float(model.feature_scale))
        digest = net_digest(model.backbone, shown, precision_of(model.device))
        return cls(FeatureCache(folder / f"{settings.backbone}-{digest}"))

    def fill(
        self, model: SPPNet, images: Sequence[Path], report: Report | None = None, *, mirrored: bool = True
    ) -> list[Path]:
        """Compute what is missing; stopped, the next call goes on where this one was.

        Args:
            model: gives the backbone and the pyramid, and prepares the images.
            images: files.
            report: told of the progress: "features", done, total.
            mirrored: whether mirror images are wanted, too; without them it takes half the time and room.

        Returns:
            Each image's file, in order.

        Raises:
            UserError: images that cannot be read, by name; a disk with less room than the vectors need (known before the
                first is computed).
        """
        keys = [content_key(image) for image in images]
        part = PAIR if mirrored else OWN
        missing = self.cache.missing(keys, [PAIR])
        if not mirrored:
            missing = sorted({*missing} & {*self.cache.missing(keys, [OWN])})
        self._check_room(model, len(missing) * (1 + mirrored))
        broken: set[str] = set()
        for start in range(0, len(missing), AT_ONCE):
            prepared: dict[int, Tensor] = {}
            for place in missing[start : start + AT_ONCE]:
                try:
                    prepared[place] = model.prepare(read_image(images[place]))[0][0]
                except ImageError:
                    broken.add(keys[place])
            if prepared:
                own = list(prepared.values())
                turned = [image.flip(2) for image in own] if mirrored else []
                vectors = pool_images(model, [*own, *turned]).unflatten(0, (1 + mirrored, -1))  # [1 or 2, n, M, C]
                for place, its in zip(prepared, vectors.transpose(0, 1), strict=True):
                    self.cache.write(part, keys[place], its.numpy())
            if report:
                report("features", len(images) - len(missing) + min(start + AT_ONCE, len(missing)), len(images))
        if broken:
            bad = [image for image, key in zip(images, keys, strict=True) if key in broken]
            listed = "; ".join(map(_reason, bad[:NAMED]))
            more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            raise UserError(f"{len(bad)} of {len(images)} images cannot be read: {listed}{more}")
        pairs = [self.cache.path(PAIR, key) for key in keys]
        return [pair if mirrored or pair.exists() else self.cache.path(OWN, pair.stem) for pair in pairs]

    def _check_room(self, model: SPPNet, count: int) -> None:
        """That ``count`` vectors can be written."""
        if not count:
            return
        channels, _, _ = map_shape(model.backbone, (224, 224))
        needed = count * model.pool.bins * channels * 2
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.cache.folder}: {error.strerror or error}") from error
        free = shutil.disk_usage(self.cache.folder).free
        if needed > free:
            raise UserError(
                f"the features need {needed / 1e9:.1f} GB below {self.cache.folder}, where {free / 1e9:.1f} GB "
                "are free: make room, or take fewer or coarser levels"
            )


class Vectors:
    """Kept vectors by place: in memory if there is room, else read through memory maps.

    Args:
        files: as `KeptFeatures.fill` gives them.
        mirrored: whether those of mirror images will be read, too.

    Example:
        >>> np.save("a.npy", np.zeros((2, 5, 8), np.float16))
        >>> Vectors([Path("a.npy")]).read(0, mirrored=True).shape
        torch.Size([5, 8])
    """

    def __init__(self, files: Sequence[Path], *, mirrored: bool = True) -> None:
        self.files = list(files)
        self.held: Tensor | None = None  # [N, 1 or 2, M, C]
        if self.files and sum(file.stat().st_size for file in self.files) <= IN_MEMORY:
            self.held = torch.from_numpy(np.stack([np.load(file)[: 1 + mirrored] for file in self.files]))

    def read(self, place: int, *, mirrored: bool) -> Tensor:
        """[M, C] float16: of the image, or of its mirror image."""
        if self.held is not None:
            return self.held[place, int(mirrored)]
        stored = np.load(self.files[place], mmap_mode="r")
        return torch.from_numpy(np.array(stored[int(mirrored)]))


def _reason(image: Path) -> str:
    """Why an image cannot be read."""
    try:
        read_image(image)
    except ImageError as error:
        return str(error)
    return f"{image}: changed while it was read"
