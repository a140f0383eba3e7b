"""`python -m benchmarks.ladder`: train and test rungs, then write the table and the plot of all results that there are.

    uv run python -m benchmarks.ladder --data VOC2007 --work WORK --output benchmarks/results/ladder \\
        --backbone mobilenet_v2 --weights FILE --train-images 500 --test-images 200 --seeds 0 1 2
    uv run python -m benchmarks.ladder ... --rungs rcnn --seeds 0     # R-CNN takes hours: of one seed
    uv run python -m benchmarks.ladder ... --dry-run                  # the plan, and the room that it takes
    uv run python -m benchmarks.ladder --output benchmarks/results/ladder --page docs/ladder.md     # the table again

Killed, it goes on where it was: steps of training have checkpoints, and a test that was killed begins anew. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sppnet.errors import UserError

if TYPE_CHECKING:
    from benchmarks.ladder.rungs import Rung
    from benchmarks.ladder.settings import Ladder


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a user's mistake."""
    arguments = _parser().parse_args(words)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"ladder: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.ladder.page import check_page
    from benchmarks.ladder.rungs import chosen_rungs
    from benchmarks.ladder.settings import Ladder, Settings, keep_plan

    if arguments.page is not None:
        check_page(arguments.page)  # a mistake in it is said before the work
    if arguments.data is None:  # nothing to run: the table of what there is
        return _write(arguments.output, arguments.page)
    rungs = chosen_rungs([name for word in arguments.rungs for name in word.split(",") if name])
    seeds = arguments.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds must be different whole numbers of at least 0: got {' '.join(map(str, seeds))}")
    if arguments.work is None:
        raise UserError(
            "--work is missing: the folder for proposals, maps and checkpoints; another training may share it"
        )
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings) if hasattr(arguments, field.name)}
    ladder = Ladder.of(Settings(**given), arguments.work)
    if arguments.dry_run:
        return _plan(ladder, rungs, seeds, arguments.output)
    from benchmarks.ladder.room import bytes_needed, check_room
    from benchmarks.ladder.testing import measure_rung, result_file

    keep_plan(ladder, arguments.output)
    missing = [rung for rung in rungs if not all(result_file(arguments.output, rung, seed).is_file() for seed in seeds)]
    needed = bytes_needed(ladder, missing, seeds)
    print(f"about {sum(needed.values()) / 1e9:.1f} GB will be written below {ladder.work}", flush=True)
    check_room(ladder, needed)
    for seed in seeds:
        for rung in rungs:
            path = measure_rung(ladder, rung, seed, seeds, arguments.output, Teller())
            print(f"{rung.name}, seed {seed}: {path or 'left out, it takes more seeds'}", flush=True)
    return _write(arguments.output, arguments.page)


def _plan(ladder: Ladder, rungs: Sequence[Rung], seeds: Sequence[int], output: Path) -> int:
    """Print what would run."""
    from benchmarks.ladder.room import bytes_needed
    from benchmarks.ladder.rungs import partners
    from benchmarks.ladder.steps import is_done
    from benchmarks.ladder.testing import result_file

    print(f"{len(ladder.train)} images of {ladder.settings.train_split!r} to learn from, {len(ladder.test)} of "
          f"{ladder.settings.test_split!r} to test on; models in {ladder.folder}")  # fmt: skip
    told: set[str] = set()
    for seed in seeds:
        for rung in rungs:
            if result_file(output, rung, seed).is_file():
                print(f"{rung.name}, seed {seed}: measured before")
                continue
            together = partners(rung, seed, seeds)
            print(f"{rung.name}, seed {seed}: {rung.told(ladder) if together else 'left out, it takes more seeds'}")
            for step in (step for each in together for step in rung.make(ladder, each).all()):
                if step.name not in told:
                    told.add(step.name)
                    print(f"    {'done' if is_done(ladder.folder, step) else 'to do'}: {step.name}")
    needed = bytes_needed(ladder, rungs, seeds)
    parts = ", ".join(f"{what} {value / 1e9:.2f}" for what, value in needed.items() if value)
    print(
        f"about {sum(needed.values()) / 1e9:.2f} GB to be written ({parts or 'nothing'}); the states of SVMs come on top"
    )
    return 0


