"""SVMs and box regressors after fine-tuning: trained from cached maps, kept in the model file, used by what detects."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sppnet.data.voc import read_voc
from sppnet.detection.box_regression import BoxRegression, BoxRegressionSettings
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.finetune import FinetuneSettings
from sppnet.detection.linear_stages import (
    LinearStages,
    store_regression,
    store_svms,
    stored_regression,
    stored_svms,
)
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.predict import Stopwatch, detect, score_windows
from sppnet.detection.svm import LinearSVMs, SVMSettings
from sppnet.detection.train import train_detector, train_stages_of
from sppnet.errors import UserError
from sppnet.models.files import load, save_model, training_record
from sppnet.models.geometry import boxes_to_windows
from sppnet.models.sppnet import Architecture, SPPNet

SMALL = Architecture(("circle", "square"), levels=(2, 1), hidden=(32,), short_side=96, long_side=160, proposer="grid")
STAGES = LinearStages(
    "svm",
    "ridge",
    SVMSettings(cost=0.01, retrain_after=50, save_every=3),
    BoxRegressionSettings(ridge=10, overlap=0.4, save_every=3),
)


class Killed(BaseException):
    """What the test ends a training by."""


@pytest.fixture(scope="module")
def softmax_model(tiny_voc_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained detector without SVMs; its proposals and maps lie beside it in ``work``. Not to be changed."""
    file = tmp_path_factory.mktemp("softmax") / "m.safetensors"
    settings = FinetuneSettings(steps=30, images_per_step=4, windows_per_image=32)
    data = read_voc(tiny_voc_original, "train")
    train_detector(data, SMALL, file, file.parent / "work", settings=settings, mirrored=False)
    return file


