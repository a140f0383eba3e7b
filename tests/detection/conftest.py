"""Photos with windows to train on, and detectors that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.detection.targets import Candidates, TrainingImage
from sppnet.models.sppnet import SPPNet, build_model

LEFT, RIGHT = [0.0, 0, 64, 64], [64.0, 0, 128, 64]  # of images 128 px wide and 64 px high: maps of 4 x 2 cells


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingImage]:
    """Five noisy photos, bright on the left, where an object of class 1 is; background on the right. Not to be changed."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    candidates = Candidates(
        boxes=torch.tensor([LEFT, RIGHT, RIGHT, RIGHT]),
        labels=torch.tensor([1, 0, 0, 0]),
        deltas=torch.tensor([[0.5, -0.25, 0.1, 0.2], [0.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 0, 0]]),
        num_foreground=1,
        image_labels=torch.tensor([1.0, 0]),
    )
    paths = [folder / f"{index}.png" for index in range(5)]
    for path in paths:
        pixels = rng.integers(0, 100, (64, 128, 3), dtype=np.uint8)
        pixels[:, :64] += 120
        Image.fromarray(pixels).save(path)
    return [TrainingImage(path, candidates) for path in paths]


@pytest.fixture(scope="session")
def variant() -> Callable[..., SPPNet]:
    """A detector like another, but for some fields of its architecture, preprocessing or detection settings.

    It has the other's backbone, and its other weights where they still fit.
    """

    def of(model: SPPNet, **changes: Any) -> SPPNet:
        parts = [
            replace(part, **{name: value for name, value in changes.items() if hasattr(part, name)})
            for part in (model.architecture, model.preprocess, model.detection)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = build_model(*parts, backbone=model.backbone, geometry=model.geometry).eval()
        own = net.state_dict()
        fits = {
            name: value for name, value in model.state_dict().items() if name in own and own[name].shape == value.shape
        }
        net.load_state_dict(fits, strict=False)
        return net

    return of
