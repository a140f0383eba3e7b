"""Ridge regression on examples that come a few at a time, in the least memory: features [n, D] -> targets [n, 4]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RidgeSums:
    """What a ridge regression has to know of its examples, which come a few at a time.

    Minimises |Y - X W - 1 b|^2 + ridge |W|^2. With fewer examples than features it keeps them, and solves for one number
    an example; with more it keeps X'X, and solves for one number a feature. Both give the same W.

    Args:
        width: D.
        rows: how many examples will come.

    Example:
        >>> sums = RidgeSums(width=1, rows=2)
        >>> sums.add(torch.tensor([[1.0]]), torch.tensor([[3.0, 0, 0, 0]]))
        >>> sums.add(torch.tensor([[2.0]]), torch.tensor([[5.0, 0, 0, 0]]))
        >>> weights, constant = sums.solve(ridge=1e-9)
        >>> weights[0].round(decimals=3), constant[0].round(decimals=3)
        (tensor([2.]), tensor(1.))
    """

    def __init__(self, width: int, rows: int) -> None:
        self.keeps_examples = rows < width
        self.expected, self.seen = rows, 0
        self._x = torch.zeros((rows if self.keeps_examples else 0), width)
        self._y = torch.zeros(rows if self.keeps_examples else 0, 4)
        self._xx = torch.zeros(*([0, 0] if self.keeps_examples else [width, width]), dtype=torch.float64)
        self._xy = torch.zeros(width, 4, dtype=torch.float64)
        self._sum_x = torch.zeros(width, dtype=torch.float64)
        self._sum_y = torch.zeros(4, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Examples [n, D] and their targets [n, 4].

        Raises:
            ValueError: more than were expected.
        """
        last = self.seen + len(features)
        if last > self.expected:
            raise ValueError(f"expected {self.expected} examples, got {last}")
        if self.keeps_examples:
            self._x[self.seen : last], self._y[self.seen : last] = features, targets
        else:
            self._waiting.append((features, targets))
            if sum(len(part) for part, _ in self._waiting) >= 256:  # a product of a few rows costs as much as of many
                self._fold()
        self.seen = last

    def _fold(self) -> None:
        if self._waiting:
            x, y = (torch.cat(column) for column in zip(*self._waiting, strict=True))
            self._xx += x.T @ x  # products in single, sums in double precision
            self._xy += x.T.double() @ y.double()
            self._sum_x += x.sum(0, dtype=torch.float64)
            self._sum_y += y.sum(0, dtype=torch.float64)
            self._waiting = []

    def arrays(self) -> dict[str, Tensor]:
        """All that was seen, for a file; `restore` takes it."""
        self._fold()
        return {
            "seen": torch.tensor(self.seen),
            "x": self._x[: self.seen] if self.keeps_examples else self._x,
            "y": self._y[: self.seen] if self.keeps_examples else self._y,
            "xx": self._xx,
            "xy": self._xy,
            "sum_x": self._sum_x,
            "sum_y": self._sum_y,
        }

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Put back what `arrays` of sums of the same width and number of rows gave."""
        self.seen = int(arrays["seen"])
        self._x[: len(arrays["x"])], self._y[: len(arrays["y"])] = arrays["x"], arrays["y"]
        self._xx, self._xy = arrays["xx"], arrays["xy"]
        self._sum_x, self._sum_y = arrays["sum_x"], arrays["sum_y"]

    def solve(self, ridge: float, *, shrink_constant: bool = False) -> tuple[Tensor, Tensor]:
        """W' [4, D] and b [4], float32.

        Args:
            ridge: above 0.
            shrink_constant: the penalty is on b too, measured from the mean of the targets; otherwise b is free.
        """
        if not self.seen:
            return torch.zeros(4, len(self._xy)), torch.zeros(4)
        return (
            self._solve_kept(ridge, shrink_constant)
            if self.keeps_examples
            else self._solve_sums(ridge, shrink_constant)
        )

    def _solve_kept(self, ridge: float, shrink_constant: bool) -> tuple[Tensor, Tensor]:
        x, y = self._x[: self.seen], self._y[: self.seen].double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        if not shrink_constant:
            x = x - mean_x
        products = (x @ x.T).double() + float(shrink_constant)
        shares = _solve_symmetric(products, y - mean_y, ridge)
        weights = x.T.double() @ shares
        bias = mean_y + (shares.sum(0) if shrink_constant else -(mean_x.double() @ weights))
        return weights.T.float(), bias.float()

    def _solve_sums(self, ridge: float, shrink_constant: bool) -> tuple[Tensor, Tensor]:
        self._fold()
        mean_y = self._sum_y / self.seen
        xy = self._xy - self._sum_x[:, None] * mean_y
        if shrink_constant:  # one more feature, always 1
            ones = torch.cat([self._sum_x, self._sum_x.new_tensor([self.seen])])
            products = torch.cat([torch.cat([self._xx, self._sum_x[:, None]], dim=1), ones[None]])
            weights = _solve_symmetric(products, torch.cat([xy, xy.new_zeros(1, 4)]), ridge)
            return weights[:-1].T.float(), (mean_y + weights[-1]).float()
        products = self._xx.addr(self._sum_x, self._sum_x, alpha=-1 / self.seen)
        weights = _solve_symmetric(products, xy, ridge)
        return weights.T.float(), (mean_y - (self._sum_x / self.seen) @ weights).float()


def _solve_symmetric(products: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(products + ridge I)^-1 right."""
    products.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(products))
