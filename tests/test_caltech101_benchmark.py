"""The splits of the Caltech-101 benchmark: as many images of every class to train, few enough of each to test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.caltech101 import merged, per_class
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import UserError


def made_up(counts: list[int]) -> LabelledImages:
    labels = np.repeat(np.arange(len(counts)), counts)
    paths = tuple(Path(f"{i}.jpg") for i in range(len(labels)))
    return LabelledImages(paths, labels, tuple(map(str, range(len(counts)))))


@given(
    st.lists(st.integers(3, 12), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 9) | st.none(),
    st.integers(0, 9),
)
def test_as_many_of_every_class(counts: list[int], count: int, at_most: int | None, seed: int) -> None:
    images = made_up(counts)
    chosen, rest = per_class(images, count, seed=seed, at_most=at_most)
    assert chosen.counts().tolist() == [count] * len(counts)
    assert rest.counts().tolist() == [min(n - count, at_most or n) for n in counts]
    assert not set(chosen.paths) & set(rest.paths)
    assert per_class(images, count, seed=seed, at_most=at_most)[1].paths == rest.paths


def test_classes_that_are_too_small_are_named() -> None:
    with pytest.raises(UserError, match=r"at least 5 images of every class; fewer in: 1 \(4\), 2 \(0\)"):
        per_class(made_up([9, 4, 0]), 5, seed=0)


def test_parts_are_put_together_again() -> None:
    images = made_up([4, 6])
    whole = merged(*split_off(images, seed=0))
    assert sorted(whole.paths) == sorted(images.paths)
    assert whole.counts().tolist() == [4, 6]
