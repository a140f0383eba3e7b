"""Ridge regression of boxes: against scikit-learn's, in a stream, and with the release's whitening done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet.boxes import box_iou, decode_boxes, encode_boxes
from sppnet.detection.box_regression import (
    BoxRegression,
    BoxRegressionSettings,
    add_regressor,
    fit_box_regression,
    train_box_regression,
)
from sppnet.detection.image_windows import ImageWindows
from sppnet.detection.ridge import RidgeSums


def examples(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator) + 0.7  # like those after a ReLU: not around 0
    return features, features @ torch.randn(width, 4, generator=generator) / width + torch.randn(
        count, 4, generator=generator
    )


def ridge_of(
    features: Tensor, targets: Tensor, ridge: float, *, shrink_constant: bool = False
) -> tuple[Tensor, Tensor]:
    sums = RidgeSums(features.shape[1], rows=len(features))
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        sums.add(features[part], targets[part])
    return sums.solve(ridge, shrink_constant=shrink_constant)


SHAPES = [(40, 6), (600, 6), (5, 12), (12, 12)]  # more examples than features, far more, fewer, as many


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [0.1, 1000.0])
def test_the_same_as_scikit_learn(shape: tuple[int, int], ridge: float) -> None:
    from sklearn.linear_model import Ridge

    features, targets = examples(*shape)
    expected = Ridge(alpha=ridge).fit(features.double().numpy(), targets.double().numpy())
    weights, constant = ridge_of(features, targets, ridge)
    np.testing.assert_allclose(weights, expected.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(constant, expected.intercept_, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitening_the_targets_as_the_release_does_changes_nothing(shape: tuple[int, int]) -> None:
    features, targets = (part.double().numpy() for part in examples(*shape))
    mean = targets.mean(0)
    values, vectors = np.linalg.eigh(np.cov((targets - mean).T, bias=True))
    whiten = vectors @ np.diag((values + 0.001) ** -0.5) @ vectors.T
    with_constant = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    products = with_constant.T @ with_constant + 50 * np.eye(with_constant.shape[1])
    solved = np.linalg.solve(products, with_constant.T @ ((targets - mean) @ whiten)) @ np.linalg.inv(whiten)
    weights, constant = ridge_of(*examples(*shape), 50.0, shrink_constant=True)
    np.testing.assert_allclose(weights, solved[:-1].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(constant, solved[-1] + mean, rtol=1e-3, atol=1e-5)


def test_memory_is_that_of_the_examples_or_of_their_sums() -> None:
    few, many = RidgeSums(100, rows=10), RidgeSums(100, rows=1000)
    assert sum(value.nbytes for value in vars(few).values() if isinstance(value, Tensor)) < 10 * 104 * 4 + 5000
    for _ in range(10):
        many.add(torch.zeros(100, 100), torch.zeros(100, 4))
    assert sum(value.nbytes for value in vars(many).values() if isinstance(value, Tensor)) < 100 * 104 * 8 + 5000
    assert sum(len(features) for features, _ in many._waiting) < 256


def test_more_examples_than_announced_are_refused() -> None:
    sums = RidgeSums(2, rows=3)
    with pytest.raises(ValueError, match="expected 3 examples, got 4"):
        sums.add(torch.zeros(4, 2), torch.zeros(4, 4))


def shifted(count: int, seed: int, label: int = 1) -> tuple[ImageWindows, Tensor]:
    """An image with one object, and windows whose features say how far they are off; and the vectors."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.tensor([[50.0, 50, 110, 90]])
    boxes = gt + 4 * torch.randn(count, 4, generator=generator)
    boxes = torch.cat([gt, boxes, gt + 200])  # the object itself, near it, far from it
    offsets = encode_boxes(boxes, gt.expand(len(boxes), 4))
    vectors = torch.cat([10 * offsets, torch.ones(len(boxes), 1)], dim=1)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    labels[0] = label
    overlaps = torch.zeros(len(boxes), max(2, label))
    overlaps[:, label - 1] = box_iou(boxes, gt)[:, 0]
    return ImageWindows(boxes, labels, overlaps, lambda rows: vectors[rows]), vectors


def test_windows_move_onto_the_object() -> None:
    images = [shifted(30, seed)[0] for seed in range(5)]
    fitted = train_box_regression(images, 1, BoxRegressionSettings(ridge=0.01))
    unseen, vectors = shifted(30, seed=9)
    near = unseen.overlaps[:, 0] > 0.6
    moved = fitted.apply(vectors[near], unseen.boxes[near], torch.ones(int(near.sum()), dtype=torch.int64))
    overlap = box_iou(moved, unseen.boxes[:1])[:, 0]
    assert float(unseen.overlaps[near, 0][1:].max()) < 0.98
    assert float(overlap.min()) > 0.99
    torch.testing.assert_close(decode_boxes(unseen.boxes[near], fitted.deltas(vectors[near])[:, 0]), moved)


