"""`benchmarks/ladder`: its choice of images, its clock and resumption, R-CNN's files, its tables; and tiny runs of its rungs."""

from __future__ import annotations

import doctest
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sppnet.detection.rcnn import RcnnSettings, rcnn_features, rcnn_pooled

from benchmarks.ladder import rcnn, testing
from benchmarks.ladder.choose import choose_images
from benchmarks.ladder.claims import CLAIMS, claims_table
from benchmarks.ladder.command import main
from benchmarks.ladder.page import fill_page, filled
from benchmarks.ladder.plot import plot_ladder
from benchmarks.ladder.results import Results, Spread, gain, read_results, verdict
from benchmarks.ladder.room import bytes_needed, check_room
from benchmarks.ladder.rungs import NAMES, RUNGS, chosen_rungs
from benchmarks.ladder.settings import Ladder, Settings, keep_plan
from benchmarks.ladder.steps import Clock, Step, cost_of, ensure, is_done, measured, read_record, record_file
from benchmarks.ladder.table import ladder_text
from benchmarks.ladder.testing import standing
from benchmarks.ladder.warped import WarpedMaps, WarpedWindows, capped_proposals, describe_all, pool_sample
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import read_image
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.predict import Stopwatch, score_windows
from sppnet.errors import UserError
from sppnet.models.files import load
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import propose
from sppnet.proposals.files import load_proposals, save_proposals

MODULES = ("choose", "page", "results", "rungs", "settings")  # those with examples
TINY = {
    "levels": (2, 1), "hidden": (32,), "short_side": 96, "long_side": 160, "scales": (64, 96), "proposer": "grid", "steps": 6,
    "images_per_step": 2, "windows_per_image": 8, "epochs": 1, "rcnn_proposals": 12, "rcnn_windows": 8,
}  # fmt: skip


def options(voc: Path, folder: Path, *more: str) -> list[str]:
    words = ["--data", str(voc), "--work", str(folder / "work"), "--output", str(folder / "out")]
    for name, value in TINY.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return [*words, *more]


# Which images


def annotated(labels: list[list[int]], classes: int) -> DetectionData:
    images = tuple(
        AnnotatedImage(
            str(row), Path(f"{row}.jpg"), (10, 10), np.zeros((len(each), 4), np.float32),
            np.array(each, np.int64), np.zeros(len(each), bool),
        )
        for row, each in enumerate(labels)
    )  # fmt: skip
    return DetectionData(tuple(f"class {k}" for k in range(classes)), images, "train")


@given(
    st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 9)
)
def test_a_choice_is_some_of_the_images_in_their_order_and_the_same_again(
    labels: list[list[int]], count: int, seed: int
) -> None:
    data = annotated(labels, 3)
    chosen = choose_images(data, count, seed)
    ids = [int(image.image_id) for image in chosen.images]
    assert len(ids) == min(count, len(labels))
    assert ids == sorted(set(ids))
    assert chosen.class_names == data.class_names
    assert ids == [int(image.image_id) for image in choose_images(data, count, seed).images]


def test_rare_classes_are_in_a_small_choice_and_shares_are_kept() -> None:
    data = annotated([[1]] * 60 + [[2]] * 30 + [[3]] * 6 + [[]] * 24, 3)
    for seed in range(5):
        labels = [tuple(image.gt_labels) for image in choose_images(data, 20, seed).images]
        assert [labels.count(each) for each in ((1,), (2,), (3,), ())] == [10, 5, 1, 4]
    assert choose_images(data, None, 0) is data


def test_another_seed_chooses_others() -> None:
    data = annotated([[1]] * 50, 1)
    assert [image.image_id for image in choose_images(data, 5, 0).images] != [
        image.image_id for image in choose_images(data, 5, 1).images
    ]


# Steps


def test_the_clock_gives_time_to_the_stage_that_reports_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    times = iter([0.0, 2.0, 5.0, 6.0, 100.0, 101.0])
    file = tmp_path / "step.json"
    clock = Clock(file, paid=("maps",), now=lambda: next(times))
    clock.report("maps", 1, 1)  # 2 s that an earlier step has paid for
    clock.report("SVMs", 1, 2)
    clock.report("SVMs", 2, 2)
    clock.save({})
    again = Clock(file, now=lambda: next(times))
    again.report("SVMs", 2, 2)
    assert again.seconds == {"SVMs": 5.0}


