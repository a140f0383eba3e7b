"""`python -m benchmarks.add_class`: do the parts that are not done yet, then write the page and the plot of all results.

    uv run python -m benchmarks.add_class --data VOC2007 --cache CACHE --json FILE --markdown docs/add-class.md
    uv run python -m benchmarks.add_class ... --images 800 --test-images 400 --limit-minutes 20      # about an hour, one core
    uv run python -m benchmarks.add_class ... --parts faster-rcnn --optimizer adamw --rate 0.0001    # another opponent
    uv run python -m benchmarks.add_class --json FILE --markdown docs/add-class.md                   # the page again

Run it on an idle machine. A race that is over goes on if --limit-minutes says more, or the class that was added is better now.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.add_class.detectors import Detectors
from benchmarks.add_class.faster_rcnn import average_precision_of, build_faster_rcnn
from benchmarks.add_class.page import page, plot, target_of
from benchmarks.add_class.race import Point, Race, Racer, is_over, run_race
from benchmarks.add_class.settings import Settings, Splits, keep_objects, only_class
from benchmarks.environment import environment
from benchmarks.options import add_options, given_options
from benchmarks.results_file import read_results, write_results, write_text
from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone, pretrained_weights
from sppnet.progress import progress_bars

PARTS = ("old", "add", "add-from-all", "all", "faster-rcnn")


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a user's mistake."""
    arguments = _parser().parse_args(words)
    try:
        if arguments.data is not None:
            _run(arguments)
        return _write(arguments.json, arguments.markdown)
    except UserError as error:
        print(f"add_class: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> None:
    if arguments.cache is None:
        raise UserError(
            "--cache is missing: the folder for proposals, feature maps and checkpoints; trainings may share it"
        )
    if arguments.repeats < 1:
        raise UserError(f"--repeats must be at least 1: got {arguments.repeats}")
    settings = Settings(**given_options(arguments, Settings))
    race = Race(**{**given_options(arguments, Race), "seed": settings.seed})
    splits = Splits.of(settings)
    print(f"{settings.name}: {len(splits.old)} images without it, {len(splits.new)} with it; {len(splits.test)} to test on; "
          f"entry {settings.key}", file=sys.stderr)  # fmt: skip
    with progress_bars() as progress:

        def tell(part: str, stage: str, done: int, total: int) -> None:
            progress(f"{part}: {stage}", done, total)

        detectors = Detectors(settings, splits, arguments.cache, tell)
        for part in arguments.parts:
            if part == "faster-rcnn":
                run_faster_rcnn(race, settings, splits, arguments.cache, arguments.json, tell)
                continue
            if part in _entry(arguments.json, settings)["parts"]:
                print(f"{part}: measured before", file=sys.stderr)
                continue
            ran = _environment()
            row = detectors.train(part) if part in ("old", "all") else detectors.add(part, arguments.repeats)
            _keep(arguments.json, settings, "parts", part, {**row, "environment": ran})
            print(
                f"{part}: {row['seconds']} s, AP {row['test']['classes'].get(settings.name)}",
                file=sys.stderr,
                flush=True,
            )


def run_faster_rcnn(race: Race, settings: Settings, splits: Splits, cache: Path, file: Path, tell: Any) -> None:
    """Race Faster R-CNN against the class that was added; its row is written after every test."""
    entry = _entry(file, settings)
    target = target_of(entry, settings.name)
    if target is None:
        print("faster-rcnn: the class was not added yet, so it runs as long as it may", file=sys.stderr)
    new, test = only_class(splits.new, settings.name), only_class(splits.test, settings.name)
    row: dict[str, Any] = entry["races"].get(race.label, {})
    ran = row.get("environment") or _environment()

    def start() -> Racer:
        torch.manual_seed(race.seed)
        backbone = build_backbone(settings.backbone, settings.weights or pretrained_weights(settings.backbone))
        model = build_faster_rcnn(backbone, race.race_side, round(race.race_side * 5 / 3), race.race_windows)
        old = [keep_objects(image, image.gt_labels < 0) for image in splits.old.images] if race.others else []
        return Racer(model, race, new.images, old)

    def measure(model: Any) -> tuple[float, float]:
        found = average_precision_of(model, test, lambda stage, done, total: tell("faster-rcnn", stage, done, total))
        return found.ap07, found.ap_area

    def keep(racer: Racer, curve: list[Point]) -> None:
        objects = sum(int((~image.difficult).sum()) for image in new.images)
        told = {
            "learned from": {"images": len(new) + (len(splits.old) if race.others else 0), "objects": objects},
            "curve": curve,
            "limit": race.limit,
            "precision": "bfloat16" if racer.bfloat16 else "float32",
            "seconds a step": round(racer.seconds / max(1, racer.step), 3),
            "environment": ran,
        }
        _keep(file, settings, "races", race.label, told)
        last = curve[-1]
        print(f"faster-rcnn: {last['seconds']:.0f} s of training, step {last['step']}: AP {last['area']:.3f} (area), "
              f"{last['voc07']:.3f} (11-point); wanted {target}", file=sys.stderr, flush=True)  # fmt: skip

    curve: list[Point] = row.get("curve", [])
    if is_over(race, curve, target):
        print("faster-rcnn: measured before", file=sys.stderr)
        return
    name = hashlib.blake2b(race.label.encode(), digest_size=4).hexdigest()
    checkpoint = cache / f"add-class-{settings.key}" / f"faster-rcnn-{name}.pt"
    run_race(
        race, start, measure, target, checkpoint, curve, keep,
        lambda done, total: tell("faster-rcnn", "training, s", done, total),
    )  # fmt: skip


def _entry(file: Path, settings: Settings) -> dict[str, Any]:
    """The results of these settings: rows of parts, and of races by their label."""
    found: dict[str, Any] = read_results(file).get(
        settings.key, {"settings": settings.to_dict(), "parts": {}, "races": {}}
    )
    return found


def _keep(file: Path, settings: Settings, kind: str, name: str, row: dict[str, Any]) -> None:
    """Write one row; the others stay. Read anew before, so that two runs of other settings may share the file."""
    entry = _entry(file, settings)
    entry[kind][name] = row
    write_results(file, {**read_results(file), settings.key: entry})


def _environment() -> str:
    return f"{environment()['text']}; {os.getloadavg()[0]:.1f} processes were running when it began"


def _write(file: Path, markdown: Path | None) -> int:
    entries = read_results(file)
    if not entries:
        raise UserError(f"{file} holds no results: run with --data first")
    if not all(isinstance(entry, dict) and {"settings", "parts", "races"} <= set(entry) for entry in entries.values()):
        raise UserError(f"{file} does not hold results of this benchmark: give another --json, or move it away")
    picture = (markdown or file).with_suffix(".png")
    text = page(entries, picture.name)
    if markdown is not None:
        write_text(markdown, text)
        plot(entries, picture)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.add_class",
        description="A class more for a trained detector: seconds and average precision, against training anew and Faster R-CNN.",
    )
    add = parser.add_argument
    add("--data", type=Path, help="annotated images: VOC, COCO or YOLO; left out: only write the page again")
    add("--cache", type=Path, help="folder for proposals, feature maps and checkpoints; other trainings may share it")
    add("--json", type=Path, required=True, help="file of results; those that are there are not made again")
    add("--markdown", type=Path, help="the page; its plot goes beside it")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which; the file of results keeps the others")
    add("--class", dest="name", default="motorbike", help="the class that comes last; of VOC 2007's, 'bottle', 'bus', 'cow', "
        "'motorbike' and 'sheep' share the feature maps of a training of all classes")  # fmt: skip
    add("--repeats", type=int, default=3, help="how many times the class is added")
    add_options(parser, Settings)
    add_options(parser, Race)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