@pytest.fixture
def trainer(softmax_model: Path, tiny_voc_original: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train the stages on the model, with a copy of its work folder."""
    work = shutil.copytree(softmax_model.parent / "work", tmp_path / "work")

    def train(stages: LinearStages = STAGES, name: str = "n", kill_at: tuple[str, int] | None = None) -> Path:
        def report(stage: str, done: int, total: int) -> None:
            if (stage, done) == kill_at:
                raise Killed

        data = read_voc(tiny_voc_original, "train")
        train_stages_of(softmax_model, data, tmp_path / f"{name}.safetensors", work, stages, report=report)
        return tmp_path / f"{name}.safetensors"

    return train


def states(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / "work").glob(f"*-{stage}-*.safetensors"))


def test_the_model_file_holds_them_in_single_precision(trainer: Callable[..., Path], tmp_path: Path) -> None:
    file = trainer()
    tensors = load_file(file)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if name.startswith(("svms.", "ridge."))}
    assert shapes == {
        "svms.weights": [2, 32], "svms.biases": [2], "svms.scale": [],
        "ridge.weights": [2, 4, 32], "ridge.biases": [2, 4], "ridge.scale": [],
    }  # fmt: skip
    assert all(tensors[name].dtype == torch.float32 for name in shapes)
    assert tensors["window_logits.weight"].dtype == torch.float16

    (state,) = states(tmp_path, "svms")
    assert torch.equal(load_file(state)["weights"], tensors["svms.weights"])
    model = load(file)
    assert (model.architecture.classifier, model.architecture.regression) == ("svm", "ridge")
    assert model.architecture == dataclasses.replace(SMALL, classifier="svm", regression="ridge")
    assert torch.equal(stored_svms(model).weights, tensors["svms.weights"])
    assert stored_regression(model).weights.any()

    record = training_record(file)
    assert record["settings"]["steps"] == 30, "what was known of the model stays"
    assert record["svm"]["retrain_after"] == 50
    assert record["svm_states"] == [state.name]
    assert {"fine-tuning", "SVMs", "box regression"} <= set(record["seconds"])


def test_training_all_in_one_is_training_one_after_the_other(
    trainer: Callable[..., Path], tiny_voc_original: Path, tmp_path: Path
) -> None:
    settings = FinetuneSettings(steps=30, images_per_step=4, windows_per_image=32)
    whole, stages = tmp_path / "m.safetensors", []
    train_detector(
        read_voc(tiny_voc_original, "train"), SMALL, whole, tmp_path / "work", settings=settings, stages=STAGES,
        mirrored=False, report=lambda stage, done, total: stages.append((stage, done, total)),
    )  # fmt: skip
    assert {("SVMs", 16, 16), ("box regression", 8, 8)} <= set(stages)
    first, second = load_file(whole), load_file(trainer())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kill_at", [("SVMs", 5), ("SVMs", 12), ("SVMs", 16), ("box regression", 5)], ids=str)
def test_a_killed_training_goes_on_to_the_same_numbers(
    trainer: Callable[..., Path], tmp_path: Path, kill_at: tuple[str, int]
) -> None:
    with pytest.raises(Killed):
        trainer(name="n", kill_at=kill_at)
    assert not (tmp_path / "n.safetensors").exists()
    resumed = load_file(trainer(name="n"))
    unbroken = load_file(trainer(name="other"))
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


@pytest.mark.parametrize("stage", ["svms", "ridge"])
def test_a_damaged_state_is_found_and_made_anew(trainer: Callable[..., Path], tmp_path: Path, stage: str) -> None:
    first = load_file(trainer())
    (state,) = states(tmp_path, stage)
    content = bytearray(state.read_bytes())
    content[-40] ^= 1
    state.write_bytes(content)
    again = load_file(trainer())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert state.read_bytes() != content


def test_other_settings_get_another_state(trainer: Callable[..., Path], tmp_path: Path) -> None:
    trainer()
    trainer(dataclasses.replace(STAGES, svm=dataclasses.replace(STAGES.svm, cost=0.1)))
    assert len(states(tmp_path, "svms")) == 2
    assert len(states(tmp_path, "ridge")) == 1


def test_ridge_on_pooled_windows_and_the_networks_classifier(trainer: Callable[..., Path], tmp_path: Path) -> None:
    model = load(trainer(LinearStages(regression="ridge-pooled", box_regression=STAGES.box_regression)))
    assert (model.architecture.classifier, model.architecture.regression) == ("softmax", "ridge-pooled")
    assert stored_regression(model).weights.shape[2] == 5 * 384  # bins times channels
    found = detect(np.full((100, 140, 3), 128, np.uint8), model, score_threshold=0.0)
    assert found.score_kind == "probability"
    assert not states(tmp_path, "svms")


def test_they_score_and_move_in_the_networks_place(tiny_detector: SPPNet) -> None:
    model = load_copy(tiny_detector)
    generator = torch.Generator().manual_seed(0)
    svms = LinearSVMs(torch.randn(2, 16, generator=generator), torch.tensor([0.3, -0.2]), 2.0)
    regression = BoxRegression(0.1 * torch.randn(2, 4, 16, generator=generator), torch.full((2, 4), 0.1), 3.0)
    store_svms(model, svms)
    store_regression(model, regression, "ridge")
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    maps = compute_feature_maps(model, image)
    proposals = np.array([[0, 0, 40, 40], [20, 10, 90, 60], [30, 30, 60, 50]], np.float32)
    scores, boxes = score_windows(model, maps, proposals, Stopwatch())

    features = maps.whole_map
    map_size = (features.shape[2], features.shape[3])
    windows = boxes_to_windows(torch.from_numpy(proposals), model.geometry, map_size, maps.scales[0])
    described = model.fully_connected(model.pool(features, torch.nn.functional.pad(windows, (1, 0)))).detach()
    margins = (2 * described) @ svms.weights.T + svms.biases
    torch.testing.assert_close(scores[:, 1:], margins, atol=0.05, rtol=0.05)  # bfloat16 where the CPU has it
    torch.testing.assert_close(scores[:, 0], -scores[:, 1:].amax(1))
    for label in (1, 2):
        moved = regression.apply(described, torch.from_numpy(proposals), torch.full((3,), label))
        inside = torch.stack([moved[:, 0::2].clamp(0, 96), moved[:, 1::2].clamp(0, 64)], dim=2).flatten(1)
        torch.testing.assert_close(boxes[:, label - 1], inside, atol=1, rtol=0.05)


def test_scores_say_what_they_are(trainer: Callable[..., Path], tiny_voc_original: Path, tmp_path: Path) -> None:
    model = load(trainer())
    data = read_voc(tiny_voc_original, "train")
    found = detect(data.images[0].path, model)
    assert found.score_kind == found.to_dict()["score_kind"] == found.above(0.1).score_kind == "decision"
    assert (found.scores >= -0.75).all()
    assert len(detect(data.images[0].path, model, score_threshold=-1.2)) > len(found)
    answer = evaluate_detector(model, data, tmp_path / "work")
    assert answer.score_kind == answer.to_dict()["score_kind"] == "decision"
    assert min(result.scores.min() for result in answer.result.classes) < -0.9, "nearly the whole ranking"
    assert answer.result.map07 > 0.05


def test_files_of_before_have_no_such_fields(tiny_detector: SPPNet, tmp_path: Path) -> None:
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    save_model(tiny_detector, tmp_path / "new.safetensors", {})
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = file.metadata()
    fields = json.loads(metadata["architecture"])
    old = {name: value for name, value in fields.items() if name not in ("classifier", "regression", "ranks")}
    tensors = load_file(tmp_path / "new.safetensors")
    save_file(tensors, tmp_path / "old.safetensors", {**metadata, "architecture": json.dumps(old)})
    assert load(tmp_path / "old.safetensors").architecture == tiny_detector.architecture
    unknown = {**fields, "classifier": "forest"}
    save_file(tensors, tmp_path / "odd.safetensors", {**metadata, "architecture": json.dumps(unknown)})
    with pytest.raises(UserError, match="classifier must be one of softmax, svm: got 'forest'"):
        load(tmp_path / "odd.safetensors")


def test_classes_may_come_in_another_order_and_must_be_the_same(
    softmax_model: Path, tiny_voc_original: Path, tmp_path: Path
) -> None:
    work = shutil.copytree(softmax_model.parent / "work", tmp_path / "work")
    data = read_voc(tiny_voc_original, "train")
    turned = dataclasses.replace(
        data,
        names=data.names[::-1],
        images=tuple(dataclasses.replace(image, gt_labels=3 - image.gt_labels) for image in data.images),
    )
    for name, given in (("a", data), ("b", turned)):
        train_stages_of(softmax_model, given, tmp_path / f"{name}.safetensors", work, STAGES)
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match=r"only in the model \['square'\], only in the data \['triangle'\]"):
        train_stages_of(
            softmax_model,
            dataclasses.replace(data, names=("circle", "triangle")),
            tmp_path / "c.safetensors",
            work,
            STAGES,
        )


def test_a_choice_that_there_is_not() -> None:
    with pytest.raises(UserError, match="got 'svms' and 'network'"):
        LinearStages("svms")


def load_copy(model: SPPNet) -> SPPNet:
    import copy

    return copy.deepcopy(model)
