"""Classes of whole images: of any size, from pixels or from a map that is at hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sppnet.classification.predict import classify, classify_map
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (2000, 20), (64, 64), (333, 217)])
def test_images_of_any_size(tiny_detector: SPPNet, size: tuple[int, int]) -> None:
    answer = classify(noise(*size), tiny_detector)
    assert answer.names == ("circle", "square")
    assert answer.scores.shape == (2,)
    assert ((answer.scores > 0) & (answer.scores < 1)).all()


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_scores_are_those_of_the_networks_logits(tiny_detector: SPPNet, multi_label: bool) -> None:
    architecture = dataclasses.replace(tiny_detector.architecture, multi_label=multi_label)
    model = SPPNet(architecture, tiny_detector.backbone).eval()
    image = noise(90, 120)
    with torch.inference_mode():
        logits = model(model.prepare(image)[0])[0]
    expected = logits.sigmoid() if multi_label else logits.softmax(0)
    np.testing.assert_allclose(classify(image, model).scores, expected, atol=2e-2)  # bfloat16 where it is fast


def test_classifying_a_map_is_classifying(tiny_detector: SPPNet) -> None:
    image = noise(90, 120)
    expected = classify(image, tiny_detector)
    answer = classify_map(tiny_detector, compute_feature_maps(tiny_detector, image).whole_map)
    assert answer.names == expected.names
    np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-3)  # the map is kept in half precision


def test_what_cannot_be_read_is_said(tiny_detector: SPPNet) -> None:
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file"):
        classify("nothing.jpg", tiny_detector)
