"""The chart of a comparison: a bar for each way, its difference from native, and the advice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.errors import UserError
from sppnet.visualize import plot_comparison


@dataclass
class Bar:
    fit: str
    accuracy: float
    interval: tuple[float, float]


@dataclass
class Gap:
    mean: float
    interval: tuple[float, float]


@dataclass
class Compared:
    fits: list[Bar]
    advice: str = "Use native: it is better than squash (by 7.0 points)."
    images: int = 320
    asked: list[tuple[str, str]] = field(default_factory=list)

    def difference(self, first: str, second: str) -> Gap:
        self.asked.append((first, second))
        of = {bar.fit: bar.accuracy for bar in self.fits}
        mean = of[first] - of[second]
        return Gap(mean, (mean - 0.03, mean + 0.03))


def four() -> Compared:
    shares = {"native": 0.912, "squash": 0.842, "crop": 0.871, "pad": 0.905}
    return Compared([Bar(name, share, (share - 0.03, min(1.0, share + 0.03))) for name, share in shares.items()])


def test_every_way_has_a_bar_and_a_difference_from_native(tmp_path: Path) -> None:
    comparison = four()
    plot_comparison(comparison, tmp_path / "new" / "chart.svg")
    text = (tmp_path / "new" / "chart.svg").read_text()
    written = [line.strip()[5:-4] for line in text.splitlines() if line.strip().startswith("<!-- ")]
    for expected in ("native", "squash", "crop", "pad", "91.2", "84.2", "87.1", "90.5"):
        assert written.count(expected) == 1, expected
    assert "accuracy, %, of 320 images" in written
    assert comparison.advice in written
    assert comparison.asked == [("squash", "native"), ("crop", "native"), ("pad", "native")]


def test_native_stands_out_and_a_bar_is_as_long_as_its_accuracy(tmp_path: Path) -> None:
    plot_comparison(four(), tmp_path / "chart.png")
    picture = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB")).astype(int)
    assert 800 < picture.shape[1] < 2000
    blue = (abs(picture - (0x00, 0x72, 0xB2)) < 6).all(2)
    grey = (abs(picture - (0x99, 0x99, 0x99)) < 6).all(2)
    row = int(np.flatnonzero(blue.sum(1) > 300)[5])
    squash = int(np.flatnonzero(grey.sum(1) > 300)[5])
    assert blue[row].sum() / grey[squash].sum() == pytest.approx(0.912 / 0.842, rel=0.03)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_right(tmp_path: Path, share: float) -> None:
    fits = [Bar(name, share, (share, share)) for name in ("native", "squash", "crop", "pad")]
    plot_comparison(Compared(fits, advice="No difference is shown. " * 20), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["chart.bmp", "chart"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"ends in \.png"):
        plot_comparison(four(), tmp_path / name)
    assert not list(tmp_path.iterdir())
