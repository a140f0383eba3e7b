"""How measured figures are told: in JSON, and in tables for people. NaN is what could not be measured."""

import math


def json_number(value: float) -> float | None:
    """Four decimals; None for NaN, which JSON does not have.

    Example:
        >>> json_number(1 / 3), json_number(math.nan)
        (0.3333, None)
    """
    return None if math.isnan(value) else round(value, 4)


def shown(value: float) -> str:
    """Three decimals; "-" for NaN.

    Example:
        >>> shown(1 / 3), shown(math.nan)
        ('0.333', '-')
    """
    return "-" if math.isnan(value) else f"{value:.3f}"
