"""Classifiers from the command line: a folder of class folders in, a model and its report out, and what that is worth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMALL = ("--short-side", 32, "--levels", 2, 1)
SOFTMAX = ("--classifier", "softmax")
EPOCHS = (*SOFTMAX, "--epochs", 3, "--batch-size", 4)


def test_train_classifier_then_use_it(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    model, report = tmp_path / "m.safetensors", tmp_path / "m.report"
    ran = sppnet("train", "classifier", colours, "--output", model, *SMALL)
    assert (ran.status, ran.err) == (0, "")
    wrote, right = ran.out.splitlines()
    assert wrote.startswith(f"wrote {model} (")
    assert right.startswith("100.0 % of 2 held-out images are answered right (95 % interval 34.2 to 100.0)")
    assert right.endswith(str(report))
    assert sorted(path.name for path in report.iterdir()) == ["confusion.png", "evaluation.json"]  # and no mistakes.jpg

    from sppnet.models.files import training_record

    record = training_record(model)
    assert record["data"] == {"train": 14, "held_out": 2, "held_out_were": "split off", "classes": 2, "skipped": 0}
    assert (record["classifier"], record["settings"]["learn"]) == ("svm", "head")
    assert record["svm"]["cross_validated"][f"{record['svm']['cost']:g}"] == 1.0
    assert record["evaluation"]["top1"] == 1.0
    assert record["held_out"]["epoch"] is None

    ran = sppnet("evaluate", model, colours, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert (ran.document["top1"], ran.document["images"]) == (1.0, 16)
    ran = sppnet("classify", colours / "red" / "00.png", "--model", model)
    assert ran.out.startswith(f"{colours / 'red' / '00.png'}: red 0.")
    ran = sppnet("classify", colours / "red" / "00.png", "--model", model, "--pyramid", "--output", tmp_path, "--json")
    (answer,) = ran.document["images"]
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert len(answer["pyramid"]["levels"]) == 2
    again = tmp_path / "again.safetensors"
    assert sppnet("compress", model, "--energy", 0.9, "--output", again).status == 0  # it has no layers to thin
    assert sppnet("evaluate", again, colours, "--json").document["top1"] == 1.0


def test_a_classifier_that_learns_in_epochs(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    model, report = tmp_path / "m.safetensors", tmp_path / "m.report"
    ran = sppnet("train", "classifier", colours, "--output", model, *SMALL, *EPOCHS, "--json")
    assert ran.status == 0, ran.err
    assert (ran.document["classifier"], ran.document["steps"]) == ("softmax", 12)
    assert ran.document["held_out"]["epoch"] <= 3
    assert sorted(path.name for path in report.iterdir()) == [
        "confusion.png",
        "curves.png",
        "evaluation.json",
        "log.csv",
    ]  # and no mistakes.jpg
    assert (report / "log.csv").read_text().startswith("step,")
    assert sppnet("train", "classifier", colours, "--output", model, *SMALL).status == 0
    assert not (report / "curves.png").exists()  # they were another model's


def test_hidden_layers_learn_in_epochs_unless_told_otherwise(
    sppnet: Callable[..., Any], colours: Path, tmp_path: Path
) -> None:
    words = ("train", "classifier", colours, "--output", tmp_path / "m.safetensors", *SMALL, "--hidden", 8)
    assert sppnet(*words, "--epochs", 1, "--json").document["classifier"] == "softmax"
    sppnet(*words, "--classifier", "svm").refused("--hidden", "add --classifier softmax")


@pytest.mark.parametrize(
    "words",
    [
        ("--short-side", 32, "--sizes", "multi", "--sides", 40, 32),
        ("--short-side", 32, "--sizes", "native", "--hidden", 8, "--optimiser", "sgd"),
        ("--short-side", 48, "--backbone", "zf5", "--fit", "squash", "--precision", "float32"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_train_a_classifier_from_random_weights(
    sppnet: Callable[..., Any], colours: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    """The file holds the network whose answers were measured, its BatchNorm folded."""
    for part in ("train", "val"):
        shutil.copytree(colours, tmp_path / "split" / part)
    model, start = tmp_path / "m.safetensors", ("--learn", "all", "--weights", "random")
    small = ("--levels", 2, 1, "--epochs", 2, "--batch-size", 8)
    ran = sppnet("train", "classifier", tmp_path / "split", "--output", model, *start, *small, *words, "--json")
    assert ran.status == 0, ran.err
    assert ran.document["settings"]["learn"] == "all"
    assert ran.document["backbone_weights"] == "random"
    again = sppnet("evaluate", model, tmp_path / "split", "--json")
    assert again.status == 0
    figures = ran.document["evaluation"]
    assert {name: again.document[name] for name in figures} == figures


def test_fine_tuning_starts_from_learned_weights(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    from sppnet.models.files import load

    model = tmp_path / "m.safetensors"
    small = ("--learn", "all", "--epochs", 1, "--short-side", 32, "--levels", 1, "--learning-rate", 1e-6)
    assert sppnet("train", "classifier", colours, "--output", model, *small).status == 0
    ours, shipped = load(model).backbone.state_dict(), load("voc").backbone.state_dict()
    assert all(np.allclose(value, ours[name], atol=1e-3) for name, value in shipped.items())


@pytest.mark.parametrize(
    ("parts", "data"),
    [
        (("train", "val", "test"), {"train": 16, "held_out": 16, "held_out_were": "given"}),
        (("train", "test"), {"train": 14, "held_out": 2, "held_out_were": "split off"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_images_that_were_split_are_not_split_again_and_test_is_not_looked_at(
    sppnet: Callable[..., Any], colours: Path, tmp_path: Path, parts: tuple[str, ...], data: dict[str, object]
) -> None:
    for part in parts:
        shutil.copytree(colours, tmp_path / "split" / part)
    for path in (tmp_path / "split" / "test").rglob("*.png"):
        path.write_text("whoever reads this fails")
    model = tmp_path / "m.safetensors"
    ran = sppnet("train", "classifier", tmp_path / "split", "--output", model, *SMALL, "--json")
    assert ran.status == 0, ran.err
    assert {name: ran.document["data"][name] for name in data} == data


def test_a_split_that_is_not_there(
    sppnet: Callable[..., Any], colours: Path, classifier_file: Path, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        shutil.copytree(colours, tmp_path / "split" / part)
    sppnet("evaluate", classifier_file, tmp_path / "split").refused(
        "no split 'val', but train and test: give --split test"
    )
    assert sppnet("evaluate", classifier_file, tmp_path / "split", "--split", "test", "--json").document["images"] == 16
    (tmp_path / "split" / "test").rename(tmp_path / "split" / "Test")  # as `train classifier` takes it, too
    assert sppnet("evaluate", classifier_file, tmp_path / "split", "--split", "test", "--json").document["images"] == 16


def test_bad_photos_are_named(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    bad = [colours / "blue" / "03.png", colours / "red" / "05.png"]
    for path in bad:
        path.write_text("no image")
    words = ("train", "classifier", colours, "--output", tmp_path / "m.safetensors", *SMALL)
    sppnet(*words, "--held-out", 0.5).refused("images cannot be read", "'sppnet check'")
    ran = sppnet(*words, "--skip-bad")
    assert ran.status == 0
    assert sorted(line.split(": ")[2] for line in ran.err.splitlines()) == sorted(map(str, bad))  # one line each


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((*SOFTMAX, "--epochs", 0), ["epochs must be at least 1: got 0"]),
        ((*SOFTMAX, "--batch-size", 0), ["batch_size must be at least 1: got 0"]),
        ((*SOFTMAX, "--learning-rate", 0), ["learning_rate must be between 0 and 1: got 0"]),
        (("--epochs", 3, "--precision", "float32"), ["--epochs, --precision: only for", "--classifier softmax"]),
        (("--classifier", "svm", "--learn", "all"), ["leave out --learn all, or take softmax"]),
        (("--classifier", "boost"), ["--classifier", "svm", "softmax"]),
        (("--held-out", 1), ["held_out_share must be between 0 and 1: got 1"]),
        (("--seed", -1), ["seed must be"]),
        (("--short-side", 0), ["--short-side must be at least 1: got 0"]),
        (("--long-side", 0), ["--long-side must be at least 1: got 0"]),
        (("--stride", 0), ["--stride must be at least 1: got 0"]),
        (("--workers", -1), ["--workers must be at least 0: got -1"]),
        (("--levels", 0), ["--levels must be whole numbers of at least 1"]),
        (("--hidden", 0), ["--hidden must be whole numbers of at least 1"]),
        (("--learn", "nothing"), ["--learn", "head", "all"]),
        (("--sizes", "both"), ["--sizes", "multi"]),
        (("--sizes", "multi"), ["learn='all'"]),
        (("--learn", "all", "--sizes", "multi", "--sides", 64), ["at least two different sides"]),
        (("--devices", 2), ["the head alone learns on one device"]),
        (("--weights", "random"), ["learn='all'"]),
        (("--backbone", "zf5"), ["zf5 comes without weights"]),
        (("--backbone", "resnet1000"), ["resnet1000"]),
        (("--backbone", "resnet18", "--weights", "none.pth"), ["none.pth"]),
        (("--output", "m.pth"), ["m.pth", ".safetensors"]),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_wrong_word_to_train_classifier(
    sppnet: Callable[..., Any], colours: Path, tmp_path: Path, words: tuple[object, ...], parts: list[str]
) -> None:
    output = () if "--output" in words else ("--output", tmp_path / "m.safetensors")
    sppnet("train", "classifier", colours, *output, *words).refused(*parts)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_folder_that_is_no_folder_of_classes(sppnet: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    sppnet("train", "classifier", tmp_path / "none", "--output", "m.safetensors").refused(str(tmp_path / "none"))
    sppnet("train", "classifier", tmp_path, "--output", "m.safetensors").refused(str(tmp_path))
