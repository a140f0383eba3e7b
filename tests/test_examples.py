"""The examples run as they stand, each in under 40 lines."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an example in `tmp_path`, in this process; what it printed."""

    def run_example(name: str, *words: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


@pytest.mark.timeout(400)
def test_train_a_detector_on_a_folder(run: Callable[..., str], tiny_voc: Path, tmp_path: Path) -> None:
    out = run("train_detector.py", tiny_voc)
    assert "voc07" in out
    assert "class_names" in out
    assert (tmp_path / "mine.safetensors").is_file()
    assert (tmp_path / "found.png").is_file()


def test_embed_a_folder(run: Callable[..., str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name, size in {"wide": (40, 90), "tall": (90, 40), "small": (33, 35)}.items():
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    shutil.copy(tmp_path / "photos" / "tall.png", tmp_path / "asked.png")
    first, *rest = run("embed_folder.py", tmp_path / "asked.png", tmp_path / "photos").splitlines()
    assert first.endswith("tall.png")
    assert first.startswith("1.000")
    assert len(rest) == 2


def test_a_training_loop_of_ones_own(run: Callable[..., str], tiny_voc: Path) -> None:
    lines = run("training_loop.py", tiny_voc, 3).splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert all(np.isfinite(float(line.split()[1])) for line in lines)
