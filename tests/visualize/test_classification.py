"""Pictures of a classifier: what is drawn where, at any size, and what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.errors import UserError
from sppnet.visualize.canvas import BACKGROUND
from sppnet.visualize.classification import FRAMES, TILE, draw_mistakes, draw_pyramid, plot_confusion, plot_training


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


def test_the_bins_lie_where_their_cells_look() -> None:
    """A map of 4 x 8 cells, 100 px apart, the first centred at 50: 2 x 2 bins meet in the middle of the photo."""
    image = grey(400, 800)
    sheet = draw_pyramid(image, (2,), (4, 8), stride=100, offset=50)
    photo = sheet[28 + 14 :, 14:][:210, :420]  # 420 px wide, below the text
    frames = np.zeros(photo.shape[:2], bool)
    for colour in FRAMES:
        frames |= (photo == colour).all(2)
    rows, columns = (np.flatnonzero(frames.mean(axis) > 0.5) for axis in (1, 0))
    assert {1, 2, 103, 104, 106, 107, 208, 209} & set(rows.tolist()) >= {2, 103, 107, 208}
    assert all(min(abs(column - edge) for edge in (0, 210, 420)) <= 4 for column in columns)
    assert all(min(abs(row - edge) for edge in (0, 105, 210)) <= 4 for row in rows)


def test_a_resized_photo_has_its_bins_at_the_same_places() -> None:
    half = draw_pyramid(grey(200, 400), (3, 2, 1), (4, 8), stride=100, offset=50, scale=(2.0, 2.0))
    assert (half == draw_pyramid(grey(400, 800), (3, 2, 1), (4, 8), stride=100, offset=50)).all()


def test_stronger_bins_are_brighter() -> None:
    sheet = draw_pyramid(grey(400, 400), (2, 1), (2, 2), 200, 100, strengths=[0.0, 1.0, 0.5, 0.0, 3.0])
    photo = sheet[28 + 14 :, 14:]
    upper_left, upper_right, lower_left = photo[60, 60, 0], photo[60, 360, 0], photo[360, 60, 0]
    assert upper_left < lower_left < upper_right
    assert upper_right == 200


@pytest.mark.parametrize("size", [(1, 1), (20, 5000), (5000, 20), (333, 500)], ids=str)
@pytest.mark.parametrize("map_size", [(1, 1), (2, 40), (13, 17)], ids=str)
def test_pyramids_of_any_size(size: tuple[int, int], map_size: tuple[int, int]) -> None:
    image = grey(*size)
    scale = (map_size[0] * 32 / size[0], map_size[1] * 32 / size[1])
    sheet = draw_pyramid(image, (6, 3, 2, 1), map_size, 32, 0.5, scale)
    assert min(sheet.shape[:2]) > 60
    assert max(sheet.shape[:2]) < 2500
    assert (sheet[0, 0] == BACKGROUND).all()
    assert (image == 200).all()


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="one for each of the 5 bins"):
        draw_pyramid(grey(9, 9), (2, 1), (3, 3), 3, 1.5, strengths=[1.0])
    with pytest.raises(ValueError, match="levels"):
        draw_pyramid(grey(9, 9), (), (3, 3), 3, 1.5)
    with pytest.raises(ValueError, match="at least 1"):
        draw_pyramid(grey(9, 9), (2,), (0, 3), 3, 1.5)
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        draw_pyramid(np.zeros((9, 9)), (2,), (3, 3), 3, 1.5)  # type: ignore[arg-type]
