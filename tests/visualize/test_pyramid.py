"""The pyramid over a photo: bins where their cells look, colored by what they add."""

from __future__ import annotations

import numpy as np
import pytest

from sppnet.visualize.draw import BACKGROUND
from sppnet.visualize.pyramid import FRAMES, draw_pyramid

CORNER = 14, 28 + 14  # left and top of the first panel: a gap, and below the line of text


def gray(height: int, width: int, value: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def panel(sheet: np.ndarray, height: int, width: int) -> np.ndarray:
    return sheet[CORNER[1] :, CORNER[0] :][:height, :width]


def test_the_bins_lie_where_their_cells_look() -> None:
    """A map of 4 x 8 cells, 100 px apart, the first centred at 50: 2 x 2 bins meet in the middle of the photo."""
    photo = panel(draw_pyramid(gray(400, 800), (2,), (4, 8), stride=100, offset=50), 210, 420)
    frames = np.zeros(photo.shape[:2], bool)
    for color in FRAMES:
        frames |= (photo == color).all(2)
    rows, columns = (np.flatnonzero(frames.mean(axis) > 0.5) for axis in (1, 0))
    assert {1, 2, 103, 104, 106, 107, 208, 209} & set(rows.tolist()) >= {2, 103, 107, 208}
    assert all(min(abs(column - edge) for edge in (0, 210, 420)) <= 4 for column in columns)
    assert all(min(abs(row - edge) for edge in (0, 105, 210)) <= 4 for row in rows)


def test_bins_are_colored_by_what_they_add() -> None:
    """One of each: much, some and nothing for the answer, some against it; the photo's own colors are gone."""
    image = gray(400, 400)
    image[..., 2] = 0  # yellow
    photo = panel(draw_pyramid(image, (2,), (2, 2), 200, 100, contributions=[2.0, 1.0, 0.0, -1.0]), 420, 420)
    much, some, nothing, against = (photo[y, x].astype(int) for y, x in ((50, 50), (50, 360), (360, 50), (360, 360)))
    assert len(set(nothing.tolist())) == 1  # gray
    assert much[0] - much[2] > some[0] - some[2] > 20  # more red than blue
    assert against[2] - against[0] > 20


def test_one_scale_for_all_levels_and_the_mean_where_bins_overlap() -> None:
    sheet = draw_pyramid(gray(300, 300), (2, 1), (3, 3), 100, 50, contributions=[1.0, -1.0, 1.0, -1.0, 0.25])
    photo = panel(sheet, 420, 420)
    left, middle, right = (photo[50, x].astype(int) for x in (60, 230, 380))
    assert left[0] > left[2]
    assert right[2] > right[0]
    assert len(set(middle.tolist())) == 1  # the column of cells that both pool: +1 and -1
    whole = sheet[CORNER[1] + 50, CORNER[0] + 420 + 14 + 60].astype(int)
    assert 0 < whole[0] - whole[2] < (left[0] - left[2]) / 2


def test_numbers_are_written_where_there_is_room() -> None:
    def ink(level: int) -> int:
        values = np.zeros(level * level)
        sheet = draw_pyramid(gray(300, 300, 90), (level,), (30, 30), 10, 5, contributions=values)
        return int((panel(sheet, 420, 420) == 255).all(2).sum())

    assert ink(1) > 20
    assert ink(4) > 10 * ink(1)
    assert ink(30) == 0  # 14 px wide


@pytest.mark.parametrize("size", [(1, 1), (20, 5000), (333, 500)], ids=str)
@pytest.mark.parametrize("map_size", [(1, 1), (2, 40)], ids=str)
@pytest.mark.parametrize("colored", [False, True])
def test_pyramids_of_any_size(size: tuple[int, int], map_size: tuple[int, int], colored: bool) -> None:
    image = gray(*size)
    values = np.linspace(-1, 1, 50) if colored else None
    together = [1.0, 0.5, 0.25, -1.0] if colored else None
    stride = max(size) / max(map_size)
    sheet = draw_pyramid(
        image, (6, 3, 2, 1), map_size, stride, 0.5, contributions=values, together=together, title="a cat " * 40
    )
    assert sheet.dtype == np.uint8
    assert min(sheet.shape[:2]) > 60
    assert max(sheet.shape[:2]) < 2500
    assert (sheet[0, 0] == BACKGROUND).all()
    assert (image == 200).all()


def test_nothing_adds_anything() -> None:
    photo = panel(draw_pyramid(gray(60, 60), (1,), (2, 2), 30, 15, contributions=[0.0]), 420, 420)
    assert (photo[100, 100] == 200).all()


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="levels"):
        draw_pyramid(gray(9, 9), (), (3, 3), 3, 1.5)
    with pytest.raises(ValueError, match="at least 1"):
        draw_pyramid(gray(9, 9), (2,), (0, 3), 3, 1.5)
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        draw_pyramid(np.zeros((9, 9)), (2,), (3, 3), 3, 1.5)  # type: ignore[arg-type]


def test_a_squeezed_strip_has_its_bins_at_their_places() -> None:
    """8000 x 40 px, shown as 420 x 52: each direction has a scale of its own."""
    sheet = draw_pyramid(gray(40, 8000), (2,), (2, 8), 1000, 500, contributions=[1.0, -1.0, 1.0, -1.0])
    colors = panel(sheet, 52, 420).astype(int)
    orange, blue = (colors[40, :, 0] - colors[40, :, 2] > 20), (colors[40, :, 2] - colors[40, :, 0] > 20)
    assert orange[3:205].all()
    assert blue[215:417].all()
