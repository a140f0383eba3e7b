"""`sppnet detect` and `classify`: images of every kind, and every bad input as one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from sppnet import cli

Writer = Callable[[Path], None]


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, *(channels or (3,))), dtype=np.uint8)


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_detect(sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path, tmp_path: Path) -> None:
    ran = sppnet("detect", photo, "--model", tiny_model_file, "--output", tmp_path / "out", "--score-threshold", 0.2)
    assert ran.status == 0
    assert all(line.startswith(f"{photo}: ") for line in ran.out.splitlines())
    assert "circle 0." in ran.out or "square 0." in ran.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "photo.jpg"]
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    (entry,) = document["images"]
    assert entry["file"] == str(photo)
    assert (entry["height"], entry["width"], entry["picture"]) == (60, 90, "photo.jpg")
    assert len(entry["boxes"]) == len(entry["scores"]) == len(entry["class_names"]) > 0
    assert document["errors"] == []


def test_classify(sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path) -> None:
    ran = sppnet("classify", photo, "--model", tiny_model_file)
    assert ran.status == 0
    assert ran.out.startswith(f"{photo}: ")
    assert "circle" in ran.out
    assert "square" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_json_is_one_document_and_nothing_else(
    sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path, tmp_path: Path, command: str
) -> None:
    ran = sppnet(command, photo, "--model", tiny_model_file, "--json", "--output", tmp_path / "out")
    assert ran.status == 0
    (entry,) = ran.document["images"]
    assert {"file", "height", "width", "scores"} <= set(entry)
    assert ran.err == f"1 annotated pictures and {'detections' if command == 'detect' else 'classes'}.json in {tmp_path / 'out'}\n"  # fmt: skip


def test_photos_of_one_name_get_pictures_of_their_own(
    sppnet: Callable[..., Any], tiny_model_file: Path, tmp_path: Path
) -> None:
    for name in ("a/x.png", "b/x.png", "b/X.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(40, 40)).save(tmp_path / name)
    ran = sppnet("detect", tmp_path, "--model", tiny_model_file, "--output", tmp_path / "out", "--json")
    pictures = [entry["picture"] for entry in ran.document["images"]]
    assert len(set(map(str.lower, pictures))) == 3
    assert all((tmp_path / "out" / picture).is_file() for picture in pictures)


def test_classify_by_many_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from skimage.data import chelsea

    Image.fromarray(chelsea()).resize((90, 60)).save(tmp_path / "cat.png")
    assert cli.run(["classify", str(tmp_path / "cat.png"), "--views", "10-view", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"][0]["scores"]) == 20
    assert cli.run(["classify", str(tmp_path / "cat.png"), "--views", "all"]) == 2


def test_classify_shows_what_the_pyramid_sees(
    sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path, tmp_path: Path
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
    sppnet(*words, "--pyramid").refused("--output")
    sppnet(*words, "--pyramid", "--output", tmp_path / "seen", "--views", "10-view").refused("--views")


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
    sppnet: Callable[..., Any], tiny_model_file: Path, tmp_path: Path, command: str, kind: str
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


def cut_short(path: Path) -> None:
    Image.fromarray(noise(60, 90)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


BAD: dict[str, Writer] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "not an image": lambda path: path.write_text("this is text") and None,
    "cut short": lambda path: cut_short(path),
    "a folder's name": lambda path: path.mkdir(),
    "not there": lambda path: None,
}


@pytest.mark.parametrize("command", ["detect", "classify"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image(
    sppnet: Callable[..., Any], tiny_model_file: Path, tmp_path: Path, command: str, kind: str
) -> None:
    path = tmp_path / "bad.jpg"
    BAD[kind](path)
    sppnet(command, path, "--model", tiny_model_file).refused(str(path))


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_in_a_folder_the_bad_are_named_and_the_rest_is_done(
    sppnet: Callable[..., Any], tiny_model_file: Path, tmp_path: Path, command: str
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
    sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path, tmp_path: Path, command: str
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


def test_nothing_that_can_be_done(sppnet: Callable[..., Any], tiny_model_file: Path, tmp_path: Path) -> None:
    ran = sppnet("detect", tmp_path / "a.jpg", "--model", tiny_model_file, "--output", tmp_path / "out")
    ran.refused("a.jpg: no such file")
    assert not (tmp_path / "out").exists()


def test_an_image_that_does_not_fit_into_memory_is_named(
    sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9.3 TiB")

    monkeypatch.setattr("sppnet.cli.detect.detect_one", full)
    ran = sppnet("detect", photo, "--model", tiny_model_file)
    ran.refused(str(photo), "memory")


def test_a_folder_without_images(sppnet: Callable[..., Any], tiny_model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    sppnet("detect", tmp_path / "nothing", "--model", tiny_model_file).refused("nothing", "no image")


def test_a_model_that_is_not_there(sppnet: Callable[..., Any], photo: Path) -> None:
    sppnet("detect", photo, "--model", "vco").refused("no such model: vco", "voc")


def test_a_model_file_that_is_not_one(sppnet: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.safetensors"
    text.write_text("this is text")
    import torch

    save_file({"weight": torch.zeros(2)}, other)
    for command in ("detect", "classify"):
        sppnet(command, photo, "--model", text).refused(str(text), "not a model file")
        sppnet(command, photo, "--model", other).refused(str(other), "not an sppnet model")


def test_a_classifier_cannot_detect(sppnet: Callable[..., Any], photo: Path, classifier_file: Path) -> None:
    sppnet("detect", photo, "--model", classifier_file).refused("classifies only")
    assert sppnet("classify", photo, "--model", classifier_file).status == 0


def test_an_output_that_is_a_file(sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path) -> None:
    sppnet("classify", photo, "--model", tiny_model_file, "--output", photo).refused(str(photo))
