"""Batches of like sizes: every sample once, no small batch, equal ranks, the same again from the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.samplers import SizeBuckets

SIZES = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(100, 500, (500, 2))]

sizes_lists = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=60)


def all_ranks(
    sizes: list[tuple[int, int]], batch_size: int, ranks: int, epoch: int, **options: int
) -> list[list[list[int]]]:
    return [
        SizeBuckets(sizes, batch_size, ranks=ranks, rank=rank, **options).batches(epoch)  # type: ignore[arg-type]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("shuffle", [True, False])
@given(
    sizes=sizes_lists,
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 5),
    smallest=st.integers(1, 2),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
)
def test_every_sample_once_and_no_batch_too_small(
    shuffle: bool, sizes: list[tuple[int, int]], batch_size: int, ranks: int, smallest: int, seed: int, epoch: int
) -> None:
    batch_size = max(batch_size, smallest)
    by_rank = all_ranks(sizes, batch_size, ranks, epoch, shuffle=shuffle, smallest_batch=smallest, seed=seed)
    buckets = SizeBuckets(sizes, batch_size, ranks=ranks, smallest_batch=smallest)
    batches = [batch for rank in by_rank for batch in rank]
    times = Counter(index for batch in batches for index in batch)

    assert set(times) == set(range(len(sizes)))  # nothing left out
    assert sum(times.values()) == len(sizes) + buckets.repeated  # and what is repeated is said
    assert max(times.values()) - min(times.values()) <= 1
    assert {len(rank) for rank in by_rank} == {len(buckets)}  # equal steps
    lengths = [len(batch) for batch in batches]
    assert smallest <= min(lengths) <= max(lengths) <= batch_size
    assert max(lengths) - min(lengths) <= 1
    uneven = [step for step in zip(*by_rank, strict=True) if len({len(batch) for batch in step}) > 1]
    assert len(uneven) <= 1
    # as few steps as can be
    assert len(buckets) == -(-len(sizes) // (batch_size * ranks))


@pytest.mark.parametrize(
    ("samples", "batch_size", "ranks", "lengths", "repeated"),
    [
        (33, 32, 1, [16, 17], 0),  # not 32 and 1
        (100, 32, 1, [25] * 4, 0),
        (7, 3, 1, [2, 2, 3], 0),
        (5, 2, 1, [2, 2, 2], 1),  # batches of 2 cannot hold 5 otherwise
        (1, 8, 1, [2], 1),
        (9, 4, 2, [2, 2, 2, 3], 0),
        (5, 4, 4, [2, 2, 2, 2], 3),  # four ranks, two each
        (1, 4, 2, [2, 2], 3),
    ],
)
def test_worked_cases(samples: int, batch_size: int, ranks: int, lengths: list[int], repeated: int) -> None:
    by_rank = all_ranks([(10, 10)] * samples, batch_size, ranks, epoch=0)
    assert sorted(len(batch) for rank in by_rank for batch in rank) == lengths
    assert SizeBuckets([(10, 10)] * samples, batch_size, ranks=ranks).repeated == repeated


@given(sizes_lists, st.integers(0, 9), st.integers(0, 9))
def test_the_same_seed_and_epoch_give_the_same_batches(sizes: list[tuple[int, int]], seed: int, epoch: int) -> None:
    first, second = (SizeBuckets(sizes, 4, seed=seed).batches(epoch) for _ in range(2))
    assert first == second


def test_other_epochs_and_seeds_give_others() -> None:
    buckets = SizeBuckets(SIZES, 16)
    first, second, other = buckets.batches(0), buckets.batches(1), SizeBuckets(SIZES, 16, seed=1).batches(0)
    assert first != second
    assert first != other
    assert sorted(map(tuple, first)) != sorted(map(tuple, second))  # other company, not only another order
    in_order = SizeBuckets(SIZES, 16, shuffle=False)
    assert in_order.batches(0) == in_order.batches(1)


def test_batches_come_in_random_order() -> None:
    areas = [np.mean([SIZES[i][0] * SIZES[i][1] for i in batch]) for batch in SizeBuckets(SIZES, 16).batches(0)]
    assert abs(np.corrcoef(areas, np.arange(len(areas)))[0, 1]) < 0.5


def share_of_random_batches(sizes: list[tuple[int, int]], batch_size: int) -> float:
    mixed = np.random.default_rng(0).permutation(np.array(sizes))
    batches = [mixed[start : start + batch_size] for start in range(0, len(mixed), batch_size)]
    return 1 - np.prod(mixed, axis=1).sum() / sum(len(batch) * np.prod(batch.max(axis=0)) for batch in batches)


def test_two_shapes_do_not_mix() -> None:
    """32 tall and 32 wide images in batches of 16: nothing is padded, in whatever order they come."""
    order = np.random.default_rng(0).permutation(64)
    sizes = [((224, 336) if i % 2 else (336, 224)) for i in order]
    assert SizeBuckets(sizes, 16).padding_share() == 0
    assert share_of_random_batches(sizes, 16) > 0.25


def test_padding_worked_by_hand() -> None:
    """(2, 4) and (4, 2) in one batch take 2 x 4 x 4 pixels, and fill 16 of those 32."""
    assert SizeBuckets([(2, 4), (4, 2)], 2).padding_share() == 0.5
    assert SizeBuckets([(3, 5)] * 7, 3).padding_share() == 0


@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_little_is_padded(batch_size: int) -> None:
    """Sizes spread evenly over a square are the hardest: no two axes agree."""
    shares = [SizeBuckets(SIZES, batch_size).padding_share(epoch) for epoch in range(3)]
    assert max(shares) < 0.65 * share_of_random_batches(SIZES, batch_size)


@given(sizes_lists, st.integers(2, 9))
def test_padding_is_a_share(sizes: list[tuple[int, int]], batch_size: int) -> None:
    assert 0 <= SizeBuckets(sizes, batch_size).padding_share() < 1


def test_ranks_of_one_step_get_like_sizes() -> None:
    by_rank = all_ranks(SIZES, 8, ranks=4, epoch=0)
    areas = np.array([[np.mean([SIZES[i][0] * SIZES[i][1] for i in batch]) for batch in rank] for rank in by_rank])
    within, overall = areas.std(axis=0).mean(), areas.std()
    assert within < 0.6 * overall


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sizes": []}, r"expected sizes \[N, 2\]"),
        ({"sizes": [(1, 2, 3)]}, r"expected sizes \[N, 2\]"),
        ({"sizes": [(1.5, 2)]}, "whole pixels"),
        ({"sizes": [(0, 5)]}, "at least 1 pixel, got 0"),
        ({"batch_size": 1}, "smallest_batch=1"),
        ({"batch_size": 0, "smallest_batch": 0}, "at least 1"),
        ({"ranks": 2, "rank": 2}, "rank 2 of 2"),
        ({"ranks": 0}, "of 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SizeBuckets(**{"sizes": [(4, 4)] * 9, "batch_size": 4, **arguments})  # type: ignore[arg-type]
