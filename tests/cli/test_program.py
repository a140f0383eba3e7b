"""The program as a whole: help, wrong words, and how it ends as a process."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.cli import app, train


@pytest.mark.parametrize("words", [[], ["--help"], ["detect", "--help"], ["train"], ["--version"]])
def test_help(sppnet: Callable[..., Any], words: list[str]) -> None:
    ran = sppnet(*words)
    assert ran.status == 0
    assert ran.err == ""
    assert len(ran.out) > 4


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["detct", "photo.jpg"], ["detct"]),
        (["detect"], ["IMAGES"]),
        (["detect", "photo.jpg", "--modle", "voc"], ["--modle"]),
        (["detect", "photo.jpg", "--score-threshold", "high"], ["--score-threshold", "high"]),
        (["detect", "photo.jpg", "--nms-iou", "nan"], ["nms_iou must be between 0 and 1: got nan"]),
        (["detect", "photo.jpg", "--device", "tpu"], ["--device", "tpu", "cuda"]),
        (["train", "recognizer", "data"], ["recognizer"]),
        (["train", "detector", "data"], ["--output"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--epochs", "0"], ["epochs must be at least 1"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--learning-rate", "0"], ["learning_rate"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--learning-rate", "nan"], ["learning_rate"]),
        (
            ["train", "detector", "data", "--output", "m.safetensors", "--seed", "1"],
            ["is now DetectorSettings(seed=...)"],
        ),
        (
            ["train", "classifier", "data", "--output", "m.safetensors", "--levels", "3"],
            ["is now ClassifierSettings(levels=...)"],
        ),
        (["train", "detector", "data", "--output", "m.safetensors", "--end-to-end"], ["is now --preset standard"]),
        (
            ["train", "detector", "data", "--output", "m.safetensors", "--classifier", "svm"],
            ["'sppnet train svm MODEL DATA'"],
        ),
        (["detect", "photo.jpg", "--proposer", "grid"], ["--proposer is now --proposals"]),
        (["proposals", "data", "--limit", "0"], ["--limit must be at least 1: got 0"]),
        (["proposals", "data", "--limit", "-3"], ["--limit must be at least 1: got -3"]),
        (["proposals", "data", "--proposals", "rpn"], ["rpn", "grid"]),
        (["evaluate", "voc.safetensors"], ["DATA"]),
    ],
    ids=" ".join,
)
def test_a_wrong_word(sppnet: Callable[..., Any], words: list[str], parts: list[str]) -> None:
    sppnet(*words).refused(*parts)


def test_no_command_has_more_than_14_options() -> None:
    counts = {}
    commands = [(name, app[name]) for name in app if not name.startswith("-")]
    for name, command in [*commands, *((f"train {name}", train[name]) for name in train if not name.startswith("-"))]:
        if command.default_command is not None:
            options = [
                each for each in command.assemble_argument_collection() if each.parse and each.name.startswith("--")
            ]
            counts[name] = len(options)
    assert {name: count for name, count in counts.items() if count > 14} == {}
    assert counts["detect"] >= 10
    assert len(counts) >= 12


@pytest.mark.parametrize(
    "words",
    [
        ["train", "detector", "VOC", "--output", "FILE/m.safetensors"],
        ["train", "svm", "voc", "VOC", "--output", "FILE/m.safetensors"],
        ["evaluate", "voc", "VOC", "--output", "FILE/report"],
        ["detect", "VOC/JPEGImages", "--output", "FILE/found"],
        ["embed", "VOC/JPEGImages", "--output", "FILE/v.npz"],
        ["compress", "voc", "--output", "FILE/m.safetensors"],
        ["demo", "--output", "FILE/demo"],
    ],
    ids=" ".join,
)
def test_the_place_of_the_output_is_tried_before_the_work(
    sppnet: Callable[..., Any], tiny_voc_of_voc_classes: Path, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "file").touch()
    places = {"VOC": str(tiny_voc_of_voc_classes), "FILE": str(tmp_path / "file")}
    ran = sppnet(*(word.replace("VOC", places["VOC"]).replace("FILE", places["FILE"]) for word in words))
    ran.refused("file")
    assert ran.out == ""


# As a process


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    """`sppnet` as its own process."""
    command = [sys.executable, "-c", "from sppnet.cli import main; main()", *map(str, words)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sppnet.cli import run; run(['--help']);"
        "heavy = {'torch', 'torchvision', 'PIL', 'cv2', 'lightning_fabric', 'numba', 'scipy', 'skimage', 'matplotlib'} & set(sys.modules);"
        "print(*sorted(heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == ""


def test_detecting_imports_no_more_than_it_computes_with_and_traces_nothing(tmp_path: Path) -> None:
    """A shipped model's file says where its cells look: no network is run to find out."""
    Image.fromarray(noise(60, 80)).save(tmp_path / "photo.png")
    code = (
        "import sys, torch, sppnet; from sppnet.cli import run\n"
        "def refuse(*_): raise AssertionError('traced')\n"
        "torch.fx.Tracer.trace = torch.overrides.TorchFunctionMode.__enter__ = refuse\n"
        "assert run(['detect', sys.argv[1]]) == 0; sppnet.load('voc').classify(sys.argv[1])\n"
        "heavy = {'torchvision', 'torch._dynamo', 'lightning_fabric', 'skimage', 'matplotlib', 'sklearn', 'sympy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "photo.png"], capture_output=True, text=True, check=True
    )
    assert (ran.stdout.splitlines()[-1], ran.stderr) == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk to write to is Linux's")
