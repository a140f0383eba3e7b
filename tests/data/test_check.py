"""The check names every bad file and why, and nothing that is fine; what it passes can be read."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppnet.data import decode, images
from sppnet.data.check import CheckReport, check_folder, inspect_images
from sppnet.data.formats import Finding
from sppnet.data.formats.folder import training_images
from sppnet.data.images import read_image
from sppnet.errors import DataError, UserError


def picture(path: Path, seed: int | None = None, size: tuple[int, int] = (40, 50), **options: object) -> Path:
    """A picture of noise, another one for each seed; without a seed, one for each path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()) if seed is None else seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, **options)  # type: ignore[arg-type]
    return path


def turned(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def bomb(path: Path, width: int = 60_000, height: int = 50_000) -> Path:
    """A PNG of a few bytes whose head promises 3000 megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of three good pictures each."""
    for name in ("cat/1.jpg", "cat/2.png", "cat/3.JPEG", "dog/4.webp", "dog/deep/5.jpg", "dog/6.tif"):
        picture(tmp_path / "photos" / name)
    return tmp_path / "photos"


def kinds(report: CheckReport, root: Path) -> dict[str, list[str]]:
    """File (from the root) to kinds."""
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        found.setdefault(os.path.relpath(finding.path, root), []).append(f"{finding.severity} {finding.kind}")
    return found


def test_a_clean_folder(photos: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = check_folder(photos, progress=lambda *done: seen.append(done))
    assert report.findings == ()
    assert report.exit_status == 0
    assert (report.layout, report.images, dict(report.classes)) == ("class folders", 6, {"cat": 3, "dog": 3})
    assert report.sizes == ((40, 50),) * 6
    assert seen == [("images", done, 6) for done in range(1, 7)]
    assert report.lines()[-1] == f"{photos}: class folders, 6 images: 0 errors, 0 warnings, 0 notes"


# Single files


def _cut(path: Path) -> None:
    picture(path)
    path.write_bytes(path.read_bytes()[:-800])


def _garbled(path: Path) -> None:
    picture(path)
    content = bytearray(path.read_bytes())
    content[60:200] = b"\0" * 140
    path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "empty", "the file is empty (0 bytes)"),
    "cut.jpg": (_cut, "damaged", "damaged or cut short"),
    "cut.png": (_cut, "damaged", "damaged or cut short"),
    "cut.webp": (_cut, "damaged", "cannot be read"),
    "garbled.png": (_garbled, "damaged", "damaged"),
    "text.jpg": (lambda path: path.write_text("no picture\n" * 99), "not-an-image", "not an image that can be read"),
    "page.jpg": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "not-an-image", "a web page, saved in place"),
    "lfs.png": (lambda path: path.write_text("version https://git-lfs.github.com"), "not-an-image", "git lfs pull"),
    "paper.jpg": (lambda path: path.write_bytes(b"%PDF-1.7 ..."), "not-an-image", "a PDF document"),
    "phone.jpg": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 99), "not-an-image", "HEIC photo"),
    "drawing.jpg": (lambda path: Image.new("RGB", (9, 9)).save(path, "EPS"), "not-an-image", "a drawing, not a photo"),
    "bomb.png": (bomb, "too-large", "60000 x 50000 takes 21.0 GB to decode"),
    "gone.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "missing", "a link to a file that is not there"),
    "pipe.jpg": (os.mkfifo, "unreadable", "not a regular file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_the_reason(photos: Path, name: str) -> None:
    make, kind, says = BAD[name]
    make(photos / "dog" / name)
    report = check_folder(photos)
    assert kinds(report, photos) == {f"dog/{name}": [f"error {kind}"]}
    assert report.exit_status == 2
    (error,) = report.errors
    assert says in error.message
    assert "\n" not in error.message
    assert str(photos) not in error.message  # the path stands beside it
    assert (report.images, len(report.sizes)) == (7, 6)


def test_all_bad_files_are_named_at_once(photos: Path) -> None:
    for name, (make, _, _) in BAD.items():
        make(photos / "cat" / name)
    report = check_folder(photos)
    assert sorted(finding.path.name for finding in report.errors) == sorted(BAD)
    assert [str(error.path) for error in report.errors] == sorted(str(error.path) for error in report.errors)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png")
    tracemalloc.start()
    try:
        assert check_folder(tmp_path).counts()["error"] == {"too-large": 1}
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_is_that_of_reading(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MOST_MEMORY", 13_999)
    assert check_folder(photos).counts()["error"] == {"too-large": 6}


def test_very_large_images_are_decoded_one_at_a_time(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, lock, convert = 0, 0, threading.Lock(), decode._upright_rgb

    def slow(image: Image.Image, orientation: int) -> np.ndarray:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1
        return convert(image, orientation)

    monkeypatch.setattr(decode, "_upright_rgb", slow)
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(decode, "LARGE", 1999)
    facts, findings = inspect_images(paths)
    assert (len(facts), findings, most) == (6, [], 1)
    monkeypatch.setattr(decode, "LARGE", 10**9)
    inspect_images(paths)
    assert most > 1


def test_too_little_memory_is_an_error_of_that_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = decode._upright_rgb

    def short(image: Image.Image, orientation: int) -> np.ndarray:
        if any(str(value).endswith("2.png") for value in image.info.values()):
            raise MemoryError
        return convert(image, orientation)

    monkeypatch.setattr(decode, "_upright_rgb", short)
    assert kinds(check_folder(photos), photos) == {"cat/2.png": ["error too-large"]}


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("a.jpg", lambda path: picture(path, format="PNG"), "warning misnamed"),
        ("a.png", lambda path: picture(path, format="JPEG"), "warning misnamed"),
        ("a.heic", lambda path: picture(path, format="JPEG"), "warning misnamed"),
        ("a.jpg", lambda path: picture(path, exif=turned()), "note turned"),
        ("a.tif", lambda path: picture(path, exif=turned()), "note turned"),
        ("a.png", lambda path: picture(path, size=(1, 1)), "note small"),
        ("a.png", lambda path: picture(path, size=(31, 40)), "note small"),
        ("a.png", lambda path: picture(path, size=(32, 961)), "note long"),
        ("a.gif", lambda path: _animation(path), "note animated"),
        ("a.png", lambda path: _animation(path), "note animated"),
        ("a.webp", lambda path: _animation(path), "note animated"),
        ("a.tif", lambda path: _animation(path), "note animated"),
    ],
)
def test_what_is_worth_knowing_is_no_error(
    photos: Path, name: str, make: Callable[[Path], object], expected: str
) -> None:
    make(photos / "cat" / name)
    report = check_folder(photos)
    assert kinds(report, photos) == {f"cat/{name}": [expected]}
    assert report.exit_status == 0
    assert len(report.sizes) == 7


def _animation(path: Path) -> None:
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40), dtype=np.uint8)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jpeg", "JPEG"), ("a.JPE", "JPEG"), ("a.jfif", "JPEG"), ("a.mpo", "JPEG"), ("a.dib", "BMP"), ("a.TIFF", "TIFF"),
     ("a.ppm", "PPM"), ("a.pnm", "PPM"), ("a.jp2", "JPEG2000"), ("a.avif", "AVIF"), ("a.tga", "TGA"), ("a.bmp", "BMP")],
)  # fmt: skip
def test_names_that_fit_are_not_complained_about(tmp_path: Path, name: str, kind: str) -> None:
    picture(tmp_path / name, format=kind)
    assert check_folder(tmp_path).findings == ()


