"""Pictures of a classifier: what is drawn where, at any size, and what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.errors import UserError
from sppnet.visualize.classification import TILE, draw_mistakes, plot_confusion, plot_training


def grey(height: int, width: int, value: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("classes", [1, 2, 20, 160])
def test_confusions_of_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    counts = np.diag(np.arange(10, 10 + classes))
    counts[0, -1] += 1
    plot_confusion(counts, [f"a rather long name, {k} → ß" for k in range(classes)], tmp_path / "new" / "confusion.png")
    picture = pixels_of(tmp_path / "new" / "confusion.png")
    assert 400 < max(picture.shape[:2]) < 3000
    # dark blue on the diagonal, a cell for each class
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 60).mean()
    assert 0.3 / classes < blue < 1 / classes


def test_a_confusion_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \[3, 3\], one row for each name, got \[2, 2\]"):
        plot_confusion(np.eye(2), ("a", "b", "c"), tmp_path / "c.png")
    with pytest.raises(ValueError, match="confusion"):
        plot_confusion(np.empty((0, 0)), (), tmp_path / "c.png")
    for path in (tmp_path / "c.bmp", tmp_path / "c"):
        with pytest.raises(UserError, match=r"ends in \.png"):
            plot_confusion(np.eye(2), ("a", "b"), path)
    assert not list(tmp_path.iterdir())


def test_training_curves_from_a_csv_log(tmp_path: Path) -> None:
    log = {
        "epoch": ["0", "0", "1", "1"],
        "step": ["10", "20", "30", "40"],
        "train_loss_step": ["2.5", "2.0", "", "1.0"],
        "val_loss": ["", "2.1", "", "1.4"],
        "val_accuracy": ["", "0.3", "", "0.6"],
        "note": ["", "", "", ""],
    }
    plot_training(log, tmp_path / "training.png")
    two_plots = pixels_of(tmp_path / "training.png")
    plot_training({"epoch": [0, 1], "train_loss": [2.0, 1.0]}, tmp_path / "one.png")
    assert two_plots.shape[1] > pixels_of(tmp_path / "one.png").shape[1]
    for name in ("training.svg", "training.pdf"):
        plot_training(log, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_curves_of_one_measure_share_a_plot(tmp_path: Path) -> None:
    log = {"epoch": [0, 1], "train/loss": [2, 1], "val/loss": [2, 1.5], "test_loss_epoch": [3, 2]}
    plot_training(log, tmp_path / "t.svg")
    text = (tmp_path / "t.svg").read_text()
    comments = [line.strip() for line in text.splitlines() if line.strip().startswith("<!-- ")]
    assert "<!-- loss -->" in comments
    assert {"<!-- train -->", "<!-- val -->", "<!-- test epoch -->"} <= set(comments)
    assert comments.count("<!-- epoch -->") == 1  # one plot, one axis


def test_a_log_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no curves"):
        plot_training({"epoch": [0, 1], "val_loss": ["", "nan"]}, tmp_path / "t.png")
    with pytest.raises(ValueError, match="columns of one length"):
        plot_training({"epoch": [0, 1], "loss": [1]}, tmp_path / "t.png")


@pytest.mark.parametrize("size", [(1, 1), (300, 400), (400, 300), (20, 5000), (5000, 20)], ids=str)
def test_a_mistake_is_shown_whole_whatever_its_shape(size: tuple[int, int]) -> None:
    sheet = draw_mistakes([grey(*size)], ["cat"], ["a class of quite some name " * 3], [0.987], title="mistakes " * 20)
    assert sheet.dtype == np.uint8
    band = sheet.shape[0] - draw_mistakes([grey(*size)], ["cat"], ["dog"], [0.9]).shape[0]
    photo = sheet[band + 12 :, 12:][: TILE[1], : TILE[0]]
    shown = np.argwhere((photo == 200).all(2))
    (top, left), (bottom, right) = shown.min(0), shown.max(0)
    assert right - left + 1 == pytest.approx(min(TILE[0], TILE[1] * size[1] / size[0]), abs=1.5)
    assert bottom - top + 1 >= min(TILE[1], TILE[0] * size[0] / size[1]) - 1.5


def test_a_contact_sheet_has_rows_and_columns() -> None:
    def sheet(count: int, columns: int | None = None) -> np.ndarray:
        return draw_mistakes([grey(30, 40)] * count, ["cat"] * count, ["dog"] * count, [0.5] * count, columns=columns)

    one = sheet(1).shape
    gap = 12
    assert sheet(3, columns=3).shape[1] - gap == 3 * (one[1] - gap)
    assert sheet(7, columns=3).shape[0] - gap == 3 * (one[0] - gap)
    assert sheet(2, columns=9).shape == sheet(2, columns=2).shape
    assert 0.7 < sheet(20).shape[1] / sheet(20).shape[0] < 2
    with pytest.raises(ValueError, match="at least one image"):
        sheet(0)
    with pytest.raises(ValueError, match="columns"):
        sheet(2, columns=0)
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 1\)"):
        draw_mistakes([grey(3, 4)], ["cat"], ["dog", "cow"], [0.5])
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        draw_mistakes([np.zeros((3, 4))], ["cat"], ["dog"], [0.5])