def test_a_full_standard_output_is_one_line(tmp_path: Path) -> None:
    Image.fromarray(noise(60, 80)).save(tmp_path / "photo.png")
    code = "from sppnet.cli import main; main()"
    with open("/dev/full", "w") as full:
        words = ["check", tmp_path]
        ran = subprocess.run(
            [sys.executable, "-c", code, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr


def test_errors_of_a_process() -> None:
    process = start("check", "photos", "--modle", "voc")  # a command that imports little
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("sppnet: ")
    assert err.count("\n") == 1
    assert "--modle" in err


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(("number", "status", "says"), [("SIGINT", 130, "stopped"), ("SIGTERM", 143, "")])
def test_a_signal_ends_cleanly(tiny_model_file: Path, tmp_path: Path, number: str, status: int, says: str) -> None:
    for index in range(2000):
        Image.fromarray(noise(40, 40)).save(tmp_path / f"{index:04}.bmp")
    # Where the tests themselves run in the background of a shell, they and what they start ignore the signal.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start("classify", tmp_path, "--model", tiny_model_file, preexec_fn=heeding)
    assert process.stdout is not None
    assert "0000.bmp" in process.stdout.readline()  # it is at work
    process.send_signal(signal.Signals[number])
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert says in err
    assert "1999.bmp" not in out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name != "posix", reason="peak memory is reported by POSIX systems")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Every image another size: without bounded caches, 160 of them take a quarter more than the first 20."""
    from sppnet.models.files import save_model
    from sppnet.models.preprocess import Preprocess
    from sppnet.models.sppnet import Architecture, DetectionSettings, build_model

    model, rng = tmp_path / "m.safetensors", np.random.default_rng(0)
    architecture = Architecture(("a", "b"), "compact", levels=(2, 1), hidden=(64,))
    save_model(build_model(architecture, Preprocess(192, 384), DetectionSettings("grid")), model)
    for index in range(180):
        folder = tmp_path / ("few" if index < 20 else "many")
        folder.mkdir(exist_ok=True)
        Image.fromarray(noise(*rng.integers(40, 200, 2))).save(folder / f"{index}.bmp")
    code = (
        "import resource, sys; from sppnet.cli import run\n"
        "for folder in sys.argv[2:]:\n"
        "    assert run(['detect', folder, '--model', sys.argv[1]]) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, model, tmp_path / "few", tmp_path / "many"],
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = map(int, ran.stderr.split())
    assert many < 1.08 * few


@pytest.mark.skipif(os.name != "posix", reason="pipes that close are POSIX's")
def test_a_reader_that_leaves_is_no_error(tiny_model_file: Path, tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(noise(40, 40)).save(tmp_path / f"{index}.png")
    process = start("classify", tmp_path, "--model", tiny_model_file)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
    process.stderr.close()


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")
def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    (tmp_path / "x.png").write_text("no image")
    os.rename(tmp_path / "x.png", path)
    process = start("check", tmp_path, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, errors="surrogateescape")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (2, "")
    assert os.fsencode(out).startswith(b"error: " + path + b": ")