def make_step(name: str, folder: Path, done: list[str], needs: tuple[Step, ...] = ()) -> Step:
    file = folder / f"{name}.txt"

    def run(report: Callable[[str, int, int], None]) -> None:
        done.append(name)
        report(name, 1, 1)
        file.write_text("12345")

    return Step(name, file, run, lambda: {"files": [file, folder / "not there"]}, needs)


def silent(*_: object) -> None:
    pass


def test_a_step_runs_once_after_what_it_needs_and_again_where_its_file_is_gone(tmp_path: Path) -> None:
    done: list[str] = []
    first = make_step("first", tmp_path, done)
    left, right = (make_step(name, tmp_path, done, (first,)) for name in ("left", "right"))
    last = make_step("last", tmp_path, done, (left, right))
    ensure(tmp_path, last, silent)
    ensure(tmp_path, last, silent)
    assert done == ["first", "left", "right", "last"]
    seconds, left_bytes = cost_of(tmp_path, [last, left])
    assert set(seconds) == {"first", "left", "right", "last"}
    assert left_bytes == {"files": 20}
    (tmp_path / "left.txt").unlink()
    ensure(tmp_path, last, silent)
    assert done[4:] == ["left"]


def test_a_step_that_stopped_is_not_done_and_keeps_its_seconds(tmp_path: Path) -> None:
    def run(report: Callable[[str, int, int], None]) -> None:
        report("work", 1, 2)
        raise KeyboardInterrupt

    step = Step("step", None, run, dict)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path, step, silent)
    assert not is_done(tmp_path, step)
    assert "work" in read_record(record_file(tmp_path, step))["seconds"]


def test_a_mistake_names_the_step(tmp_path: Path) -> None:
    def run(report: Callable[[str, int, int], None]) -> None:
        raise UserError("no object to learn from")

    with pytest.raises(UserError, match="svm-seed3: no object to learn from"):
        ensure(tmp_path, Step("svm-seed3", None, run, dict), silent)


def test_work_that_may_have_been_there_before_is_measured_on_a_sample(tmp_path: Path) -> None:
    seen: list[int] = []
    assert measured(lambda items: seen.extend(items), list(range(100)), sample=4) > 0
    assert seen == [0, 0, 25, 50, 75]
    step = Step("maps", None, lambda report: report("maps", 1, 1), dict, measure=lambda: {"maps": 77.0})
    ensure(tmp_path, step, silent)
    assert cost_of(tmp_path, [step])[0] == {"maps": 77.0}


# Rungs


def test_rungs_have_names_of_their_own_and_are_compared_with_rungs() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {rung.against for rung in RUNGS} - {""} <= set(NAMES)
    assert all(claim.rung in NAMES and claim.other in NAMES for claim in CLAIMS)
    with pytest.raises(UserError, match="no rung named 'spp2': expected some of rcnn, "):
        chosen_rungs(["spp2"])


def test_boxes_stand_where_they_were_proposed(tiny_detector: SPPNet) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    boxes = propose(image, "grid")
    maps = compute_feature_maps(tiny_detector, image)
    scores, moved = score_windows(tiny_detector, maps, boxes, Stopwatch())
    same, stood = score_windows(standing(tiny_detector), maps, boxes, Stopwatch())
    assert torch.equal(scores, same)
    assert (stood - torch.from_numpy(boxes)[:, None]).abs().max() < 1e-3
    assert (moved - stood).abs().max() > 0.01


# R-CNN


