"""`python -m benchmarks.add_class`: do the parts that are not done yet, then write the page and the plot of all results.

    uv run python -m benchmarks.add_class --data VOC2007 --weights FILE --work WORK --json FILE --markdown docs/add-class.md
    uv run python -m benchmarks.add_class ... --images 800 --test-images 400 --steps 800 --limit-minutes 20   # about an hour, one core
    uv run python -m benchmarks.add_class ... --parts faster-rcnn --optimizer adamw --rate 0.0001             # another opponent
    uv run python -m benchmarks.add_class --json FILE --markdown docs/add-class.md                            # the page again

Run it on an idle machine. A race that is over goes on if --limit-minutes says more, or the class that was added is better now.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.add_class.detectors import Detectors
from benchmarks.add_class.faster_rcnn import average_precision_of, build_faster_rcnn
from benchmarks.add_class.page import page, plot
from benchmarks.add_class.race import Point, Race, Racer, is_over, run_race
from benchmarks.add_class.results import PARTS, keep_row, read_entries, target_of
from benchmarks.add_class.settings import Settings, Splits, keep_objects, only_class
from benchmarks.environment import environment
from benchmarks.ladder.command import Teller
from sppnet.errors import UserError
from sppnet.models.backbones import build_backbone


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 for a user's mistake, 130 where it was stopped."""
    arguments = _parser().parse_args(words)
    try:
        if arguments.data is not None:
            _run(arguments)
        return _write(arguments.json, arguments.markdown)
    except UserError as error:
        print(f"add_class: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> None:
    if arguments.work is None:
        raise UserError(
            "--work is missing: the folder for proposals, maps and checkpoints; other trainings may share it"
        )
    if arguments.repeats < 1:
        raise UserError(f"--repeats must be at least 1: got {arguments.repeats}")
    settings = Settings(**{each.name: getattr(arguments, each.name) for each in fields(Settings)})
    race = Race(
        arguments.race_side, arguments.race_images, arguments.race_windows, arguments.optimizer, arguments.rate,
        arguments.schedule, arguments.others, 60 * arguments.limit_minutes, arguments.every, settings.seed,
    )  # fmt: skip
    splits = Splits.of(settings)
    print(
        f"{settings.name}: {len(splits.old)} images without it, {len(splits.new)} with it; {len(splits.test)} to test on; "
        f"entry {settings.key}",
        file=sys.stderr,
    )
    detectors = Detectors(settings, splits, arguments.work, Teller())
    for part in arguments.parts:
        if part == "faster-rcnn":
            run_faster_rcnn(race, settings, splits, arguments.work, arguments.json)
            continue
        if part in read_entries(arguments.json).get(settings.key, {"parts": {}})["parts"]:
            print(f"{part}: measured before", file=sys.stderr)
            continue
        ran = _environment()
        row = detectors.train(part) if part in ("old", "all") else detectors.add(part, arguments.repeats)
        keep_row(arguments.json, settings.key, settings.to_dict(), "parts", part, {**row, "environment": ran})
        print(
            f"{part}: {row['seconds']} s, AP {row['test']['classes'].get(settings.name)}", file=sys.stderr, flush=True
        )


def run_faster_rcnn(race: Race, settings: Settings, splits: Splits, work: Path, file: Path) -> None:
    """Race Faster R-CNN against the class that was added; its row is kept after every test."""
    entry = read_entries(file).get(settings.key, {"parts": {}, "races": {}})
    target = target_of(entry, settings.name)
    if target is None:
        print("faster-rcnn: the class was not added yet, so it runs as long as it may", file=sys.stderr)
    new, test = only_class(splits.new, settings.name), only_class(splits.test, settings.name)
    row: dict[str, Any] = entry["races"].get(race.label, {})
    ran, tell = row.get("environment") or _environment(), Teller()

    def start() -> Racer:
        torch.manual_seed(race.seed)
        backbone = build_backbone(settings.backbone, settings.learned)
        side = round(settings.long_side * race.short_side / settings.short_side)
        model = build_faster_rcnn(backbone, race.short_side, side, race.windows_per_image)
        old = [keep_objects(image, image.gt_labels < 0) for image in splits.old.images] if race.others else []
        return Racer(model, race, new.images, old)

    def measure(model: Any) -> tuple[float, float]:
        found = average_precision_of(model, test, lambda done, total: tell("faster-rcnn", "testing", done, total))
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
        keep_row(file, settings.key, settings.to_dict(), "races", race.label, told)
        last = curve[-1]
        print(
            f"faster-rcnn: {last['seconds']:.0f} s of training, step {last['step']}: AP {last['area']:.3f} (area), "
            f"{last['voc07']:.3f} (11-point); wanted {target}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    curve: list[Point] = row.get("curve", [])
    if is_over(race, curve, target):
        print("faster-rcnn: measured before", file=sys.stderr)
        return
    name = hashlib.blake2b(race.label.encode(), digest_size=4).hexdigest()
    checkpoint = work / f"add-class-{settings.key}" / f"faster-rcnn-{name}.pt"
    run_race(
        race, start, measure, target, checkpoint, curve, keep,
        lambda done, total: tell("faster-rcnn", "training, s", done, total),
    )  # fmt: skip


def _environment() -> str:
    return f"{environment()['text']}; {os.getloadavg()[0]:.1f} processes were running when it began"


def _write(file: Path, markdown: Path | None) -> int:
    entries = read_entries(file)
    if not entries:
        raise UserError(f"{file} holds no results: run with --data first")
    picture = (markdown or file).with_suffix(".png")
    text = page(entries, picture.name)
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(text, encoding="utf-8")
        plot(entries, picture)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    base, race = (
        {each.name: each.default for each in fields(Settings)},
        {each.name: each.default for each in fields(Race)},
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.add_class",
        description="A class more for a trained detector: seconds and average precision, against training anew and Faster R-CNN.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="annotated images: VOC, COCO or YOLO; left out: only write the page again")
    add("--work", type=Path, help="folder for proposals, maps and checkpoints; other trainings may share it")
    add("--json", type=Path, required=True, help="file of results; those that are there are not made again")
    add("--markdown", type=Path, help="the page; its plot goes beside it")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which; the file of results keeps the others")
    add("--class", dest="name", default=base["name"], help="the class that comes last; of VOC 2007's, 'bottle', 'bus', 'cow', "
        "'motorbike' and 'sheep' share the maps of a training of all classes")  # fmt: skip
    add("--train-split", default=base["train_split"], help="learn from images of this split")
    add("--test-split", default=base["test_split"], help="test on images of this split")
    add("--images", type=int, help="only the first so many to learn from")
    add("--test-images", type=int, help="only the first so many to test on")
    add("--backbone", default=base["backbone"], help="compact, or a net of torchvision or timm")
    add("--weights", help="of the backbone, for both: a file, or a name that torchvision knows")
    add("--levels", type=_numbers, default=base["levels"], help="bins a side, such as 3,2,1")
    add("--hidden", type=_numbers, default=base["hidden"], help="widths of the fully connected layers")
    add("--short-side", type=int, default=base["short_side"], help="pixels, of this project's detectors")
    add("--long-side", type=int, default=base["long_side"], help="pixels, at most; Faster R-CNN's in proportion")
    add("--proposer", default=base["proposer"], help="selective-search, grid, edge-boxes, or several joined by +")
    add("--steps", type=int, default=base["steps"], help="of fine-tuning the fully connected layers")
    add("--mirrored", action=argparse.BooleanOptionalAction, default=True, help="fine-tune on mirror images too")
    add("--seed", type=int, default=base["seed"], help="of both trainings")
    add("--repeats", type=int, default=3, help="how many times the class is added")
    add("--race-side", type=int, default=race["short_side"], help="pixels, Faster R-CNN's short side")
    add("--race-images", type=int, default=race["images_per_step"], help="images a step of Faster R-CNN")
    add(
        "--race-windows",
        type=int,
        default=race["windows_per_image"],
        help="windows an image that its last stage learns from",
    )
    add("--optimizer", choices=["sgd", "adamw"], default=race["optimizer"], help="Faster R-CNN's")
    add("--rate", type=float, default=race["learning_rate"], help="its learning rate")
    add("--schedule", choices=["constant", "cosine"], default=race["schedule"], help="of its learning rate")
    add("--others", action="store_true", help="let half the images of its steps be some without the class")
    add("--limit-minutes", type=float, default=race["limit"] / 60, help="of Faster R-CNN's training")
    add("--every", type=float, default=race["every"], help="seconds of its training between tests")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
