"""What the values of options must be, where the option's type does not say it. Each mistake is one line that names the option."""

from __future__ import annotations

from sppnet.errors import UserError


def check_share(name: str, value: float) -> None:
    """Refuse what is not between 0 and 1.

    Example:
        >>> check_share("--nms-iou", 30)
        Traceback (most recent call last):
        sppnet.errors.UserError: --nms-iou must be between 0 and 1: got 30
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1: got {value}")


def check_proposer(name: str) -> None:
    """Refuse what proposes no boxes."""
    from sppnet.proposals.compute import check_method

    try:
        check_method(name)
    except UserError as error:
        raise UserError(f"--proposer: {error}") from error


def checked_limit(limit: int | None) -> int | None:
    """``--limit`` as it is, at least 1 or left out."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1: got {limit}; leave it out for all images")
    return limit


def checked_positive(name: str, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of an option as they are: some, each at least 1.

    Example:
        >>> checked_positive("--levels", (3, 2, 1))
        (3, 2, 1)
    """
    if not numbers or min(numbers) < 1:
        raise UserError(f"{name} must be whole numbers of at least 1: got {' '.join(map(str, numbers)) or 'none'}")
    return numbers
