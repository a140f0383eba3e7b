"""`benchmarks/add_class`: what is left out of what, the race against the clock, and what is written of it."""

from __future__ import annotations

import doctest
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.add_class import page as pages
from benchmarks.add_class import race as racing
from benchmarks.add_class import settings as choices
from benchmarks.add_class.command import main
from benchmarks.add_class.faster_rcnn import (
    Part,
    average_precision_of,
    build_faster_rcnn,
    choose_precision,
    compute_in,
    example,
)
from benchmarks.add_class.page import page, plot
from benchmarks.add_class.race import Race, Racer, reached, run_race
from benchmarks.add_class.results import keep_row, read_entries, target_of
from benchmarks.add_class.settings import Settings, Splits, only_class, without_class
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.data.images import read_image
from sppnet.errors import UserError
from sppnet.models.precision import precision_of


def image(name: str, *labels: int, difficult: bool = False) -> AnnotatedImage:
    boxes = np.array([[10 * i, 0, 10 * i + 5, 9] for i in range(len(labels))], np.float32).reshape(-1, 4)
    each = np.full(len(labels), difficult)
    return AnnotatedImage(name, Path(f"{name}.jpg"), (20, 40), boxes, np.array(labels, np.int64), each)


CATS = DetectionData(("ant", "cat", "dog"), (image("a", 1, 3), image("b", 2, 3, 2), image("c")), "train")