def test_crops_are_found_again_by_their_boxes(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    image = read_voc(tiny_voc, "train").images[0]
    boxes = torch.tensor([[5.0, 5, 60, 70], [0, 0, 100, 50], [20, 30, 90, 99]])
    pixels, width = read_image(image.path), image.size[1]
    plain, mirrored = tmp_path / "plain.safetensors", tmp_path / "mirrored.safetensors"
    pool_sample(tiny_detector, image.path, boxes, plain, at_once=2)
    pool_sample(tiny_detector, image.path, boxes, mirrored, at_once=2, mirrored=True)
    expected = rcnn_pooled(pixels, boxes.numpy(), tiny_detector, RcnnSettings(at_once=3))
    maps = rcnn.WarpedCache().read(plain)
    windows, residuals = maps.windows(tiny_detector, boxes[[2, 0]])
    assert torch.allclose(maps.pool(tiny_detector, windows).float(), expected[[2, 0]].float(), atol=0.05, rtol=0.05)
    assert not residuals.any()
    whole = rcnn_pooled(pixels, np.array([[0.0, 0, width, image.size[0]]]), tiny_detector)
    assert torch.allclose(maps.pool(tiny_detector, maps.whole_window()).float(), whole.float(), atol=0.05, rtol=0.05)
    flipped = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    other = rcnn.WarpedCache().read(mirrored)
    of_mirror = rcnn_pooled(np.ascontiguousarray(pixels[:, ::-1]), flipped.numpy(), tiny_detector)
    found = other.pool(tiny_detector, other.windows(tiny_detector, flipped)[0])
    assert torch.allclose(found.float(), of_mirror.float(), atol=0.05, rtol=0.05)


def test_a_box_that_was_not_sampled_is_no_window() -> None:
    with pytest.raises(KeyError):
        WarpedMaps(torch.zeros(1, 4), torch.zeros(2, 5, 3)).windows(None, torch.ones(1, 4))  # type: ignore[arg-type]


def test_svms_see_objects_then_proposals_as_crops(tiny_detector: SPPNet, tiny_voc: Path, tmp_path: Path) -> None:
    image = read_voc(tiny_voc, "train").images[0]
    proposals = np.array([[0, 0, 50, 50], [10, 20, 90, 80]], np.float32)
    save_proposals(tmp_path / "boxes.npz", proposals, {})
    described = tmp_path / "described.safetensors"
    describe_all(tiny_detector, image, tmp_path / "boxes.npz", described, at_once=2)
    windows = WarpedWindows([image], [tmp_path / "boxes.npz"], [described], 2)[0]
    assert windows.labels.tolist() == [*image.gt_labels.tolist(), 0, 0]
    expected = rcnn_features(read_image(image.path), windows.boxes.numpy(), tiny_detector, RcnnSettings(at_once=2))
    rows = torch.tensor([3, 0])
    assert torch.allclose(windows.features(rows).float(), expected[rows].float(), atol=0.01, rtol=0.01)
    assert len(list(WarpedWindows([image] * 3, [tmp_path / "boxes.npz"] * 3, [described] * 3, 2))) == 3


def test_few_windows_are_some_of_all_and_always_the_same(tmp_path: Path) -> None:
    boxes = np.arange(400, dtype=np.float32).reshape(100, 4)
    save_proposals(tmp_path / "all.npz", boxes, {"proposer": "some"})
    capped_proposals(tmp_path / "all.npz", tmp_path / "few.npz", "000005", 10)
    few, made_by = load_proposals(tmp_path / "few.npz")
    assert len(few) == 10
    assert set(few[:, 0]) <= set(boxes[:, 0])
    assert made_by["proposer"] == "some"
    (tmp_path / "few.npz").unlink()
    capped_proposals(tmp_path / "all.npz", tmp_path / "few.npz", "000005", 10)
    assert (load_proposals(tmp_path / "few.npz")[0] == few).all()


# Tables


def result(rung: str, seed: int, voc07: float, seconds: float = 60.0) -> dict[str, Any]:
    settings = Settings(Path("VOC2007")).to_dict()
    return {
        "rung": rung, "title": f"the title of {rung}", "seed": seed, "map": {"voc07": voc07, "area": voc07 + 0.01},
        "errors": {"total": {"ap_without": {"localisation": voc07 + 0.1}}}, "images": 4, "train_images": 8,
        "train_seconds": {"maps": seconds, "SVMs": 2 * seconds}, "bytes": {"maps": 10**9, "model": 5 * 10**8},
        "test_seconds": {"proposals": 0.5, "maps": 0.25, "pooling": 0.1, "fully connected": 0.1, "nms": 0.05},
        "settings": settings, "environment": {"text": "a machine", "load before": 0.5},
    }  # fmt: skip


@pytest.fixture
def results() -> Results:
    """Two rungs of three seeds: .30, .31, .32; and each of these 2 points more, but for .1 up and down."""
    first = {seed: result("spp1-softmax", seed, 0.3 + 0.01 * seed) for seed in range(3)}
    second = {seed: result("spp1-svm", seed, 0.32 + 0.01 * seed + 0.001 * (seed - 1)) for seed in range(3)}
    return {"spp1-softmax": first, "spp1-svm": second}


def test_a_gain_is_told_seed_by_seed(results: Results) -> None:
    spread = gain(results, "spp1-svm", "spp1-softmax")
    assert spread.values == pytest.approx((1.9, 2.0, 2.1))
    assert spread.text(signed=True) == "+2.0 ± 0.1"
    assert spread.interval == pytest.approx((2 - 4.3027 * 0.1 / 3**0.5, 2 + 4.3027 * 0.1 / 3**0.5), abs=1e-3)
    assert verdict(spread) == "more"
    del results["spp1-softmax"][1]
    assert len(gain(results, "spp1-svm", "spp1-softmax").values) == 2
    assert gain(results, "spp1-svm", "rcnn") == Spread(())


def test_the_tables(results: Results) -> None:
    text = ladder_text(results)
    assert (
        "| spp1-svm | the title of spp1-svm | **33.0 ± 1.1** | 31.9, 33.0, 34.1 | 34.0 ± 1.1 | 43.0 ± 1.1 | +2.0 ± 0.1 | "
        "spp1-softmax |"
    ) in text
    assert "| spp1-softmax | 3.0 | SVMs 2.0, maps 1.0 | 1.000 | 0.500 | 0.250 | 0.100 | 0.100 | 0.050 | 1.50 |" in text
    assert "| SVMs in place of softmax, backbone frozen | spp1-svm - spp1-softmax | not reported | +2.0 ± 0.1 | 3 | more |" in (
        claims_table(results)
    )  # fmt: skip
    assert claims_table({"rcnn": {0: result("rcnn", 0, 0.5)}}) == ""
    assert ladder_text({}) == "No results yet."


def test_the_plot(results: Results, tmp_path: Path) -> None:
    plot_ladder(results, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no results to plot"):
        plot_ladder({}, tmp_path / "ladder.png")


def test_a_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "ladder.md"
    page.write_text("# Title\n<!-- table -->\nold\n<!-- end of table -->\nrest\n")
    for text in ("first", "second"):
        fill_page(page, text)
    assert page.read_text() == "# Title\n<!-- table -->\n\nsecond\n\n<!-- end of table -->\nrest\n"
    with pytest.raises(ValueError, match="each once"):
        filled("<!-- end of table --> <!-- table -->", "")
    page.write_text("no markers")
    with pytest.raises(UserError, match=r"ladder\.md: expected <!-- table --> and, after it, <!-- end of table -->"):
        fill_page(page, "text")


def test_the_page_of_the_documentation_has_room_for_the_table() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "ladder.md"
    assert "the table" in filled(page.read_text(encoding="utf-8"), "the table")
    assert all(
        f"`{name}`" in page.read_text(encoding="utf-8") for name in NAMES if not name.startswith(("spp5", "rcnn-"))
    )


# Settings and room


def test_results_of_other_settings_never_meet(tiny_voc: Path, tmp_path: Path) -> None:
    ladder = Ladder.of(Settings(tiny_voc, proposer="grid"), tmp_path)
    keep_plan(ladder, tmp_path / "out")
    keep_plan(ladder, tmp_path / "out")
    other = Ladder.of(replace(ladder.settings, epochs=7), tmp_path)
    with pytest.raises(UserError, match="holds results of other settings \\(epochs: 6 there, 7 asked for\\)"):
        keep_plan(other, tmp_path / "out")
    fewer = Ladder.of(replace(ladder.settings, test_images=2), tmp_path)
    with pytest.raises(UserError, match="test_images"):
        keep_plan(fewer, tmp_path / "out")
    assert other.key == ladder.key == fewer.key  # what is trained before that is the same
    assert Ladder.of(replace(ladder.settings, steps=7), tmp_path).key != ladder.key
    assert Ladder.of(replace(ladder.settings, train_images=7), tmp_path).key != ladder.key
    assert str(tiny_voc.parent) not in json.dumps(ladder.plan)


def test_room_is_counted_before_the_work(tiny_voc: Path, tmp_path: Path) -> None:
    ladder = Ladder.of(Settings(tiny_voc, short_side=96, long_side=160, scales=(96, 192), proposer="grid"), tmp_path)
    one = bytes_needed(ladder, chosen_rungs(["spp1-svm"]), [0])
    more = bytes_needed(ladder, chosen_rungs(["spp1-svm", "spp5-svm"]), [0])
    seeds = bytes_needed(ladder, chosen_rungs(["spp1-svm"]), [0, 1])
    assert more["maps"] > 3 * one["maps"] > 0
    assert seeds["maps"] == one["maps"]
    assert seeds["checkpoints"] == 2 * one["checkpoints"]
    check_room(ladder, one)
    with pytest.raises(UserError, match=r"the rungs need about 1000000\.0 GB below .* \(maps 1000000\.0 GB\), where"):
        check_room(ladder, {"maps": 10**15, "crops": 0})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rungs", "ladder"], "no rung named 'ladder'"),
        (["--seeds", "1", "1"], "--seeds must be different whole numbers of at least 0: got 1 1"),
        (["--test-split", "train"], "expected two splits"),
        (["--page", "nowhere.md"], "nowhere.md: no such page"),
        (["--svd-energy", "2"], "svd_energy above 0 and at most 1"),
        (["--train-images", "0"], "train_images must be at least 1, or left out for all: got 0"),
    ],
)
def test_mistakes_are_said_in_one_line(
    more: list[str], message: str, tiny_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(tiny_voc, tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert said.startswith("ladder: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Tiny runs


def test_a_plan_runs_nothing(tiny_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(tiny_voc, tmp_path, "--dry-run", "--rungs", "spp1-svm,e2e-two", "--seeds", "0")) == 0
    told = capsys.readouterr().out
    assert "    to do: spp1-svm-seed0\n" in told
    assert "e2e-two, seed 0: left out, it takes more seeds" in told
    assert "GB to be written" in told
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work").exists()


def test_a_run_is_stopped_goes_on_and_writes_its_tables(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = options(tiny_voc, tmp_path, "--rungs", "spp1-softmax", "spp1-svm", "--no-mirrored", "--train-images", "4")
    page = tmp_path / "page.md"
    page.write_text("<!-- table --><!-- end of table -->")

    class Stopping:
        def __call__(self, step: str, stage: str, done: int, total: int) -> None:
            if stage == "SVMs":
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.ladder.command.Teller", Stopping)
        with pytest.raises(KeyboardInterrupt):
            main(words)
    assert sorted(path.name for path in (tmp_path / "out").glob("*seed*")) == ["spp1-softmax-seed0.json"]
    before = (tmp_path / "out" / "spp1-softmax-seed0.json").stat().st_mtime_ns

    assert main([*words, "--page", str(page)]) == 0
    found = read_results(tmp_path / "out")
    assert list(found) == ["spp1-softmax", "spp1-svm"]
    assert (tmp_path / "out" / "spp1-softmax-seed0.json").stat().st_mtime_ns == before
    of_svm = found["spp1-svm"][0]
    assert set(of_svm["train_seconds"]) == {"proposals", "maps", "fine-tuning", "SVMs"}
    assert set(testing.STAGES) <= set(of_svm["test_seconds"])
    assert all(of_svm["bytes"][what] > 0 for what in ("proposals", "maps", "model", "checkpoints", "states"))
    assert of_svm["images"] == 4
    assert str(tmp_path) not in json.dumps(of_svm)
    assert "spp1-svm" in page.read_text()
    assert page.with_suffix(".png").is_file()
    kept = [tmp_path / "out" / name for name in ("table.md", "ladder.png")]  # where there is no page
    assert not any(path.exists() for path in kept)
    assert main(["--output", str(tmp_path / "out")]) == 0
    assert all(path.is_file() for path in kept)

    def refused(*_: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(testing, "ensure", refused)
    assert main(words) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_rung_runs_with_two_seeds(tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcnn, "AT_ONCE", (1, 2))
    words = options(tiny_voc, tmp_path, "--seeds", "0", "1")
    assert main(words) == 0
    found = read_results(tmp_path / "out")
    assert tuple(found) == NAMES
    for name, of_seeds in found.items():
        assert len(of_seeds) == (1 if name.endswith("-two") else 2), name
    assert set(found["rcnn"][0]["train_seconds"]) == {"proposals", "crops", "fine-tuning", "windows", "SVMs"}
    assert found["spp1-few"][0]["map"] != found["spp1-svm"][0]["map"]
    assert found["e2e-svd"][0]["ranks"]
    assert found["spp5-svm"][0]["bytes"]["maps"] > found["spp1-svm"][0]["bytes"]["maps"]
    assert found["e2e-svm"][0]["bytes"]["maps"] > found["e2e-all"][0]["bytes"]["maps"]
    assert found["rcnn"][0]["test_seconds"]["maps"] > found["spp1-few"][0]["test_seconds"]["maps"]
    ladder = Ladder.of(Settings(tiny_voc, **TINY), tmp_path / "work")  # type: ignore[arg-type]
    files = {step.makes for rung in RUNGS for step in rung.make(ladder, 0).all()}
    assert all(load(file) for file in files if file is not None and file.suffix == ".safetensors")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings(name: str) -> None:
    module = importlib.import_module(f"benchmarks.ladder.{name}")
    tested = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tested.attempted > 0
    assert tested.failed == 0
