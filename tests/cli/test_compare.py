"""`sppnet compare`: a table, a chart and a sentence from anyone's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Two classes of eight pictures each, dark and light, wide and tall."""
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for place in range(8):
            size = (40, 60 + place) if place % 2 else (60, 40 + place)
            pixels = np.random.default_rng(0).integers(0, 255, (*size, 3)) // 2 + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{place}.png")
    return tmp_path / "photos"


def test_compare(sppnet: Callable[..., Any], tiny_model_file: Path, class_folder: Path, tmp_path: Path) -> None:
    words = [
        "compare",
        class_folder,
        "--backbone",
        "compact",
        "--weights",
        tiny_model_file,
        "--side",
        32,
        "--folds",
        2,
        "--repeats",
        2,
    ]
    ran = sppnet(*words, "--output", tmp_path / "chart.png")
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:5]] == ["keep-aspect", "warp", "crop", "letterbox"]
    assert "16 images, of 2 classes" in ran.out
    assert ran.out.splitlines()[-1].startswith(("Use ", "No difference "))
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width > 500
    assert ran.err == f"chart in {tmp_path}/chart.png; features, for the next time, in {tmp_path}/chart.cache\n"
    cached = list((tmp_path / "chart.cache").rglob("*.safetensors"))
    assert len(cached) == 4 * 16

    (class_folder / "dark" / "bad.jpg").write_text("this is text")
    sppnet(*words, "--output", tmp_path / "chart.png").refused("bad.jpg", "1 of 17 images")
    ran = sppnet(*words, "--output", tmp_path / "chart.png", "--skip-bad", "--json", "--limit", 16)
    assert ran.status == 0
    assert set(ran.document["modes"]) == {"keep-aspect", "warp", "crop", "letterbox"}
    assert ran.document["images"] + len(ran.document["broken"]) == 16
    assert ran.document["advice"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--folds", 1], ["folds must be at least 2: got 1"]),
        (["--limit", 5], ["limit must be at least 10 with 5 folds"]),
        (["--side", 0], ["side must be at least 1: got 0"]),
        (["--folds", 9], ["16 images of 2 classes", "9 folds"]),
        (["--output", "chart.bmp"], ["chart.bmp", ".png"]),
        (["--backbone", "resnet1000", "--weights", "x.pth"], ["resnet1000"]),
    ],
    ids=str,
)
def test_compare_refuses(
    sppnet: Callable[..., Any], class_folder: Path, tmp_path: Path, words: list[object], parts: list[str]
) -> None:
    output = [] if "--output" in words else ["--output", tmp_path / "c.png"]
    sppnet("compare", class_folder, *words, *output).refused(*parts)
    assert not (tmp_path / "c.png").exists()
