"""Where the bins of a pyramid level begin and end. Integer arithmetic only: floats get some edges wrong.

Bin i of n over a side of s cells covers ``i*s // n`` up to, not including, ``ceil((i+1)*s / n)``. No bin is empty, even
for s < n; neighbours share at most one cell. Source: arXiv:1406.4729, appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence


def bin_edges(side: int, bins: int) -> list[tuple[int, int]]:
    """First cell and one past the last cell of each bin along one side.

    Args:
        side: length in cells, at least 1.
        bins: number of bins, at least 1.

    Raises:
        ValueError: either is below 1.

    Example:
        >>> bin_edges(10, 4)
        [(0, 3), (2, 5), (5, 8), (7, 10)]
        >>> bin_edges(2, 3)
        [(0, 1), (0, 2), (1, 2)]
    """
    if side < 1 or bins < 1:
        raise ValueError(f"side and bins must be at least 1: got side {side}, bins {bins}")
    return [(i * side // bins, -(-(i + 1) * side // bins)) for i in range(bins)]


def bin_count(levels: Sequence[int]) -> int:
    """M, the number of bins of a whole pyramid: the sum of n * n.

    Example:
        >>> bin_count((6, 3, 2, 1))
        50
    """
    return sum(level * level for level in levels)


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """The levels as a tuple of ints, or a ValueError that shows what is wrong with them.

    Example:
        >>> check_levels([3, 2, 1])
        (3, 2, 1)
    """
    wanted = "levels must be one or more whole numbers of at least 1, such as (6, 3, 2, 1)"
    try:
        checked = tuple(levels)
    except TypeError:
        raise ValueError(f"{wanted}: got {levels!r}") from None
    if not checked or not all(_is_positive_whole(n) for n in checked):
        raise ValueError(f"{wanted}: got {levels!r}")
    return tuple(int(n) for n in checked)


def _is_positive_whole(number: object) -> bool:
    try:
        return not isinstance(number, bool) and int(number) == number and number >= 1  # type: ignore[call-overload, operator]
    except (TypeError, ValueError, OverflowError):  # not a number, NaN, infinity
        return False
