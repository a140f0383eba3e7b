"""The command line from a folder of annotated photos to SVMs, one class more, fewer weights, and two models at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from sppnet import cli
from sppnet.models.files import load


class Ran(NamedTuple):
    """What a command line came to."""

    status: int
    out: str
    err: str


class Runner:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> Ran:
        status = cli.run([str(word) for word in words])
        return Ran(status, *self.capsys.readouterr())

    def fine(self, *words: object) -> str:
        ran = self(*words)
        assert ran.status == 0, ran
        return ran.out

    def refused(self, *words: object) -> str:
        ran = self(*words)
        assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1), ran
        return ran.err


@pytest.fixture
def sppnet(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def entry(document: str) -> dict[str, Any]:
    (only,) = json.loads(document)["images"]
    return dict(only)


def test_from_softmax_to_svms_to_a_class_more(
    sppnet: Runner, tiny_model_file: Path, tiny_voc: Path, photo: Path, tmp_path: Path
) -> None:
    svm, more, work = tmp_path / "svm.safetensors", tmp_path / "more.safetensors", tmp_path / "work"
    words = ("--classifier", "svm", "--regression", "ridge", "--work", work)
    out = sppnet.fine("train", "detector", tiny_voc, "--model", tiny_model_file, "--output", svm, *words)
    assert f"wrote {svm}" in out
    assert "SVMs" in out
    found = entry(sppnet.fine("detect", photo, "--model", svm, "--score-threshold", -5, "--json"))
    assert found["score_kind"] == "margin"
    assert len(found["boxes"]) > 0
    assert " margin " in sppnet.fine("detect", photo, "--model", svm, "--score-threshold", -5)

    stars = tmp_path / "stars" / "VOC2007"  # the same photos with squares named stars
    tiny_voc.rename(stars.parent.mkdir() or stars)
    for file in (stars / "Annotations").iterdir():
        file.write_text(file.read_text().replace("square", "star"))
    added = ("--model", svm, "--add-class", "star", "--output", more, "--work", work)
    out = sppnet.fine("train", "detector", stars, *added)
    assert "learned 'star' from" in out
    assert "windows of the model's own training" in out
    assert load(more).architecture.names == ("circle", "square", "star")
    assert "windows of" not in sppnet.fine("train", "detector", stars, *added, "--no-old-negatives")


def test_two_models_at_once(sppnet: Runner, tiny_model_file: Path, tiny_voc: Path, photo: Path, tmp_path: Path) -> None:
    second = tmp_path / "b+c.safetensors"  # a + of its own
    second.write_bytes(tiny_model_file.read_bytes())
    alone = entry(sppnet.fine("detect", photo, "--model", tiny_model_file, "--json", "--score-threshold", 0.2))
    both = entry(sppnet.fine("detect", photo, "--model", tiny_model_file, second, "--json", "--score-threshold", 0.2))
    assert both["boxes"] == alone["boxes"]
    third = tmp_path / "c.safetensors"
    third.write_bytes(tiny_model_file.read_bytes())
    pair = sppnet.fine("evaluate", f"{tiny_model_file}+{third}", tiny_voc, "--json", "--limit", 2)
    assert json.loads(pair)["model"] == f"{tiny_model_file}+{third}"
    one = sppnet.fine("evaluate", second, tiny_voc, "--json", "--limit", 2, "--output", tmp_path / "scores")
    assert json.loads(one)["errors"]["total"]["objects"] > 0
    assert {file.name for file in (tmp_path / "scores").iterdir()} == {
        "evaluation.json",
        "precision-recall.png",
        "errors.png",
    }


def test_compress(sppnet: Runner, tiny_model_file: Path, photo: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    out = sppnet.fine("compress", tiny_model_file, "--output", small, "--ranks", 4)
    assert "layer 1: rank 4" in out
    assert small.stat().st_size < tiny_model_file.stat().st_size
    sppnet.fine("detect", photo, "--model", small)
    assert "layer 1: rank " in sppnet.fine("compress", tiny_model_file, "--output", small, "--energy", 0.3)
    told = sppnet.fine("compress", tiny_model_file, "--output", small, "--ranks", 4, "--photos", photo)
    assert told != out
    assert "layer 1: rank 4" in told
    assert "was truncated before" in sppnet.refused("compress", small, "--output", small, "--ranks", 2)
    assert "from 1 to 16" in sppnet.refused("compress", tiny_model_file, "--output", small, "--ranks", 99)
    assert "must end in" in sppnet.refused("compress", tiny_model_file, "--output", "small", "--ranks", 2)
    assert "expected either ranks" in sppnet.refused("compress", tiny_model_file, "--output", small)


def test_what_is_refused(sppnet: Runner, tiny_model_file: Path, tiny_voc: Path, tmp_path: Path) -> None:
    train = ("train", "detector", tiny_voc, "--output", tmp_path / "n.safetensors")
    assert "--add-class needs --model" in sppnet.refused(*train, "--add-class", "star")
    assert "--classifier svm --output NEW" in sppnet.refused(
        *train, "--model", tiny_model_file, "--add-class", "square"
    )
    assert "--model needs one of: --add-class" in sppnet.refused(*train, "--model", tiny_model_file)
    assert "leave them out" in sppnet.refused(*train, "--model", tiny_model_file, "--backbone", "alexnet")
    assert '"forest"' in sppnet.refused(*train, "--classifier", "forest").replace("'", '"')
    assert not (tmp_path / "n.safetensors").exists()
