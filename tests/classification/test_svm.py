"""SVMs as the head of a classifier: scikit-learn's, times the scale that cross-validation chose."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sppnet.classification.train import train_svm_head
from sppnet.errors import ModelError
from sppnet.models.sppnet import Architecture, SPPNet, build_model

NAMES = ("red", "green", "blue")


def tiny_model(class_names: tuple[str, ...] = NAMES, *, multi_label: bool = False) -> SPPNet:
    """32 channels in 5 bins; head features are the pyramid, divided by its length."""
    architecture = Architecture(
        class_names, levels=(2, 1), hidden=(), detects=False, multi_label=multi_label, unit_length=True
    )
    return build_model(architecture, backbone=nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU())).eval()


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray]:
    """Head features [36, 160], as a cache holds them, and labels; the classes overlap a little."""
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 3
    pooled = np.eye(3, 32)[labels][:, None] + rng.random((36, 5, 32))
    rows = pooled.reshape(36, -1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16), labels


def test_the_logits_are_the_decision_scores_of_svms_times_the_scale(photos: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.svm import LinearSVC

    rows, labels = photos
    model = tiny_model()
    choice = train_svm_head(model, rows[:24], labels[:24])
    with torch.inference_mode():
        logits = model.image_classifier(torch.from_numpy(rows).float()).numpy()
    for label in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svm = LinearSVC(C=choice.cost, max_iter=10_000, random_state=0).fit(rows[:24], labels[:24] == label)
        np.testing.assert_allclose(
            logits[:, label], choice.scale * svm.decision_function(rows), atol=0.03 * choice.scale
        )
    assert (logits[24:].argmax(1) == labels[24:]).mean() > 0.9
    assert choice.to_dict().keys() == {"cost", "scale", "cross_validated", "images"}


def test_only_the_head_is_trained_and_the_same_again(photos: tuple[np.ndarray, np.ndarray]) -> None:
    torch.manual_seed(0)
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    train_svm_head(model, *photos, progress=lambda *words: told.append(words))
    after = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"image_classifier.weight", "image_classifier.bias"}
    train_svm_head(model, *photos)
    assert torch.equal(model.image_classifier.weight, after["image_classifier.weight"])
    assert told[-1] == ("SVMs", len(told), len(told))


def test_a_class_without_images_is_not_answered(photos: tuple[np.ndarray, np.ndarray]) -> None:
    rows, labels = photos
    model = tiny_model(("red", "green", "none", "blue"))
    choice = train_svm_head(model, rows, labels + (labels == 2))
    assert not model.image_classifier.weight[2].any()
    assert model.image_classifier.bias[2].item() == pytest.approx(-choice.scale)


def test_damaged_features_are_refused(photos: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ModelError, match="features hold infinities or NaN: its weights are damaged"):
        train_svm_head(tiny_model(), photos[0] * np.float16(np.nan), photos[1])
