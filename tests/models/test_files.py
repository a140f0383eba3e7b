"""Model files: what is saved comes back, what is damaged or not a model is said to be so, and old files still answer the same."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sppnet.errors import ModelError, OutputError, SettingsError, UserError
from sppnet.models import files
from sppnet.models.files import find_model, load, save_model
from sppnet.models.heads import RidgeRegressor, SVMClassifier
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, SPPNet, build_model

TINY = Architecture(("cat", "dog"), levels=(2, 1), hidden=(16,))
SVMS = dataclasses.replace(TINY, window_classifier="svm", box_regressor="ridge")
IMAGE_SVMS = Architecture(("cat", "dog"), levels=(2, 1), hidden=(), detects=False, unit_length=True)


def built(architecture: Architecture, **preprocess: Any) -> SPPNet:
    """A model with weights that a file holds exactly, and heads that say something."""
    torch.manual_seed(0)
    net = build_model(architecture, Preprocess(64, 128, **preprocess), DetectionSettings("grid")).eval()
    for head in (net.window_classifier, net.box_regressor):
        if isinstance(head, (SVMClassifier, RidgeRegressor)):
            head.weights.normal_()
            head.scale.fill_(0.37)
    files.round_to_stored(net)
    net.backbone.to(memory_format=torch.channels_last)  # as a model that was loaded: the very same sums
    return net


def saved_with(net: SPPNet, path: Path, part: str, **changes: Any) -> Path:
    """A model file, whole and with its checksum, that describes itself in other words."""
    fields = {**dataclasses.asdict(getattr(net, part)), **changes}
    other = build_model(net.architecture, net.preprocess, backbone=net.backbone)
    setattr(other, part, dataclasses.make_dataclass("Other", list(fields))(**fields))
    save_model(other, path)
    return path


def same_answers(one: SPPNet, other: SPPNet) -> bool:
    image = np.random.default_rng(0).integers(0, 255, (70, 110, 3), np.uint8)
    same = np.array_equal(one.classify(image).scores, other.classify(image).scores)
    if one.window_classifier is None:
        return same
    boxes = np.array([[0, 0, 60, 50], [20, 10, 110, 70]], np.float32)
    threshold = -1000.0 if one.window_classifier.score_kind == "decision" else 0.0
    answers = [net.detect(image, proposals=boxes, score_threshold=threshold) for net in (one, other)]
    assert len(answers[0].scores)
    return same and all(
        np.array_equal(getattr(answers[0], part), getattr(answers[1], part)) for part in ("scores", "boxes")
    )


# What is saved comes back


@pytest.mark.parametrize("architecture", [TINY, SVMS, IMAGE_SVMS], ids=["softmax", "svm", "image svm"])
def test_round_trip(architecture: Architecture, tmp_path: Path) -> None:
    net, path = built(architecture), tmp_path / "folder" / "model.safetensors"
    net.record = {"data": {"images": 3}, "seed": 0, "commit": None}
    net.save(path)
    again = load(path)
    for part in ("architecture", "preprocess", "detection", "geometry", "record"):
        assert getattr(again, part) == getattr(net, part)
    assert not again.training
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert same_answers(net, again)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]
    save_model(again, path)  # over what we wrote ourselves
    assert same_answers(net, load(path))


def test_weights_take_two_bytes_each_and_linear_heads_four(tmp_path: Path) -> None:
    net = built(SVMS)
    with torch.no_grad():
        net.image_classifier.bias[0] = 1e5
    save_model(net, tmp_path / "m.safetensors")
    whole = {name for name, value in load_file(tmp_path / "m.safetensors").items() if value.dtype == torch.float32}
    linear = {
        f"{head}.{part}" for head in ("window_classifier", "box_regressor") for part in ("weights", "biases", "scale")
    }
    assert whole == {"image_classifier.bias", "feature_scale", *linear}  # a bias beyond what half precision holds
    assert float(load(tmp_path / "m.safetensors").image_classifier.bias[0].detach()) == 1e5


def test_every_setting_comes_back(tmp_path: Path) -> None:
    settings = [
        (
            Architecture(
                ("Käfer", "dog"), "alexnet", (3,), (8, 4), (2, 0), backbone_stride=8, detects=False, multi_label=False,
                unit_length=True,
            ),
            Preprocess(77, 99, "crop", True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
            DetectionSettings(),
        ),
        (dataclasses.replace(SVMS, proposes=True), Preprocess(), DetectionSettings("network", (64, 96))),
    ]  # fmt: skip
    usual = (Architecture(("x",)), Preprocess(smallest_side=32), DetectionSettings())
    for number, default in enumerate(usual):
        for field in dataclasses.fields(default):
            tried = {getattr(each[number], field.name) for each in settings} - {getattr(default, field.name)}
            assert tried, f"{field.name}: not tried here"
    for architecture, preprocess, detection in settings:
        net = build_model(architecture, preprocess, detection)
        save_model(net, tmp_path / "m.safetensors")
        again = load(tmp_path / "m.safetensors")
        assert (again.architecture, again.preprocess, again.detection) == (architecture, net.preprocess, detection)


@pytest.mark.parametrize("scale", [1e-6, 1e7])
def test_the_scale_of_features_survives_half_precision(tmp_path: Path, scale: float) -> None:
    net = built(TINY)
    net.feature_scale.fill_(scale)
    save_model(net.half(), tmp_path / "m.safetensors")
    assert float(load(tmp_path / "m.safetensors").feature_scale) == pytest.approx(scale)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_others_may_read_a_model_where_the_umask_lets_them(tiny_detector: SPPNet, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_model(tiny_detector, tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o644


# Shipped models


def test_a_shipped_model_is_found_by_name(
    tiny_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files.SHIPPED, "voc", tiny_model_file)
    assert find_model("voc") == tiny_model_file
    assert load("voc").class_names == ("circle", "square")
    assert find_model(str(tiny_model_file)) == tiny_model_file


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ModelError, match=r"no such model: vco; expected one of the shipped names \(voc\) or the path"):
        load("vco")
    with pytest.raises(ModelError, match="no such model"):
        load(Path())  # a folder


# What is damaged, or no model


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x80\x04K\x01.", b"\xff" * 100], ids=repr)
def test_a_file_that_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"notes\.txt is not a model file: expected a \.safetensors") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_model_cut_short(tiny_model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_model_file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"cut\.safetensors is not a model file"):
        load(path)


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(
        ModelError, match=r"weights\.safetensors is not an sppnet model: .*go to 'sppnet train --weights'"
    ):
        load(path)


@pytest.mark.parametrize("changed", ["weights", "architecture", "training", "checksum"])
def test_a_changed_byte_is_noticed(tiny_model_file: Path, tmp_path: Path, changed: str) -> None:
    content, path = bytearray(tiny_model_file.read_bytes()), tmp_path / "changed.safetensors"
    with safe_open(tiny_model_file, "pt") as file:
        text = file.metadata()
    if changed == "weights":
        content[-77] ^= 1
        path.write_bytes(content)
    else:
        save_file(
            load_file(tiny_model_file),
            path,
            {**text, changed: text[changed][::-1] if changed == "checksum" else text[changed] + " "},
        )
    with pytest.raises(ModelError, match=r"changed\.safetensors is damaged: its checksum does not fit"):
        load(path)


def test_110_random_changes_of_the_weights_are_refused(tmp_path: Path) -> None:
    """Of one to a hundred bytes, anywhere behind the head of the file: another sign, other numbers, NaN."""
    architecture = Architecture(("cat", "dog"), "squeezenet1_1", levels=(1,), hidden=(4,), backbone_stride=4)
    path, random = tmp_path / "m.safetensors", np.random.default_rng(0)
    save_model(built(architecture), path)
    sound = np.frombuffer(path.read_bytes(), np.uint8)
    begin = 8 + int.from_bytes(sound[:8].tobytes(), "little")
    for _ in range(110):
        changed, places = sound.copy(), random.integers(begin, len(sound), random.integers(1, 101))
        changed[places] = random.integers(0, 256, len(places))
        if (changed != sound).any():
            path.write_bytes(changed.tobytes())
            with pytest.raises(ModelError, match="is damaged: its checksum does not fit"):
                load(path)
    path.write_bytes(sound.tobytes())
    assert load(path).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": [10**9]},
        {"hidden": [10**5, 10**5]},
        {"levels": [5000]},
        {"backbone": "vgg19"},
        {"class_names": ["a"] * 3},
    ],
)
def test_a_hostile_description_takes_no_memory(tiny_detector: SPPNet, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With a checksum that fits, it asks for up to terabytes; what it asks for is not in the file."""
    path = saved_with(tiny_detector, tmp_path / "m.safetensors", "architecture", **changes)
    with pytest.raises(ModelError, match=r"its weights do not fit its description|cannot build"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(
    tiny_model_file: Path, tmp_path: Path, value: float
) -> None:
    net, path = load(tiny_model_file), tmp_path / "m.safetensors"
    with torch.no_grad():
        net.image_classifier.bias[1] = value
    with pytest.raises(
        ModelError, match=r"image_classifier\.bias is not finite: training went astray; lower the learning rate"
    ):
        save_model(net, path)
    assert not path.exists()
    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    metadata.pop("checksum")
    tensors = {**load_file(tiny_model_file), "image_classifier.bias": torch.tensor([0, value])}
    save_file(tensors, path, {**metadata, "checksum": files._checksum(tensors, metadata)})
    with pytest.raises(ModelError, match="some weights are not finite"):
        load(path)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("architecture", {"attention_heads": 8}, "attention_heads"),  # a field that a later version added
        ("architecture", {"levels": "321"}, "levels is '321'"),
        ("architecture", {"levels": [0]}, "level"),
        ("architecture", {"window_classifier": "forest"}, "softmax, svm: got 'forest'"),
        ("architecture", {"backbone": "resnet1000"}, "resnet1000"),
        ("preprocess", {"short_side": 600.5}, "short_side is 600.5"),
        ("detection", {"scales": [0]}, "1 to 20000 pixels"),
        ("geometry", {"stride": "32"}, "stride is '32'"),
    ],
)
def test_a_model_that_this_version_cannot_build(
    tiny_detector: SPPNet, tmp_path: Path, part: str, changes: dict[str, Any], reason: str
) -> None:
    path = saved_with(tiny_detector, tmp_path / "m.safetensors", part, **changes)
    with pytest.raises(ModelError, match=f"this version cannot build .*{re.escape(reason)}.*update sppnet"):
        load(path)


