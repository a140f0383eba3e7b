"""Steps of training, each of which leaves something on disk that others build on: run once, resumed, timed and weighed.

A step is done when its record says so and what it makes is there. Its seconds are those of the work itself, summed over runs that
were stopped: of the stages that the step reports, less those that an earlier step paid for. What a killed run did after its last
checkpoint is counted twice, as it is done twice. Steps whose work may have been there before, for it serves other trainings too
(proposals, maps), are measured on a sample instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.terminal import write_json

from sppnet.errors import UserError

Report = Callable[[str, int, int], None]  # stage, done, total
SAVE_EVERY = 5.0  # seconds: what a kill can lose of the clock
SAMPLE = 16  # items that tell what all of them take


@dataclass(frozen=True, eq=False)
class Step:
    """One step.

    Args:
        name: unique in a ladder; of what it makes, and of its record.
        makes: the file that is there when it is done; None where the work itself finds what is missing.
        run: does it; told of each stage's progress.
        leaves: files and folders that it leaves on disk, by what they are; patterns may match nothing.
        needs: what comes before.
        paid: stages that it reports and an earlier step has paid for.
        measure: seconds by stage, measured on a sample after the work, in place of the work's own.
    """

    name: str
    makes: Path | None
    run: Callable[[Report], None]
    leaves: Callable[[], dict[str, Iterable[Path]]]
    needs: tuple[Step, ...] = ()
    paid: tuple[str, ...] = ()
    measure: Callable[[], dict[str, float]] | None = None

    def all(self) -> list[Step]:
        """The step and all that it needs, each once, those needed first."""
        found: dict[str, Step] = {}
        for step in self.needs:
            found.update({each.name: each for each in step.all()})
        found[self.name] = self
        return list(found.values())


class Clock:
    """Seconds of a step's stages: of each, the time from the report before to its own.

    Args:
        file: keeps them; what it holds of an earlier run that was stopped is added to.
        paid: stages that do not count.
        now: seconds.
    """

    def __init__(self, file: Path, paid: Sequence[str] = (), now: Callable[[], float] = time.perf_counter) -> None:
        self.file, self.paid, self.now = file, paid, now
        before = read_record(file)
        self.seconds: dict[str, float] = {} if before.get("done") else dict(before.get("seconds", {}))
        self.last = self.saved = now()
        self.stage: str | None = None

    def report(self, stage: str, done: int, total: int) -> None:
        """Of a stage's progress; the kind that trainings take."""
        self.count(stage)
        if self.last - self.saved > SAVE_EVERY:
            self.save({})

    def count(self, stage: str) -> None:
        """Give the time since the last call to a stage."""
        now = self.now()
        if stage not in self.paid:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
            self.stage = stage
        self.last = now

    def save(self, more: dict[str, Any]) -> None:
        self.saved = self.last
        write_json(self.file, {"seconds": {stage: round(value, 2) for stage, value in self.seconds.items()}, **more})


def record_file(folder: Path, step: Step) -> Path:
    """Where a step's record lies."""
    return folder / "steps" / f"{step.name}.json"


def read_record(file: Path) -> dict[str, Any]:
    """``seconds`` by stage, ``bytes`` by what they are, ``done``; empty where there is none, or a damaged one."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record


def is_done(folder: Path, step: Step) -> bool:
    """Whether a step is done, and what it made still there."""
    return bool(read_record(record_file(folder, step)).get("done")) and (step.makes is None or step.makes.is_file())


def ensure(folder: Path, step: Step, report: Callable[[str, str, int, int], None]) -> None:
    """Have a step done, and before it all that it needs.

    Args:
        folder: of records.
        step: the step.
        report: told of progress: the step's name, its stage, done, total.

    Raises:
        UserError: what the step raises; its name stands before.
    """
    for each in step.all():
        if is_done(folder, each):
            continue
        clock = Clock(record_file(folder, each), each.paid)

        def tell(stage: str, done: int, total: int, clock: Clock = clock, name: str = each.name) -> None:
            clock.report(stage, done, total)
            report(name, stage, done, total)

        try:
            each.run(tell)
        except UserError as error:
            raise UserError(f"{each.name}: {error}") from error
        except BaseException:  # Ctrl-C: what was done so far is on disk, and its seconds belong to it
            clock.save({})
            raise
        if clock.stage is not None:
            clock.count(clock.stage)
        if each.measure is not None:
            clock.seconds = each.measure()
        clock.save({"bytes": {what: size_of(paths) for what, paths in each.leaves().items()}, "done": True})


def cost_of(folder: Path, steps: Iterable[Step]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds by stage and bytes by what they are, of all these steps and what they need, each once."""
    seconds: dict[str, float] = {}
    left: dict[str, int] = {}
    every = {each.name: each for step in steps for each in step.all()}
    for each in every.values():
        record = read_record(record_file(folder, each))
        for stage, value in record.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 2)
        for what, value in record.get("bytes", {}).items():
            left[what] = left.get(what, 0) + value
    return seconds, left


def measured(work: Callable[[Sequence[Any]], None], items: Sequence[Any], sample: int = SAMPLE) -> float:
    """Seconds that some work takes on all items, told from an even sample of them; a first item warms up and does not count."""
    if not items:
        return 0.0
    chosen = items[:: max(1, len(items) // sample)][:sample]
    work(chosen[:1])
    started = time.perf_counter()
    work(chosen)
    return (time.perf_counter() - started) * len(items) / len(chosen)


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files, and of all files below folders; of what is not there, 0."""
    total = 0
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [path]
        total += sum(each.stat().st_size for each in inside if each.is_file())
    return total
