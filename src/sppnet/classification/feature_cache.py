"""Arrays computed from images, kept on disk: one .npy for each image and part, written whole or not at all.

A file is named for its image's content, and its folder for the backbone's weights and all else that the array depends on, so
a stale one is never used, and a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from sppnet.cache import fingerprint
from sppnet.whole_file import whole_file


@dataclass(frozen=True)
class FeatureCache:
    """The arrays of one net, shown images in one way; in a folder for each part, such as one layer pooled in one way.

    Example:
        >>> cache = FeatureCache(Path("maps"))
        >>> cache.write("layer4", "key-of-a-photo", np.zeros((5, 8), np.float16))
        >>> cache.missing(["key-of-a-photo", "key-of-another"], ["layer4"])
        [1]
        >>> cache.read("layer4", ["key-of-a-photo"]).shape
        (1, 5, 8)
    """

    folder: Path

    def missing(self, keys: Sequence[str], parts: Sequence[str]) -> list[int]:
        """Places of the images of which some part is not there; of equal images the first.

        Args:
            keys: of N images, as `sppnet.data.images.content_key` names them.
            parts: names of parts.
        """
        there = []
        for part in parts:
            below = self.folder / part
            there.append({entry.name for entry in os.scandir(below)} if below.is_dir() else set())
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        return [
            place
            for place, key in enumerate(keys)
            if first[key] == place and not all(f"{key}.npy" in names for names in there)
        ]

    def write(self, part: str, key: str, values: np.ndarray) -> None:
        """Keep an array.

        Raises:
            UserError: the file cannot be written.
        """
        with whole_file(self.path(part, key)) as unfinished, open(unfinished, "wb") as file:
            np.save(file, values)

    def read(self, part: str, keys: Sequence[str]) -> np.ndarray:
        """One part of N images that are there, [N, ...]."""
        return np.stack([np.load(self.path(part, key)) for key in keys])

    def path(self, part: str, key: str) -> Path:
        """The file of an array, whether it is there or not."""
        return self.folder / part / f"{key}.npy"


def net_digest(net: nn.Module, settings: object, precision: str) -> str:
    """16 hexadecimal digits that change with a net's layers and weights, and all else that its features depend on.

    Args:
        net: on any device.
        settings: what else they depend on, such as the normalisation of pixels; by its ``repr``.
        precision: what it computes in, such as "bfloat16".

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net_digest(net, (0.5,), "float32") == net_digest(net, (0.5,), "bfloat16")
        False
    """
    return fingerprint([repr((str(net), settings)), net.state_dict(), precision], size=8)