def boxes_of(backbone: nn.Module | None = None) -> Any:
    """A Faster R-CNN that is small; the same numbers every time."""
    torch.manual_seed(0)
    backbone = backbone or nn.Sequential(nn.Conv2d(3, 32, 16, stride=16), nn.ReLU())
    return build_faster_rcnn(backbone, 64, 128, windows=16)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a race takes one second."""
    monkeypatch.setattr(racing, "time", SimpleNamespace(perf_counter=itertools.count().__next__))


@pytest.mark.parametrize("module", [choices, racing, pages])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


# What is left out of what


def test_without_a_class_its_objects_and_its_name_are_gone() -> None:
    left = without_class(CATS, "cat")
    assert left.class_names == ("ant", "dog")
    assert [each.gt_labels.tolist() for each in left.images] == [[1, 2], [2], []]
    assert left.images[1].gt_boxes.tolist() == [[10, 0, 15, 9]]
    assert [each.gt_labels.tolist() for each in CATS.images] == [[1, 3], [2, 3, 2], []], "unchanged"


def test_only_a_class_is_its_objects_with_label_1() -> None:
    kept = only_class(CATS, "cat")
    assert kept.class_names == ("cat",)
    assert [each.gt_labels.tolist() for each in kept.images] == [[], [1, 1], []]
    assert kept.images[1].gt_boxes[:, 0].tolist() == [0, 20]


def test_the_old_detector_never_sees_the_class(tiny_voc_original: Path) -> None:
    splits = Splits.of(Settings(tiny_voc_original, "square"))
    label = splits.everything.class_names.index("square") + 1
    assert splits.old.class_names == splits.test_old.class_names == ("circle",)
    assert len(splits.old) > 0
    assert len(splits.new) > 0
    assert all((each.gt_labels == label).any() for each in splits.new.images)
    train = {each.image_id: each for each in read_voc(tiny_voc_original, "train").images}
    assert not any((train[each.image_id].gt_labels == label).any() for each in splits.old.images)
    ids = [each.image_id for each in splits.everything.images]
    assert ids == [each.image_id for data in (splits.old, splits.new) for each in data.images], "the old ones first"
    assert sorted(ids) == sorted(train)
    assert [each.image_id for each in splits.test_old.images] == [each.image_id for each in splits.test.images]


def test_what_cannot_be_compared(tiny_voc: Path) -> None:
    with pytest.raises(UserError, match="no class 'star', only circle, square"):
        Splits.of(Settings(tiny_voc, "star"))
    with pytest.raises(UserError, match="expected two splits"):
        Settings(tiny_voc, "square", train_split="val")
    with pytest.raises(UserError, match="steps must be at least 1: got 0"):
        Settings(tiny_voc, "square", steps=0)
    for file in (tiny_voc / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("circle", "square"))
    with pytest.raises(UserError, match="no class 'circle', only square"):
        Splits.of(Settings(tiny_voc, "circle"))
    with pytest.raises(UserError, match="every image of split 'train' shows 'square'"):
        Splits.of(Settings(tiny_voc, "square"))


def test_settings_are_named_without_paths_of_this_machine(tmp_path: Path) -> None:
    here = Settings(tmp_path / "VOC2007", weights=str(tmp_path / "net.safetensors"))
    assert str(tmp_path) not in json.dumps(here.to_dict())
    assert here.key == Settings(Path("elsewhere/VOC2007"), weights="net.safetensors").key
    assert here.key != Settings(tmp_path / "VOC2007", weights="net.safetensors", seed=1).key


# The network


def test_an_example_is_mirrored_with_its_boxes_and_without_difficult_objects(tiny_voc_original: Path) -> None:
    data = only_class(read_voc(tiny_voc_original, "val"), "square")
    (shown,) = [each for each in data.images if each.difficult.any()]
    assert len(example(shown, mirrored=False)[1]["boxes"]) == len(shown.gt_boxes) - 1
    shown = next(each for each in data.images if len(each.gt_boxes) and not each.difficult.any())
    pixels, target = example(shown, mirrored=False)
    other, mirror = example(shown, mirrored=True)
    assert torch.equal(other, pixels.flip(2))
    assert pixels.shape == (3, *shown.size)
    x0, y0, x1, y1 = (int(value) for value in target["boxes"][0])
    u0, v0, u1, v1 = (int(value) for value in mirror["boxes"][0])
    assert torch.equal(other[:, v0:v1, u0:u1], pixels[:, y0:y1, x0:x1].flip(2))
    assert target["labels"].tolist() == [1] * len(shown.gt_boxes)


def test_in_bfloat16_it_says_nearly_the_same_and_in_float32() -> None:
    if precision_of(torch.device("cpu")) != "bfloat16":
        pytest.skip("bfloat16 is not fast on this processor, so it is not used")
    part = Part(nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.ReLU()))
    images = torch.rand(1, 3, 16, 16)
    exact = part(images)
    compute_in(part, bfloat16=True)
    rounded = part(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_every_layer_learns_and_choosing_the_precision_changes_none(tiny_voc_original: Path) -> None:
    data = only_class(read_voc(tiny_voc_original, "train"), "square")
    model = boxes_of().train()
    pairs = [example(each, mirrored=False) for each in data.images[:2]]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = choose_precision(model, [pixels for pixels, _ in pairs], [target for _, target in pairs])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {part.bfloat16 for part in model.modules() if isinstance(part, Part)} == {chosen}
    racer = Racer(model, Race(images_per_step=8, learning_rate=0.05), data.images)
    racer.bfloat16 = False
    racer.run_until(1e-6)
    assert racer.step == 1
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert same == [], "the first step moves every weight"


class Knowing(nn.Module):
    """Finds what it was told, in the order of the images."""

    def __init__(self, answers: list[tuple[np.ndarray, float]]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        boxes, score = next(self.answers)
        count = len(boxes)
        ones = torch.ones(count, dtype=torch.int64)
        return [{"boxes": torch.from_numpy(boxes), "scores": torch.full((count,), score), "labels": ones}]


def test_its_average_precision_is_that_of_the_class(tiny_voc_original: Path) -> None:
    data = only_class(read_voc(tiny_voc_original, "val"), "square")
    model: Any = Knowing([(each.gt_boxes, 0.9) for each in data.images])
    assert average_precision_of(model, data).ap_area == 1
    assert model.training
    model = Knowing([(each.gt_boxes + 200, 0.9) for each in data.images])
    assert average_precision_of(model, data).ap_area == 0


# The race


def test_the_rate_grows_and_then_stays_or_falls_with_the_time() -> None:
    steady, falling = Race(learning_rate=0.01), Race(learning_rate=0.01, schedule="cosine", limit=100)
    assert steady.rate(0, 0) == pytest.approx(0.01 / racing.WARM_UP)
    assert steady.rate(1000, 3000) == 0.01
    assert falling.rate(1000, 50) == pytest.approx(0.005)
    assert falling.rate(1000, 100) == pytest.approx(0, abs=1e-12)


def test_tests_come_at_whole_multiples_and_at_the_end() -> None:
    race = Race(every=60, limit=150)
    assert [race.next_test(seconds) for seconds in (0, 59.9, 60, 61.5, 125)] == [60, 60, 120, 120, 150]


def test_a_constant_race_is_the_same_one_with_more_time() -> None:
    assert Race(limit=60).label == Race(limit=6000).label
    assert Race(limit=60, schedule="cosine").label != Race(limit=6000, schedule="cosine").label
    assert Race(others=True).label != Race().label


def test_what_no_race_can_be() -> None:
    with pytest.raises(UserError, match="learning_rate must be above 0: got 0"):
        Race(learning_rate=0)
    with pytest.raises(UserError, match="at least 2 images a step"):
        Race(others=True, images_per_step=1)
    with pytest.raises(UserError, match="leave out --others"):
        Racer(nn.Linear(1, 1), Race(others=True), CATS.images)


def test_every_image_of_the_class_is_learned_from_before_any_comes_again() -> None:
    new = [image(str(number), 1) for number in range(6)]
    racer = Racer(nn.Linear(1, 1), Race(images_per_step=4), new)
    ids = [each.image_id for step in range(3) for each, _ in racer.chosen(step)]
    assert sorted(ids[:6]) == sorted(ids[6:]) == list("012345")
    assert ids[:6] != ids[6:]
    assert racer.chosen(1) == Racer(nn.Linear(1, 1), Race(images_per_step=4), new).chosen(1)
    assert {mirrored for step in range(9) for _, mirrored in racer.chosen(step)} == {True, False}


def test_half_of_the_images_are_others_where_that_is_asked_for() -> None:
    new, old = [image("new", 1)], [image("old"), image("older")]
    racer = Racer(nn.Linear(1, 1), Race(images_per_step=4, others=True), new, old)
    ids = [[each.image_id for each, _ in racer.chosen(step)] for step in range(8)]
    assert all(names[:2] == ["new", "new"] and set(names[2:]) <= {"old", "older"} for names in ids)
    assert {name for names in ids for name in names} == {"new", "old", "older"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_race_that_was_killed_goes_on_as_if_it_never_stopped(
    optimizer: Any, tiny_voc_original: Path, tmp_path: Path, clock: None
) -> None:
    new = only_class(read_voc(tiny_voc_original, "train"), "square").images
    race = Race(images_per_step=2, optimizer=optimizer, learning_rate=0.001)

    def racer() -> Racer:
        made = Racer(boxes_of(), race, new)
        made.bfloat16 = False
        return made

    unbroken = racer()
    unbroken.run_until(4)
    assert (unbroken.step, unbroken.seconds) == (4, 4)
    first = racer()
    first.run_until(2)
    first.save(tmp_path / "new" / "racer.pt")
    second = racer()
    second.resume(tmp_path / "new" / "racer.pt")
    assert (second.step, second.seconds) == (2, 2)
    second.run_until(4)
    other = second.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in unbroken.model.state_dict().items())


def test_a_loss_that_is_no_number_says_what_to_do(tiny_voc_original: Path) -> None:
    new = only_class(read_voc(tiny_voc_original, "train"), "square").images

    class Astray(nn.Linear):
        def forward(self, *_: Any) -> Any:
            return {"loss": self.weight.sum() * float("nan")}

    racer = Racer(Astray(1, 1), Race(), new)
    racer.bfloat16 = False
    with pytest.raises(UserError, match="went astray at step 0: the loss is nan; take a smaller --rate"):
        racer.run_until(1)


class Walking:
    """In a racer's place: a step takes a second, and its precision is a tenth of the steps."""

    def __init__(self, checkpoint: Path) -> None:
        self.step, self.seconds, self.model, self.checkpoint = 0, 0.0, self, checkpoint

    def run_until(self, seconds: float, tell: Any = None) -> None:
        self.step, self.seconds = int(seconds), seconds

    def save(self, file: Path) -> None:
        file.write_text(str(self.step))

    def resume(self, file: Path) -> None:
        if file.exists():
            self.step = int(file.read_text())
            self.seconds = float(self.step)


