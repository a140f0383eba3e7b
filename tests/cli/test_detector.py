"""Detectors from the command line: trained, evaluated, with SVMs, one class more, combined; and data sets that lack something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from sppnet.models.files import load


def test_proposals_train_evaluate(sppnet: Callable[..., Any], tiny_voc: Path, tmp_path: Path) -> None:
    ran = sppnet("proposals", tiny_voc, "--proposals", "grid", "--limit", 3, "--json")
    assert ran.status == 0
    assert ran.err == ""
    assert ran.document["images"] == 3

    from sppnet.models.networks import compact_resnet

    weights, model = tmp_path / "backbone.safetensors", tmp_path / "m.safetensors"
    save_file(compact_resnet().state_dict(), weights)
    tiny = ["--proposals", "grid", "--levels", 2, 1, "--hidden", 8, "--short-side", 64, "--long-side", 128]
    ran = sppnet("train", "detector", tiny_voc, "--output", model, "--weights", weights, "--steps", 2, *tiny)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {model} (")
    assert ran.out.count("\n") == 1

    ran = sppnet("evaluate", model, tiny_voc, "--json", "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, "")
    assert set(ran.document["map"]) == {"voc07", "area"}
    assert {"ap", "ap50", "ap75"} <= set(ran.document["coco"])
    assert (ran.document["split"], ran.document["images"]) == ("val", 4)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == ran.document
    assert (tmp_path / "out" / "precision-recall.png").is_file()
    several = (*tiny, "--scales", 48, 64, 96, "--mapping", "release", "--steps", 2)
    sppnet("train", "detector", tiny_voc, "--output", model, "--weights", weights, *several).fine()
    assert (load(model).architecture.scales, load(model).architecture.mapping) == ((48, 64, 96), "release")
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
    sppnet(*seen, "--vote-iou", 2).refused("--vote-iou")
    sppnet(*seen, "--proposals", "grid", "--proposals", tiny_voc).refused("--proposals and --proposals")
    scored = sppnet("evaluate", tiny_model_file, tiny_voc, "--json", "--proposals", "selective-search", "--vote-iou", 0)
    assert (scored.document["proposer"], scored.document["vote_iou"]) == ("selective-search", 0)
    sppnet("evaluate", tiny_model_file, tiny_voc, "--proposals", "nobody").refused("nobody")


def test_other_scales_than_in_training(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path
) -> None:
    seen = ("detect", photo, "--model", tiny_model_file, "--json", "--score-threshold", 0.1)
    assert entry(sppnet(*seen, "--scales", 64, 128).fine()) != entry(sppnet(*seen).fine())
    sppnet(*seen, "--scales", 64, 0).refused("--scales")
    scored = sppnet("evaluate", tiny_model_file, tiny_voc, "--json", "--scales", 64, 128)
    assert scored.document["scales"] == [64, 128]


def test_training_words_that_need_the_data(sppnet: Callable[..., Any], tiny_voc: Path, tmp_path: Path) -> None:
    def trained(*words: object, output: str = "m.safetensors") -> Any:
        return sppnet("train", "detector", tiny_voc, "--output", tmp_path / output, *words)

    trained("--levels", 0).refused("--levels")
    trained("--hidden", -1).refused("--hidden")
    trained("--scales", 480, 0).refused("--scales")
    trained("--mapping", "nearest").refused("--mapping", "roi_pool")
    trained("--backbone", "resnet1000", "--weights", "x.pth").refused("resnet1000")
    trained("--backbone", "resnet18", "--weights", "none.pth").refused("none.pth")
    trained(output="m.pth").refused("m.pth", ".safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_training_end_to_end(sppnet: Callable[..., Any], tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"

    def trained(*words: object) -> Any:
        start = ("--model", tiny_model_file, "--output", output, "--limit", 2)
        return sppnet("train", "detector", tiny_voc, "--end-to-end", *start, *words)

    trained("--learn", "from:nowhere").refused("'from:nowhere': no such layer")
    trained("--classifier", "svm").refused("--end-to-end comes first")
    trained("--epochs", 0).refused("epochs must be at least 1: got 0")
    trained("--devices", 0).refused("--devices must be at least 1", "got 0")
    trained("--images-per-step", 0).refused("images_per_step must be at least 1: got 0")
    trained("--backbone-rate", 0).refused("backbone_rate must be above 0")
    trained("--sides", 0).refused("short_sides must be at least 1")
    assert not output.exists()
    ran = trained("--learn", "from:-1", "--epochs", 1, "--sides", 64, 96, "--proposals", "edge-boxes")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {output} (")
    assert load(output).architecture.proposer == "edge-boxes"
    assert sppnet("evaluate", output, tiny_voc, "--json").document["images"] == 4


def test_from_softmax_to_svms_to_a_class_more(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path, tmp_path: Path
) -> None:
    svm, more, work = tmp_path / "svm.safetensors", tmp_path / "more.safetensors", tmp_path / "work"
    words = ("--classifier", "svm", "--regression", "ridge", "--cache", work)
    out = sppnet("train", "detector", tiny_voc, "--model", tiny_model_file, "--output", svm, *words).fine()
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
    added = ("--model", svm, "--add-class", "star", "--output", more, "--cache", work)
    out = sppnet("train", "detector", stars, *added).fine()
    assert "learned 'star' from" in out
    assert "windows of the model's own training" in out
    assert load(more).class_names == ("circle", "square", "star")
    assert "windows of" not in sppnet("train", "detector", stars, *added, "--no-old-negatives").fine()


def test_training_words_that_do_not_go_together(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, tmp_path: Path
) -> None:
    train = ("train", "detector", tiny_voc, "--output", tmp_path / "n.safetensors")
    sppnet(*train, "--add-class", "star").refused("--add-class needs --model")
    sppnet(*train, "--model", tiny_model_file, "--add-class", "square").refused("--classifier svm --output NEW")
    sppnet(*train, "--model", tiny_model_file).refused("--model needs one of: --add-class")
    sppnet(*train, "--model", tiny_model_file, "--backbone", "alexnet").refused("leave them out")
    sppnet(*train, "--model", tiny_model_file, "--classifier", "svm", "--proposals", "grid").refused("--proposals")
    sppnet(*train, "--classifier", "forest").refused("--classifier", "forest", "softmax")
    assert not (tmp_path / "n.safetensors").exists()


def test_two_models_at_once(
    sppnet: Callable[..., Any], tiny_model_file: Path, tiny_voc: Path, photo: Path, tmp_path: Path
) -> None:
    second = tmp_path / "b+c.safetensors"  # a + of its own
    second.write_bytes(tiny_model_file.read_bytes())
    alone = entry(sppnet("detect", photo, "--model", tiny_model_file, "--json", "--score-threshold", 0.2).fine())
    both = entry(sppnet("detect", photo, "--model", tiny_model_file, second, "--json", "--score-threshold", 0.2).fine())
    assert both["boxes"] == alone["boxes"]
    third = tmp_path / "c.safetensors"
    third.write_bytes(tiny_model_file.read_bytes())
    pair = sppnet("evaluate", f"{tiny_model_file}+{third}", tiny_voc, "--json", "--limit", 2).fine()
    assert json.loads(pair)["model"] == f"{tiny_model_file}+{third}"
    one = sppnet("evaluate", second, tiny_voc, "--json", "--limit", 2, "--output", tmp_path / "scores").fine()
    assert json.loads(one)["errors"]["total"]["objects"] > 0
    assert {file.name for file in (tmp_path / "scores").iterdir()} == {
        "evaluation.json",
        "precision-recall.png",
        "errors.png",
    }


def entry(document: str) -> dict[str, Any]:
    (only,) = json.loads(document)["images"]
    return dict(only)


# Data sets


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations", "ImageSets", "ImageSets/Main/val.txt"])
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
