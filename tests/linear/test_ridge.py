"""Ridge regression of examples that come a few at a time: against scikit-learn's, in every form that memory asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.linear.ridge import RidgeSums, ridge_bytes


def examples(count: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, width, generator=generator) + 0.7  # like those after a ReLU: not around 0
    directions = torch.randn(width, 4, generator=generator) / width
    return features, features @ directions + torch.randn(count, 4, generator=generator)


def added(features: Tensor, targets: Tensor) -> RidgeSums:
    sums = RidgeSums(features.shape[1], rows=len(features))
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        sums.add(features[part], targets[part])
    return sums


# More examples than features, far more, fewer, as many, and a width that is centered in parts.
@pytest.mark.parametrize("shape", [(40, 6), (600, 6), (5, 12), (12, 12), (50, 9000)])
@pytest.mark.parametrize("ridge", [0.1, 1000.0])
def test_the_same_as_scikit_learn(shape: tuple[int, int], ridge: float) -> None:
    from sklearn.linear_model import Ridge

    features, targets = examples(*shape)
    expected = Ridge(alpha=ridge).fit(features.double().numpy(), targets.double().numpy())
    weights, constant = added(features, targets).solve(ridge)
    np.testing.assert_allclose(weights, expected.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(constant, expected.intercept_, rtol=1e-3, atol=1e-5)


def test_whitening_the_targets_as_the_release_does_changes_nothing() -> None:
    features, targets = examples(40, 6)
    mean = targets.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((targets - mean).T, correction=0))
    whiten = vectors @ torch.diag((values + 0.001) ** -0.5) @ vectors.T
    weights, constant = added(features, targets).solve(50)
    whitened, of_whitened = added(features, (targets - mean) @ whiten).solve(50)
    torch.testing.assert_close(torch.linalg.inv(whiten) @ whitened, weights, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.linalg.inv(whiten) @ of_whitened + mean, constant, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(600, 6), (5, 12)])
def test_what_is_put_back_goes_on_alike(shape: tuple[int, int]) -> None:
    features, targets = examples(*shape)
    whole, first, second = (RidgeSums(shape[1], rows=shape[0]) for _ in range(3))
    for sums, part in ((whole, slice(0, 3)), (whole, slice(3, None)), (first, slice(0, 3))):
        sums.add(features[part], targets[part])
    second.restore({name: part.clone() for name, part in first.arrays().items()})
    second.add(features[3:], targets[3:])
    for ours, theirs in zip(second.solve(2.0), whole.solve(2.0), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("width", "rows"), [(100, 10), (100, 1000), (100, 100_000), (64_000, 30), (64_000, 100_000)])
def test_memory_is_bounded_whatever_comes(width: int, rows: int) -> None:
    limit = 2**26
    assert 0 < ridge_bytes(width, rows, limit) <= limit
    if rows * width < 10**7:
        sums = RidgeSums(width, rows, limit)
        assert sums.sums.nbytes + sums.examples.nbytes == ridge_bytes(width, rows, limit)


def test_of_too_many_wide_examples_some_are_taken_evenly() -> None:
    features = torch.arange(100.0)[:, None].expand(100, 40).contiguous()
    sums = RidgeSums(40, rows=100, memory_bytes=8 * 45 * 7)  # room for seven
    for part in features.split([3, 1, 50, 2, 44]):
        sums.add(part, torch.zeros(len(part), 4))
    assert sums.arrays()["examples"][:, 0].tolist() == [0, 15, 30, 45, 60, 75, 90]


def test_no_examples_move_nothing_and_more_than_announced_are_refused() -> None:
    sums = RidgeSums(2, rows=3)
    assert not any(part.any() for part in sums.solve(1.0))
    with pytest.raises(ValueError, match="expected 3 examples, got 4"):
        sums.add(torch.zeros(4, 2), torch.zeros(4, 4))
