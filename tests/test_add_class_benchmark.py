"""`benchmarks/add_class`: what is left out of what, the race against the clock, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.add_class.__main__ import main
from benchmarks.add_class.faster_rcnn import example
from benchmarks.add_class.page import page, target_of
from benchmarks.add_class.race import Race, Racer, reached, run_race
from benchmarks.add_class.settings import Settings, Splits, only_class, without_class
from benchmarks.results_file import read_results
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.errors import UserError

RECORDED = Path(__file__).parents[1] / "benchmarks" / "results" / "add_class.json"


def image(name: str, *labels: int) -> AnnotatedImage:
    boxes = np.array([[10 * i, 0, 10 * i + 5, 9] for i in range(len(labels))], np.float32).reshape(-1, 4)
    return AnnotatedImage(
        name, Path(f"{name}.jpg"), (20, 40), boxes, np.array(labels, np.int64), np.zeros(len(labels), bool)
    )


CATS = DetectionData(("ant", "cat", "dog"), (image("a", 1, 3), image("b", 2, 3, 2), image("c")), "train")


# What is left out of what


def test_without_a_class_its_objects_and_its_name_are_gone() -> None:
    left = without_class(CATS, "cat")
    assert left.class_names == ("ant", "dog")
    assert [each.gt_labels.tolist() for each in left.images] == [[1, 2], [2], []]
    assert [each.gt_labels.tolist() for each in CATS.images] == [[1, 3], [2, 3, 2], []], "unchanged"


def test_only_a_class_is_its_objects_with_label_1() -> None:
    kept = only_class(CATS, "cat")
    assert kept.class_names == ("cat",)
    assert [each.gt_labels.tolist() for each in kept.images] == [[], [1, 1], []]


def test_the_old_detector_never_sees_the_class(tiny_voc_original: Path) -> None:
    splits = Splits.of(Settings(tiny_voc_original, "square"))
    label = splits.everything.class_names.index("square") + 1
    assert splits.old.class_names == splits.test_old.class_names == ("circle",)
    assert len(splits.old) > 0
    assert all((each.gt_labels == label).any() for each in splits.new.images)
    train = {each.image_id: each for each in read_voc(tiny_voc_original, "train").images}
    assert not any((train[each.image_id].gt_labels == label).any() for each in splits.old.images)
    assert sorted(each.image_id for each in splits.everything.images) == sorted(train)


def test_what_cannot_be_compared(tiny_voc: Path) -> None:
    with pytest.raises(UserError, match="no class 'star', only circle, square"):
        Splits.of(Settings(tiny_voc, "star"))
    with pytest.raises(UserError, match="expected two splits"):
        Settings(tiny_voc, "square", train_split="val")
    with pytest.raises(UserError, match="epochs must be at least 1: got 0"):
        Settings(tiny_voc, "square", epochs=0)


def test_settings_are_named_without_paths_of_this_machine(tmp_path: Path) -> None:
    here = Settings(tmp_path / "VOC2007", weights=str(tmp_path / "net.safetensors"))
    assert str(tmp_path) not in json.dumps(here.to_dict())
    assert here.key == Settings(Path("elsewhere/VOC2007"), weights="net.safetensors").key
    assert here.key != Settings(tmp_path / "VOC2007", weights="net.safetensors", seed=1).key


def test_an_example_is_flipped_with_its_boxes(tiny_voc_original: Path) -> None:
    data = only_class(read_voc(tiny_voc_original, "val"), "square")
    shown = next(each for each in data.images if len(each.gt_boxes) and not each.difficult.any())
    pixels, target = example(shown, flip=False)
    other, flipped = example(shown, flip=True)
    assert torch.equal(other, pixels.flip(2))
    x0, y0, x1, y1 = (int(value) for value in target["boxes"][0])
    u0, v0, u1, v1 = (int(value) for value in flipped["boxes"][0])
    assert torch.equal(other[:, v0:v1, u0:u1], pixels[:, y0:y1, x0:x1].flip(2))


# The race


def test_the_rate_grows_and_then_stays_or_falls_with_the_time() -> None:
    steady, falling = Race(rate=0.01), Race(rate=0.01, schedule="cosine", limit_minutes=100 / 60)
    assert steady.rate_at(0, 0) < steady.rate_at(1000, 3000) == 0.01
    assert falling.rate_at(1000, 50) == pytest.approx(0.005)
    assert falling.rate_at(1000, 100) == pytest.approx(0, abs=1e-12)


def test_tests_come_at_whole_multiples_and_at_the_end() -> None:
    race = Race(every=60, limit_minutes=2.5)
    assert [race.next_test(seconds) for seconds in (0, 59.9, 60, 61.5, 125)] == [60, 60, 120, 120, 150]


def test_every_image_of_the_class_is_learned_from_before_any_comes_again() -> None:
    new = [image(str(number), 1) for number in range(6)]
    racer = Racer(nn.Linear(1, 1), Race(race_images=4), new)
    ids = [each.image_id for step in range(3) for each, _ in racer.chosen(step)]
    assert sorted(ids[:6]) == sorted(ids[6:]) == list("012345")
    assert {flip for step in range(9) for _, flip in racer.chosen(step)} == {True, False}


def test_a_loss_that_is_no_number_says_what_to_do(tiny_voc_original: Path) -> None:
    class Nan(nn.Linear):
        def forward(self, *_: Any) -> Any:
            return {"loss": self.weight.sum() * float("nan")}

    racer = Racer(Nan(1, 1), Race(), only_class(read_voc(tiny_voc_original, "train"), "square").images)
    racer.bfloat16 = False
    with pytest.raises(UserError, match="diverged at step 0: the loss is nan; take a smaller --rate"):
        racer.run_until(1)


class Walker:
    """In a racer's place: a step takes a second, and its precision is a tenth of the steps."""

    def __init__(self) -> None:
        self.step, self.seconds, self.model = 0, 0.0, self

    def run_until(self, seconds: float, tell: Any = None) -> None:
        self.step, self.seconds = int(seconds), seconds

    def save(self, file: Path) -> None:
        file.write_text(str(self.step))

    def resume(self, file: Path) -> None:
        if file.exists():
            self.step = int(file.read_text())
            self.seconds = float(self.step)


