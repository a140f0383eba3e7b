"""Faster R-CNN against the clock: train, stop the clock, test, go on, until it is good enough or the time is over.

Only training counts: reading images, forward, backward, the step of the optimizer. Testing, and writing and reading checkpoints, do
not. Every random choice is made from the seed and the number of the step, so that a run that was killed goes on from its last
checkpoint, which is written before every test, as if it never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.add_class.faster_rcnn import choose_precision, compute_in, example
from benchmarks.options import option
from sppnet.data.annotations import AnnotatedImage
from sppnet.errors import UserError
from sppnet.files import atomic_write

WARM_UP = 60  # steps in which the rate grows; about one epoch of a hundred images, as in torchvision's tutorial
MOMENTUM, DECAY = 0.9, 5e-4  # torchvision's tutorial
ADAM_DECAY = 1e-2

Point = dict[str, float]  # of a curve: seconds, step, voc07, area


@dataclass(frozen=True)
class Race:
    """How Faster R-CNN is fine-tuned, and how long.

    Raises:
        UserError: a number that cannot be.
    """

    race_side: int = option(480, "pixels, Faster R-CNN's short side; each step's time grows with its square", int)
    race_images: int = option(2, "images a step of Faster R-CNN", int)
    race_windows: int = option(
        64, "windows an image that its last stage is trained on (arXiv:1504.08083, section 2.3)", int
    )
    optimizer: str = option("sgd", "Faster R-CNN's", choices=("sgd", "adamw"))
    rate: float = option(0.005, "its learning rate; of torchvision's tutorial, for adamw about a fiftieth", float)
    schedule: str = option(
        "constant", "of its rate; cosine: down to 0 when the time is over", choices=("constant", "cosine")
    )
    others: bool = option(False, "let half the images of its steps be some without the class", bool)
    limit_minutes: float = option(60.0, "of its training", float)
    every: float = option(300.0, "seconds of its training between tests", float)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("race_side", "race_images", "race_windows", "rate", "limit_minutes", "every"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0: got {getattr(self, name)}")
        if self.others and self.race_images < 2:
            raise UserError("images of both kinds need at least 2 images a step: got 1")

    @property
    def limit(self) -> float:
        """Seconds of training."""
        return 60 * self.limit_minutes

    @property
    def label(self) -> str:
        """Names its row; races that differ in nothing but the limit, at a constant rate, are one."""
        ends = f"cosine over {self.limit_minutes:g} minutes" if self.schedule == "cosine" else "constant"
        return (
            f"{self.race_side} px, {self.race_images} images a step{', half without the class' if self.others else ''}, "
            f"{self.race_windows} windows, {self.optimizer} {self.rate:g} {ends}, seed {self.seed}"
        )

    def rate_at(self, step: int, seconds: float) -> float:
        """The learning rate of a step that begins after so many seconds of training."""
        warm = min(1.0, (step + 1) / WARM_UP)
        along = (1 + math.cos(math.pi * min(1.0, seconds / self.limit))) / 2 if self.schedule == "cosine" else 1.0
        return self.rate * warm * along

    def next_test(self, seconds: float) -> float:
        """When training stops for the next test."""
        return min(self.limit, (math.floor(seconds / self.every + 1e-9) + 1) * self.every)


class Racer:
    """A model on its way: what a checkpoint holds.

    Args:
        model: Faster R-CNN of one class.
        race: how it learns.
        new: images that show the class, with its objects alone.
        old: images that do not; looked at only where the race says so.
    """

    def __init__(
        self, model: nn.Module, race: Race, new: Sequence[AnnotatedImage], old: Sequence[AnnotatedImage] = ()
    ) -> None:
        if race.others and not old:
            raise UserError("no images without the class to learn from: leave out --others")
        self.model, self.race, self.new, self.old = model.train(), race, new, old
        weights = [each for each in model.parameters() if each.requires_grad]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(weights, race.rate, MOMENTUM, weight_decay=DECAY, fused=True)
            if race.optimizer == "sgd"
            else torch.optim.AdamW(weights, race.rate, weight_decay=ADAM_DECAY, fused=True)
        )
        self.step, self.seconds = 0, 0.0
        self.bfloat16: bool | None = None  # not chosen yet

    def run_until(self, seconds: float, tell: Callable[[int, int], None] | None = None) -> None:
        """Train until so many seconds of training have passed; the step in which they do is finished."""
        if self.bfloat16 is None:
            torch.manual_seed(self.race.seed)
            self.bfloat16 = choose_precision(self.model, *self._batch(0))
        while self.seconds < seconds:
            started = time.perf_counter()
            torch.manual_seed(self.race.seed * 1_000_003 + self.step)  # what torchvision samples
            for group in self.optimizer.param_groups:
                group["lr"] = self.race.rate_at(self.step, self.seconds)
            loss = sum(self.model(*self._batch(self.step)).values())
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(
                    f"Faster R-CNN diverged at step {self.step}: the loss is {value}; take a smaller --rate"
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.seconds += time.perf_counter() - started
            if tell:
                tell(min(round(self.seconds), round(seconds)), round(seconds))

    def chosen(self, step: int) -> list[tuple[AnnotatedImage, bool]]:
        """The images of a step, and whether each is flipped: all of the class before any comes again, in a new order each time."""
        rng = np.random.default_rng([self.race.seed, step])
        others = self.race.race_images // 2 if self.race.others else 0
        wanted = self.race.race_images - others
        images = []
        for position in range(step * wanted, (step + 1) * wanted):
            turn, place = divmod(position, len(self.new))
            order = np.random.default_rng([self.race.seed, 1, turn]).permutation(len(self.new))
            images.append(self.new[order[place]])
        images += [self.old[index] for index in rng.integers(len(self.old), size=others)] if others else []
        return [(image, bool(rng.integers(2))) for image in images]

    def save(self, file: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
            "seconds": self.seconds, "bfloat16": self.bfloat16,
        }  # fmt: skip
        with atomic_write(file, replace="any") as unfinished:
            torch.save(state, unfinished)

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not file.is_file():
            return
        held = torch.load(file, "cpu", weights_only=True)
        self.model.load_state_dict(held["model"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.step, self.seconds, self.bfloat16 = held["step"], held["seconds"], held["bfloat16"]
        compute_in(self.model, bfloat16=bool(self.bfloat16))

    def _batch(self, step: int) -> tuple[list[Any], list[Any]]:
        examples = [example(image, flip=flip) for image, flip in self.chosen(step)]
        return [pixels for pixels, _ in examples], [target for _, target in examples]


def run_race(
    race: Race,
    start: Callable[[], Racer],
    test: Callable[[nn.Module], tuple[float, float]],
    target: float | None,
    checkpoint: Path,
    curve: list[Point],
    keep: Callable[[Racer, list[Point]], None],
    tell: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Train and test in turns, until a test is as good as the target or the time is over.

    Args:
        race: how.
        start: makes the racer; not called where nothing is left to do.
        test: a model's average precision, by the 11-point rule and by area.
        target: of the area; None for as long as the time is.
        checkpoint: where the racer's is, or will be.
        curve: what earlier runs measured.
        keep: called after every test.
        tell: called with seconds of training done, and to the next test.

    Returns:
        The curve, by seconds.
    """
    if curve and is_over(race, curve, target):
        return curve
    racer = start()
    racer.resume(checkpoint)
    curve = [
        point for point in curve if point["step"] <= racer.step
    ]  # a checkpoint was lost: what came after it comes again
    while not is_over(race, curve, target):
        if racer.step == (curve[-1]["step"] if curve else 0):  # else it was killed before its test
            racer.run_until(race.next_test(racer.seconds), tell)
            racer.save(checkpoint)
        voc07, area = test(racer.model)
        curve = [*curve, {"seconds": round(racer.seconds, 1), "step": racer.step, "voc07": voc07, "area": area}]
        keep(racer, curve)
    return curve


def is_over(race: Race, curve: Sequence[Point], target: float | None) -> bool:
    """Whether the target was reached, or the time is over."""
    return bool(curve) and (curve[-1]["seconds"] >= race.limit or reached(curve, target) is not None)


def reached(curve: Sequence[Point], target: float | None) -> tuple[float, float] | None:
    """Between which seconds of training the curve came to the target: of the test before, 0 where there is none, and of the first that is
    as good; None if it never was.

    Example:
        >>> reached([{"seconds": 60, "area": 0.2}, {"seconds": 120, "area": 0.5}], 0.4)
        (60, 120)
    """
    if target is None:
        return None
    before = 0.0
    for point in curve:
        if point["area"] >= target:
            return before, point["seconds"]
        before = point["seconds"]
    return None