def walk(tmp_path: Path, target: float | None, curve: list[Any], limit: float = 10) -> tuple[list[Any], list[int]]:
    """The curve of a race with tests every 2 seconds, and the steps at which it was tested."""
    tested: list[int] = []

    def test(walker: Any) -> tuple[float, float]:
        tested.append(walker.step)
        return 0.0, walker.step / 10

    file = tmp_path / "walker"
    start: Any = lambda: Walking(file)  # noqa: E731
    keep: Any = lambda walker, points: None  # noqa: E731
    return run_race(Race(every=2, limit=limit), start, test, target, file, curve, keep), tested


def test_a_race_ends_where_the_target_is_reached_or_the_time_is_over(tmp_path: Path) -> None:
    curve, tested = walk(tmp_path, 0.5, [])
    assert tested == [2, 4, 6]
    assert reached(curve, 0.5) == (4, 6)
    assert walk(tmp_path, 0.5, curve) == (curve, []), "nothing is left to do"
    longer, tested = walk(tmp_path, 0.75, curve)
    assert tested == [8], "a higher target: it goes on"
    assert reached(longer, 0.75) == (6, 8)
    longest, tested = walk(tmp_path, 2.0, longer)
    assert (longest[-1]["seconds"], tested) == (10, [10])
    assert reached(longest, 2.0) is None
    assert walk(tmp_path, 2.0, longest, limit=12)[1] == [12], "more time: it goes on"


