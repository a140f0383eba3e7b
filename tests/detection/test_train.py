"""A tiny run that learns, from a folder of annotated photos to a model file; and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sppnet.data.annotations import DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.finetune import FinetuneSettings
from sppnet.detection.train import train_detector
from sppnet.errors import UserError
from sppnet.models.files import load, training_record
from sppnet.models.sppnet import Architecture

TINY = Architecture(
    ("circle", "square"), levels=(2, 1), hidden=(64,), short_side=384, long_side=600, proposer="grid"
)  # random features of "compact": at this size a shape covers a few cells
SETTINGS = FinetuneSettings(steps=120, images_per_step=4, windows_per_image=32, learning_rate=2e-3)
SHORT = FinetuneSettings(steps=2, images_per_step=2, windows_per_image=8)
SMALL = dataclasses.replace(TINY, short_side=64, long_side=128, hidden=(8,))


def test_a_tiny_run_learns(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train")
    output, work = tmp_path / "shapes.safetensors", tmp_path / "work"
    stages: dict[str, tuple[int, int]] = {}

    def report(stage: str, done: int, total: int) -> None:
        stages[stage] = (done, total)

    record = train_detector(data, TINY, output, work, settings=SETTINGS, report=report)
    assert stages == {"proposals": (8, 8), "maps": (8, 8), "fine-tuning": (120, 120)}

    with open(next(work.glob("checkpoints-shapes-*/log/metrics.csv")), newline="") as file:
        losses = [float(row["loss_windows"]) + float(row["loss_images"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]

    model = load(output)
    assert model.architecture == TINY
    answer = evaluate_detector(model, data, work)
    assert answer.result.map07 > 0.2  # of random weights: about .01

    assert training_record(output) == json.loads(json.dumps(record))
    assert record["data"] == {"split": "train", "images": 8, "objects": 16}
    assert record["settings"]["steps"] == 120
    assert set(record["seconds"]) == {"proposals", "maps", "fine-tuning"}


def test_only_a_run_of_the_same_kind_is_taken_up(tiny_voc: Path, tmp_path: Path) -> None:
    def steps_done(data: DetectionData, architecture: Architecture, settings: FinetuneSettings) -> int:
        steps: list[str] = []
        train_detector(
            data,
            architecture,
            tmp_path / "m.safetensors",
            tmp_path / "work",
            settings=settings,
            mirrored=False,
            report=lambda stage, done, total: steps.append(stage) if stage == "fine-tuning" else None,
        )
        return len(steps)

    data = read_voc(tiny_voc, "train")
    assert steps_done(data, SMALL, SHORT) == 2
    assert steps_done(data, SMALL, SHORT) == 0  # it was finished
    assert steps_done(data, SMALL, dataclasses.replace(SHORT, steps=3)) == 3
    assert steps_done(data, SMALL, dataclasses.replace(SHORT, learning_rate=2e-3)) == 2
    assert steps_done(data, dataclasses.replace(SMALL, hidden=(4,)), SHORT) == 2
    assert steps_done(dataclasses.replace(data, images=data.images[:4]), SMALL, SHORT) == 2


def test_the_same_seed_gives_the_same_model(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train", 4)
    files = [tmp_path / name / "m.safetensors" for name in ("a", "b")]
    for file in files:
        train_detector(data, SMALL, file, file.parent / "work", settings=SHORT, mirrored=False)
    models = [load(file).state_dict() for file in files]
    assert all((models[0][name] == value).all() for name, value in models[1].items())


def test_unreadable_images_are_named_all_of_them(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train")
    for image in data.images[:2]:
        image.path.write_bytes(image.path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"2 of 8 images cannot be used: .*000000\.jpg: .*; .*000001\.jpg: "):
        train_detector(data, SMALL, tmp_path / "m.safetensors", tmp_path / "work", settings=SHORT)
    assert not (tmp_path / "m.safetensors").exists()


def test_nothing_to_learn_from(tiny_voc: Path, tmp_path: Path) -> None:
    data = read_voc(tiny_voc, "train")
    images = tuple(dataclasses.replace(image, difficult=np.ones(2, bool)) for image in data.images)
    with pytest.raises(UserError, match=r"split 'train' holds no object to learn from \(8 images\)"):
        train_detector(dataclasses.replace(data, images=images), SMALL, tmp_path / "m.safetensors", tmp_path / "work")


def test_the_ending_of_the_model_file_is_said_before_the_work(tiny_voc: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.safetensors: got .*model\.pth"):
        train_detector(read_voc(tiny_voc), SMALL, tmp_path / "model.pth", tmp_path / "work")
    assert not (tmp_path / "work").exists()
