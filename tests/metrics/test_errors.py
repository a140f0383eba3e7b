"""Kinds of error: one image worked by hand, then what must hold for any."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.metrics.errors import KINDS, detection_errors
from sppnet.metrics.voc import evaluate_voc

NAMES = ("cat", "dog", "cow")
# Two cats side by side, a difficult one, a dog far away.
TRUTH = (
    [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [80, 0, 90, 10]],
    [1, 1, 1, 2],
    [False, False, True, False],
)


def found(*cats: tuple[list[int], float]) -> tuple[list[list[int]], list[float], list[int]]:
    """Detections of cats."""
    return [box for box, _ in cats], [score for _, score in cats], [1] * len(cats)


def test_an_image_worked_by_hand() -> None:
    """Two cats, so the two most confident count: one poorly localised, one that is a dog; the third, right, comes too late for them."""
    detections = found(
        ([40, 0, 50, 10], 0.95),  # the difficult cat: left out
        ([0, 0, 10, 3], 0.9),  # .3 of the first cat
        ([80, 0, 90, 10], 0.8),  # the dog
        ([0, 0, 10, 10], 0.7),  # the first cat
        ([60, 0, 70, 10], 0.6),  # nothing
        ([0, 0, 10, 9], 0.5),  # the first cat again
    )
    cat, dog, cow = detection_errors([detections], [TRUTH], NAMES).classes
    assert (cat.n_objects, cat.correct, cat.localisation, cat.other_class, cat.background) == (2, 0, 1, 1, 0)
    assert cat.confused_with == {"dog": 1}
    assert cat.missed == 1, "nobody found the second cat"
    # right at the third of five: precision 1/3 at recall 1/2
    assert cat.ap == pytest.approx(1 / 6)
    assert cat.ap_without == pytest.approx(
        {"localisation": 1 / 4, "other class": 1 / 4, "background": 1 / 6, "missed": 1 / 3}
    )
    assert (dog.n_objects, dog.missed, dog.ap) == (1, 1, 0)
    assert cow.n_objects == 0
    assert math.isnan(cow.ap)


def test_a_second_detection_of_one_object_is_badly_placed_and_nothing_is_background() -> None:
    twice = found(([0, 0, 10, 10], 0.9), ([0, 0, 10, 9], 0.8))
    nothing = found(([0, 50, 10, 60], 0.9), ([20, 50, 30, 60], 0.8))
    assert detection_errors([twice], [TRUTH], NAMES).classes[0].localisation == 1
    assert detection_errors([nothing], [TRUTH], NAMES).classes[0].background == 2


def test_its_own_class_comes_before_another() -> None:
    truth = ([[0, 0, 10, 10], [0, 0, 10, 11]], [1, 2], [False, False])
    assert detection_errors([found(([0, 0, 10, 3], 0.9))], [truth], NAMES).classes[0].localisation == 1


BOX = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
LABEL = st.integers(1, 3)
IMAGE = st.tuples(
    st.lists(st.tuples(BOX, st.floats(0, 1, width=16), LABEL), max_size=8),
    st.lists(st.tuples(BOX, LABEL, st.booleans()), max_size=5),
)


@given(st.lists(IMAGE, max_size=4))
def test_what_must_hold(
    images: list[tuple[list[tuple[list[int], float, int]], list[tuple[list[int], int, bool]]]],
) -> None:
    """Every looked-at detection is of one kind; average precisions are VOC's, and no error less never costs."""
    detections = [([d[0] for d in image], [d[1] for d in image], [d[2] for d in image]) for image, _ in images]
    truth = [([g[0] for g in image], [g[1] for g in image], [g[2] for g in image]) for _, image in images]
    errors = detection_errors(detections, truth, NAMES)
    result = evaluate_voc(detections, truth, NAMES)
    for mine, voc in zip(errors.classes, result.classes, strict=True):
        assert mine.n_objects == voc.n_objects
        looked_at = mine.correct + mine.localisation + mine.other_class + mine.background
        assert looked_at == min(mine.n_objects, len(voc.scores))
        assert sum(mine.confused_with.values()) == mine.other_class
        if voc.n_objects:
            assert mine.ap == pytest.approx(voc.ap_area)
            assert mine.missed == round(mine.n_objects * (1 - (voc.recall[-1] if len(voc.recall) else 0)))
            assert all(mine.ap_without[kind] >= mine.ap - 1e-9 for kind in KINDS)
    json.dumps(errors.to_dict(), allow_nan=False)
    assert errors.table().count("\n") == len(NAMES) + 1


def test_no_images_and_lists_that_do_not_agree() -> None:
    assert detection_errors([], [], NAMES).total().n_objects == 0
    with pytest.raises(ValueError, match="of the same images, got 0 and 1"):
        detection_errors([], [TRUTH], NAMES)
