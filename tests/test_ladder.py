"""The ladder: its recorded results make the page that shows them, its plan names every step, and a tiny run climbs it."""

from __future__ import annotations

import doctest
import importlib
import json
from pathlib import Path

import pytest

from benchmarks.ladder.__main__ import main
from benchmarks.ladder.rungs import AGAINST, CLAIMS, chosen_rungs
from benchmarks.ladder.table import BEGIN, END, gain, ladder_text, read_ladder, verdict
from sppnet.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "ladder"
TINY = (
    "--backbone",
    "efficientnet_lite0",
    "--short-side",
    "64",
    "--proposals",
    "grid",
    "--levels",
    "2",
    "1",
    "--hidden",
    "8",
)


@pytest.mark.parametrize("name", ["rungs", "settings", "steps", "table", "testing", "training", "rcnn"])
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"benchmarks.ladder.{name}")).failed == 0


def test_the_page_shows_what_was_measured() -> None:
    page = (REPOSITORY / "docs" / "ladder.md").read_text(encoding="utf-8")
    shown = page.partition(BEGIN)[2].partition(END)[0]
    assert ladder_text(read_ladder(RESULTS)) in shown


def test_every_claim_and_comparison_is_of_rungs_that_are_there() -> None:
    measured = read_ladder(RESULTS)
    assert set(measured) <= set(AGAINST)
    for claim in CLAIMS:
        assert {claim.rung, claim.other} <= set(AGAINST)
    voting = gain(measured, "spp1-vote", AGAINST["spp1-vote"])
    assert len(voting.values) == 3
    assert verdict(voting) == "more"


def test_rungs_are_chosen_by_name_and_family() -> None:
    assert {rung.name for rung in chosen_rungs(["spp5"])} == {
        rung.name for rung in chosen_rungs([]) if "spp5" in rung.name
    }
    assert next(iter(chosen_rungs(["rcnn"]))).name.startswith("rcnn")
    with pytest.raises(UserError, match="spp9"):
        chosen_rungs(["spp9"])


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "rcnn-seed0.json").write_text(json.dumps({"rung": "rcnn"}))
    with pytest.raises(UserError, match=r"rcnn-seed0\.json is not a result of the ladder"):
        read_ladder(tmp_path)
    assert main(["--output", str(tmp_path / "none")]) == 2


def test_the_plan_does_nothing(tiny_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(tiny_voc), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    assert main([*words, *TINY, "--rungs", "spp1-softmax", "--dry-run"]) == 0
    assert "to do: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_ladder_is_climbed_and_not_climbed_twice(
    tiny_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(tiny_voc), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    rungs = ["--rungs", "rcnn", "spp1-softmax", "spp1-network", "spp1-svm"]
    assert main([*words, *TINY, *rungs]) == 0
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in rungs[1:])
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-seed0.json")}
    assert len(written) == 5  # the family "rcnn" has two
    assert main([*words, *TINY, *rungs]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
