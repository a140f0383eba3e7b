"""The demo: a picture and an entry for every photo, the same answers as `classify` and `detect`, from one map each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sppnet.classification.predict import classify
from sppnet.cli import demo
from sppnet.detection.predict import detect
from sppnet.errors import OutputError
from sppnet.models.sppnet import SPPNet


@pytest.fixture
def photos(tiny_detector: SPPNet, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Two photos, in place of the samples, for a model that is small."""
    rng = np.random.default_rng(0)
    photos = {name: rng.integers(0, 255, (60, width, 3), dtype=np.uint8) for name, width in (("a", 90), ("b", 200))}
    monkeypatch.setattr(demo, "sample_photos", lambda: photos)
    monkeypatch.setattr(demo, "load", lambda name: tiny_detector)
    return photos


def test_pictures_rows_and_a_document(
    tiny_detector: SPPNet, photos: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "THRESHOLD", 0.2)
    progress: list[tuple[str, int, int]] = []
    rows, files = demo.run_demo(tmp_path / "out", lambda *words: progress.append(words))
    assert [path.name for path in files] == ["a.jpg", "b.jpg", "demo.json"]
    assert sorted((tmp_path / "out").iterdir()) == files
    assert [row[:2] for row in rows] == [("a", "90 x 60"), ("b", "200 x 60")]
    assert progress == [("photos", 1, 2), ("photos", 2, 2)]
    for entry in json.loads(files[-1].read_text())["photos"]:
        photo = photos[entry["photo"]]
        assert (entry["height"], entry["width"]) == photo.shape[:2]
        assert entry["detections"] == detect(photo, tiny_detector, score_threshold=0.2).to_dict()
        assert len(entry["detections"]["boxes"]) > 0
        expected = classify(photo, tiny_detector).to_dict()["scores"]
        assert entry["classification"]["scores"] == pytest.approx(expected, abs=1e-3)  # the map is in half precision
    demo.run_demo(tmp_path / "out")  # its own files are replaced, and no others
    files[0].write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="was not written by sppnet"):
        demo.run_demo(tmp_path / "out")


def test_a_photo_goes_through_the_convolutions_once(
    tiny_detector: SPPNet, photos: dict[str, np.ndarray], tmp_path: Path
) -> None:
    passes: list[object] = []
    hook = tiny_detector.backbone.register_forward_hook(lambda module, images, features: passes.append(module))
    try:
        demo.run_demo(tmp_path)
    finally:
        hook.remove()
    assert len(passes) == len(photos)
