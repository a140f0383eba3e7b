"""Classes and embeddings of whole images: of any size, one or many, from pixels or from a map that is computed already."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from sppnet.classification.predict import classify, classify_each, classify_map, embed
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet

from .conftest import tiny_model


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (2000, 20), (64, 64), (333, 217)])
def test_images_of_any_size(tiny_detector: SPPNet, size: tuple[int, int]) -> None:
    answer = classify(noise(*size), tiny_detector)
    assert [name for name, _ in sorted(answer.top(2))] == ["circle", "square"]
    assert ((answer.scores > 0) & (answer.scores < 1)).all()


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("multi_label", [True, False])
def test_the_scores_are_those_of_the_networks_logits(multi_label: bool) -> None:
    model, image = tiny_model(multi_label=multi_label), noise(90, 120)
    with torch.inference_mode():
        logits = model(model.preprocess(image)[0])[0]
    expected = logits.sigmoid() if multi_label else logits.softmax(0)
    np.testing.assert_allclose(classify(image, model).scores, expected, atol=1e-5)


def test_classifying_a_map_is_classifying(tiny_detector: SPPNet) -> None:
    image = noise(90, 120)
    answer = classify_map(tiny_detector, compute_feature_maps(tiny_detector, image).whole_map)
    np.testing.assert_allclose(answer.scores, classify(image, tiny_detector).scores, atol=1e-3)  # half precision


def test_many_images_in_order_of_which_a_few_are_read_ahead(tiny_detector: SPPNet) -> None:
    read: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            read.append(len(read))
            yield noise(40 + len(read), 50)

    answers = list(islice(classify_each(endless(), tiny_detector), 3))
    assert len(read) < 10
    for index, answer in enumerate(answers, start=1):
        np.testing.assert_array_equal(answer.scores, classify(noise(40 + index, 50), tiny_detector).scores)
    assert len(list(tiny_detector.classify([noise(40, 50)] * 2, views="full"))) == 2


def test_embeddings_have_one_length_and_a_whole_image_is_one_box(tiny_detector: SPPNet) -> None:
    images = [noise(90, 120), noise(64, 40)]
    rows = embed(images, tiny_detector)
    assert (rows.shape, rows.dtype) == ((2, 16), np.float32)
    np.testing.assert_array_equal(embed(iter(images), tiny_detector), rows)
    np.testing.assert_array_equal(embed(images[0], tiny_detector), rows[:1])
    np.testing.assert_allclose(embed(images[0], tiny_detector, [[0, 0, 120, 90]]), rows[:1], atol=1e-5)
    assert embed([], tiny_detector).shape == (0, 16)
    with pytest.raises(ValueError, match=r"expected one image and boxes \[R, 4\]"):
        embed(images, tiny_detector, [[0, 0, 9, 9]])


def test_what_cannot_be_read_is_said(tiny_detector: SPPNet) -> None:
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file"):
        classify("nothing.jpg", tiny_detector)
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file"):
        embed(["nothing.jpg"], tiny_detector)
