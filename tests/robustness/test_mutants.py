"""300 mutants in the default suite; any number by `python -m tests.robustness --count 10000 --seed 1`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.robustness.__main__ import run
from tests.robustness.kinds import KINDS
from tests.robustness.mutants import Mutator
from tests.robustness.watch import CLEAN, Watched

COUNTS = {"image": 90, "voc": 50, "yolo": 50, "coco": 50, "model": 20, "description": 20, "cache": 10, "proposals": 10}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the child is watched by Linux's means")


@pytest.fixture(scope="module")
def child() -> Iterator[Watched]:
    with Watched() as watched:
        yield watched


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(900)
def test_every_mutant_is_read_or_refused(child: Watched, kind: str) -> None:
    verdicts, failures, _ = run(child, kind, COUNTS[kind], seed=2026)
    assert failures == []
    assert sum(verdicts.values()) == COUNTS[kind]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Watched]:
    with Watched(seconds=3, memory=900_000_000) as watched:
        yield watched


def test_a_seed_gives_the_same_mutants() -> None:
    first, second = (Mutator([b"names: [a, b]", b"1 2 3"], (b"null",), seed=5) for _ in range(2))
    mutants = [first.mutant(b"names: [a, b]") for _ in range(200)]
    assert mutants == [second.mutant(b"names: [a, b]") for _ in range(200)]
    assert len(set(mutants)) > 150


@pytest.mark.parametrize(
    ("trap", "verdict"),
    [
        ("raise ZeroDivisionError", "traceback"),
        ("os.kill(os.getpid(), 11)", "crash"),
        ("bytearray(b'x') * 500_000_000", "memory"),
        ("while True: pass", "hang"),
        ("print('warning: odd', flush=True)", "noise"),
        ("raise OtherAnswer('7 for 8')", "other-answer"),
        ("raise UserError('')", "message"),
        ("raise UserError('expected a, got b')", "refused"),
        ("pass", "right"),
    ],
)
def test_the_watcher_sees_what_it_is_for(impatient: Watched, trap: str, verdict: str) -> None:
    assert impatient.read("trap", "trap.py", trap.encode()).kind == verdict
    assert impatient.read("trap", "trap.py", b"pass").kind in CLEAN  # and goes on