def walk(file: Path, target: float | None, curve: list[Any], limit: float = 10) -> tuple[list[Any], list[int]]:
    """The curve of a race with tests every 2 seconds, and the steps at which it was tested."""
    tested: list[int] = []

    def test(walker: Any) -> tuple[float, float]:
        tested.append(walker.step)
        return 0.0, walker.step / 10

    start: Any = Walker
    keep: Any = lambda walker, points: None  # noqa: E731
    return run_race(Race(every=2, limit_minutes=limit / 60), start, test, target, file, curve, keep), tested


def test_a_race_ends_where_the_target_is_reached_or_the_time_is_over(tmp_path: Path) -> None:
    file = tmp_path / "walker"
    curve, tested = walk(file, 0.5, [])
    assert tested == [2, 4, 6]
    assert reached(curve, 0.5) == (4, 6)
    assert walk(file, 0.5, curve) == (curve, []), "nothing is left to do"
    longest, tested = walk(file, 2.0, curve)
    assert tested == [8, 10], "a higher target: it goes on"
    assert reached(longest, 2.0) is None


def test_killed_between_checkpoint_and_test_it_tests_first(tmp_path: Path) -> None:
    (tmp_path / "walker").write_text("4")
    curve, tested = walk(tmp_path / "walker", None, [{"seconds": 2.0, "step": 2, "voc07": 0.0, "area": 0.2}], limit=6)
    assert tested == [4, 6]
    assert [point["step"] for point in curve] == [2, 4, 6]


# What is written


def test_the_page_of_the_recorded_results_says_how_many_times_as_long_the_others_take() -> None:
    entries = read_results(RECORDED)
    text = page(entries, "add-class.png")
    assert "times as long" in text
    entry = next(iter(entries.values()))
    assert target_of({**entry, "parts": {}}, entry["settings"]["name"]) is None


def test_a_mistake_is_one_line(tmp_path: Path, tiny_voc_original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "r.json")
    assert main(["--json", file]) == 2
    assert "holds no results: run with --data first" in capsys.readouterr().err
    assert main(["--json", file, "--data", str(tiny_voc_original), "--class", "square"]) == 2
    assert "--cache is missing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_parts_of_a_tiny_comparison(
    tiny_voc_original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page_file = tmp_path / "r.json", tmp_path / "docs" / "add-class.md"
    words = [
        "--data",
        str(tiny_voc_original),
        "--class",
        "square",
        "--cache",
        str(tmp_path / "cache"),
        "--json",
        str(file),
    ]
    words += ["--markdown", str(page_file), "--backbone", "efficientnet_lite0", "--hidden", "32", "--levels", "2", "1"]
    words += ["--short-side", "96", "--proposals", "grid", "--epochs", "2", "--no-flip", "--repeats", "2"]
    words += ["--race-side", "96", "--race-windows", "8", "--limit-minutes", "0.05", "--every", "2"]
    assert main(words) == 0
    (entry,) = read_results(file).values()
    parts = entry["parts"]
    assert set(parts) == {"old", "add", "add-from-all", "all"}
    assert len(parts["add"]["each time"]) == 2
    assert parts["add"]["same weights"]
    before, after = parts["old"]["test"]["classes"], parts["add"]["test"]["classes"]
    assert set(before) == {"circle"}
    assert after["circle"]["area"] == pytest.approx(before["circle"]["area"], abs=2e-3)  # sums in another order
    assert page_file.with_suffix(".png").is_file()
    assert str(tmp_path) not in file.read_text() + page_file.read_text()
    known = file.read_bytes()
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().err.count("measured before") == 5
    assert file.read_bytes() == known
