"""Plots: what is drawn, for few and many classes, in files of four kinds that only their own kind replaces."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.errors import OutputError
from sppnet.metrics.errors import detection_errors
from sppnet.metrics.voc import VocResult, evaluate_voc
from sppnet.visualize.plots import plot_comparison, plot_confusion, plot_errors, plot_precision_recall, plot_training


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def texts_of(path: Path) -> list[str]:
    """Everything that is written in an SVG."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line[5:-4] for line in lines if line.startswith("<!-- ")]


@pytest.mark.parametrize("ending", ["png", "jpg", "pdf", "svg"])
def test_our_own_plots_are_replaced_and_others_never(tmp_path: Path, ending: str) -> None:
    ours, other = tmp_path / "new" / f"ours.{ending}", tmp_path / f"other.{ending}"
    plot_confusion([[8, 2], [1, 9]], ("cat", "dog"), ours)
    first = ours.read_bytes()
    plot_confusion([[8, 2], [1, 9]], ("cat", "dog"), ours)
    assert ours.stat().st_size == len(first) > 1000
    other.write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="was not written by sppnet"):
        plot_confusion([[1]], ("cat",), other)
    assert other.read_bytes() == b"somebody else's"
    assert [path.name for path in ours.parent.iterdir()] == [ours.name]


@pytest.mark.parametrize("name", ["c.bmp", "c", "c.xyz"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    ending = (tmp_path / name).suffix.lstrip(".") or "no ending"
    with pytest.raises(OutputError, match=rf"ends in \.png, \.jpg, \.pdf or \.svg, got {ending}"):
        plot_confusion([[1]], ("cat",), tmp_path / name)
    assert not list(tmp_path.iterdir())


def evaluation(num_classes: int) -> VocResult:
    box = [0, 0, 10, 10]
    truth = [([box], [k], [False]) for k in range(1, num_classes)]  # the last class has no objects
    detections = [([box, [50, 50, 60, 60]], [0.9 - 0.001 * k, 0.95], [k, k]) for k in range(1, num_classes)]
    return evaluate_voc(detections, truth, [f"class {k}" for k in range(num_classes)])


@pytest.mark.parametrize("num_classes", [1, 7])
def test_curves_are_drawn_for_few_and_many_classes(tmp_path: Path, num_classes: int) -> None:
    plot_precision_recall(evaluation(num_classes), tmp_path / "curves.png")
    picture = pixels_of(tmp_path / "curves.png")
    assert picture.shape[1] >= 640
    assert picture.std() > 5


@pytest.mark.slow
def test_curves_of_a_great_many_classes(tmp_path: Path) -> None:
    plot_precision_recall(evaluation(150), tmp_path / "curves.png")
    assert max(pixels_of(tmp_path / "curves.png").shape) < 8000


def test_kinds_of_error(tmp_path: Path) -> None:
    truth = ([[0, 0, 10, 10], [80, 0, 90, 10]], [1, 2], [False, False])
    errors = detection_errors([([[0, 0, 10, 10], [80, 0, 90, 10]], [0.9, 0.8], [1, 1])], [truth], ("cat", "dog"))
    plot_errors(errors, tmp_path / "errors.svg")
    texts = texts_of(tmp_path / "errors.svg")
    assert {
        "correct",
        "localisation",
        "other class",
        "background",
        "objects missed",
        "cat   1.00",
        "dog   0.00",
    } <= set(texts)
    plot_errors(detection_errors([], [], ("cat",)), tmp_path / "none.png")
    assert pixels_of(tmp_path / "none.png").std() > 5


@pytest.mark.parametrize("classes", [1, 20, 160])
def test_confusions_of_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    counts = np.diag(np.arange(10, 10 + classes))
    counts[0, -1] += 1
    plot_confusion(counts, [f"a rather long name, {k} → ß" for k in range(classes)], tmp_path / "new" / "confusion.png")
    picture = pixels_of(tmp_path / "new" / "confusion.png")
    assert 400 < max(picture.shape[:2]) < 3000
    # dark blue on the diagonal, a cell for each class
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 60).mean()
    assert 0.3 / classes < blue < 1 / classes


def test_training_curves_from_a_log(tmp_path: Path) -> None:
    nan = math.nan
    log = {
        "step": [10, 20, 30, 40],
        "train_loss": [2.5, 2.0, nan, 1.0],
        "val_loss": [nan, 2.1, nan, 1.4],
        "val_accuracy": [nan, 0.3, nan, 0.6],
        "nothing": [nan, nan, nan, nan],
    }
    plot_training(log, tmp_path / "training.png")
    two_plots = pixels_of(tmp_path / "training.png")
    plot_training({"step": [0, 1], "train_loss": [2.0, 1.0]}, tmp_path / "one.png")
    assert two_plots.shape[1] > pixels_of(tmp_path / "one.png").shape[1]


def test_curves_of_one_measure_share_a_plot(tmp_path: Path) -> None:
    log = {"step": [0, 1], "train_loss": [2, 1], "val_loss": [2, 1.5], "learning_rate": [3, 2]}
    plot_training(log, tmp_path / "t.svg")
    texts = texts_of(tmp_path / "t.svg")
    assert {"loss", "train", "val", "learning_rate"} <= set(texts)
    assert texts.count("step") == 2  # two plots, an axis each


SHARES = {"native": 0.912, "squash": 0.842, "crop": 0.871, "pad": 0.905}
ADVICE = "Use native: it is better than squash (by 7.0 points)."


def around(value: float) -> tuple[float, tuple[float, float]]:
    return value, (value - 0.03, min(1.0, value + 0.03))


def compared(path: Path, shares: dict[str, float] = SHARES, title: str = ADVICE) -> None:
    differences = {name: around(share - shares["native"]) for name, share in shares.items() if name != "native"}
    accuracies = {name: around(share) for name, share in shares.items()}
    plot_comparison(accuracies, differences, path, reference="native", images=320, title=title)


def test_every_way_has_a_bar(tmp_path: Path) -> None:
    compared(tmp_path / "chart.svg")
    written = texts_of(tmp_path / "chart.svg")
    for expected in (*SHARES, "91.2", "84.2", "87.1", "90.5", ADVICE, "accuracy, %, of 320 images"):
        assert written.count(expected) == 1, expected


def test_the_reference_stands_out_and_a_bar_is_as_long_as_its_accuracy(tmp_path: Path) -> None:
    compared(tmp_path / "chart.png")
    picture = pixels_of(tmp_path / "chart.png").astype(int)
    assert 800 < picture.shape[1] < 2000
    blue = (abs(picture - (0x00, 0x72, 0xB2)) < 6).all(2)
    gray = (abs(picture - (0x99, 0x99, 0x99)) < 6).all(2)
    row = int(np.flatnonzero(blue.sum(1) > 300)[5])
    squash = int(np.flatnonzero(gray.sum(1) > 300)[5])
    assert blue[row].sum() / gray[squash].sum() == pytest.approx(0.912 / 0.842, rel=0.03)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_right(tmp_path: Path, share: float) -> None:
    compared(tmp_path / "chart.png", dict.fromkeys(SHARES, share), title="No difference is shown. " * 20)
    assert (tmp_path / "chart.png").stat().st_size > 1000
