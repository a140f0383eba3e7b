"""`sppnet check`: every bad file of a folder, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sppnet import cli
from sppnet.data.decode import TRUNCATED


def test_check_names_every_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), (len(name), 2, ord(name[0]))).save(tmp_path / name / "good.png")
    assert cli.run(["check", str(tmp_path)]) == 0
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "dog" / "empty.JPG").touch()
    capsys.readouterr()
    assert cli.run(["check", str(tmp_path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert {Path(problem["file"]).name for problem in found["errors"]} == {"bad.jpg", "empty.JPG"}


def test_images_that_are_cut_short_are_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUNCATED, "")  # and taken back afterwards
    Image.effect_noise((60, 60), 90).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    assert cli.run(["compress", "voc", "--allow-truncated"]) == 2  # reads no image
    assert cli.run(["check", str(tmp_path)]) == 2
    assert cli.run(["check", str(tmp_path), "--allow-truncated"]) == 0
