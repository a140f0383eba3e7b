"""The detectors of this project that are compared: the old classes, the class added to them, all classes together.

What two of them share is computed once, below one cache directory: proposals and feature maps. Trainings go on where they were
stopped, and their seconds with them (`benchmarks.ladder.steps`). Adding the class takes seconds, so it always begins anew, several
times, from files that are there; what making those files takes is measured on a few images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.add_class.settings import Settings, Splits
from benchmarks.ladder.steps import Step, cost_of, ensure
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import read_image
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.linear_heads import add_class
from sppnet.detection.train import train_detector
from sppnet.models.files import load
from sppnet.progress import Progress
from sppnet.proposals.compute import proposals_of, propose

CACHED = ("proposals", "feature maps")  # stages whose work is on disk, for whoever comes next
TIMED = 8  # images that the making of proposals and feature maps is timed on


class Detectors:
    """The models of one comparison, below a cache directory that other trainings may share."""

    def __init__(
        self, settings: Settings, splits: Splits, cache: Path, tell: Callable[[str, str, int, int], None]
    ) -> None:
        self.settings, self.splits, self.cache, self.tell = settings, splits, cache, tell
        self.folder = cache / f"add-class-{settings.key}"

    def train(self, part: str) -> dict[str, Any]:
        """The row of part "old" or "all": seconds by stage, what it was trained on, and what the test images say."""
        data, test = {
            "old": (self.splits.old, self.splits.test_old),
            "all": (self.splits.everything, self.splits.test),
        }[part]
        step = self._training(part, data)
        ensure(step, self.tell)
        seconds, _ = cost_of([step])
        return {
            "learned from": _count(data, self.settings.name),
            "seconds": round(sum(value for stage, value in seconds.items() if stage not in CACHED), 1),
            "stages": {stage: value for stage, value in seconds.items() if stage not in CACHED},
            "test": self.test(self.file(part), test, part),
        }

    def add(self, part: str, repeats: int) -> dict[str, Any]:
        """The row of part "add" or "add-from-all", whose feature maps are there before the clock starts; added ``repeats`` times."""
        data = {"add": self.splits.new, "add-from-all": self.splits.everything}[part]
        ensure(self._training("old", self.splits.old), self.tell)
        old, output, progress = self.file("old"), self.file(part), self._progress(part)
        model = load(old)
        proposals_of(data, self.settings.proposals, self.cache, progress)
        maps = FeatureMapCache(model, self.cache / "feature-maps")
        maps.fill([image.path for image in data.images], flip=False, progress=progress)
        states = set(
            self.cache.glob("*.safetensors")
        )  # those that are there; what adding the class leaves begins anew each time
        seconds: list[float] = []
        added: dict[str, Any] = {}
        for _ in range(repeats):
            for left in set(self.cache.glob("*.safetensors")) - states:
                left.unlink()
            started = time.perf_counter()
            grown = add_class(model, self.settings.name, data, cache=self.cache, output=output, progress=progress)
            seconds.append(round(time.perf_counter() - started, 2))
            added = grown.record["added"][-1]
        proposals, of_maps = anew(self.settings.proposals, model, data.images)
        return {
            "learned from": {**_count(data, self.settings.name), "old negatives": added["old_negatives"]},
            "seconds": round(statistics.median(seconds), 2),
            "each time": seconds,
            "stages": added["seconds"],  # of the last time
            "anew": {"proposals": round(proposals * len(data), 1), "maps": round(of_maps * len(data), 1)},
            "same weights": keeps_weights(old, output),
            "test": self.test(output, self.splits.test, part),
        }

    def file(self, part: str) -> Path:
        """The model of a part."""
        return self.folder / part / "model.safetensors"

    def test(self, model: Path, data: DetectionData, part: str) -> dict[str, Any]:
        """Average precision of each class, and the mean of those that are not the new one."""
        progress = self._progress(f"{part}, tested")
        found = evaluate_detector(load(model), data, cache=self.cache, vote_iou=0, progress=progress).result.to_dict()
        others = [each["area"] for name, each in found["classes"].items() if name != self.settings.name]
        measured = [area for area in others if area is not None]
        return {"others": sum(measured) / len(measured) if measured else None, "classes": found["classes"]}

    def _progress(self, part: str) -> Progress:
        return lambda stage, done, total: self.tell(part, stage, done, total)

    def _training(self, part: str, data: DetectionData) -> Step:
        def run(progress: Progress) -> None:
            train_detector(
                data, output=self.file(part), cache=self.cache, settings=self.settings.detector(), progress=progress
            )

        return Step(part, self.folder / part, run)


def anew(method: str, model: Any, images: Sequence[AnnotatedImage]) -> tuple[float, float]:
    """Seconds an image to make proposals and feature maps, measured on a few; reading the file is part of the maps."""
    seconds = [0.0, 0.0]
    chosen = images[: 1 + TIMED]
    for index, image in enumerate(chosen):
        started = time.perf_counter()
        pixels = read_image(image.path)
        compute_feature_maps(model, pixels)
        between = time.perf_counter()
        propose(pixels, method)
        if index or len(chosen) == 1:  # the first one prepares
            seconds[1] += between - started
            seconds[0] += time.perf_counter() - between
    timed = max(1, len(chosen) - 1)
    return seconds[0] / timed, seconds[1] / timed


def keeps_weights(old: Path, new: Path) -> bool:
    """Whether every number of the old model's file is in the new one's, in its place and bit for bit."""
    before, after = load_file(old), load_file(new)
    return before.keys() == after.keys() and all(
        torch.equal(after[name][: len(value)] if value.ndim else after[name], value) for name, value in before.items()
    )


def _count(data: DetectionData, name: str) -> dict[str, int]:
    objects = 0
    if name in data.class_names:
        label = data.class_names.index(name) + 1
        objects = sum(int(((image.gt_labels == label) & ~image.difficult).sum()) for image in data.images)
    return {"images": len(data), "objects": objects}
