"""The scale that makes margins probabilities: that it makes them true, and no bolder than the images allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.classification.calibration import SCALES, log_loss, probability_scale


def drawn(scale: float, count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and labels drawn from the softmax of ``scale`` times them: what the right scale is, is known."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=(count, classes))
    noise = rng.gumbel(size=margins.shape)
    return margins, (scale * margins + noise).argmax(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_by_hand() -> None:
    """Margins +1 and -1, nine of ten right and one image that is anyone's guess: 9.5 of 11, so that 2a = ln(9.5 / 1.5)."""
    margins = np.tile([1.0, -1.0], (10, 1))
    labels = np.array([0] * 9 + [1])
    assert probability_scale(margins, labels) == pytest.approx(np.log(9.5 / 1.5) / 2, rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("classes", [2, 20])
def test_the_scale_that_the_labels_were_drawn_with_is_found(scale: float, classes: int) -> None:
    assert probability_scale(*drawn(scale, 20_000, classes)) == pytest.approx(scale, rel=0.06)


def test_as_sure_as_right() -> None:
    """Of images that get a probability of about p, a share of about p is right."""
    scale = probability_scale(*drawn(2.0, 5000, 4))
    margins, labels = drawn(2.0, 20_000, 4, seed=1)
    sure = softmax(scale * margins).max(1)
    right = (margins.argmax(1) == labels).astype(float)
    for part in np.array_split(np.argsort(sure), 8):
        assert sure[part].mean() == pytest.approx(right[part].mean(), abs=0.03)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 40),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.3, 1.0, 5.0]),
)
def test_no_other_scale_makes_the_labels_likelier(seed: int, count: int, classes: int, scale: float) -> None:
    margins, labels = drawn(scale, count, classes, seed)

    def loss(at: float) -> float:
        logarithms = np.log(softmax(at * margins))
        return float(-logarithms[np.arange(count), labels].sum() - logarithms.mean(1).mean())

    found = probability_scale(margins, labels)
    assert SCALES[0] <= found <= SCALES[1]
    for other in (found * 0.9, found * 1.1, *SCALES):
        assert not SCALES[0] <= other <= SCALES[1] or loss(other) >= loss(found) - 1e-9


def test_the_fewer_images_are_all_right_the_more_careful_it_is() -> None:
    scales = [probability_scale(np.tile([1.0, -1.0], (count, 1)), np.zeros(count, int)) for count in (0, 1, 3, 30, 300)]
    assert scales == sorted(scales)
    assert scales[0] == SCALES[0]
    assert scales[-1] < SCALES[1]


def test_a_class_that_is_never_answered_makes_no_difference() -> None:
    margins, labels = drawn(2.0, 50, 3)
    with_one = np.concatenate([margins, np.full((50, 1), -np.inf)], 1)
    assert probability_scale(with_one, labels) == probability_scale(margins, labels)
    assert log_loss(with_one, labels) == pytest.approx(log_loss(margins, labels))


def test_log_loss_is_that_of_the_probabilities() -> None:
    margins, labels = drawn(2.0, 50, 3)
    assert log_loss(margins, labels) == pytest.approx(-np.log(softmax(margins)[np.arange(50), labels]).mean())
    assert np.isfinite(log_loss(1e4 * margins, labels))


@pytest.mark.parametrize(
    ("margins", "labels", "message"),
    [
        ([1.0, 2.0], [0, 1], r"expected margins \[N, K\] and labels \[N\], got shapes \[2\] and \[2\]"),
        ([[1.0, 2.0]], [0, 1], r"got shapes \[1, 2\] and \[2\]"),
        ([[-np.inf, 2.0]], [0], "numbers for the images' own classes"),
    ],
)
def test_what_cannot_be_used_is_said(margins: list[object], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probability_scale(margins, labels)
