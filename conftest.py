"""For the tests and for the doctests in src/: what doctests may name, and a word on the tests that were left out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# What a first call costs (compiling, a busy machine) says nothing about the code. For more examples of each law:
# --hypothesis-profile thorough
settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile("quick")

# The tests run in two processes (pyproject.toml): each takes one core, before anything loads PyTorch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

NOT_RUN_BY_DEFAULT = ("slow", "gpu")
left_out: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def doctest_surroundings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctests find np, torch and sppnet imported, and write their files into an empty folder."""
    if isinstance(request.node, pytest.DoctestItem):
        import numpy as np
        import torch

        import sppnet

        names: dict[str, Any] = request.getfixturevalue("doctest_namespace")
        names.update(np=np, torch=torch, sppnet=sppnet)
        tmp_path: Path = request.getfixturevalue("tmp_path")
        monkeypatch.chdir(tmp_path)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what `-m` left out, by marker."""
    left_out.update(mark for item in items for mark in NOT_RUN_BY_DEFAULT if item.get_closest_marker(mark))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of the tests tells the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every process has left out the same."""
    left_out.update(node.workeroutput["left_out"] if not left_out else {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run what was left out."""
    for mark, count in sorted(left_out.items()):
        terminalreporter.write_line(f"not run: {count} tests marked {mark}; run them with: uv run pytest -m {mark}")