def test_killed_between_checkpoint_and_test_it_tests_first(tmp_path: Path) -> None:
    (tmp_path / "walker").write_text("4")
    curve, tested = walk(tmp_path, None, [{"seconds": 2.0, "step": 2, "voc07": 0.0, "area": 0.2}], limit=6)
    assert tested == [4, 6]
    assert [point["step"] for point in curve] == [2, 4, 6]


def test_without_its_checkpoint_a_race_begins_anew(tmp_path: Path) -> None:
    curve, tested = walk(tmp_path, None, [{"seconds": 2.0, "step": 2, "voc07": 0.0, "area": 0.9}], limit=4)
    assert tested == [2, 4]
    assert [point["area"] for point in curve] == [0.2, 0.4]


# What is written


def classes(horse: float | None, cow: float) -> dict[str, Any]:
    every = {"cow": {"area": cow, "voc07": cow, "objects": 3}, "horse": {"area": horse, "voc07": horse, "objects": 4}}
    return {"others": cow, "classes": {name: each for name, each in every.items() if each["area"] is not None}}


def results() -> dict[str, Any]:
    ran = {"environment": "Commit abc; a machine"}
    learned = {"images": 7, "objects": 9, "old negatives": 50}
    add = {
        "learned from": learned, "seconds": 4.0, "each time": [4.0, 6.0, 3.0], "stages": {"SVM and box regression": 2.5},
        "anew": {"proposals": 5.0, "maps": 3.0}, "same weights": True, "test": classes(0.4, 0.3), **ran,
    }  # fmt: skip
    old = {
        "learned from": {"images": 20, "objects": 0},
        "seconds": 300.0,
        "stages": {},
        "test": classes(None, 0.3),
        **ran,
    }
    everything = {**old, "seconds": 400.0, "test": classes(0.45, 0.31)}
    curve = [
        {"seconds": 60.0, "step": 30, "voc07": 0.1, "area": 0.1},
        {"seconds": 120.0, "step": 60, "voc07": 0.5, "area": 0.42},
    ]
    race = {
        "learned from": learned,
        "curve": curve,
        "precision": "bfloat16",
        "seconds a step": 2.0,
        "limit": 600,
        **ran,
    }
    settings = Settings(Path("VOC2007"), "horse").to_dict()
    return {
        "1": {"settings": settings, "parts": {"old": old, "add": add, "all": everything}, "races": {"480 px": race}}
    }


