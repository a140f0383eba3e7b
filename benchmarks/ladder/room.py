"""Bytes that the chosen rungs will leave on disk, told before anything is computed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache

from sppnet.detection.map_cache import MapCache

from benchmarks.ladder.rungs import Rung, partners
from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.steps import is_done
from sppnet.data.images import image_size
from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone, map_shape
from sppnet.models.sppnet import SPPNet

WINDOWS = 2500  # proposals of an image, where they are not counted yet
SAMPLE = 16  # images that tell the size of all maps
CHECKPOINT = 12  # bytes of a parameter: its value, and two means that the optimiser keeps of its gradient


def bytes_needed(ladder: Ladder, rungs: Sequence[Rung], seeds: Sequence[int]) -> dict[str, int]:
    """What steps that are not done will write, by what it is; about, and without the states of SVMs.

    Args:
        ladder: settings and images.
        rungs, seeds: what will run.
    """
    todo = {
        step.name: step
        for rung in rungs
        for seed in seeds
        for each in partners(rung, seed, seeds)
        for step in rung.make(ladder, each).all()
        if not is_done(ladder.folder, step)
    }
    settings, images = ladder.settings, ladder.train.images
    one = SPPNet(ladder.architecture("spp1"), build_backbone(settings.backbone))
    some = [image_size(image.path) for image in images[:: max(1, len(images) // SAMPLE)]]

    @cache
    def maps(family: str) -> int:
        model = one if family == "spp1" else SPPNet(ladder.architecture(family), one.backbone)
        return MapCache(ladder.work / "maps").bytes_needed(model, some) * len(images) // len(some)

    channels, _, _ = map_shape(one.backbone, (224, 224))
    window = 2 * one.pool.bins * channels
    behind = sum(parameter.numel() for name, parameter in one.named_parameters() if not name.startswith("backbone."))
    every = sum(parameter.numel() for parameter in one.parameters())
    needed = {"maps": 0, "checkpoints": 0, "models": 0, "crops": 0, "windows": 0}
    for name, step in todo.items():
        family = "spp5" if name.startswith("spp5") else "spp1"
        if "maps" in name or name.startswith("e2e-svm"):
            needed["maps"] += maps(family)
        if name.startswith((f"{family}-maps", "e2e-from", "e2e-all")):  # the maps of the images to test on
            needed["maps"] += maps(family) * len(ladder.test) // len(images)
        if step.makes is not None and step.makes.suffix == ".safetensors":
            needed["models"] += 2 * every
        if "finetuned" in name:
            needed["checkpoints"] += CHECKPOINT * behind
        elif name.startswith("e2e") and not name.startswith(("e2e-svm", "e2e-svd")):
            needed["checkpoints"] += CHECKPOINT * every
        elif "rcnn-crops" in name:
            needed["crops"] += len(images) * (1 + settings.rcnn_windows) * window * (1 + settings.mirrored)
        elif name.startswith("rcnn-svm"):
            needed["windows"] += 2 * len(images) * (settings.rcnn_proposals or WINDOWS) * settings.hidden[-1]
    return needed


def check_room(ladder: Ladder, needed: dict[str, int]) -> None:
    """Raise a UserError where the work folder's disk has less room."""
    ladder.work.mkdir(parents=True, exist_ok=True)
    total, free = sum(needed.values()), shutil.disk_usage(ladder.work).free
    if total > free:
        parts = ", ".join(f"{what} {value / 1e9:.1f} GB" for what, value in needed.items() if value)
        raise UserError(
            f"the rungs need about {total / 1e9:.1f} GB below {ladder.work} ({parts}), where {free / 1e9:.1f} GB are free: make "
            "room, give another --work, fewer --train-images, --rungs or --seeds, or --no-mirrored"
        )
