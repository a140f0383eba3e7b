"""Classifiers from the command line: a folder of class folders in, a model and its report out, and what that is worth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ("--short-side", 32)


def test_train_classifier_then_use_it(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    model, report = tmp_path / "m.safetensors", tmp_path / "m.report"
    ran = sppnet("train", "classifier", colours, "--output", model, *SMALL)
    assert (ran.status, ran.err) == (0, "")
    wrote, right = ran.out.splitlines()
    assert wrote.startswith(f"wrote {model} (")
    assert right.startswith("100.0 % of 2 validation images are answered right (95 % interval 34.2 to 100.0)")
    assert right.endswith(str(report))
    assert (report / "evaluation.json").is_file()

    ran = sppnet("evaluate", model, colours, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert (ran.document["top1"], ran.document["images"]) == (1.0, 16)
    ran = sppnet("classify", colours / "red" / "00.png", "--model", model)
    assert ran.out.startswith(f"{colours / 'red' / '00.png'}: red 0.")
    ran = sppnet("classify", colours / "red" / "00.png", "--model", model, "--pyramid", "--output", tmp_path, "--json")
    (answer,) = ran.document["images"]
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert len(answer["pyramid"]["levels"]) == 3
    again = tmp_path / "again.safetensors"
    assert sppnet("compress", model, "--energy", 0.9, "--output", again).status == 0  # it has no layers to thin
    assert sppnet("evaluate", again, colours, "--json").document["top1"] == 1.0


def test_layers_trained_in_epochs(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    words = ("train", "classifier", colours, "--output", tmp_path / "m.safetensors", *SMALL)
    ran = sppnet(*words, "--classifier", "softmax", "--epochs", 3, "--json")
    assert ran.status == 0, ran.err
    assert (ran.document["classifier"], ran.document["steps"]) == ("softmax", 3)
    assert ran.document["model"] == str(tmp_path / "m.safetensors")
    assert (tmp_path / "m.report" / "log.csv").read_text().startswith("step,")


def test_the_whole_network_from_random_weights(sppnet: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    """The file holds the network whose answers were measured, its BatchNorm folded."""
    for part in ("train", "val"):
        shutil.copytree(colours, tmp_path / "split" / part)
    model, start = tmp_path / "m.safetensors", ("--train-layers", "all", "--weights", "random", "--sides", 40, 32)
    words = ("train", "classifier", tmp_path / "split", "--output", model, *SMALL, *start)
    ran = sppnet(*words, "--epochs", 2, "--json")
    assert ran.status == 0, ran.err
    assert ran.document["settings"]["weights"] == "random"
    again = sppnet("evaluate", model, tmp_path / "split", "--json")
    figures = {name: value for name, value in ran.document["evaluation"].items() if name != "loss"}
    assert {name: again.document[name] for name in figures} == figures


@pytest.mark.parametrize(
    ("parts", "data"),
    [
        (("train", "val", "test"), {"train": 16, "validation": 16, "validation_images": "given"}),
        (("train", "test"), {"train": 14, "validation": 2, "validation_images": "split off"}),
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
    sppnet(*words, "--validation-share", 0.5).refused("images cannot be read", "'sppnet check'")
    ran = sppnet(*words, "--skip-bad")
    assert ran.status == 0
    assert sorted(line.split(": ")[2] for line in ran.err.splitlines()) == sorted(map(str, bad))  # one line each


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--classifier", "softmax", "--epochs", 0), ["epochs must be at least 1: got 0"]),
        (("--epochs", 3), ["epochs: only for", "add classifier softmax"]),
        (("--classifier", "svm", "--train-layers", "all"), ["SVMs are trained on a frozen backbone"]),
        (("--classifier", "boost"), ["--classifier", "svm", "softmax"]),
        (("--validation-share", 1), ["validation_share must be between 0 and 1: got 1"]),
        (("--short-side", 0), ["sides must be 1 to 20000 pixels: got 0"]),
        (("--train-layers", "nothing"), ["--train-layers", "head", "all"]),
        (("--sides", 64, 48), ["sides: only where all layers are trained"]),
        (("--weights", "random"), ["random weights cannot be frozen"]),
        (("--backbone", "zf5"), ["zf5 has no pretrained weights"]),
        (("--backbone", "resnet1000"), ["resnet1000"]),
        (("--backbone", "resnet18", "--weights", "none.pth"), ["none.pth"]),
        (("--output", "m.pth"), ["m.pth", ".safetensors"]),
        (("--learn", "all"), ["--learn is now --train-layers"]),
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