def test_a_camera_picture_with_a_preview_is_a_jpeg(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert check_folder(tmp_path).findings == ()


def test_30000_by_10(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", size=(10, 30_000))
    report = check_folder(tmp_path)
    assert [finding.kind for finding in report.notes] == ["small", "long"]
    assert report.sizes == ((10, 30_000),)
    assert "30000 x 10 pixels" in report.notes[1].message


@given(st.data())
@settings(max_examples=60)
def test_whatever_is_in_a_file_it_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """An error if and only if reading fails."""
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(
        path, format=data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]))
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    facts, findings = inspect_images([path])
    try:
        size = read_image(path).shape[:2]
    except images.ImageError:
        assert facts == {}
        assert [finding.severity for finding in findings] == ["error"]
    else:
        assert facts[path].size == size
        assert all(finding.severity != "error" for finding in findings)


# Class folders


def test_hidden_and_other_files_are_counted(photos: Path) -> None:
    for name in (".DS_Store", "cat/._1.jpg", ".cache/x.jpg", "README.md", "cat/labels.csv", "dog/7.jpg.part"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_text("x")
    report = check_folder(photos)
    assert [note.message for note in report.notes] == [
        "3 hidden files or folders passed over (.DS_Store, .cache, cat/._1.jpg)",
        "3 files without an image's ending passed over (README.md, cat/labels.csv, dog/7.jpg.part)",
    ]
    assert report.exit_status == 0


def test_an_image_that_is_passed_over_for_its_ending_is_named(photos: Path) -> None:
    picture(photos / "cat/7", format="PNG")
    picture(photos / "cat/8.jpg_large", format="JPEG")
    report = check_folder(photos)
    assert kinds(report, photos) == {"cat/7": ["warning passed-over"], "cat/8.jpg_large": ["warning passed-over"]}
    assert [w.message for w in report.warnings] == [
        "passed over, though it is a PNG image: it has no ending; rename it",
        "passed over, though it is a JPEG image: its ending '.jpg_large' is not an image's; rename it",
    ]


def test_the_same_picture_under_two_labels(photos: Path) -> None:
    """Pixel by pixel, whatever the format: here PNG, BMP, and turned by EXIF."""
    picture(photos / "cat/7.png", seed=1, size=(40, 60))
    picture(photos / "cat/8.png", seed=1, size=(40, 60))
    picture(photos / "dog/9.bmp", seed=1, size=(40, 60))
    stored = np.rot90(read_image(photos / "cat/7.png"))
    Image.fromarray(np.ascontiguousarray(stored)).save(photos / "dog/10.png", exif=turned())
    report = check_folder(photos)
    assert kinds(report, photos) == {
        "cat/8.png": ["note copy"],
        "dog/9.bmp": ["warning two-labels"],
        "dog/10.png": ["warning two-labels", "note turned"],
    }
    assert (
        report.warnings[1].message == f"the same picture as {photos / 'cat/7.png'}, which is labeled 'cat', not 'dog'"
    )


def test_the_same_picture_on_both_sides_of_a_split(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / part / name / "1.jpg")
    picture(tmp_path / "train/cat/2.png", seed=1)
    picture(tmp_path / "val/cat/3.png", seed=1)
    picture(tmp_path / "test/dog/4.png", seed=1)
    report = check_folder(tmp_path)
    assert report.layout == "class folders, split into train, val, test"
    assert kinds(report, tmp_path) == {
        "val/cat/3.png": ["warning leak"], "test/dog/4.png": ["warning two-labels", "warning leak"],
    }  # fmt: skip
    assert report.exit_status == 0
    assert "val would be judged by a picture that train holds too" in report.warnings[-1].message


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["cat/1.png", "dog/x.txt", "cow/.x"], ["empty-class", "empty-class"]),
        (["cat/1.png"], ["one-class"]),
        (["cat/1.png", "dog/2.png", "3.png"], ["stray"]),
        (["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dgo/4.png"], ["differing-classes"]),
        (["train/cat/1.png", "train/dog/2.png", "val/3.png"], ["no-class"]),
        (["train/cat/1.png", "train/dog/2.png", "val/.x"], ["no-class"]),
        (["train/cat/1.png", "val/cat/2.png", "3.png"], ["stray", "one-class"]),
    ],
)
def test_folders_that_cannot_be_read_are_errors(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    for name in files:
        if name.endswith(".png"):
            picture(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    report = check_folder(tmp_path)
    assert sorted(error.kind for error in report.errors) == sorted(expected)
    with pytest.raises(DataError) as caught:
        training_images(tmp_path)
    assert (caught.value.path, caught.value.reason.partition(" (and ")[0]) in [
        (e.path, e.message) for e in report.errors
    ]


NAMES = ["cat/1.png", "dog/2.png", "cow/x.txt", "3.png", ".x", "train/cat/1.png", "train/dog/2.png", "train/3.png",
         "val/cat/4.png", "val/dog/5.png", "test/cat/6.png", "test/7.png", "notes.txt"]  # fmt: skip


@given(st.sets(st.sampled_from(NAMES), min_size=1))
@settings(max_examples=60)
def test_what_passes_can_be_read(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    root = tmp_path_factory.mktemp("photos")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("L", (40, 40), zlib.crc32(name.encode()) % 256).save(root / name)
        else:
            (root / name).touch()
    report = check_folder(root, layout="classes")
    try:
        training_images(root)
    except UserError:
        assert report.exit_status == 2
    else:
        assert report.exit_status == 0


def test_an_unlabelled_test_part_beside_val_is_a_warning(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "test/5.png"):
        picture(tmp_path / name)
    report = check_folder(tmp_path)
    assert kinds(report, tmp_path) == {"test": ["warning no-class"]}
    assert training_images(tmp_path)[1] is not None


def test_every_empty_class_is_named(photos: Path) -> None:
    names = [f"class{i:02}" for i in range(30)]
    for name in names:
        (photos / name).mkdir()
    report = check_folder(photos)
    assert [error.path.name for error in report.errors] == names
    assert report.classes["class07"] == 0


def test_names_that_look_like_slips_and_lone_images(photos: Path) -> None:
    for i in range(2):
        picture(photos / "Coffee_mug" / f"{i}.png")
        picture(photos / "coffee mug" / f"{i}.png")
    picture(photos / "yak/only.png")
    report = check_folder(photos)
    assert kinds(report, photos) == {"Coffee_mug": ["warning alike"], "yak": ["warning lone"]}


# Plain folders


def test_a_plain_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg", exif=turned())
    (tmp_path / "c.jpg").touch()
    report = check_folder(tmp_path)
    assert (report.layout, report.images, dict(report.classes)) == ("images", 3, {})
    assert kinds(report, tmp_path) == {"c.jpg": ["error empty"], "b.jpg": ["note turned"]}


def test_folders_without_classes_can_be_asked_for(photos: Path) -> None:
    picture(photos / "7.jpg")
    assert check_folder(photos).counts()["error"] == {"stray": 1}
    report = check_folder(photos, layout="images")
    assert (report.exit_status, report.images) == (0, 7)


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image found there"):
        check_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_folder(tmp_path / "nowhere")
    picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="this is a file"):
        check_folder(tmp_path / "a.jpg")


# The report


def test_the_report_as_json(photos: Path) -> None:
    (photos / "cat/9.jpg").touch()
    picture(photos / "dog/9.jpg", format="PNG", size=(20, 80))
    document = json.loads(json.dumps(check_folder(photos).to_dict()))
    assert document == {
        "data": str(photos),
        "layout": "class folders",
        "images": 8,
        "readable": 7,
        "classes": {"cat": 4, "dog": 4},
        "sizes": {
            "short_side": {"min": 20.0, "median": 40.0, "max": 40.0},
            "long_side": {"min": 50.0, "median": 50.0, "max": 80.0},
            "aspect": {"min": 1.25, "median": 1.25, "max": 4.0},
        },
        "counts": {"error": {"empty": 1}, "warning": {"misnamed": 1}, "note": {"small": 1}},
        "errors": [
            {"file": f"{photos}/cat/9.jpg", "line": None, "kind": "empty", "message": "the file is empty (0 bytes)"}
        ],
        "warnings": [
            {
                "file": f"{photos}/dog/9.jpg",
                "line": None,
                "kind": "misnamed",
                "message": document["warnings"][0]["message"],
            }
        ],
        "notes": [
            {"file": f"{photos}/dog/9.jpg", "line": None, "kind": "small", "message": document["notes"][0]["message"]}
        ],
    }


def test_the_report_as_text(photos: Path) -> None:
    for i in range(5):
        (photos / f"cat/empty{i}.jpg").touch()
        picture(photos / f"dog/small{i}.png", size=(9, 9))
    lines = check_folder(photos).lines()
    assert lines[:5] == [f"error: {photos}/cat/empty{i}.jpg: the file is empty (0 bytes)" for i in range(5)]
    assert sum(line.startswith("note:") for line in lines) == 4
    assert "note: ... and 2 more such notes ('small')" in lines
    assert "2 classes of 8 images each" in lines
    assert lines[-1] == f"{photos}: class folders, 16 images: 5 errors, 0 warnings, 5 notes"
    assert str(Finding(Path("a.xml"), 7, "error", "box", "wrong")) == "error: a.xml:7: wrong"


def test_the_same_report_whatever_the_number_of_threads(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (make, _, _) in BAD.items():
        make(photos / "cat" / name)
    reports = []
    for cores in (1, 7):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        reports.append(check_folder(photos))
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_the_real_caltech_101(shared_data: Path) -> None:
    report = check_folder(shared_data / "caltech101")
    assert report.errors == ()
    assert len(report.classes) == 102


def test_12_bits_in_16_are_seen_almost_black(tmp_path: Path) -> None:
    for name, most in (("dark", 4095), ("full", 65535)):
        Image.fromarray(np.linspace(0, most, 1600).astype(np.uint16).reshape(40, 40)).save(tmp_path / f"{name}.png")
    (warning,) = check_folder(tmp_path).warnings
    assert warning.path.name == "dark.png"
    assert "stretch" in warning.message


def test_boxes_and_numbers_that_are_unusual(tmp_path: Path) -> None:
    """Twelve images of two cats each; but one has a box of a pixel, one a small one, and one has far too many."""
    images, annotations = [], []
    for number in range(12):
        Image.fromarray(np.full((100, 100, 3), 20 * number, np.uint8)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 100, "height": 100})
        boxes = [[0, 0, 80, 80], [10, 10, 80, 80]]
        boxes[0] = {3: [0, 0, 50, 1], 5: [0, 0, 3, 3]}.get(number, boxes[0])
        boxes += [[n, 0, 80, 80] for n in range(1, 1 + 45 * (number == 7) // 2)] * 2
        annotations += [{"image_id": number, "category_id": 1, "bbox": bbox} for bbox in boxes]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    found = [
        (warning.kind, warning.message) for warning in check_folder(tmp_path).warnings if "twice" not in warning.kind
    ]
    assert found == [
        ("tiny-box", "images[3] (id 3): box 1 of 'cat' is 50 x 1 pixels: drawn by a slip?"),
        ("small-box", "images[5] (id 5): box 1 of 'cat' has 9 pixels, where 6400 are usual: drawn by a slip?"),
        ("number", "images[7] (id 7): 44 objects, where 2 are usual: were all marked, and once?"),
    ]
