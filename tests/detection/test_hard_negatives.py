"""Which windows are hard, and what is kept of them: by hand, then the bounds of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sppnet.boxes import box_iou
from sppnet.detection.hard_negatives import NegativeCache, hard_windows


def find(boxes: Tensor, scores: list[list[float]], eligible: Tensor | None = None) -> list[list[bool]]:
    values = torch.tensor(scores)
    eligible = torch.ones_like(values, dtype=torch.bool) if eligible is None else eligible
    return hard_windows(boxes, values, eligible, hard_score=-1.0001, duplicate_iou=0.7).tolist()


def apart(count: int) -> Tensor:
    """Boxes that do not touch."""
    left = 20.0 * torch.arange(count)
    return torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], dim=1)


def keep(cache: NegativeCache, image: int, scores: list[list[float]]) -> None:
    """Add windows 0, 1, ... of an image, hard where the score is above -1; what they hold says which they are."""
    values = torch.tensor(scores)
    rows = torch.arange(len(values))
    features = torch.stack([torch.full((len(values),), float(image)), rows.float()], dim=1)
    cache.add(features, values > -1, values)


def test_hard_is_above_the_score_and_without_an_object() -> None:
    eligible = torch.tensor([[True, False], [True, True], [True, True], [False, True]])
    found = find(apart(4), [[0.5, 0.5], [-1.0, -2.0], [-1.1, -1.00005], [3.0, -0.9]], eligible)
    assert found == [[True, False], [True, False], [False, True], [False, True]]


def test_of_near_duplicates_the_hardest_stays_in_each_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 6]])
    assert box_iou(boxes, boxes)[0].tolist() == pytest.approx([1, 0.9, 0.6])
    # of .9 with each other, one is left; .6 and .67 are different enough
    assert find(boxes, [[0.1, 0.9], [0.5, 0.2], [0.0, 0.0]]) == [[False, True], [True, False], [True, True]]


def test_a_window_is_stored_once_for_all_its_classes() -> None:
    cache = NegativeCache(2, 1 << 20)
    keep(cache, 7, [[0.0, 0.5], [-2.0, 0.1], [-2.0, -2.0]])
    assert cache.features.tolist() == [[7, 0], [7, 1]]
    assert cache.held.tolist() == [[True, True], [False, True]]
    assert cache.scores[cache.held].tolist() == pytest.approx([0.0, 0.5, 0.1])


def test_the_easy_are_evicted_and_what_nobody_holds_is_forgotten() -> None:
    cache = NegativeCache(2, 1 << 20)
    keep(cache, 0, [[0.0, 0.0], [0.0, -2.0], [0.0, 0.0]])
    cache.scores[:, 0] = torch.tensor([-1.1, -1.3, -1.2])
    cache.evict(0, -1.2)
    assert cache.held.tolist() == [[True, True], [False, False], [True, True]]
    cache.compact()
    assert cache.features.tolist() == [[0, 0], [0, 2]]
    keep(cache, 1, [[0.0, -2.0]])
    assert cache.features.tolist() == [[0, 0], [0, 2], [1, 0]]
    assert cache.held.tolist() == [[True, True], [True, True], [True, False]]


def test_a_class_that_is_full_keeps_its_hardest() -> None:
    cache = NegativeCache(2, bytes_per_class=3 * 8)  # three windows of two float32
    keep(cache, 0, [[0.1, -2.0], [0.5, -2.0], [0.3, 0.0]])
    keep(cache, 1, [[0.2, -2.0], [0.4, -2.0]])
    assert cache.too_many().tolist() == [True, False]
    cache.limit()
    cache.compact()
    assert cache.features[cache.rows_of(0)].tolist() == [[0, 1], [0, 2], [1, 1]]
    assert cache.features[cache.rows_of(1)].tolist() == [[0, 2]]


def test_memory_is_bounded_whatever_comes() -> None:
    classes, of_image, most = 3, 40, 50
    cache = NegativeCache(classes, bytes_per_class=most * 8)
    generator = torch.Generator().manual_seed(0)
    largest = 0
    for image in range(100):
        keep(cache, image, (3 * torch.rand(of_image, classes, generator=generator) - 1.5).tolist())
        cache.limit()
        largest = max(largest, cache.features.untyped_storage().nbytes())
        assert int(cache.held.sum(0).max()) <= most
    assert int(cache.held.sum(0).min()) == most
    assert largest <= (classes * most + of_image) * 8


def test_what_is_put_back_goes_on_alike() -> None:
    whole, first = NegativeCache(2, 80), NegativeCache(2, 80)
    second = NegativeCache(2, 80)
    for image in range(6):
        scores = torch.randn(5, 2, generator=torch.Generator().manual_seed(image)).tolist()
        for cache in (whole, first if image < 3 else second):
            keep(cache, image, scores)
            cache.limit()
        if image == 2:
            second.restore({name: array.clone() for name, array in first.arrays().items()})
    for name, array in whole.arrays().items():
        assert torch.equal(array, second.arrays()[name]), name


def test_less_than_one_window_s_room_is_refused() -> None:
    with pytest.raises(ValueError, match="7 bytes hold no window of 8 bytes"):
        keep(NegativeCache(1, 7), 0, [[0.0]])