def test_the_page_says_how_many_times_as_long_the_others_take() -> None:
    text = page(results(), "add-class.png")
    assert "| the class added, from its images and what the old SVMs kept | 7 | 9 | 4.0 | 8 | 40.0 | 40.0 |" in text
    assert "| the other classes, before | 20 | - | 300 | - | - | - |" in text
    assert "Training all classes anew takes 100 times as long as adding the class, whose AP is 5.0 points lower" in text
    assert "after more than 60.0 and at most 120 s: 15 to 30 times as long" in text
    assert "Their mAP before: 30.00, after: 30.00; the largest change of one class is 0.000 points" in text
    assert "same, bit for bit" in text
    assert text.count("Commit abc") == 1


def test_a_page_of_less() -> None:
    entries = results()
    entries["1"]["races"]["480 px"]["curve"].pop()
    assert "not as good as the added class (40.0) in 60.0 s of training, 15 times as long." in page(entries, "x.png")
    del entries["1"]["parts"]["add"]
    assert target_of(entries["1"], "horse") is None
    assert "not compared yet" in page(entries, "x.png")
    entries["1"]["parts"].clear()
    entries["1"]["races"].clear()
    assert "## horse: VOC2007, all images of train" in page(entries, "x.png")


def test_the_plot_of_all_and_of_nothing_yet(tmp_path: Path) -> None:
    entries = results()
    entries["2"] = {"settings": entries["1"]["settings"], "parts": {}, "races": {}}
    plot(entries, tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").std() > 5


def test_rows_are_added_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results" / "r.json"
    assert read_entries(file) == {}
    keep_row(file, "k", {"name": "horse"}, "parts", "old", {"seconds": 1})
    keep_row(file, "k", {"name": "horse"}, "races", "sgd", {"seconds": 2})
    keep_row(file, "other", {"name": "cow"}, "parts", "old", {"seconds": 3})
    assert read_entries(file)["k"] == {
        "settings": {"name": "horse"}, "parts": {"old": {"seconds": 1}}, "races": {"sgd": {"seconds": 2}},
    }  # fmt: skip
    for wrong in ("[]", "{", '{"a": {"b": 1}}', '{"a": 3}'):
        file.write_text(wrong)
        with pytest.raises(UserError, match="does not hold results of this benchmark"):
            read_entries(file)


def test_a_mistake_is_one_line(tmp_path: Path, tiny_voc_original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "r.json")
    assert main(["--json", file]) == 2
    assert "holds no results: run with --data first" in capsys.readouterr().err
    assert main(["--json", file, "--data", str(tiny_voc_original), "--class", "square"]) == 2
    assert "--work is missing" in capsys.readouterr().err


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
        "--work",
        str(tmp_path / "work"),
        "--json",
        str(file),
    ]
    words += [
        "--markdown",
        str(page_file),
        "--backbone",
        "compact",
        "--hidden",
        "32",
        "--levels",
        "2,1",
        "--short-side",
        "96",
    ]
    words += ["--long-side", "160", "--proposer", "grid", "--steps", "30", "--no-mirrored", "--repeats", "2"]
    words += ["--race-side", "96", "--race-windows", "8", "--limit-minutes", "0.05", "--every", "2"]
    assert main(words) == 0
    (entry,) = read_entries(file).values()
    parts = entry["parts"]
    assert set(parts) == {"old", "add", "add-from-all", "all"}
    assert set(parts["old"]["stages"]) == {"fine-tuning", "SVMs", "box regression"}
    assert len(parts["add"]["each time"]) == 2
    assert parts["add"]["same weights"]
    assert parts["add"]["learned from"]["old negatives"] > 0
    assert parts["add"]["anew"]["maps"] > 0
    before, after = parts["old"]["test"]["classes"], parts["add"]["test"]["classes"]
    assert set(before) == {"circle"}
    assert after["circle"]["area"] == pytest.approx(before["circle"]["area"], abs=2e-3)  # sums in another order
    assert after["square"]["area"] is not None
    (race,) = entry["races"].values()
    assert race["curve"]
    assert "Faster R-CNN" in page_file.read_text()
    assert page_file.with_suffix(".png").is_file()
    assert str(tmp_path) not in file.read_text() + page_file.read_text()
    known = file.read_bytes()
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().err.count("measured before") == 5
    assert file.read_bytes() == known
