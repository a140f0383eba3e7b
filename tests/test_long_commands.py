"""Long commands as processes: killed at any time, they go on; two at once with one cache directory are both right, or the second
names the first.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

SMALL = ("--short-side", "64")
LONG: dict[str, tuple[str, ...]] = {
    "proposals": ("proposals", "VOC", "--proposals", "grid"),
    "quick": ("train", "detector", "VOC", "--preset", "quick", "--proposals", "grid", *SMALL),
    "standard": ("train", "detector", "VOC", "--preset", "standard", "--proposals", "grid", "--epochs", "2", *SMALL),
    "paper": ("train", "detector", "VOC", "--preset", "paper", "--proposals", "grid", "--epochs", "2", *SMALL),
    "svm": ("train", "svm", "MODEL", "VOC"),
    "evaluate": ("evaluate", "MODEL", "VOC"),
    "classifier": ("train", "classifier", "FOLDER", *SMALL),
    "compare": ("compare", "FOLDER", "--side", "64"),
}
MODELS = ("quick", "standard", "paper", "svm", "classifier")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Started:
    """A command in a process of its own."""

    def __init__(self, name: str, places: dict[str, Path], cache: Path, output: Path) -> None:
        words = [str(places.get(word, word)) for word in LONG[name]]
        self.name, self.output = name, output
        if name in MODELS:
            words += ["--output", str(output)]
        elif name == "compare":
            words += ["--output", str(output.with_suffix(".png"))]
        code = "import sys; from sppnet.cli import main; main(sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words, "--cache", str(cache)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def answer(self) -> Any:
        """What it made: tensors of a model, or printed words; None where it named the other."""
        out, err = self.process.communicate()
        if self.process.returncode == 2 and "is in use by process" in err:
            assert len([line for line in err.splitlines() if line.startswith("sppnet:")]) == 1
            return None
        assert self.process.returncode == 0, (self.name, err)
        lines = [line for line in out.splitlines() if " s each" not in line]  # no times
        return load_file(self.output) if self.name in MODELS else lines


@pytest.fixture(scope="module")
def places(tiny_voc_original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photos")
    for number, name in itertools.product(range(12), ("red", "blue")):
        (folder / name).mkdir(exist_ok=True)
        color = (200, 40, 40) if name == "red" else (40, 40, 200)
        noise = np.random.default_rng(number).integers(0, 50, (40 + number, 60, 3), dtype=np.uint8)
        Image.fromarray((noise + np.array(color)).astype(np.uint8)).save(folder / name / f"{number}.png")
    places = {
        "VOC": tiny_voc_original,
        "FOLDER": folder,
        "MODEL": tmp_path_factory.mktemp("model") / "paper.safetensors",
    }
    assert Started("paper", places, folder.with_name("cache"), places["MODEL"]).answer() is not None
    return places


@pytest.fixture(scope="module")
def alone(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: Started(name, places, folder / name, folder / f"{name}.safetensors").answer() for name in LONG}


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return len(ours) == len(theirs)


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations_with_replacement(LONG, 2)])
def test_each_pair(places: dict[str, Path], alone: dict[str, Any], tmp_path: Path, first: str, second: str) -> None:
    both = [
        Started(name, places, tmp_path / "cache", tmp_path / f"{name}-{number}.safetensors")
        for number, name in enumerate((first, second))
    ]
    answers = [started.answer() for started in both]
    assert answers != [None, None]
    for name, answer in zip((first, second), answers, strict=True):
        assert answer is None or same(answer, alone[name]), name


@pytest.mark.parametrize("name", LONG)
def test_killed_at_any_time(places: dict[str, Path], alone: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Eight times SIGKILL, each after another while; then the command ends as if nothing had been."""
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)  # said where the test fails
    print(f"seed {seed}")
    cache, output = tmp_path / "cache", tmp_path / "m.safetensors"
    for _ in range(8):
        started = Started(name, places, cache, output)
        with suppress(subprocess.TimeoutExpired):  # it may also end before
            started.process.wait(rng.uniform(2, 12))
        started.process.kill()
        started.process.communicate()
    assert same(Started(name, places, cache, output).answer(), alone[name])
    assert not list(tmp_path.rglob(".*.tmp"))
