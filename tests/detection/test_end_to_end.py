"""From a folder of annotated photos to a model file trained end to end, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.end_to_end import train_end_to_end
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.fast_rcnn import FastRcnnSettings
from sppnet.errors import UserError
from sppnet.models.files import load, save_model, training_record
from sppnet.models.sppnet import Architecture, SPPNet

TINY = Architecture(("circle", "square"), levels=(2, 1), hidden=(64,), short_side=128, long_side=256, proposer="grid")
SHORT = FastRcnnSettings(epochs=1, windows_per_image=8)


def test_a_tiny_run_gives_a_model_file(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train")
    output, work = tmp_path / "shapes.safetensors", tmp_path / "work"
    stages: dict[str, tuple[int, int]] = {}

    def report(stage: str, done: int, total: int) -> None:
        stages[stage] = (done, total)

    record = train_end_to_end(data, TINY, output, work, settings=SHORT, report=report)
    assert stages == {"proposals": (8, 8), "end to end": (4, 4)}
    assert {path.name.split("-m")[0] for path in work.iterdir()} >= {"proposals"}
    assert not list(work.rglob("*.npy"))  # no maps on disk
    assert training_record(output) == json.loads(json.dumps(record))
    assert record["data"] == {"split": "train", "images": 8, "objects": 16}
    assert record["end_to_end"]["learn"] == "all"
    assert load(output).architecture == TINY
    assert 0 <= evaluate_detector(load(output), data, work).result.map07 <= 1


def test_it_goes_on_from_a_detector(tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train", 4)
    output = tmp_path / "m.safetensors"
    settings = dataclasses.replace(SHORT, learn="fc_only", learning_rate=1e-9, weight_decay=0.0)
    record = train_end_to_end(data, tiny_model_file, output, tmp_path / "work", settings=settings)
    assert record["started_from"] == {"seed": 0}
    before, after = load(tiny_model_file).state_dict(), load(output).state_dict()
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())


def test_the_order_of_the_classes_is_the_models(tiny_voc: Path, tmp_path: Path) -> None:
    """A model that counts its classes the other way round learns from the same data without a change of meaning."""
    data = read_voc(tiny_voc, "train", 4)
    start = tmp_path / "start.safetensors"
    turned = dataclasses.replace(TINY, names=("square", "circle"))
    torch.manual_seed(0)
    save_model(SPPNet(turned), start, {})
    train_end_to_end(data, start, tmp_path / "m.safetensors", tmp_path / "work", settings=SHORT)
    assert load(tmp_path / "m.safetensors").class_names == ("square", "circle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"names": ("circle", "triangle")},
            r"they differ: only in the model \['triangle'\], only in the data \['square'\]",
        ),
        ({"detects": False}, "classifies only: give a detector"),
    ],
)
def test_models_that_are_refused(tiny_voc: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    start = tmp_path / "start.safetensors"
    save_model(SPPNet(dataclasses.replace(TINY, **change)), start, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        train_end_to_end(read_voc(tiny_voc, "train"), start, tmp_path / "m.safetensors", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_mistake_in_learn_is_said_before_the_work(tiny_voc: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SHORT, learn="from:nowhere")
    with pytest.raises(UserError, match="'from:nowhere': no such layer"):
        train_end_to_end(
            read_voc(tiny_voc, "train"), TINY, tmp_path / "m.safetensors", tmp_path / "work", settings=settings
        )
    assert not (tmp_path / "work").exists()