def _write(output: Path, page: Path | None) -> int:
    """The table and the plot of a folder's results: in the page that shows them, or else in the folder."""
    from benchmarks.ladder.page import fill_page
    from benchmarks.ladder.plot import plot_ladder
    from benchmarks.ladder.results import read_results
    from benchmarks.ladder.table import ladder_text

    results = read_results(output)
    if not results:
        raise UserError(f"{output} holds no results: run the ladder with --data first")
    text = ladder_text(results)
    if page is None:
        (output / "table.md").write_text(text + "\n", encoding="utf-8")
        plot_ladder(results, output / "ladder.png")
    else:
        picture = page.with_suffix(".png")
        plot_ladder(results, picture)
        fill_page(page, f"![The ladder]({picture.name})\n\n{text}")
    print(text)
    return 0


class Teller:
    """Progress on standard error: a line for each stage as it begins, then at most one every half minute."""

    def __init__(self) -> None:
        self.stage, self.told = ("", ""), 0.0

    def __call__(self, step: str, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if (step, stage) != self.stage or now - self.told > 30:
            self.stage, self.told = (step, stage), now
            print(f"{time.strftime('%H:%M:%S')} {step}: {stage} {done}/{total}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ladder", description=__doc__.split("\n\n")[0].partition(": ")[2],
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=None,
        help="annotated images: VOC, COCO or YOLO; left out: only write the table again",
    )
    add(
        "--work",
        type=Path,
        default=None,
        help="folder for proposals, maps and checkpoints; other trainings may share it",
    )
    add("--output", type=Path, required=True, help="folder of results; those that are there are not made again")
    add(
        "--page",
        type=Path,
        default=None,
        help="a page to fill the table into, such as docs/ladder.md, the plot beside it; left out: both go into --output",
    )
    add(
        "--rungs",
        nargs="+",
        default=[],
        help="names, or families: rcnn spp1 spp5 e2e; also with commas; all if left out",
    )
    add("--seeds", type=int, nargs="+", default=[0], help="of training")
    add("--dry-run", action="store_true", default=False, help="print the plan, and do nothing")
    add("--train-split", help="learn from the images of this split (train)")
    add("--test-split", help="test on the images of this split (val)")
    add("--train-images", type=int, help="so many of them, drawn with all classes; all if left out")
    add("--test-images", type=int, help="so many of them")
    add("--choice-seed", type=int, help="of the choice of images (0)")
    add("--backbone", help="compact, or a net of torchvision or timm (compact)")
    add("--weights", help="of the backbone: a file, or a name that torchvision knows")
    add("--levels", type=int, nargs="+", help="bins a side (3 2 1)")
    add("--hidden", type=int, nargs="+", help="widths of the fully connected layers (1024 1024)")
    add("--short-side", type=int, help="pixels, of the single scale (688)")
    add("--long-side", type=int, help="pixels, at most (1200)")
    add("--scales", type=int, nargs="+", help="short sides of the several scales (480 576 688 864 1200)")
    add("--proposer", help="selective-search, grid, edge-boxes, or several joined by + (selective-search)")
    add("--steps", type=int, help="of fine-tuning (2500)")
    add("--images-per-step", type=int, help="of fine-tuning (8)")
    add("--windows-per-image", type=int, help="of fine-tuning (64)")
    add("--learning-rate", type=float, help="of fine-tuning, at its peak (0.001)")
    add("--mirrored", action=argparse.BooleanOptionalAction, help="learn from mirror images too (yes)")
    add("--epochs", type=int, help="end to end, after fine-tuning (6)")
    add("--from-layer", help="the first layer that learns in e2e-from: a name or an index (the middle one)")
    add("--svd-energy", type=float, help="share that the truncated layers keep (0.9)")
    add("--rcnn-proposals", type=int, help="windows an image that R-CNN's SVMs and test look at; 0: all (500)")
    add("--rcnn-windows", type=int, help="windows an image that R-CNN's fully connected layers learn from (128)")
    add("--device", help="where to compute (cpu)")
    return parser
