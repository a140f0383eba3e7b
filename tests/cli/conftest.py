"""Command lines run in this process, and what several commands are tested on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from sppnet import cli


class Ran(NamedTuple):
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def fine(self) -> str:
        """What was printed, where nothing was wrong."""
        assert self.status == 0, self
        return self.out

    def refused(self, *parts: str) -> None:
        """Exit status 2; one line on standard error that names what it should; nothing on standard output."""
        assert self.status == 2, self
        assert self.out == ""
        assert self.err.startswith("sppnet: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        for part in parts:
            assert part in self.err, self.err
        assert "Traceback" not in self.err


@pytest.fixture
def sppnet(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def run(*words: object) -> Ran:
        status = cli.run([str(word) for word in words])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of 16 red and blue photos of many sizes: colours/red/00.png."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 120, (*rng.integers(40, 60, 2), 3), dtype=np.uint8)
            pixels[:, :, channel] += 130
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{number:02}.png")
    return tmp_path / "colours"


@pytest.fixture
def classifier_file(tmp_path: Path) -> Path:
    """A classifier of blue and red with random weights, as a model file."""
    from sppnet.models.files import save_model
    from sppnet.models.preprocess import Preprocess
    from sppnet.models.sppnet import Architecture, build_model

    path, architecture = (
        tmp_path / "classifier.safetensors",
        Architecture(("blue", "red"), "compact", levels=(1,), hidden=(4,), detects=False),
    )
    save_model(build_model(architecture, Preprocess(64, 128)), path)
    return path
