"""Model files: what is saved comes back, and what is not a model is said to be none."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sppnet.errors import UserError
from sppnet.models import files
from sppnet.models.files import find_model, load, save_model, training_record
from sppnet.models.sppnet import Architecture, SPPNet

TINY = Architecture(("cat", "dog"), levels=(2, 1), hidden=(16,))


def rewritten(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model file with other metadata."""
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(source), target, {**metadata, **changes})
    return target


def architecture_with(source: Path, target: Path, **changes: Any) -> Path:
    with safe_open(source, framework="pt") as file:
        fields = json.loads(file.metadata()["architecture"])
    return rewritten(source, target, architecture=json.dumps({**fields, **changes}))


def test_round_trip(tiny_detector: SPPNet, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "model.safetensors"
    record = {"data": {"images": 3}, "seed": 0, "commit": None}
    save_model(tiny_detector, path, record)
    again = load(path)
    assert again.architecture == tiny_detector.architecture
    assert not again.training
    assert training_record(path) == record
    for name, value in tiny_detector.state_dict().items():
        expected = value.half().float() if value.ndim else value
        assert torch.equal(again.state_dict()[name], expected), name
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_weights_take_two_bytes_each(tiny_detector: SPPNet, tiny_model_file: Path) -> None:
    weights = sum(value.numel() for value in tiny_detector.state_dict().values())
    assert tiny_model_file.stat().st_size == pytest.approx(2 * weights, rel=0.01)


def test_every_field_of_the_architecture_comes_back(tmp_path: Path) -> None:
    classifier = Architecture(
        ("Käfer", "dog"), "alexnet", (3,), (8, 4), detects=False, multi_label=False, short_side=77, long_side=99,
        backbone_stride=8, fit="crop", fixed_size=True,
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), proposer="grid", ranks=(2, 0),
    )  # fmt: skip
    detector = Architecture(
        ("Käfer", "dog"), hidden=(8,), scales=(64, 96), scale_rule="side", mapping="roi_pool", classifier="svm",
        regression="ridge-pooled",
    )  # fmt: skip
    usual = Architecture(("x",))
    for field in dataclasses.fields(Architecture):
        others = [getattr(architecture, field.name) for architecture in (classifier, detector)]
        assert any(value != getattr(usual, field.name) for value in others), f"{field.name}: not tried here"
    for architecture in (classifier, detector):
        save_model(SPPNet(architecture), tmp_path / "m.safetensors", {})
        assert load(tmp_path / "m.safetensors").architecture == architecture


@pytest.mark.parametrize("scale", [1e-6, 1e7])
def test_the_scale_of_features_survives_half_precision(tmp_path: Path, scale: float) -> None:
    net = SPPNet(TINY)
    net.feature_scale.fill_(scale)
    save_model(net, tmp_path / "m.safetensors", {})
    assert float(load(tmp_path / "m.safetensors").feature_scale) == pytest.approx(scale)


def test_weights_beyond_half_precision_keep_their_own(tmp_path: Path) -> None:
    net, path = SPPNet(TINY), tmp_path / "m.safetensors"
    with torch.no_grad():
        net.image_classifier.bias[0] = 1e5
    save_model(net, path, {})
    assert {name for name, value in load_file(path).items() if value.dtype == torch.float32} == {
        "image_logits.bias",
        "feature_scale",
    }
    assert torch.equal(load(path).image_classifier.bias, net.image_classifier.bias)


def test_a_shipped_model_is_found_by_name(
    tiny_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files.SHIPPED, "voc", tiny_model_file)
    assert find_model("voc") == tiny_model_file
    assert load("voc").class_names == ("circle", "square")
    assert find_model(str(tiny_model_file)) == tiny_model_file
    assert files.SHIPPED["voc"].parent.is_dir()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_others_may_read_a_model_where_the_umask_lets_them(tiny_detector: SPPNet, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_model(tiny_detector, tmp_path / "m.safetensors", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o644


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"no such model: vco; expected one of the shipped names \(voc\) or the path"):
        load("vco")
    with pytest.raises(UserError, match="no such model"):
        load(Path())  # a folder


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x80\x04K\x01.", b"\xff" * 100], ids=repr)
def test_a_file_that_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for reader in (load, training_record):
        with pytest.raises(UserError, match=r"notes\.txt is not a model file: expected a \.safetensors") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_a_model_cut_short(tiny_model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_model_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut\.safetensors is not a model file"):
        load(path)


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(
        UserError, match=r"weights\.safetensors is not an sppnet model: .*go to 'sppnet train --weights'"
    ):
        load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_heads": 8}, "attention_heads"),  # a field that a later version added
        ({"levels": "321"}, "levels is '321'"),
        ({"levels": [0]}, "level"),
        ({"short_side": 600.5}, "short_side is 600.5"),
        ({"backbone": "resnet1000"}, "resnet1000"),
    ],
)
def test_a_model_that_this_version_cannot_build(
    tiny_model_file: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = architecture_with(tiny_model_file, tmp_path / "m.safetensors", **changes)
    with pytest.raises(UserError, match=f"this version cannot build .*{re.escape(reason)}.*update sppnet"):
        load(path)


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "not JSON", "null"])
def test_a_description_that_is_none(tiny_model_file: Path, tmp_path: Path, text: str) -> None:
    path = rewritten(tiny_model_file, tmp_path / "m.safetensors", architecture=text)
    with pytest.raises(UserError, match="this version cannot build"):
        load(path)


def test_weights_that_do_not_fit_their_description(tiny_model_file: Path, tmp_path: Path) -> None:
    path = architecture_with(tiny_model_file, tmp_path / "m.safetensors", hidden=[17])
    with pytest.raises(UserError, match=r"m\.safetensors is damaged: its weights do not fit"):
        load(path)


def test_places_that_cannot_be_written_to(tiny_detector: SPPNet, tiny_model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.safetensors: got .*model\.pt"):
        save_model(tiny_detector, tmp_path / "model.pt", {})
    blocking = shutil.copy(tiny_model_file, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tiny_detector, blocking / "m.safetensors", {})
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tiny_detector, tmp_path / "m.safetensors", {})
    assert not list(tmp_path.glob("*.tmp"))
