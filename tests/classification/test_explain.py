"""What each bin adds: the head without it, by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sppnet.classification import predict
from sppnet.classification.predict import bin_contributions, classify
from sppnet.data.images import resize_image
from sppnet.errors import SettingsError
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model
from sppnet.ops.pyramid_pool import pyramid_pool

NAMES = ("cat", "dog", "cow")
PHOTO = np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)


pytestmark = pytest.mark.usefixtures("single_precision")


def network(*hidden: int, multi_label: bool = False, resize_mode: str = "keep-aspect") -> SPPNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU())
    architecture = Architecture(NAMES, "", (3, 1), hidden, detects=False, multi_label=multi_label)
    return build_model(architecture, Preprocess(48, 1000, resize_mode), backbone=backbone).eval()


def pooled_of(model: SPPNet) -> torch.Tensor:
    with torch.inference_mode():
        return pyramid_pool(model.features(model.preprocess(PHOTO)[0]), model.architecture.levels)


@pytest.mark.parametrize("hidden", [(), (16, 16)])
@pytest.mark.parametrize("chunk", [1, predict.VALUES_CHUNK])
def test_the_definition(hidden: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "VALUES_CHUNK", chunk)
    model = network(*hidden)
    answer = bin_contributions(model, PHOTO, "dog")
    pooled = pooled_of(model)

    def logit(*without: int) -> float:
        changed = pooled.clone()
        changed[:, list(without)] = 0
        with torch.inference_mode():
            return float(model.image_classifier(model.fully_connected(changed))[0, 1])

    assert answer.logit == pytest.approx(logit(), abs=1e-5)
    assert answer.bins == pytest.approx([logit() - logit(m) for m in range(10)], abs=1e-5)
    assert answer.together == pytest.approx([logit() - logit(*range(9)), logit() - logit(9)], abs=1e-5)


def test_with_a_linear_head_the_contributions_add_up_to_the_logit() -> None:
    model = network()
    answer = bin_contributions(model, PHOTO)
    bias = model.image_classifier.bias[model.class_names.index(answer.class_name)].item()
    assert answer.bins.sum() + bias == pytest.approx(answer.logit, abs=1e-4)
    assert answer.together.sum() + bias == pytest.approx(answer.logit, abs=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_answer_is_that_of_classify(multi_label: bool) -> None:
    model = network(16, multi_label=multi_label)
    answer, expected = bin_contributions(model, PHOTO), classify(PHOTO, model)
    assert (answer.class_name, answer.score) == (expected.label, pytest.approx(max(expected.scores), abs=1e-5))
    assert bin_contributions(model, PHOTO, "cow").score == pytest.approx(expected.scores[2], abs=1e-5)


def test_the_photo_as_it_was_seen() -> None:
    native = bin_contributions(network(), PHOTO)
    assert (native.seen == resize_image(PHOTO, (48, 75))).all()
    assert native.map_size == (9, 16)
    assert (native.geometry.stride, native.geometry.offset) == (4, 6.5)
    padded = bin_contributions(network(resize_mode="letterbox"), Image.fromarray(PHOTO))
    assert padded.seen.shape == (48, 48, 3)
    assert np.ptp(padded.seen[0]) < 40  # filled up with the mean color


def test_a_document() -> None:
    document = bin_contributions(network(16), PHOTO, "cat").to_dict()
    assert (document["class"], [level["level"] for level in document["levels"]]) == ("cat", [3, 1])
    assert np.shape(document["levels"][0]["bins"]) == (3, 3)
    assert np.shape(document["levels"][1]["bins"]) == (1, 1)


def test_a_class_that_the_model_does_not_have() -> None:
    with pytest.raises(SettingsError, match=r"cat, dog, cow\), got 'horse'"):
        bin_contributions(network(), PHOTO, "horse")
