"""Steps of training, each of which leaves something on disk that others build on: run once, resumed, timed and weighed.

A step is done when its record says so and its model is there. Its seconds are those of the work itself, by stage, summed over runs
that were stopped; what a killed run did after its last checkpoint is counted twice, as it is done twice. Steps whose work may have
been there before, for it serves other trainings too (proposals, feature maps), are measured on a sample instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results_file import read_results, write_results
from sppnet.errors import UserError
from sppnet.progress import Progress

SAVE_EVERY = 5.0  # seconds: what a kill can lose of the clock
SAMPLE = 16  # items that tell what all of them take


@dataclass(frozen=True, eq=False)
class Step:
    """One step.

    Args:
        name: unique in a ladder.
        folder: its own: checkpoints, states, and its record, ``step.json``.
        run: does it; told of each stage's progress.
        needs: what comes before.
        makes_model: whether ``model.safetensors`` is in its folder when it is done.
        shares: files outside its folder that it leaves on disk, by what they are.
        sample: seconds by stage, measured on a sample after the work, in place of the work's own.
    """

    name: str
    folder: Path
    run: Callable[[Progress], None]
    needs: tuple[Step, ...] = ()
    makes_model: bool = True
    shares: Callable[[], dict[str, Iterable[Path]]] = dict
    sample: Callable[[], dict[str, float]] | None = None

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def record(self) -> dict[str, Any]:
        """``seconds`` by stage, ``bytes`` by what they are, ``done``; empty where there is none, or a damaged one."""
        try:
            return read_results(self.folder / "step.json")
        except UserError:
            return {}

    @property
    def done(self) -> bool:
        """Whether the step is done, and its model still there."""
        return bool(self.record.get("done")) and (self.model.is_file() or not self.makes_model)

    def all(self) -> list[Step]:
        """The step and all that it needs, each once, those needed first."""
        found: dict[str, Step] = {}
        for step in self.needs:
            found.update({each.name: each for each in step.all()})
        return list({**found, self.name: self}.values())


class Clock:
    """Seconds of a step's stages: of each, the time from the report before to its own.

    Args:
        step: its record keeps them; what it holds of an earlier run that was stopped is added to.
        now: seconds.
    """

    def __init__(self, step: Step, now: Callable[[], float] = time.perf_counter) -> None:
        self.step, self.now, before = step, now, step.record
        self.seconds: dict[str, float] = {} if before.get("done") else dict(before.get("seconds", {}))
        self.last = self.saved = now()
        self.stage: str | None = None

    def report(self, stage: str, done: int, total: int) -> None:
        """A stage's progress, as trainings report it."""
        now, self.stage = self.now(), stage
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now
        if self.last - self.saved > SAVE_EVERY:
            self.save({})

    def save(self, more: dict[str, Any]) -> None:
        self.saved = self.last
        seconds = {stage: round(value, 2) for stage, value in self.seconds.items()}
        write_results(self.step.folder / "step.json", {"seconds": seconds, **more})


def ensure(step: Step, tell: Callable[[str, str, int, int], None]) -> None:
    """Have a step done, and before it all that it needs.

    Args:
        step: the step.
        tell: told of progress: the step's name, its stage, done, total.

    Raises:
        UserError: what the step raises; its name stands before.
    """
    for each in step.all():
        if each.done:
            continue
        clock = Clock(each)

        def progress(stage: str, done: int, total: int, clock: Clock, name: str) -> None:
            clock.report(stage, done, total)
            tell(name, stage, done, total)

        try:
            each.run(partial(progress, clock=clock, name=each.name))
        except UserError as error:
            raise UserError(f"{each.name}: {error}") from error
        except BaseException:  # Ctrl-C: what was done so far is on disk, and its seconds belong to it
            clock.save({})
            raise
        if clock.stage is not None:
            clock.report(clock.stage, 1, 1)
        if each.sample is not None:
            clock.seconds = each.sample()
        left = {"model": size_of([each.model]), "training": size_of([each.folder]) - size_of([each.model])}
        clock.save({"bytes": {**left, **{what: size_of(paths) for what, paths in each.shares().items()}}, "done": True})


def cost_of(steps: Iterable[Step]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds by stage and bytes by what they are, of all these steps and what they need, each once."""
    seconds: dict[str, float] = {}
    left: dict[str, int] = {}
    for each in {each.name: each for step in steps for each in step.all()}.values():
        for stage, value in each.record.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 2)
        for what, value in each.record.get("bytes", {}).items():
            left[what] = left.get(what, 0) + value
    return seconds, left


def measured(work: Callable[[Sequence[Any]], None], items: Sequence[Any], sample: int = SAMPLE) -> float:
    """Seconds that some work takes on all items, told from an even sample of them; a first item warms up and does not count."""
    chosen = items[:: max(1, len(items) // sample)][:sample]
    work(chosen[:1])
    started = time.perf_counter()
    work(chosen)
    return (time.perf_counter() - started) * len(items) / max(1, len(chosen))


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files, and of all files below folders; of what is not there, 0."""
    total = 0
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [path]
        total += sum(each.stat().st_size for each in inside if each.is_file())
    return total
