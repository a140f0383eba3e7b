"""Ridge regression on examples that come a few at a time, in bounded memory: features [n, D] -> targets [n, 4].

Minimizes |Y - X W - 1 b|^2 + ridge |W|^2; the constant b is free. Where there are more examples than features, sums of their
products are all it takes, one number for each pair of features; where there are fewer, as of pooled pyramids with their 60,000
numbers, the examples themselves are. Both give the same W. The linear system is solved in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

TARGETS = 4
FOLD = 256  # examples that are summed at once: a product of a few rows costs as much as of many
PART = 4096  # features that are centered at once


class RidgeSums:
    """What a ridge regression has to know of its examples.

    Args:
        width: D.
        rows: how many examples will come.
        memory_bytes: where neither sums nor examples fit, every second example is taken, or every third ...

    Example:
        >>> sums = RidgeSums(width=1, rows=2)
        >>> sums.add(torch.tensor([[1.0]]), torch.tensor([[3.0, 0, 0, 0]]))
        >>> sums.add(torch.tensor([[2.0]]), torch.tensor([[5.0, 0, 0, 0]]))
        >>> weights, constant = sums.solve(ridge=1e-9)
        >>> weights[0].round(decimals=3), constant[0].round(decimals=3)
        (tensor([2.]), tensor(1.))
    """

    def __init__(self, width: int, rows: int, memory_bytes: int = 2**30) -> None:
        columns = width + 1 + TARGETS  # features, a 1, targets
        self.width, self.rows, self.seen = width, rows, 0
        self.every = _every(width, rows, memory_bytes)
        self.examples = torch.zeros(-(-rows // self.every) if self.every else 0, columns)
        self.sums = torch.zeros([0 if self.every else columns] * 2, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take in examples [n, D] float32 and their targets [n, 4].

        Raises:
            ValueError: more than were expected.
        """
        first, self.seen = self.seen, self.seen + len(features)
        if self.seen > self.rows:
            raise ValueError(f"expected {self.rows} examples, got {self.seen}")
        joined = torch.cat([features, features.new_ones(len(features), 1), targets], dim=1)
        if self.every:
            taken = joined[-first % self.every :: self.every]
            start = -(-first // self.every)
            self.examples[start : start + len(taken)] = taken
            return
        self._waiting.append(joined)
        if sum(map(len, self._waiting)) >= FOLD:
            self._fold()

    def arrays(self) -> dict[str, Tensor]:
        """All that was seen, for a file; `restore` takes it."""
        waiting = torch.cat([self.examples[:0], *self._waiting])
        examples = self._taken() if self.every else waiting
        return {"seen": torch.tensor(self.seen), "examples": examples, "sums": self.sums}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Put back what `arrays` of the same width, rows and memory gave."""
        self.seen, self.sums = int(arrays["seen"]), arrays["sums"]
        if self.every:
            self.examples[: len(arrays["examples"])] = arrays["examples"]
        else:
            self._waiting = [arrays["examples"]]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W' [4, D] and b [4], float32, for ``ridge`` above 0; without examples, zeros."""
        if not self.seen:
            return torch.zeros(TARGETS, self.width), torch.zeros(TARGETS)
        if self.every:
            targets = self._taken()[:, -TARGETS:].double()
            mean = targets.mean(0)
            products = torch.zeros([len(targets)] * 2, dtype=torch.float64)
            for _, part in self._centered():
                products += (part @ part.T).double()
            shares = _solve_symmetric(products, targets - mean, ridge)
            weights = torch.cat([part.T.double() @ shares for _, part in self._centered()])
            means = torch.cat([of_part for of_part, _ in self._centered()]).double()
            return weights.T.float(), (mean - means @ weights).float()
        self._fold()
        totals, count = self.sums[self.width], self.sums[self.width, self.width]
        means = totals / count
        centered = self.sums.addr(totals, totals, alpha=-1 / float(count))[: self.width]
        weights = _solve_symmetric(centered[:, : self.width].clone(), centered[:, -TARGETS:], ridge)
        return weights.T.float(), (means[-TARGETS:] - means[: self.width] @ weights).float()

    def _fold(self) -> None:
        if self._waiting:
            joined = torch.cat(self._waiting)
            exact = joined[:, self.width :].double()  # a product of features in single, all sums in double precision
            self.sums[: self.width, : self.width] += joined[:, : self.width].T @ joined[:, : self.width]
            mixed = joined[:, : self.width].T.double() @ exact
            self.sums[: self.width, self.width :] += mixed
            self.sums[self.width :, : self.width] += mixed.T
            self.sums[self.width :, self.width :] += exact.T @ exact
            self._waiting = []

    def _taken(self) -> Tensor:
        return self.examples[: -(-self.seen // self.every)]

    def _centered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some features' means [d], and the examples without them [n, d]."""
        for part in self._taken()[:, : self.width].split(PART, dim=1):
            yield part.mean(0), part - part.mean(0)


def ridge_bytes(width: int, rows: int, memory_bytes: int) -> int:
    """What `RidgeSums` hold, but for a few examples."""
    columns, every = width + 1 + TARGETS, _every(width, rows, memory_bytes)
    return 4 * columns * -(-rows // every) if every else 8 * columns**2


def _every(width: int, rows: int, memory_bytes: int) -> int:
    """0 for sums; else examples, and which of them: every one, every second ..."""
    columns = width + 1 + TARGETS
    if rows >= width and 8 * columns**2 <= memory_bytes:
        return 0
    most = max(1, min(memory_bytes // (8 * columns), math.isqrt(memory_bytes // 16)))  # and room for their products
    return max(1, -(-rows // most))


def _solve_symmetric(products: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(products + ridge I)^-1 right; changes ``products``."""
    products.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(products))
