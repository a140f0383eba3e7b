"""Detectors from the command line: trained, evaluated, with SVMs, one class more, combined; and data sets that lack something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppnet.models.files import load


def test_proposals_train_evaluate(sppnet: Callable[..., Any], tiny_voc: Path, tmp_path: Path) -> None:
    ran = sppnet("proposals", tiny_voc, "--proposals", "grid", "--limit", 3, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.document["images"] == 3

    model = tmp_path / "m.safetensors"
    tiny = ("--proposals", "grid", "--short-side", 64, "--train-layers", "none", "--epochs", 1)
    ran = sppnet("train", "detector", tiny_voc, "--output", model, *tiny)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {model} (")
    assert ran.out.count("\n") == 1

    ran = sppnet("evaluate", model, tiny_voc, "--json", "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, "")
    assert set(ran.document["map"]) == {"voc07", "area"}
    assert {"ap", "ap50", "ap75"} <= set(ran.document["coco"])
    assert (ran.document["split"], ran.document["images"]) == ("val", 4)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {name: value for name, value in written.items() if name != "made_by"} == ran.document
    assert (tmp_path / "out" / "precision-recall.png").is_file()
    ran = sppnet("evaluate", model, tiny_voc, "--limit", 2)
    assert "circle" in ran.out
    assert "2 images" in ran.out
    assert "by COCO's rules:\nAP  " in ran.out


def test_where_boxes_come_from_and_how_they_move(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path
) -> None:
    seen = ("detect", photo, "--model", tiny_model_file, "--json", "--score-threshold", 0.1)
    voted, stays = (entry(sppnet(*seen, "--vote-iou", iou).fine()) for iou in (0.5, 0))
    assert voted["boxes"] != stays["boxes"]
    assert voted["scores"] == stays["scores"]
    assert entry(sppnet(*seen, "--proposals", "selective-search").fine()) != voted
    sppnet(*seen, "--proposals", "nobody").refused("nobody")
    sppnet(*seen, "--vote-iou", 2).refused("vote_iou must be between 0 and 1: got 2")
    scored = sppnet("evaluate", tiny_model_file, tiny_voc, "--json", "--proposals", "selective-search", "--vote-iou", 0)
    assert (scored.document["proposals"], scored.document["vote_iou"]) == ("selective-search", 0)
    sppnet("evaluate", tiny_model_file, tiny_voc, "--proposals", "nobody").refused("nobody")


def test_other_scales_than_in_training(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path
) -> None:
    seen = ("detect", photo, "--model", tiny_model_file, "--json", "--score-threshold", 0.1)
    assert entry(sppnet(*seen, "--scales", 64, 128).fine()) != entry(sppnet(*seen).fine())
    sppnet(*seen, "--scales", 64, 0).refused("scales")
    scored = sppnet("evaluate", tiny_model_file, tiny_voc, "--json", "--scales", 64, 128)
    assert scored.document["scales"] == [64, 128]


def test_training_words_that_need_the_data(
    sppnet: Callable[..., Any], tiny_voc: Path, tiny_model_file: Path, tmp_path: Path
) -> None:
    def trained(*words: object, output: str = "m.safetensors") -> Any:
        return sppnet("train", "detector", tiny_voc, "--output", tmp_path / output, *words)

    trained("--scales", 480, 0).refused("scales")
    trained("--backbone", "resnet1000", "--weights", "x.pth").refused("resnet1000")
    trained("--backbone", "resnet18", "--weights", "none.pth").refused("none.pth")
    trained("--backbone", "zf5", "--preset", "quick").refused("zf5 has no pretrained weights")
    trained("--backbone", "zf5", "--preset", "quick", "--weights", "random").refused("random weights cannot be frozen")
    trained("--preset", "quick", "--epochs", 3).refused("epochs is not used by preset quick")
    trained("--preset", "paper", "--train-layers", "all").refused("train_layers is not used by preset paper")
    trained("--train-layers", "nowhere").refused("nowhere", "no such layer")
    trained("--model", tiny_model_file, "--backbone", "alexnet").refused("backbone is not used", "leave it out")
    trained("--epochs", 0).refused("epochs must be at least 1: got 0")
    trained(output="m.pth").refused("m.pth", ".safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    (tmp_path / "m.safetensors").write_text("somebody's")
    trained().refused("was not written by sppnet")


def test_training_end_to_end(sppnet: Callable[..., Any], tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    words = ("--model", tiny_model_file, "--train-layers", -1, "--epochs", 1, "--proposals", "edge-boxes")
    ran = sppnet("train", "detector", tiny_voc, "--output", output, *words)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {output} (")
    assert load(output).detection.proposals == "edge-boxes"
    assert sppnet("evaluate", output, tiny_voc, "--json").document["images"] == 4


def test_from_softmax_to_svms_to_a_class_more(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path, tmp_path: Path
) -> None:
    svm, more, cache = tmp_path / "svm.safetensors", tmp_path / "more.safetensors", tmp_path / "cache"
    out = sppnet("train", "svm", tiny_model_file, tiny_voc, "--output", svm, "--cache", cache).fine()
    assert f"wrote {svm}" in out
    assert "SVMs" in out
    found = entry(sppnet("detect", photo, "--model", svm, "--score-threshold", -5, "--json").fine())
    assert found["score_kind"] == "decision"
    assert len(found["boxes"]) > 0
    assert " decision score " in sppnet("detect", photo, "--model", svm, "--score-threshold", -5).fine()

    stars = tmp_path / "stars" / "VOC2007"  # the same photos with squares named stars
    tiny_voc.rename(stars.parent.mkdir() or stars)
    for file in (stars / "Annotations").iterdir():
        file.write_text(file.read_text().replace("square", "star"))
    added = ("train", "add-class", svm, "star", stars, "--output", more, "--cache", cache)
    out = sppnet(*added).fine()
    assert "trained 'star' on" in out
    assert "windows of the model's own training" in out
    assert load(more).class_names == ("circle", "square", "star")
    assert "windows of" not in sppnet(*added, "--no-old-negatives").fine()
    sppnet("train", "add-class", svm, "moon", stars, "--output", more).refused("moon")
    sppnet("train", "add-class", tiny_model_file, "star", stars, "--output", more).refused("sppnet train svm")


def test_two_models_at_once(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path, tmp_path: Path
) -> None:
    second = tmp_path / "b.safetensors"
    second.write_bytes(tiny_model_file.read_bytes())
    alone = entry(sppnet("detect", photo, "--model", tiny_model_file, "--json", "--score-threshold", 0.2).fine())
    both = entry(sppnet("detect", photo, "--model", tiny_model_file, second, "--json", "--score-threshold", 0.2).fine())
    assert both["boxes"] == alone["boxes"]
    words = ("evaluate", tiny_model_file, tiny_voc, "--json", "--limit", 2, "--output", tmp_path / "scores")
    pair = json.loads(sppnet(*words, "--combine", second).fine())
    assert pair["combined"] == [str(second)]
    assert pair["errors"]["total"]["objects"] > 0
    written = {file.name for file in (tmp_path / "scores").iterdir()}
    assert written == {"evaluation.json", "precision-recall.png", "errors.png"}


def entry(document: str) -> dict[str, Any]:
    (only,) = json.loads(document)["images"]
    return dict(only)


# Data sets


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations", "ImageSets"])
def test_a_data_set_without_its_parts(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, part: str
) -> None:
    (tiny_voc / part).rename(tiny_voc / "gone")
    named = part.split("/")[-1]
    sppnet("evaluate", tiny_model_file, tiny_voc).refused(str(tiny_voc), named)
    sppnet("proposals", tiny_voc, "--split", "val").refused(named)
    sppnet("train", "detector", tiny_voc, "--split", "val", "--output", "m.safetensors").refused(named)


def test_a_data_set_that_is_not_there(sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path) -> None:
    sppnet("evaluate", tiny_model_file, "no/such/folder").refused("no/such/folder")
    sppnet("evaluate", tiny_model_file, photo).refused(str(photo))


def test_a_bad_image_in_a_data_set(sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path) -> None:
    bad = tiny_voc / "JPEGImages" / "000002.jpg"
    bad.write_text("this is text")
    sppnet("evaluate", tiny_model_file, tiny_voc).refused(str(bad), "1 of 4 images")
    sppnet("proposals", tiny_voc, "--split", "val", "--proposals", "grid").refused(str(bad))


def test_other_classes_than_the_models(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc_of_voc_classes: Path
) -> None:
    sppnet("evaluate", tiny_model_file, tiny_voc_of_voc_classes).refused("circle", "aeroplane")
