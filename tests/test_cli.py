"""The command line: what it prints where, its exit status, and every bad input as one line that names the file."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from sppnet import cli

Writer = Callable[[Path], None]


class Ran(NamedTuple):
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def sppnet(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def run(*words: object) -> Ran:
        status = cli.run([str(word) for word in words])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(noise(60, 90)).save(path)
    return path


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, *(channels or (3,))), dtype=np.uint8)


def refused(ran: Ran, *parts: str) -> None:
    """Exit status 2; one line on standard error that names what it should; nothing on standard output."""
    assert ran.status == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("sppnet: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    for part in parts:
        assert part in ran.err, ran.err
    assert "Traceback" not in ran.err


# What it prints


def test_detect(sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path, tmp_path: Path) -> None:
    ran = sppnet("detect", photo, "--model", tiny_model_file, "--output", tmp_path / "out", "--score-threshold", 0.2)
    assert ran.status == 0
    assert all(line.startswith(f"{photo}: ") for line in ran.out.splitlines())
    assert "circle 0." in ran.out or "square 0." in ran.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "photo.jpg"]
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    (entry,) = document["images"]
    assert entry["file"] == str(photo)
    assert (entry["height"], entry["width"], entry["picture"]) == (60, 90, "photo.jpg")
    assert len(entry["boxes"]) == len(entry["scores"]) == len(entry["names"]) > 0
    assert document["errors"] == []


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_json_is_one_document_and_nothing_else(
    sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path, tmp_path: Path, command: str
) -> None:
    ran = sppnet(command, photo, "--model", tiny_model_file, "--json", "--output", tmp_path / "out")
    assert ran.status == 0
    (entry,) = ran.document["images"]
    assert {"file", "height", "width", "scores"} <= set(entry)
    assert ran.err == f"1 annotated pictures and {'detections' if command == 'detect' else 'classes'}.json in {tmp_path / 'out'}\n"  # fmt: skip


def test_classify(sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path) -> None:
    ran = sppnet("classify", photo, "--model", tiny_model_file)
    assert ran.status == 0
    assert ran.out.startswith(f"{photo}: ")
    assert "circle" in ran.out
    assert "square" in ran.out
    assert ran.err == ""


def test_photos_of_one_name_get_pictures_of_their_own(
    sppnet: Callable[..., Ran], tiny_model_file: Path, tmp_path: Path
) -> None:
    for name in ("a/x.png", "b/x.png", "b/X.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(40, 40)).save(tmp_path / name)
    ran = sppnet("detect", tmp_path, "--model", tiny_model_file, "--output", tmp_path / "out", "--json")
    pictures = [entry["picture"] for entry in ran.document["images"]]
    assert len(set(map(str.lower, pictures))) == 3
    assert all((tmp_path / "out" / picture).is_file() for picture in pictures)


def test_proposals_train_evaluate(sppnet: Callable[..., Ran], tiny_voc: Path, tmp_path: Path) -> None:
    ran = sppnet("proposals", tiny_voc, "--proposer", "grid", "--limit", 3, "--json")
    assert ran.status == 0
    assert ran.err == ""
    assert ran.document["images"] == 3

    from sppnet.models.compact import compact_resnet

    weights, model = tmp_path / "backbone.safetensors", tmp_path / "m.safetensors"
    save_file(compact_resnet().state_dict(), weights)
    tiny = ["--proposer", "grid", "--levels", 2, 1, "--hidden", 8, "--short-side", 64, "--long-side", 128]
    ran = sppnet("train", "detector", tiny_voc, "--output", model, "--weights", weights, "--steps", 2, *tiny)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {model} (")
    assert ran.out.count("\n") == 1

    ran = sppnet("evaluate", model, tiny_voc, "--json", "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, "")
    assert set(ran.document["map"]) == {"voc07", "area"}
    assert {"ap", "ap50", "ap75"} <= set(ran.document["coco"])
    assert (ran.document["split"], ran.document["images"]) == ("val", 4)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == ran.document
    assert (tmp_path / "out" / "precision-recall.png").is_file()
    ran = sppnet("evaluate", model, tiny_voc, "--limit", 2)
    assert "circle" in ran.out
    assert "2 images" in ran.out
    assert "by COCO's rules:\nAP  " in ran.out


@pytest.mark.parametrize("words", [[], ["--help"], ["detect", "--help"], ["train"], ["--version"]])
def test_help(sppnet: Callable[..., Ran], words: list[str]) -> None:
    ran = sppnet(*words)
    assert ran.status == 0
    assert ran.err == ""
    assert len(ran.out) > 4


# Images of every kind


def save_exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(60, 90)).save(path, "JPEG", exif=exif)


KINDS: dict[str, tuple[Writer, tuple[int, int]]] = {
    "1x1": (lambda path: Image.fromarray(noise(1, 1)).save(path, "PNG"), (1, 1)),
    "20000 x 20": (lambda path: Image.fromarray(noise(20, 20000)).save(path, "PNG"), (20, 20000)),
    "20 x 20000": (lambda path: Image.fromarray(noise(20000, 20)).save(path, "PNG"), (20000, 20)),
    "turned by EXIF": (save_exif_rotated, (90, 60)),
    "CMYK": (lambda path: Image.fromarray(noise(60, 90)).convert("CMYK").save(path, "JPEG"), (60, 90)),
    "grey": (lambda path: Image.fromarray(noise(60, 90)).convert("L").save(path, "PNG"), (60, 90)),
    "16-bit": (lambda path: Image.fromarray(noise(60, 90, 1)[:, :, 0].astype(np.uint16) * 257).save(path, "PNG"), (60, 90)),
    "alpha": (lambda path: Image.fromarray(noise(60, 90, 4)).save(path, "PNG"), (60, 90)),
    "palette": (lambda path: Image.fromarray(noise(60, 90)).convert("P").save(path, "GIF"), (60, 90)),
}  # fmt: skip


@pytest.mark.parametrize("command", ["detect", "classify"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind(
    sppnet: Callable[..., Ran], tiny_model_file: Path, tmp_path: Path, command: str, kind: str
) -> None:
    write, size = KINDS[kind]
    write(tmp_path / "image.jpg")  # the content counts, not the ending
    ran = sppnet(command, tmp_path / "image.jpg", "--model", tiny_model_file, "--json", "--output", tmp_path / "out")
    assert ran.status == 0, ran.err
    (entry,) = ran.document["images"]
    assert (entry["height"], entry["width"]) == size
    assert (tmp_path / "out" / "image.jpg").stat().st_size > 0
    for x0, y0, x1, y1 in entry.get("boxes", []):
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]


# Bad input


BAD: dict[str, Writer] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "not an image": lambda path: path.write_text("this is text") and None,
    "cut short": lambda path: cut_short(path),
    "a folder's name": lambda path: path.mkdir(),
    "not there": lambda path: None,
}


def cut_short(path: Path) -> None:
    Image.fromarray(noise(60, 90)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize("command", ["detect", "classify"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image(
    sppnet: Callable[..., Ran], tiny_model_file: Path, tmp_path: Path, command: str, kind: str
) -> None:
    path = tmp_path / "bad.jpg"
    BAD[kind](path)
    refused(sppnet(command, path, "--model", tiny_model_file), str(path))


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_in_a_folder_the_bad_are_named_and_the_rest_is_done(
    sppnet: Callable[..., Ran], tiny_model_file: Path, tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        Image.fromarray(noise(40, 50)).save(folder / name)
    (folder / "b.jpg").write_text("this is text")
    cut_short(folder / "d.jpg")
    (folder / "notes.txt").write_text("not looked at")
    ran = sppnet(command, folder, "--model", tiny_model_file, "--json")
    assert ran.status == 2
    assert [Path(entry["file"]).name for entry in ran.document["images"]] == ["a.png", "c.png"]
    assert [Path(entry["file"]).name for entry in ran.document["errors"]] == ["b.jpg", "d.jpg"]
    lines = ran.err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [str(folder / "b.jpg"), str(folder / "d.jpg")]


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_names_that_stand_for_no_image_are_named_and_the_rest_is_done(
    sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "nothing").mkdir()
    missing, pattern = tmp_path / "missing.jpg", f"{tmp_path}/*.webp"
    again = tmp_path / "nothing" / ".." / "photo.png"
    words = [missing, photo, tmp_path / "nothing", again, pattern, "--model", tiny_model_file]
    ran = sppnet(command, *words, "--json", "--output", tmp_path / "out")
    assert ran.status == 2
    assert [entry["file"] for entry in ran.document["images"]] == [str(photo)]
    named = [str(missing), str(tmp_path / "nothing"), pattern]
    assert [entry["file"] for entry in ran.document["errors"]] == named
    *lines, last = ran.err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == named
    assert "1 annotated pictures" in last
    ran = sppnet(command, *words)
    assert ran.status == 2
    assert ran.out.startswith(f"{photo}: ")
    assert ran.err.splitlines() == lines


def test_nothing_that_can_be_done(sppnet: Callable[..., Ran], tiny_model_file: Path, tmp_path: Path) -> None:
    ran = sppnet("detect", tmp_path / "a.jpg", "--model", tiny_model_file, "--output", tmp_path / "out")
    refused(ran, "a.jpg: no such file")
    assert not (tmp_path / "out").exists()


def test_an_image_that_does_not_fit_into_memory_is_named(
    sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9.3 TiB")

    monkeypatch.setattr("sppnet.detection.predict.detect", full)
    ran = sppnet("detect", photo, "--model", tiny_model_file)
    refused(ran, str(photo), "memory")


def test_a_folder_without_images(sppnet: Callable[..., Ran], tiny_model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    refused(sppnet("detect", tmp_path / "nothing", "--model", tiny_model_file), "nothing", "no image")


def test_a_model_that_is_not_there(sppnet: Callable[..., Ran], photo: Path) -> None:
    refused(sppnet("detect", photo, "--model", "vco"), "no such model: vco", "voc")


def test_a_model_file_that_is_not_one(sppnet: Callable[..., Ran], photo: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.safetensors"
    text.write_text("this is text")
    import torch

    save_file({"weight": torch.zeros(2)}, other)
    for command in ("detect", "classify"):
        refused(sppnet(command, photo, "--model", text), str(text), "not a model file")
        refused(sppnet(command, photo, "--model", other), str(other), "not an sppnet model")


def classifier_file(folder: Path, *names: str) -> Path:
    """A classifier with random weights, as a model file."""
    from sppnet.models.files import save_model
    from sppnet.models.sppnet import Architecture, SPPNet

    path = folder / "classifier.safetensors"
    save_model(SPPNet(Architecture(names, levels=(1,), hidden=(4,), detects=False)), path, {})
    return path


def test_a_classifier_cannot_detect(sppnet: Callable[..., Ran], photo: Path, tmp_path: Path) -> None:
    path = classifier_file(tmp_path, "cat", "dog")
    refused(sppnet("detect", photo, "--model", path), "classifies only")
    assert sppnet("classify", photo, "--model", path).status == 0


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations", "ImageSets", "ImageSets/Main/val.txt"])
def test_a_data_set_without_its_parts(
    sppnet: Callable[..., Ran], tiny_model_file: Path, tiny_voc: Path, part: str
) -> None:
    (tiny_voc / part).rename(tiny_voc / "gone")
    named = part.split("/")[-1]
    refused(sppnet("evaluate", tiny_model_file, tiny_voc), str(tiny_voc), named)
    refused(sppnet("proposals", tiny_voc, "--split", "val"), named)
    refused(sppnet("train", "detector", tiny_voc, "--split", "val", "--output", "m.safetensors"), named)


def test_a_data_set_that_is_not_there(sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path) -> None:
    refused(sppnet("evaluate", tiny_model_file, "no/such/folder"), "no/such/folder")
    refused(sppnet("evaluate", tiny_model_file, photo), str(photo))


def test_a_bad_image_in_a_data_set(sppnet: Callable[..., Ran], tiny_model_file: Path, tiny_voc: Path) -> None:
    bad = tiny_voc / "JPEGImages" / "000002.jpg"
    bad.write_text("this is text")
    refused(sppnet("evaluate", tiny_model_file, tiny_voc), str(bad), "1 of 4 images")
    refused(sppnet("proposals", tiny_voc, "--split", "val", "--proposer", "grid"), str(bad))


def test_other_classes_than_the_models(
    sppnet: Callable[..., Ran], tiny_model_file: Path, tiny_voc_of_voc_classes: Path
) -> None:
    refused(sppnet("evaluate", tiny_model_file, tiny_voc_of_voc_classes), "circle", "aeroplane")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["detct", "photo.jpg"], ["detct"]),
        (["detect"], ["IMAGES"]),
        (["detect", "photo.jpg", "--modle", "voc"], ["--modle"]),
        (["detect", "photo.jpg", "--score-threshold", "high"], ["--score-threshold", "high"]),
        (["detect", "photo.jpg", "--score-threshold", "1.5"], ["--score-threshold must be between 0 and 1: got 1.5"]),
        (["detect", "photo.jpg", "--nms-iou", "nan"], ["--nms-iou must be between 0 and 1: got nan"]),
        (["detect", "photo.jpg", "--device", "tpu"], ["--device", "tpu", "cuda"]),
        (["train", "recognizer", "data"], ["recognizer"]),
        (["train", "detector", "data"], ["--output"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--steps", "0"], ["--steps must be at least 1"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--learning-rate", "0"], ["--learning-rate"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--learning-rate", "nan"], ["--learning-rate"]),
        (["train", "detector", "data", "--output", "m.safetensors", "--seed", "-1"], ["--seed"]),
        (["proposals", "data", "--limit", "0"], ["--limit must be at least 1: got 0"]),
        (["proposals", "data", "--limit", "-3"], ["--limit must be at least 1: got -3"]),
        (["proposals", "data", "--proposer", "rpn"], ["--proposer", "rpn", "grid"]),
        (["evaluate", "voc.safetensors"], ["DATA"]),
    ],
    ids=" ".join,
)
def test_a_wrong_word(sppnet: Callable[..., Ran], words: list[str], parts: list[str]) -> None:
    refused(sppnet(*words), *parts)


def test_training_words_that_need_the_data(sppnet: Callable[..., Ran], tiny_voc: Path, tmp_path: Path) -> None:
    def trained(*words: object, output: str = "m.safetensors") -> Ran:
        return sppnet("train", "detector", tiny_voc, "--output", tmp_path / output, *words)

    refused(trained("--levels", 0), "--levels")
    refused(trained("--hidden", -1), "--hidden")
    refused(trained("--backbone", "resnet1000", "--weights", "x.pth"), "resnet1000")
    refused(trained("--backbone", "resnet18", "--weights", "none.pth"), "none.pth")
    refused(trained(output="m.pth"), "m.pth", ".safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_training_end_to_end(sppnet: Callable[..., Ran], tiny_voc: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"

    def trained(*words: object) -> Ran:
        start = ("--model", tiny_model_file, "--output", output, "--limit", 2)
        return sppnet("train", "detector", tiny_voc, "--end-to-end", *start, *words)

    refused(trained("--learn", "from:nowhere"), "'from:nowhere': no such layer")
    refused(trained("--classifier", "svm"), "--end-to-end comes first")
    refused(trained("--epochs", 0), "epochs must be at least 1: got 0")
    refused(trained("--devices", 0), "--devices must be at least 1: got 0")
    refused(trained("--sides", 0), "short_sides must be at least 1")
    assert not output.exists()
    ran = trained("--learn", "from:-1", "--epochs", 1, "--sides", 64, 96)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"wrote {output} (")
    assert sppnet("evaluate", output, tiny_voc, "--json").document["images"] == 4


def test_an_output_that_is_a_file(sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path) -> None:
    refused(sppnet("classify", photo, "--model", tiny_model_file, "--output", photo), str(photo))


# As a process


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    """`sppnet` as its own process."""
    command = [sys.executable, "-c", "from sppnet.cli import main; main()", *map(str, words)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; from sppnet.cli import run; run(['--help']);"
        "heavy = {'torch', 'numpy', 'PIL', 'cv2', 'lightning', 'numba', 'matplotlib'} & set(sys.modules);"
        "print(time.process_time(), *sorted(heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = ran.stdout.splitlines()[-1].split()
    assert heavy == []
    assert float(seconds) < 0.5  # of processor time, so that a busy machine does not count


def test_errors_of_a_process() -> None:
    process = start("detect", "photo.jpg", "--modle", "voc")
    out, err = process.communicate(timeout=100)
    refused(Ran(process.returncode, out, err), "--modle")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_ends_cleanly(tiny_model_file: Path, tmp_path: Path) -> None:
    for index in range(2000):
        Image.fromarray(noise(40, 40)).save(tmp_path / f"{index:04}.bmp")
    # Where the tests themselves run in the background of a shell, they and what they start ignore the signal.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start("classify", tmp_path, "--model", tiny_model_file, preexec_fn=heeding)
    assert process.stdout is not None
    assert "0000.bmp" in process.stdout.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped" in err
    assert "1999.bmp" not in out
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name != "posix", reason="peak memory is reported by POSIX systems")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Every image another size: without `CACHES`, 160 of them take a quarter more than the first 20."""
    from sppnet.models.files import save_model
    from sppnet.models.sppnet import Architecture, SPPNet

    model, rng = tmp_path / "m.safetensors", np.random.default_rng(0)
    settings = Architecture(("a", "b"), levels=(2, 1), hidden=(64,), short_side=192, long_side=384, proposer="grid")
    save_model(SPPNet(settings), model, {})
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
        env={name: value for name, value in os.environ.items() if name not in cli.CACHES},
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
def test_a_file_name_that_is_not_text(tiny_model_file: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.fromarray(noise(40, 40)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", path)
    process = start(
        "classify",
        tmp_path,
        "--model",
        tiny_model_file,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        errors="surrogateescape",
    )
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert os.fsencode(out).startswith(path + b": ")


def test_check_names_every_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), (len(name), 2, ord(name[0]))).save(tmp_path / name / "good.png")
    assert cli.run(["check", str(tmp_path)]) == 0
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "dog" / "empty.JPG").touch()
    capsys.readouterr()
    assert cli.run(["check", str(tmp_path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert {Path(problem["file"]).name for problem in found["errors"]} == {"bad.jpg", "empty.JPG"}


def test_classify_by_many_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from skimage.data import chelsea

    Image.fromarray(chelsea()).resize((90, 60)).save(tmp_path / "cat.png")
    assert cli.run(["classify", str(tmp_path / "cat.png"), "--views", "10-view", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"][0]["scores"]) == 20
    assert cli.run(["classify", str(tmp_path / "cat.png"), "--views", "all"]) == 2


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_classify_shows_what_the_pyramid_sees(
    sppnet: Callable[..., Ran], tiny_model_file: Path, photo: Path, tmp_path: Path
) -> None:
    words = ["classify", photo, "--model", tiny_model_file, "--json"]
    ran = sppnet(*words, "--pyramid", "--output", tmp_path / "seen")
    assert ran.status == 0
    (entry,) = ran.document["images"]
    assert entry["pyramid"]["class"] == entry["label"]
    assert [np.shape(level["bins"]) for level in entry["pyramid"]["levels"]] == [(2, 2), (1, 1)]
    (plain,) = sppnet(*words, "--output", tmp_path / "plain").document["images"]
    assert "pyramid" not in plain
    assert picture_size(tmp_path / "seen" / "photo.jpg") != picture_size(tmp_path / "plain" / "photo.jpg")
    refused(sppnet(*words, "--pyramid"), "--output")
    refused(sppnet(*words, "--pyramid", "--output", tmp_path / "seen", "--views", "10-view"), "--views")


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Two classes of eight pictures each, dark and light, wide and tall."""
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for place in range(8):
            pixels = noise(*((40, 60 + place) if place % 2 else (60, 40 + place))) // 2 + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{place}.png")
    return tmp_path / "photos"


def test_compare(sppnet: Callable[..., Ran], tiny_model_file: Path, class_folder: Path, tmp_path: Path) -> None:
    words = ["compare", class_folder, "--weights", tiny_model_file, "--side", 32, "--folds", 2, "--repeats", 2]
    ran = sppnet(*words, "--output", tmp_path / "chart.png")
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:5]] == ["native", "squash", "crop", "pad"]
    assert "16 images, of 2 classes" in ran.out
    assert ran.out.splitlines()[-1].startswith(("Use ", "No difference "))
    assert picture_size(tmp_path / "chart.png")[0] > 500
    assert ran.err == f"chart in {tmp_path}/chart.png; features, for the next time, in {tmp_path}/chart.work\n"
    kept = list((tmp_path / "chart.work").rglob("*.npy"))
    assert len(kept) == 4 * 16

    (class_folder / "dark" / "bad.jpg").write_text("this is text")
    refused(sppnet(*words, "--output", tmp_path / "chart.png"), "bad.jpg", "1 of 17 images")
    ran = sppnet(*words, "--output", tmp_path / "chart.png", "--skip-bad", "--json", "--at-most", 16)
    assert ran.status == 0
    assert set(ran.document["fits"]) == {"native", "squash", "crop", "pad"}
    assert ran.document["images"] + len(ran.document["broken"]) == 16
    assert ran.document["advice"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--folds", 1], ["--folds must be at least 2: got 1"]),
        (["--at-most", 5], ["--at-most must be at least 10 with 5 folds"]),
        (["--side", 0], ["--side"]),
        (["--folds", 9], ["16 images of 2 classes", "9 folds"]),
        (["--output", "chart.bmp"], ["chart.bmp", ".png"]),
        (["--backbone", "resnet1000", "--weights", "x.pth"], ["resnet1000"]),
    ],
    ids=str,
)
def test_compare_refuses(
    sppnet: Callable[..., Ran], class_folder: Path, tmp_path: Path, words: list[object], parts: list[str]
) -> None:
    output = [] if "--output" in words else ["--output", tmp_path / "c.png"]
    refused(sppnet("compare", class_folder, *words, *output), *parts)
    assert not (tmp_path / "c.png").exists()


def test_proposals_made_elsewhere(sppnet: Callable[..., Ran], tiny_voc: Path, tmp_path: Path) -> None:
    """R-CNN's file of boxes, those of the objects: imported, measured, trained on, evaluated and detected with."""
    from scipy.io import savemat

    from sppnet.data.voc import read_voc

    data = read_voc(tiny_voc, "val")
    names, cells = np.empty((len(data), 1), object), np.empty((1, len(data)), object)
    for place, image in enumerate(data.images):  # y0 x0 y1 x1 from 1, the last pixel included
        names[place, 0], cells[0, place] = image.image_id, image.gt_boxes[:, [1, 0, 3, 2]] + [1, 1, 0, 0]
    boxes, work, model = tmp_path / "boxes.mat", tmp_path / "work", tmp_path / "m.safetensors"
    savemat(boxes, {"images": names, "boxes": cells})

    refused(sppnet("proposals", tiny_voc, "--split", "val", "--import", boxes), "--work")
    ran = sppnet("proposals", tiny_voc, "--split", "val", "--import", boxes, "--work", work, "--json")
    assert ran.status == 0
    assert ran.document["sizes"]["all"]["recall"] == [1.0, 1.0]
    assert "8 boxes of 4 images" in ran.err

    from sppnet.models.compact import compact_resnet

    weights = tmp_path / "backbone.safetensors"
    save_file(compact_resnet().state_dict(), weights)
    tiny = ["--weights", weights, "--levels", 2, 1, "--hidden", 32, "--short-side", 64, "--long-side", 128]
    imported = ["--split", "val", "--proposer", "imported", "--work", work, "--steps", 2]
    assert sppnet("train", "detector", tiny_voc, "--output", model, *imported, *tiny).status == 0
    assert sppnet("evaluate", model, tiny_voc, "--work", work, "--json").document["images"] == 4
    refused(sppnet("evaluate", model, tiny_voc, "--split", "train", "--work", work), "no imported proposals")

    photo, other = data.images[0].path, data.images[1].path.with_name("000000.jpg")
    words = ["detect", photo, other, "--model", model, "--proposals", boxes, "--score-threshold", 0, "--json"]
    ran = sppnet(*words)
    assert ran.status == 2
    assert [entry["file"] for entry in ran.document["images"]] == [str(photo)]
    assert ran.document["errors"] == [{"file": str(other), "error": f"{other}: no boxes of '000000' in {boxes}"}]


def test_images_without_imported_proposals_are_named(
    sppnet: Callable[..., Ran], tiny_voc: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "boxes.npz", **{"000002": np.array([[0, 0, 20, 20]])})
    words = ["proposals", tiny_voc, "--split", "val", "--work", tmp_path / "work", "--import", tmp_path / "boxes.npz"]
    ran = sppnet(*words)
    assert ran.status == 2
    assert "no boxes of 3 of 4 images" in ran.err
    assert "000005, 000008, 000011" in ran.err
    assert len(list((tmp_path / "work").rglob("*.npz"))) == 1
    refused(sppnet(*words[:-1], tmp_path / "none.pkl"), "none.pkl")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of 16 red and blue photos of many sizes: colours/red/00.png."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 120, (*rng.integers(40, 60, 2), 3), dtype=np.uint8)
            pixels[:, :, channel] += 130
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{number:02}.png")
    return tmp_path / "colours"


SMALL = ("--short-side", 32, "--levels", 2, 1, "--epochs", 3, "--batch-size", 4)


def test_train_classifier_then_use_it(sppnet: Callable[..., Ran], colours: Path, tmp_path: Path) -> None:
    model, report = tmp_path / "m.safetensors", tmp_path / "m.report"
    ran = sppnet("train", "classifier", colours, "--output", model, *SMALL)
    assert (ran.status, ran.err) == (0, "")
    wrote, right = ran.out.splitlines()
    assert wrote.startswith(f"wrote {model} (")
    assert right.startswith("100.0 % of 2 held-out images are answered right (95 % interval 34.2 to 100.0)")
    assert right.endswith(str(report))
    assert sorted(path.name for path in report.iterdir()) == [
        "confusion.png",
        "curves.png",
        "evaluation.json",
        "log.csv",
    ]  # and no mistakes.jpg
    assert (report / "log.csv").read_text().startswith("step,")

    from sppnet.models.files import training_record

    record = training_record(model)
    assert record["data"] == {"train": 14, "held_out": 2, "held_out_were": "split off", "classes": 2, "skipped": 0}
    assert record["settings"]["learn"] == "head"
    assert record["evaluation"]["top1"] == 1.0
    assert record["held_out"]["epoch"] <= 3

    ran = sppnet("evaluate", model, colours, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert (ran.document["top1"], ran.document["images"]) == (1.0, 16)
    ran = sppnet("classify", colours / "red" / "00.png", "--model", model)
    assert ran.out.startswith(f"{colours / 'red' / '00.png'}: red 0.")


@pytest.mark.parametrize(
    "words",
    [
        ("--short-side", 32, "--sizes", "multi", "--sides", 40, 32),
        ("--short-side", 32, "--sizes", "native", "--hidden", 8, "--optimiser", "sgd"),
        ("--short-side", 48, "--backbone", "zf5", "--fit", "squash", "--precision", "float32"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_train_a_classifier_from_random_weights(
    sppnet: Callable[..., Ran], colours: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    """The file holds the network whose answers were measured, its BatchNorm folded."""
    for part in ("train", "val"):
        shutil.copytree(colours, tmp_path / "split" / part)
    model, start = tmp_path / "m.safetensors", ("--learn", "all", "--weights", "random")
    small = ("--levels", 2, 1, "--epochs", 2, "--batch-size", 8)
    ran = sppnet("train", "classifier", tmp_path / "split", "--output", model, *start, *small, *words, "--json")
    assert ran.status == 0, ran.err
    assert ran.document["settings"]["learn"] == "all"
    assert ran.document["backbone_weights"] == "random"
    again = sppnet("evaluate", model, tmp_path / "split", "--json")
    assert again.status == 0
    figures = ran.document["evaluation"]
    assert {name: again.document[name] for name in figures} == figures


def test_fine_tuning_starts_from_learned_weights(sppnet: Callable[..., Ran], colours: Path, tmp_path: Path) -> None:
    from sppnet.models.files import load

    model = tmp_path / "m.safetensors"
    small = ("--learn", "all", "--epochs", 1, "--short-side", 32, "--levels", 1, "--learning-rate", 1e-6)
    assert sppnet("train", "classifier", colours, "--output", model, *small).status == 0
    ours, shipped = load(model).backbone.state_dict(), load("voc").backbone.state_dict()
    assert all(np.allclose(value, ours[name], atol=1e-3) for name, value in shipped.items())


@pytest.mark.parametrize(
    ("parts", "data"),
    [
        (("train", "val", "test"), {"train": 16, "held_out": 16, "held_out_were": "given"}),
        (("train", "test"), {"train": 14, "held_out": 2, "held_out_were": "split off"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_images_that_were_split_are_not_split_again_and_test_is_not_looked_at(
    sppnet: Callable[..., Ran], colours: Path, tmp_path: Path, parts: tuple[str, ...], data: dict[str, object]
) -> None:
    for part in parts:
        shutil.copytree(colours, tmp_path / "split" / part)
    for path in (tmp_path / "split" / "test").rglob("*.png"):
        path.write_text("whoever reads this fails")
    model = tmp_path / "m.safetensors"
    ran = sppnet("train", "classifier", tmp_path / "split", "--output", model, *SMALL, "--json")
    assert ran.status == 0, ran.err
    assert {name: ran.document["data"][name] for name in data} == data


def test_a_split_that_is_not_there(sppnet: Callable[..., Ran], colours: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(colours, tmp_path / "split" / part)
    model = classifier_file(tmp_path, "blue", "red")
    refused(sppnet("evaluate", model, tmp_path / "split"), "no split 'val', but train and test: give --split test")
    assert sppnet("evaluate", model, tmp_path / "split", "--split", "test", "--json").document["images"] == 16
    (tmp_path / "split" / "test").rename(tmp_path / "split" / "Test")  # as `train classifier` takes it, too
    assert sppnet("evaluate", model, tmp_path / "split", "--split", "test", "--json").document["images"] == 16


def test_bad_photos_are_named(sppnet: Callable[..., Ran], colours: Path, tmp_path: Path) -> None:
    bad = [colours / "blue" / "03.png", colours / "red" / "05.png"]
    for path in bad:
        path.write_text("no image")
    words = ("train", "classifier", colours, "--output", tmp_path / "m.safetensors", *SMALL)
    refused(sppnet(*words, "--held-out", 0.5), "images cannot be read", "'sppnet check'")
    ran = sppnet(*words, "--skip-bad")
    assert ran.status == 0
    assert sorted(line.split(": ")[2] for line in ran.err.splitlines()) == sorted(map(str, bad))  # one line each


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--epochs", 0), ["epochs must be at least 1: got 0"]),
        (("--batch-size", 0), ["batch_size must be at least 1: got 0"]),
        (("--learning-rate", 0), ["learning_rate must be between 0 and 1: got 0"]),
        (("--held-out", 1), ["held_out_share must be between 0 and 1: got 1"]),
        (("--seed", -1), ["seed must be"]),
        (("--short-side", 0), ["--short-side must be at least 1: got 0"]),
        (("--long-side", 0), ["--long-side must be at least 1: got 0"]),
        (("--stride", 0), ["--stride must be at least 1: got 0"]),
        (("--workers", -1), ["--workers must be at least 0: got -1"]),
        (("--levels", 0), ["--levels must be whole numbers of at least 1"]),
        (("--hidden", 0), ["--hidden must be whole numbers of at least 1"]),
        (("--learn", "nothing"), ["--learn", "head", "all"]),
        (("--sizes", "both"), ["--sizes", "multi"]),
        (("--sizes", "multi"), ["learn='all'"]),
        (("--learn", "all", "--sizes", "multi", "--sides", 64), ["at least two different sides"]),
        (("--devices", 2), ["the head alone learns on one device"]),
        (("--weights", "random"), ["learn='all'"]),
        (("--backbone", "zf5"), ["zf5 comes without weights"]),
        (("--backbone", "resnet1000"), ["resnet1000"]),
        (("--backbone", "resnet18", "--weights", "none.pth"), ["none.pth"]),
        (("--output", "m.pth"), ["m.pth", ".safetensors"]),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_wrong_word_to_train_classifier(
    sppnet: Callable[..., Ran], colours: Path, tmp_path: Path, words: tuple[object, ...], parts: list[str]
) -> None:
    output = () if "--output" in words else ("--output", tmp_path / "m.safetensors")
    refused(sppnet("train", "classifier", colours, *output, *words), *parts)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_folder_that_is_no_folder_of_classes(sppnet: Callable[..., Ran], photo: Path, tmp_path: Path) -> None:
    refused(sppnet("train", "classifier", tmp_path / "none", "--output", "m.safetensors"), str(tmp_path / "none"))
    refused(sppnet("train", "classifier", tmp_path, "--output", "m.safetensors"), str(tmp_path))
