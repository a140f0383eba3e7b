"""Photos to time something with. For every script in this folder."""

from __future__ import annotations

import numpy as np
from skimage import data as samples

from sppnet.data.find import find_images
from sppnet.data.images import read_image

SAMPLES = ("chelsea", "astronaut", "coffee", "rocket")  # photos that come with scikit-image


def timed_photos(folder: str | None, count: int) -> list[np.ndarray]:
    """At most so many photos [H, W, 3] uint8, drawn from a folder, the same every time; without one, scikit-image's first."""
    if folder is None:
        return [read_image(getattr(samples, name)()) for name in SAMPLES[:count]]
    files = find_images([folder])
    return [read_image(files[place]) for place in np.random.default_rng(0).permutation(len(files))[:count]]
