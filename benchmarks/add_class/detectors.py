"""The detectors of this project that are compared: the old classes, the class added to them, all classes together.

What two of them share is computed once, below one ``--work`` folder: proposals and maps. Trainings go on where they were stopped, and
their seconds with them (`benchmarks.ladder.steps`). Adding the class takes seconds, so it always begins anew, several times, from
files that are there; what making those files takes is measured on a few images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sppnet.detection.linear_stages import LinearStages

from benchmarks.add_class.settings import Settings, Splits
from benchmarks.ladder.steps import Step, cost_of, ensure
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import read_image
from sppnet.detection.add_class import add_class
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.finetune import FinetuneSettings
from sppnet.detection.train import train_detector, windows_of
from sppnet.models.files import load
from sppnet.proposals.compute import propose

KEPT = ("proposals", "maps")  # stages whose work is on disk, for whoever comes next
TIMED = 8  # images that the making of proposals and maps is timed on

Tell = Callable[[str, str, int, int], None]  # part, stage, done, total


class Detectors:
    """The models of one comparison, below ``work``.

    Args:
        settings: of the comparison.
        splits: its images.
        work: proposals, maps, checkpoints; may be shared with other trainings.
        tell: told of progress: the part, its stage, done, total.
        stages: what follows fine-tuning, of both detectors.
    """

    def __init__(
        self, settings: Settings, splits: Splits, work: Path, tell: Tell, stages: LinearStages | None = None
    ) -> None:
        self.settings, self.splits, self.work, self.tell = settings, splits, work, tell
        self.stages = stages or LinearStages("svm", "ridge")
        self.folder = work / f"add-class-{settings.key}"

    def train(self, part: str) -> dict[str, Any]:
        """The row of part "old" or "all": seconds by stage, what was learned from, and what the test images say."""
        data, test = {
            "old": (self.splits.old, self.splits.test_old),
            "all": (self.splits.everything, self.splits.test),
        }[part]
        step = self._training(part, data)
        ensure(self.folder, step, self.tell)
        seconds, _ = cost_of(self.folder, [step])
        kept = sum(seconds.get(stage, 0.0) for stage in KEPT)
        return {
            "learned from": _count(data, self.settings.name),
            "seconds": round(sum(seconds.values()) - kept, 1),
            "stages": {stage: value for stage, value in seconds.items() if stage not in KEPT},
            "test": self.test(self.file(part), test, part),
        }

    def add(self, part: str, repeats: int) -> dict[str, Any]:
        """The row of part "add" or "add-from-all", whose maps are there before the clock starts.

        Args:
            part: which images are learned from.
            repeats: how many times the class is added, each time from the start.
        """
        data = {"add": self.splits.new, "add-from-all": self.splits.everything}[part]
        ensure(self.folder, self._training("old", self.splits.old), self.tell)
        old, output = self.file("old"), self.file(part)
        model = load(old)
        windows_of(model, data, self.work, partial(self.tell, part))
        seconds: list[float] = []
        stages: dict[str, float] = {}
        added: dict[str, Any] = {}
        for _ in range(repeats):
            for left in self.work.glob(f"{output.stem}-*"):  # where a run before this one stood: it begins anew
                if left.is_file():
                    left.unlink()
            started = time.perf_counter()
            record = add_class(old, self.settings.name, data, output, self.work, report=partial(self.tell, part))
            seconds.append(round(time.perf_counter() - started, 2))
            added = record["added"][-1]
            stages = added["seconds"]
        proposals, maps = anew(self.settings.proposer, model, data.images)
        return {
            "learned from": {**_count(data, self.settings.name), "old negatives": added["old_negatives"]},
            "seconds": round(statistics.median(seconds), 2),
            "each time": seconds,
            "stages": {"looking up proposals and maps": stages.pop("proposals and maps"), **stages},  # of the last time
            "anew": {"proposals": round(proposals * len(data), 1), "maps": round(maps * len(data), 1)},
            "same weights": keeps_weights(old, output),
            "test": self.test(output, self.splits.test, part),
        }

    def file(self, part: str) -> Path:
        """The model of a part. Its stem names what the part keeps in ``work``, so it is no other model's."""
        return self.folder / f"{self.folder.name}-{part}.safetensors"

    def test(self, model: Path, data: DetectionData, part: str) -> dict[str, Any]:
        """Average precision of each class, and the mean of those that are not the new one."""
        found = evaluate_detector(
            load(model), data, self.work, partial(self.tell, f"{part}, tested"), vote_iou=0
        ).result.to_dict()
        others = [each["area"] for name, each in found["classes"].items() if name != self.settings.name]
        measured = [area for area in others if area is not None]
        return {"others": sum(measured) / len(measured) if measured else None, "classes": found["classes"]}

    def _training(self, part: str, data: DetectionData) -> Step:
        def run(report: Callable[[str, int, int], None]) -> None:
            settings = self.settings
            train_detector(
                data, settings.architecture(data.class_names), self.file(part), self.work, weights=settings.learned,
                settings=FinetuneSettings(steps=settings.steps, seed=settings.seed), stages=self.stages,
                mirrored=settings.mirrored, report=report,
            )  # fmt: skip

        return Step(part, self.file(part), run, dict)


def anew(proposer: str, model: Any, images: Sequence[AnnotatedImage]) -> tuple[float, float]:
    """Seconds an image to make proposals and maps, measured on a few; reading the file is part of the maps."""
    seconds = [0.0, 0.0]
    chosen = images[: 1 + TIMED]
    for index, image in enumerate(chosen):
        started = time.perf_counter()
        pixels = read_image(image.path)
        compute_feature_maps(model, pixels)
        between = time.perf_counter()
        propose(pixels, proposer)
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