def test_only_windows_near_an_object_are_learned_from_and_described() -> None:
    asked: list[int] = []
    image, vectors = shifted(30, 0)

    def describe(rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return vectors[rows]

    watched = ImageWindows(image.boxes, image.labels, image.overlaps, describe)
    train_box_regression([watched], 1, BoxRegressionSettings(overlap=0.8), scale=1.0)
    expected = (image.overlaps[:, 0] >= 0.8).nonzero().flatten().tolist()
    assert asked == [0, *expected]  # the first only to see how long its vector is
    assert 1 < len(expected) < 31


def test_the_stream_gives_what_all_at_once_gives() -> None:
    images = [shifted(8, seed, label=1 + seed % 2) for seed in range(6)]
    told = BoxRegressionSettings(ridge=3.0)
    streamed = train_box_regression([image for image, _ in images], 3, told, scale=2.0)
    objects = torch.cat([image.boxes[:1].expand_as(image.boxes) for image, _ in images])
    labels = torch.cat([image.labels.max().expand(len(image.labels)) for image, _ in images])
    boxes, vectors = torch.cat([image.boxes for image, _ in images]), torch.cat([vectors for _, vectors in images])
    at_once = fit_box_regression(vectors, boxes, objects, labels, 3, told, scale=2.0)
    torch.testing.assert_close(streamed.weights, at_once.weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(streamed.biases, at_once.biases, rtol=1e-4, atol=1e-6)
    assert not streamed.weights[2].any(), "a class without examples moves nothing"


def test_little_memory_takes_more_rounds_to_the_same_result() -> None:
    images = [shifted(8, seed, label=1 + seed % 3)[0] for seed in range(9)]
    rounds = []

    class Watched(list[ImageWindows]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            rounds[-1] += index == 0
            return super().__getitem__(index)

    fitted = []
    for memory in (1, 1 << 30):
        rounds.append(0)
        told = BoxRegressionSettings(memory_bytes=memory)
        fitted.append(train_box_regression(Watched(images), 3, told, scale=1.0))
    assert rounds[0] == rounds[1] + 2, "three classes, each in a round of its own"
    assert torch.equal(fitted[0].weights, fitted[1].weights)


def test_another_class_leaves_the_others_as_they_are() -> None:
    two = train_box_regression([shifted(8, seed, label=1 + seed % 2)[0] for seed in range(4)], 2)
    images = [shifted(8, seed)[0] for seed in (7, 8)]
    three = add_regressor(two, images)
    assert torch.equal(three.weights[:2], two.weights)
    assert torch.equal(three.biases[:2], two.biases)
    alone = train_box_regression(images, 1, scale=two.scale)
    assert torch.equal(three.weights[2:], alone.weights)


def test_it_survives_being_stored() -> None:
    fitted = train_box_regression([shifted(8, 0)[0]], 1)
    again = BoxRegression.of_arrays(fitted.arrays())
    vectors = shifted(8, 1)[1]
    assert torch.equal(again.deltas(vectors), fitted.deltas(vectors))


@given(scale=st.floats(0.1, 10), labels=st.lists(st.integers(1, 3), max_size=5))
@settings(max_examples=20, deadline=None)
def test_apply_takes_the_deltas_of_each_row_s_class(scale: float, labels: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    regression = BoxRegression(0.1 * torch.randn(3, 4, 2, generator=generator), torch.zeros(3, 4), scale)
    features = torch.rand(len(labels), 2, generator=generator).half()
    boxes = torch.tensor([[10.0, 10, 30, 50]]).repeat(len(labels), 1)
    moved = regression.apply(features, boxes, torch.tensor(labels, dtype=torch.int64))
    for row, label in enumerate(labels):
        deltas = scale * regression.weights[label - 1] @ features[row].float()
        torch.testing.assert_close(moved[row], decode_boxes(boxes[row : row + 1], deltas[None])[0])


def test_mistakes_are_named() -> None:
    regression = BoxRegression(torch.zeros(2, 4, 3), torch.zeros(2, 4), 1.0)
    boxes = torch.tensor([[0.0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"expected labels 1\.\.2, got 0\.\.0"):
        regression.apply(torch.zeros(1, 3), boxes, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"expected features \[R, 3\], got shape \[1, 4\]"):
        regression.deltas(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"expected labels 1\.\.2, got 3"):
        fit_box_regression(torch.zeros(1, 3), boxes, boxes, torch.tensor([3]), 2)
    with pytest.raises(ValueError, match=r"expected labels 0\.\.1, got 2"):
        train_box_regression([shifted(3, 0, label=2)[0]], 1)
    with pytest.raises(ValueError, match="expected ridge above 0"):
        BoxRegressionSettings(ridge=0)
    with pytest.raises(ValueError, match=r"expected weights \[K, 4, D\]"):
        BoxRegression(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)