def test_weights_that_do_not_fit_their_description(tiny_detector: SPPNet, tmp_path: Path) -> None:
    path = saved_with(tiny_detector, tmp_path / "m.safetensors", "architecture", hidden=[17])
    with pytest.raises(ModelError, match=r"m\.safetensors is damaged: its weights do not fit"):
        load(path)


def test_places_that_cannot_be_written_to(tiny_detector: SPPNet, tiny_model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ends in \.safetensors: got .*model\.pt"):
        save_model(tiny_detector, tmp_path / "model.pt")
    blocking = shutil.copy(tiny_model_file, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(tiny_detector, blocking / "m.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(OutputError, match="was not written by sppnet"):
        save_model(tiny_detector, tmp_path / "theirs.safetensors")
    assert not list(tmp_path.glob("*.tmp"))


# Files of version 1 of the format

OLD_KEYS = {
    "image_classifier.": "image_logits.",
    "window_classifier.weights": "svms.weights",
    "window_classifier.biases": "svms.biases",
    "window_classifier.scale": "svms.scale",
    "window_classifier.": "window_logits.",
    "box_regressor.weights": "ridge.weights",
    "box_regressor.biases": "ridge.biases",
    "box_regressor.scale": "ridge.scale",
    "box_regressor.shared.": "shared_deltas.",
    "box_regressor.per_class.": "class_deltas.",
    "box_regressor.residual.": "residual_deltas.",
}


def first_format(net: SPPNet, path: Path, **changes: Any) -> Path:
    """A model as version 1 wrote it: other names, one object of settings, and heads of the network left behind SVMs and ridge."""
    tensors = {}
    for key, value in net.state_dict().items():
        start = next((start for start in OLD_KEYS if key.startswith(start)), "")
        tensors[OLD_KEYS.get(start, "") + key.removeprefix(start)] = (
            value if "svms" in key or not value.ndim else value.half()
        )
        if start and start[-1] not in "." and "scale" not in start:
            tensors[OLD_KEYS[start]] = value
    width = net.fully_connected.width
    if net.architecture.window_classifier == "svm":
        tensors |= {"window_logits.weight": torch.ones(3, width), "window_logits.bias": torch.ones(3)}
        tensors |= {"shared_deltas.weight": torch.ones(4, width), "shared_deltas.bias": torch.ones(4)}
        tensors |= {"class_deltas.weight": torch.ones(8, width), "class_deltas.bias": torch.ones(8)}
        tensors |= {"residual_deltas.weight": torch.ones(4, 4)}
    modes = {"keep-aspect": "native", "warp": "squash", "crop": "crop", "letterbox": "pad"}
    fields = {
        "names": net.class_names, "backbone": net.architecture.backbone, "levels": net.architecture.levels,
        "hidden": net.architecture.hidden, "detects": net.architecture.detects, "multi_label": net.architecture.multi_label,
        "short_side": net.preprocess.short_side, "long_side": net.preprocess.long_side,
        "fit": modes[net.preprocess.resize_mode], "fixed_size": False, "mean": net.preprocess.mean, "std": net.preprocess.std,
        "backbone_stride": 0, "proposer": "grid", "scales": [], "scale_rule": "area", "mapping": "centre",
        "classifier": "svm" if net.architecture.window_classifier == "svm" or net.architecture.unit_length else "softmax",
        "regression": net.architecture.box_regressor, "ranks": [],
    }  # fmt: skip
    metadata = {"format": "sppnet/1", "architecture": json.dumps({**fields, **changes}), "training": '{"seed": 7}'}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return path


@pytest.mark.filterwarnings("ignore:.*is of an earlier version, without a checksum")
@pytest.mark.parametrize(
    ("architecture", "mode"),
    [(TINY, "keep-aspect"), (TINY, "warp"), (TINY, "letterbox"), (SVMS, "keep-aspect"), (IMAGE_SVMS, "crop")],
)
def test_a_file_of_the_first_format_answers_the_same(architecture: Architecture, mode: str, tmp_path: Path) -> None:
    net = built(architecture, resize_mode=mode)
    old = load(first_format(net, tmp_path / "old.safetensors"))
    for part in ("architecture", "preprocess", "detection", "geometry"):
        assert getattr(old, part) == getattr(net, part)
    assert old.record == {"seed": 7}
    assert same_answers(old, net)
    save_model(old, tmp_path / "new.safetensors")
    assert same_answers(load(tmp_path / "new.safetensors"), net)


def test_a_file_of_the_first_format_warns_that_it_has_no_checksum(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"old\.safetensors is of an earlier version, without a checksum: save it again"
    ):
        load(first_format(built(TINY), tmp_path / "old.safetensors"))


@pytest.mark.filterwarnings("ignore:.*is of an earlier version, without a checksum")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mapping": "roi_pool"}, "mapping 'roi_pool' is no longer in the package, but in its benchmarks"),
        ({"scale_rule": "side"}, "scale_rule 'side' is no longer in the package"),
        ({"regression": "ridge-pooled"}, "ridge regression on pooled windows is no longer supported"),
        ({"fit": "stretch"}, "stretch"),
    ],
)
def test_what_the_package_no_longer_has_is_said(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"this version cannot build .*{re.escape(reason)}"):
        load(first_format(built(TINY), tmp_path / "old.safetensors", **changes))


# Which program trained it


def test_the_commit_is_of_this_packages_source_and_of_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "somebody else's"]):
        subprocess.run([*git, *words], check=True)
    copy = tmp_path / "site-packages" / "files.py"
    copy.parent.mkdir()
    shutil.copy(files.__file__, copy)
    monkeypatch.setattr(files, "__file__", str(copy))
    assert files.trained_by()["commit"] is None
    subprocess.run([*git, "add", str(copy)], check=True)
    assert len(files.trained_by()["commit"] or "") == 12


def test_a_file_from_before_strides_were_dilated_says_so(tmp_path: Path) -> None:
    net = build_model(Architecture(("cat",), "resnet18", (1,), (4,), detects=False, backbone_stride=16))
    net.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    architecture = json.loads(metadata["architecture"])
    del architecture["proposes"]
    metadata |= {"architecture": json.dumps(architecture)}
    del metadata["checksum"]
    save_file(tensors, tmp_path / "old.safetensors", {**metadata, "checksum": files._checksum(tensors, metadata)})
    with pytest.raises(ModelError, match="its backbone was cut at a stride, where this version dilates it"):
        load(tmp_path / "old.safetensors")
