"""Command-line options from a settings class, written once. For the benchmarks with many settings."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any


def option(default: Any, help: str, kind: type = str, **more: Any) -> Any:
    """A field of a settings dataclass that is an option, too.

    Args:
        default: where the option is left out.
        help: what it says of itself.
        kind: of the value, or of each of several.
        more: for `argparse`, such as ``choices``.
    """
    return dataclasses.field(default=default, metadata={"help": help, "kind": kind, **more})


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """An option for each `option` of a settings class; those that are left out stay out of the arguments."""
    for each in dataclasses.fields(settings):
        if not each.metadata:
            continue
        more: dict[str, Any] = dict(each.metadata)
        kind, shown = more.pop("kind"), each.default
        more["help"] += (
            "" if shown in (None, "") else f" ({' '.join(map(str, shown)) if isinstance(shown, tuple) else shown})"
        )
        if kind is bool:
            more["action"] = argparse.BooleanOptionalAction
        else:
            more |= {"type": kind, "nargs": "+"} if isinstance(shown, tuple) else {"type": kind}
        parser.add_argument(f"--{each.name.replace('_', '-')}", default=argparse.SUPPRESS, **more)


def given_options(arguments: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Of a settings class, what the command line gave; of lists, tuples."""
    known = {each.name for each in dataclasses.fields(settings)}
    given = {name: value for name, value in vars(arguments).items() if name in known}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def check_positive(settings: Any, names: Sequence[str]) -> None:
    """Raise a UserError for a number below 1; None stands for all."""
    from sppnet.errors import UserError

    for name in names:
        number = getattr(settings, name)
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1: got {number}")
