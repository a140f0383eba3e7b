"""SVMs as the head of a model: the same as LinearSVC's, chosen on what is learned from alone, and as sure as they are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sppnet.classification import svm_head
from sppnet.classification.kept import KeptFeatures, Vectors
from sppnet.classification.svm import label_targets, train_image_svms
from sppnet.classification.svm_head import COSTS, HeadChoice, UnitRows, choose_head, train_svm_head
from sppnet.classification.vectors import to_vectors
from sppnet.data.labelled import LabelledImages
from sppnet.errors import UserError
from sppnet.models.sppnet import Architecture, SPPNet

NAMES = ("red", "green", "blue")


def write_photos(folder: Path, each: int, noise: int = 150) -> LabelledImages:
    """Noise, of many sizes, with one channel brighter: its class."""
    rng = np.random.default_rng(0)
    paths = []
    folder.mkdir(exist_ok=True)
    for number in range(3 * each):
        pixels = rng.integers(0, noise, (*rng.integers(36, 60, 2), 3), dtype=np.uint8)
        pixels[:, :, number % 3] += 100
        paths.append(folder / f"{number:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return LabelledImages(tuple(paths), np.arange(3 * each, dtype=np.int64) % 3, NAMES)


def tiny_model(names: tuple[str, ...] = NAMES, **changes: Any) -> SPPNet:
    """32 channels, a cell every 4 pixels; the same weights every time."""
    settings = {
        "levels": (2, 1), "hidden": (), "detects": False, "multi_label": False, "short_side": 32, "long_side": 64,
        "classifier": "svm",
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU())
        return SPPNet(Architecture(names, **(settings | changes)), backbone).eval()  # type: ignore[arg-type]


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def learned(
    images: LabelledImages, held_out: LabelledImages, folder: Path, model: SPPNet | None = None
) -> tuple[SPPNet, HeadChoice, dict[str, float] | None]:
    model = model or tiny_model(images.class_names)
    choice, measured = train_svm_head(model, images, held_out, folder, seed=0, report=silent)
    return model, choice, measured


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return write_photos(tmp_path_factory.mktemp("photos"), each=12)


def test_the_logits_are_the_margins_of_svms_times_the_scale(photos: LabelledImages, tmp_path: Path) -> None:
    train, held_out = photos.subset(range(24)), photos.subset(range(24, 36))
    model, choice, measured = learned(train, held_out, tmp_path)
    kept = Vectors(KeptFeatures.of(model, tmp_path).fill(model, photos.paths, mirrored=False), mirrored=False)
    pooled = torch.stack([kept.read(place, mirrored=False) for place in range(36)])
    rows = to_vectors(pooled.numpy(), (2, 1))
    svms = train_image_svms(rows[:24], label_targets(train.labels, 3), choice.cost, solver="liblinear")
    with torch.inference_mode():
        logits = model.image_classifier(model.fully_connected(pooled)).numpy()
    np.testing.assert_allclose(logits, choice.scale * svms.margins(rows), atol=0.03 * choice.scale)
    wrong = int((logits[24:].argmax(1) != held_out.labels).sum())
    assert measured is not None
    assert (measured["images"], measured["wrong"]) == (12, wrong)
    probabilities = torch.from_numpy(logits[24:]).softmax(1).numpy()[np.arange(12), held_out.labels]
    assert measured["loss"] == pytest.approx(-np.log(probabilities).mean(), abs=1e-5)


def test_held_out_images_choose_nothing(photos: LabelledImages, tmp_path: Path) -> None:
    train, held_out = photos.subset(range(24)), photos.subset(range(24, 36))
    mislabelled = LabelledImages(held_out.paths, (held_out.labels + 1) % 3, NAMES)
    (one, chosen, _), (other, again, _), (third, _, none) = (
        learned(train, each, tmp_path) for each in (held_out, mislabelled, photos.subset([]))
    )
    assert chosen == again
    assert torch.equal(one.image_classifier.weight, other.image_classifier.weight)
    assert torch.equal(one.image_classifier.bias, third.image_classifier.bias)
    assert none is None


def test_only_the_head_learns_and_no_mirror_image_is_computed(photos: LabelledImages, tmp_path: Path) -> None:
    before = tiny_model().state_dict()
    model, _, _ = learned(photos, photos.subset([]), tmp_path)
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "image_logits.weight",
        "image_logits.bias",
    }
    shapes = {np.load(path).shape for path in tmp_path.rglob("*.npy")}
    assert shapes == {(1, 5, 32)}


def test_progress_is_told_to_its_end(photos: LabelledImages, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    train_svm_head(tiny_model(), photos, photos.subset([]), tmp_path, seed=0, report=lambda *words: told.append(words))
    steps = [(done, total) for stage, done, total in told if stage == "training"]
    assert steps == [(done, 5 * len(COSTS) + 1) for done in range(1, 5 * len(COSTS) + 2)]
    assert told[0][0] == "features"


def test_blocks_of_images_make_no_difference(
    photos: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    vectors = Vectors(KeptFeatures.of(model, tmp_path).fill(model, photos.paths, mirrored=False), mirrored=False)
    whole = UnitRows(vectors, (2, 1))
    rows = whole.block(0)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    monkeypatch.setattr(svm_head, "AT_ONCE", 7)
    parts = UnitRows(vectors, (2, 1))
    coefficients = np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32)
    np.testing.assert_allclose(parts.products(), rows @ rows.T, atol=1e-5)
    np.testing.assert_allclose(parts.combined(coefficients), coefficients.T @ rows, atol=1e-5)


# Choosing


def clusters(each: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length 1 of five classes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), each)
    rows = rng.random((5, 40))[labels] + noise * rng.normal(size=(len(labels), 40))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def test_the_most_accurate_cost_is_taken() -> None:
    rows, labels = clusters(30, noise=0.8)
    choice = choose_head(rows @ rows.T, labels, 5, seed=0)
    assert list(choice.accuracies) == list(COSTS)
    assert len(set(choice.accuracies.values())) > 1
    assert choice.accuracies[choice.cost] == max(choice.accuracies.values())
    assert choice.images == 150
    assert choice == choose_head(rows @ rows.T, labels, 5, seed=0)
    assert choice != choose_head(rows @ rows.T, labels, 5, seed=1)
    assert choice.figures()["cross_validated"].keys() == {"0.3", "1", "3", "10"}


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.8])
def test_probabilities_are_as_sure_as_they_are_right(noise: float) -> None:
    """On images that nothing was learned from or chosen on. Margins themselves as logits would be far too unsure."""
    rows, labels = clusters(340, noise)
    train, test = (np.flatnonzero(np.arange(len(labels)) % 17 < 2), np.flatnonzero(np.arange(len(labels)) % 17 >= 2))
    choice = choose_head(rows[train] @ rows[train].T, labels[train], 5, seed=0)
    svms = train_image_svms(rows[train], label_targets(labels[train], 5), choice.cost)
    logits = torch.from_numpy(svms.margins(rows[test]))
    right = float((logits.argmax(1).numpy() == labels[test]).mean())
    sure = float((choice.scale * logits).softmax(1).amax(1).mean())
    assert sure == pytest.approx(right, abs=0.06)
    assert float(logits.softmax(1).amax(1).mean()) < right - 0.1


def test_a_lone_image_of_its_class_counts_for_nothing() -> None:
    rows, labels = clusters(10, noise=0.3)
    alone = np.concatenate([rows, rows[:1]])
    choice = choose_head(alone @ alone.T, np.append(labels, 5), 6, seed=0)
    assert max(choice.accuracies.values()) == 1.0
    assert choice.scale > 1


def test_two_images_of_two_classes() -> None:
    choice = choose_head(np.eye(2, dtype=np.float32), np.array([0, 1]), 2, seed=0)
    assert (choice.cost, choice.scale, choice.accuracies, choice.images) == (1.0, 1.0, {}, 0)


def test_of_many_images_some_choose(monkeypatch: pytest.MonkeyPatch, photos: LabelledImages, tmp_path: Path) -> None:
    monkeypatch.setattr(svm_head, "MOST_CHOOSING", 20)
    _, choice, measured = learned(photos.subset(range(30)), photos.subset(range(30, 36)), tmp_path)
    assert choice.images == 15
    assert measured is not None
    assert measured["wrong"] <= 1


# What may come


def test_a_class_without_images_is_not_answered(photos: LabelledImages, tmp_path: Path) -> None:
    train = LabelledImages(photos.paths, photos.labels + (photos.labels == 2), ("red", "green", "none", "blue"))
    model, choice, measured = learned(train, train, tmp_path)
    assert not model.image_classifier.weight[2].any()
    assert model.image_classifier.bias[2].item() == pytest.approx(-choice.scale)
    assert measured is not None
    assert measured["wrong"] <= 1


def test_what_cannot_be_learned_is_refused(
    photos: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = photos.subset([])
    with pytest.raises(ValueError, match="classifier='svm'"):
        learned(photos, none, tmp_path, tiny_model(classifier="softmax"))
    broken = tiny_model()
    with torch.no_grad():
        broken.backbone[0].bias.fill_(torch.nan)  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match="features that are no numbers"):
        learned(photos, none, tmp_path, broken)
    monkeypatch.setattr(svm_head, "MOST_IMAGES", 35)
    with pytest.raises(UserError, match="at most 35 images here: got 36; take the softmax classifier"):
        learned(photos, none, tmp_path)
