"""`sppnet proposals`: boxes made elsewhere, from the import to a detector that uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def test_proposals_made_elsewhere(sppnet: Callable[..., Any], tiny_voc: Path, tmp_path: Path) -> None:
    """A file of boxes, those of the objects: imported, measured, trained on, evaluated and detected with."""
    from sppnet.data.formats.voc import read as read_voc

    data = read_voc(tiny_voc, "val")
    boxes, work, model = tmp_path / "boxes.npz", tmp_path / "work", tmp_path / "m.safetensors"
    np.savez(boxes, **{image.image_id: image.gt_boxes for image in data.images})

    sppnet("proposals", tiny_voc, "--split", "val", "--import", boxes).refused("--cache")
    ran = sppnet("proposals", tiny_voc, "--split", "val", "--import", boxes, "--cache", work, "--json")
    assert ran.status == 0
    assert ran.document["sizes"]["all"]["recall"] == [1.0, 1.0]
    assert "8 boxes of 4 images" in ran.err

    imported = ["--split", "val", "--proposals", "imported", "--cache", work]
    tiny = ["--short-side", 64, "--train-layers", "none", "--epochs", 1]
    sppnet("train", "detector", tiny_voc, "--output", model, *imported, *tiny).fine()
    assert sppnet("evaluate", model, tiny_voc, "--cache", work, "--json").document["images"] == 4
    sppnet("evaluate", model, tiny_voc, "--split", "train", "--cache", work).refused("no imported proposals")

    photo, other = data.images[0].path, data.images[1].path.with_name("000000.jpg")
    words = ["detect", photo, other, "--model", model, "--proposals", boxes, "--score-threshold", 0, "--json"]
    ran = sppnet(*words)
    assert ran.status == 2
    assert [entry["file"] for entry in ran.document["images"]] == [str(photo)]
    assert ran.document["errors"] == [{"file": str(other), "error": f"{other}: no boxes of '000000' in {boxes}"}]


def test_boxes_in_another_order_are_named(sppnet: Callable[..., Any], tiny_voc: Path, tmp_path: Path) -> None:
    """y before x, of a wide image: neither an import nor `detect` takes them."""
    Image.new("RGB", (120, 40)).save(tmp_path / "wide.png")
    np.savez(tmp_path / "boxes.npz", wide=np.array([[0, 60, 40, 110]]))
    sppnet("detect", tmp_path / "wide.png", "--proposals", tmp_path / "boxes.npz").refused("1 of 1 that are not")


def test_images_without_imported_proposals_are_named(
    sppnet: Callable[..., Any], tiny_voc: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "boxes.npz", **{"000002": np.array([[0, 0, 20, 20]])})
    words = ["proposals", tiny_voc, "--split", "val", "--cache", tmp_path / "work", "--import", tmp_path / "boxes.npz"]
    ran = sppnet(*words)
    assert ran.status == 2
    assert "no boxes of 3 of 4 images" in ran.err
    assert "000005, 000008, 000011" in ran.err
    assert len(list((tmp_path / "work").rglob("*.npz"))) == 1
    sppnet(*words[:-1], tmp_path / "none.pkl").refused("none.pkl")


def test_proposals_of_a_network(sppnet: Callable[..., Any], tiny_voc: Path) -> None:
    ran = sppnet("proposals", tiny_voc, "--proposals", "network", "--model", "voc", "--json")
    assert ran.status == 0
    assert ran.document["images"] == 8
    assert 0 < ran.document["boxes_per_image"] <= 300
    for words in (["--proposals", "network"], ["--model", "voc"]):
        sppnet("proposals", tiny_voc, *words).refused("--proposals network and --model go together")
