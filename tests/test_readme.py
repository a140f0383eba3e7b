"""The README tells the truth: its commands and examples run, as they are typed, and the files it names are there.

A fence of ``console`` or ``bash`` is run line by line in a folder that holds `photo.jpg`, `photos/`, `pets/` and
`new-pets/` of class folders, and `VOCdevkit/VOC2007`, without network; so is a fence of ``python``. What cannot be run in a test has the reason on the line above its fence,

    <!-- not run: trains for 40 minutes -->

and is checked as far as that goes: that the command, its flags and their values exist; that the example compiles.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

# Of other programs, or this very test run: not run here.
SETTING_UP = re.compile(
    r"(python3? -m )?pip install \S|git clone \S|cd \S|uv sync\b|(uv run )?pytest\b|(uv run )?pre-commit install\b"
    r"|(bash )?scripts/check\b"
)

IN_A_SHELL = re.compile(r"[<>|*&;$]|^sppnet demo\b")  # what needs one, and the promise itself, in a process of its own


class Fence(NamedTuple):
    """A fenced block of the README."""

    language: str
    text: str
    run: bool


class Command(NamedTuple):
    """One line for the shell."""

    line: str
    run: bool


def fences(markdown: str) -> Iterator[Fence]:
    """Every fenced block, with the remark above it heeded."""
    pattern = r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$"
    for match in re.finditer(pattern, markdown, re.DOTALL | re.MULTILINE):
        yield Fence(match["language"], match["text"], run=match["reason"] is None)


def commands(markdown: str) -> Iterator[Command]:
    """Every command of the README's console and bash fences."""
    for fence in fences(markdown):
        yield from fence_commands(fence)


def fence_commands(fence: Fence) -> Iterator[Command]:
    """The commands of one fence; those joined by && one by one, `uv run` taken off."""
    if fence.language not in ("console", "bash", "sh", "shell"):
        return
    for line in fence.text.replace("\\\n", " ").splitlines():
        if fence.language == "console":
            if not line.startswith("$ "):
                continue  # what the command printed
            line = line[2:]
        for part in line.split("&&"):
            words = " ".join(part.split())
            if words and not words.startswith("#") and not SETTING_UP.match(words):
                yield Command(words.removeprefix("uv run "), fence.run)


COMMANDS = list(commands(README))
BLOCKS = [block for fence in fences(README) if (block := list(fence_commands(fence)))]
EXAMPLES = [fence for fence in fences(README) if fence.language == "python"]


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's reader sits: some photos and a data set; the commands leave their results there."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for name, size in {"photo.jpg": (180, 240), "photos/wide.jpg": (60, 200), "photos/tall.png": (200, 90)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    for pets, (name, brightest) in product(("pets", "new-pets"), (("cat", 100), ("dog", 256))):
        (folder / pets / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, brightest, (60 + number, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / pets / name / f"{number}.png")
    return folder


@pytest.fixture
def surroundings(
    readers_folder: Path, tiny_voc_of_voc_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Go to the reader's folder, with no network and no weights that were downloaded before."""
    if not (readers_folder / "VOCdevkit").exists():
        tiny_voc_of_voc_classes.parent.rename(readers_folder / "VOCdevkit")
    monkeypatch.chdir(readers_folder)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return readers_folder


def test_the_two_commands_of_the_promise_are_there() -> None:
    """One line does the main job on a fresh machine, one runs the tests."""
    assert "pip install uv && uv run sppnet demo\n" in README
    assert re.search(r"^(\$ )?uv run pytest$", README, re.MULTILINE)


def test_every_command_is_of_this_project() -> None:
    """What is not known above as setting up must be something that this test can check."""
    strangers = [line for line, _ in COMMANDS if not re.match(r"sppnet\b", line)]
    assert not strangers


@pytest.mark.timeout(400)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0].line)
def test_commands(block: list[Command], surroundings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fence at a time: what its first lines make, its later lines may use."""
    for command in block:
        if not command.run or command.line.startswith("python "):
            check_command(command.line)
        elif command.line.startswith("sppnet ") and not IN_A_SHELL.search(command.line):
            from sppnet import cli  # in this process: starting a new one takes longer than most commands

            assert cli.run(shlex.split(command.line)[1:]) == 0, capsys.readouterr().err
        else:
            done = subprocess.run(
                ["bash", "-c", command.line], capture_output=True, text=True, timeout=360, check=False
            )
            assert done.returncode == 0, done.stderr[-4000:]
            assert "Traceback" not in done.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.text.strip().splitlines()[0])
def test_example(example: Fence, surroundings: Path) -> None:
    if not example.run:
        compile(example.text, "README.md", "exec")
        return
    exec(
        compile(example.text, "README.md", "exec"), {"__name__": "__main__"}
    )  # as typed, in this process: it is quicker


def check_command(line: str) -> None:
    """Fail unless the program takes these words."""
    from sppnet.cli import app

    words = shlex.split(line.split(" > ")[0].split(" | ")[0], comments=True)
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_files_it_names_are_there() -> None:
    """Files between backticks with a folder before them or .py at the end, and what links lead to."""
    named = set(re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml|safetensors)|\w+\.py)`", README))
    linked = {target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README) if "://" not in target}
    roots = (REPOSITORY, REPOSITORY / "src" / "sppnet")
    missing = [name for name in sorted(named | linked) if not any((root / name).exists() for root in roots)]
    assert not missing


def test_fences_and_commands_are_read_as_meant() -> None:
    """The parser above, on a page made for it: a test that finds no command would pass on any README."""
    page = (
        "```console\n$ pip install uv && uv run sppnet demo\nfound 3 objects\n```\n"
        "text\n\n<!-- not run: trains for 40 minutes -->\n```bash\n# on VOC 2007\nsppnet train detector VOC2007 \\\n"
        "  --output my.safetensors\nuv run pytest\n```\n```python\nimport sppnet\n```\n"
    )
    assert list(commands(page)) == [
        Command("sppnet demo", run=True),
        Command("sppnet train detector VOC2007 --output my.safetensors", run=False),
    ]
    assert [fence.run for fence in fences(page)] == [True, False, True]
