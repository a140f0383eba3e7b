"""`python -m benchmarks.ladder`: train and test rungs, then write the table and the plot of all results that there are.

    uv run python -m benchmarks.ladder --data VOC2007 --cache CACHE --output benchmarks/results/ladder \\
        --backbone mobilenet_v2 --train-images 500 --test-images 200 --seeds 0 1 2
    uv run python -m benchmarks.ladder ... --rungs rcnn --seeds 0     # R-CNN takes hours: of one seed
    uv run python -m benchmarks.ladder ... --dry-run                  # the plan
    uv run python -m benchmarks.ladder --output benchmarks/results/ladder --page docs/ladder.md     # the table again

Killed, it goes on where it was: steps of training have checkpoints, and a test that was killed begins anew. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ladder.rungs import Rung, chosen_rungs, partners
from benchmarks.ladder.settings import Ladder, Settings, keep_plan
from benchmarks.ladder.table import fill_page, ladder_text, plot_ladder, read_ladder
from benchmarks.ladder.testing import measure_rung, result_file
from benchmarks.options import add_options, given_options
from benchmarks.results_file import write_text
from sppnet.errors import UserError
from sppnet.progress import progress_bars


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a user's mistake."""
    arguments = _parser().parse_args(words)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"ladder: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.page is not None:
        fill_page(arguments.page, None)  # a mistake in it is said before the work
    if arguments.data is None:  # nothing to run: the table of what there is
        return _write(arguments.output, arguments.page)
    rungs = chosen_rungs([name for word in arguments.rungs for name in word.split(",") if name])
    seeds = arguments.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds must be different whole numbers of at least 0: got {' '.join(map(str, seeds))}")
    if arguments.cache is None:
        raise UserError("--cache is missing: the folder for proposals, feature maps and models; trainings may share it")
    ladder = Ladder.of(Settings(**given_options(arguments, Settings)), arguments.cache)
    if arguments.dry_run:
        return _plan(ladder, rungs, seeds, arguments.output)
    keep_plan(ladder, arguments.output)
    with progress_bars() as progress:
        for seed in seeds:
            for rung in rungs:
                path = measure_rung(
                    ladder, rung, seed, seeds, arguments.output,
                    lambda step, stage, done, total: progress(f"{step}: {stage}", done, total),
                )  # fmt: skip
                print(f"{rung.name}, seed {seed}: {path or 'left out, it takes more seeds'}", flush=True)
    return _write(arguments.output, arguments.page)


def _plan(ladder: Ladder, rungs: Sequence[Rung], seeds: Sequence[int], output: Path) -> int:
    """Print what would run."""
    print(f"{len(ladder.train)} images of {ladder.settings.train_split!r} to train on, {len(ladder.test)} of "
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
                    print(f"    {'done' if step.done else 'to do'}: {step.name}")
    return 0


def _write(output: Path, page: Path | None) -> int:
    """The table and the plot of a folder's results: in the page that shows them, or else in the folder."""
    results = read_ladder(output)
    if not results:
        raise UserError(f"{output} holds no results: run the ladder with --data first")
    text, picture = ladder_text(results), (page or output / "ladder.md").with_suffix(".png")
    plot_ladder(results, picture)
    if page is None:
        write_text(output / "table.md", text + "\n")
    else:
        fill_page(page, f"![The ladder]({picture.name})\n\n{text}")
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ladder", description=__doc__.split("\n\n")[0].partition(": ")[2]
    )
    add = parser.add_argument
    add("--data", type=Path, help="annotated images: VOC, COCO or YOLO; left out: only write the table again")
    add("--cache", type=Path, help="folder for proposals, feature maps and models; other trainings may share it")
    add("--output", type=Path, required=True, help="folder of results; those that are there are not made again")
    add(
        "--page",
        type=Path,
        help="a page to fill the table into, such as docs/ladder.md, the plot beside it; left out: into --output",
    )
    add(
        "--rungs",
        nargs="+",
        default=[],
        help="names, or families: rcnn spp1 spp5 e2e; also with commas; all if left out",
    )
    add("--seeds", type=int, nargs="+", default=[0], help="of training")
    add("--dry-run", action="store_true", help="print the plan, and do nothing")
    add_options(parser, Settings)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
