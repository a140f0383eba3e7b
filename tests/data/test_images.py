"""Whatever lies on disk becomes upright RGB, or one clear line."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sppnet.data import decode, images
from sppnet.data.find import find_images
from sppnet.data.images import content_key, image_size, read_image, resize_image, scaled_size
from sppnet.errors import ImageError

QUADRANTS = np.zeros((4, 6, 3), dtype=np.uint8)  # red | green over blue | white: every turn of it looks different
QUADRANTS[:2, :3] = (255, 0, 0)
QUADRANTS[:2, 3:] = (0, 255, 0)
QUADRANTS[2:, :3] = (0, 0, 255)
QUADRANTS[2:, 3:] = 255

# How a camera stores an upright scene for each orientation: EXIF 2.3, tag 0x0112.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.transpose(1, 0, 2),
    6: lambda scene: np.rot90(scene),
    7: lambda scene: np.rot90(scene, 2).transpose(1, 0, 2),
    8: lambda scene: np.rot90(scene, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", [".png", ".tif", ".webp"])
def test_images_are_turned_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{ending}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](QUADRANTS)))
    stored.save(path, exif=exif, **({"lossless": True} if ending == ".webp" else {}))
    assert (read_image(path) == QUADRANTS).all()
    assert image_size(path) == (4, 6)


def test_a_turned_pillow_image_is_turned_too_and_not_changed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert read_image(image).shape == (40, 20, 3)
        assert image.size == (40, 20)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # one fifth black on white
        ("P", 0, (0, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
    ],
)
def test_colour_modes(tmp_path: Path, mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    path = tmp_path / "image.png"
    Image.new(mode, (3, 2), colour).save(path)  # type: ignore[arg-type]
    image = read_image(path)
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert (image == expected).all()
    assert image_size(path) == (2, 3)


@pytest.mark.parametrize(
    ("largest", "expected"), [(1.0, 255), (0.5, 128), (255.0, 255), (200.0, 200), (65535.0, 255), (1e6, 255)]
)
def test_floating_point_grey_is_scaled_by_the_range_it_seems_to_have(
    tmp_path: Path, largest: float, expected: int
) -> None:
    values = np.array([[0.25 * min(largest, 1), largest]], dtype=np.float32)  # not whole where the range is 0..1
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").max() == expected


def test_whole_numbers_are_never_taken_for_shares(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").max() == 1


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read_image(tmp_path / "a.jpg").reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(green, blue) < 60


def test_16_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    deep = QUADRANTS.astype(np.uint16) * 256 + 7
    cv2.imwrite(str(tmp_path / "a.png"), deep[:, :, ::-1])  # OpenCV's order is blue, green, red
    with Image.open(tmp_path / "a.png") as image:
        assert "16" in str(image.tile)  # 16 bits a channel lie in the file
    assert (read_image(tmp_path / "a.png") == QUADRANTS).all()


def test_a_palette_with_transparent_colours_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=1)
    image.save(tmp_path / "a.gif", transparency=1)
    for name in ("a.png", "a.gif"):
        assert read_image(tmp_path / name)[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_transparency_by_one_colour_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (9, 9, 9)).save(tmp_path / "a.png", transparency=(9, 9, 9))
    assert (read_image(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("ending", [".gif", ".png", ".webp", ".tif"])
def test_first_frame_of_an_animation_and_first_page(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if ending == ".webp" else {}))
    with Image.open(path) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert (read_image(path) == (255, 0, 0)).all()
    assert image_size(path) == (4, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (3, 500), (30_000, 10)])
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.new("RGB", size[::-1], "teal").save(path)
    assert read_image(path).shape == (*size, 3)
    assert image_size(path) == size


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".Jpeg", ".PNG", ".Tif", ".WEBP", ".BMP", ".gif", ".GIF"])
def test_endings_in_any_case(tmp_path: Path, ending: str) -> None:
    Image.new("RGB", (4, 3), "white").save(tmp_path / f"a{ending}")
    (path,) = find_images([tmp_path])
    assert (read_image(path) == 255).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jpg", "PNG"), ("a.png", "JPEG"), ("a.gif", "WEBP"), ("a.heic", "JPEG"), ("a", "BMP"), ("a.txt", "PNG")],
)
def test_the_content_counts_and_not_the_ending(tmp_path: Path, name: str, kind: str) -> None:
    Image.new("RGB", (4, 3), "white").save(tmp_path / name, format=kind)
    assert (read_image(tmp_path / name) == 255).all()
    assert image_size(tmp_path / name) == (3, 4)


def test_arrays() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (read_image(gray) == gray[:, :, None]).all()
    assert (read_image(gray[:, :, None]) == gray[:, :, None]).all()
    assert read_image(QUADRANTS) is QUADRANTS
    assert read_image(QUADRANTS[:, ::-1]).flags.c_contiguous
    clear = np.dstack([QUADRANTS, np.zeros((4, 6), dtype=np.uint8)])
    assert (read_image(clear) == 255).all()


def test_tensors() -> None:
    last = torch.from_numpy(QUADRANTS)
    first = last.permute(2, 0, 1)
    shares = (first / 255).requires_grad_()
    for tensor in (last, first, shares, shares.double(), shares.half(), shares.bfloat16(), torch.nn.Parameter(shares)):
        image = read_image(tensor)
        assert (image == QUADRANTS).all()
        assert image.flags.c_contiguous
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert (read_image(every / 255) == read_image(every)).all()  # every value comes back
    assert read_image(torch.zeros(3, 5, 3, dtype=torch.uint8)).shape == (5, 3, 3)  # where both fit, channels are first


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"an image array must be .* got shape \(3, 8, 9\) uint8"),
        (np.zeros((8, 9, 3), np.float32), r"an image array must be .* float32"),
        (np.zeros(5, np.uint8), "an image array must be"),
        (np.zeros((0, 5), np.uint8), "the image array has no pixels"),
        (torch.zeros(3, 0, 5), "the image array has no pixels"),
        (torch.zeros(1, 3, 8, 9), r"got \[1, 3, 8, 9\] float32; of a batch, give one image"),
        (torch.zeros(8, 9, 3), r"an image tensor must be .* got \[8, 9, 3\] float32"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), r"got \[3, 8, 9\] int64"),
        (torch.full((3, 8, 9), 255.0), r"must lie in 0..1, got 255 to 255; divide by 255, or undo the normalization"),
        (torch.full((3, 8, 9), float("nan")), r"must lie in 0..1, got nan to nan"),
        ("https://example.com/cat.jpg", r"https://example.com/cat.jpg: this is an address; download it first"),
        ("s3://photos/cat.jpg", "this is an address"),
        ("data:image/png;base64," + "A" * 10_000, r"^data:image/png;base64,A{38}: this is an address"),
        (b"", "image bytes: there are no bytes to read"),
        (b"no image", "image bytes: not an image that can be read"),
        (io.StringIO("text"), "image file: the file is open as text; open it with mode 'rb'"),
        (7, "an image must be given as a path, bytes, an open file, a PIL image, a uint8 array or a tensor, got int"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_named(source: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


def test_bytes_and_open_files(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(QUADRANTS))).save(path, exif=exif)
    content = path.read_bytes()
    with open(path, "rb") as file:
        stream = SimpleNamespace(read=io.BytesIO(content).read)  # as of a request: it cannot seek
        for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), file, stream):
            assert (read_image(source) == QUADRANTS).all()
        with pytest.raises(ImageError, match=r"photo\.png: there are no bytes to read; was it read before\?"):
            read_image(file)
    assert image_size(content) == (4, 6)
    with pytest.raises(ImageError, match="image bytes: cannot be read"):
        read_image(content[:60])


def bad_files(folder: Path) -> dict[str, Path]:
    paths = {
        name: folder / name for name in ("missing.jpg", "empty.jpg", "text.jpg", "cut.jpg", "cut.png", "folder.jpg")
    }
    paths["empty.jpg"].write_bytes(b"")
    paths["text.jpg"].write_text("This is not a picture.\n" * 50)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png"):
        noise.save(paths[name])
        paths[name].write_bytes(paths[name].read_bytes()[:1500])
    paths["folder.jpg"].mkdir()
    return paths


def test_an_error_outlives_its_process(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "gone.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind, again.reason) == (f"{tmp_path}/gone.jpg: no such file", "missing", "no such file")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.jpg", "no such file"),
        ("empty.jpg", "empty"),
        ("text.jpg", "not an image"),
        ("cut.jpg", "damaged or cut short"),
        ("cut.png", "damaged or cut short"),
        ("folder.jpg", "folder"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, name: str, says: str) -> None:
    path = bad_files(tmp_path)[name]
    with pytest.raises(ImageError, match=says) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_damaged_files_give_an_image_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]))
    Image.fromarray(QUADRANTS).save(path, format=kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for read in (read_image, image_size):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read(path)
            except ImageError as error:
                message = str(error)
                assert "\n" not in message


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "MOST_MEMORY", 13_999)  # 4 bytes a pixel in Pillow, 3 in the result
    with pytest.raises(ImageError, match="50 x 40"):
        read_image(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_by_its_head(tmp_path: Path) -> None:
    """A few hundred bytes that promise 3000 megapixels, 9 GB: refused before anything is decoded."""
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 50_000)  # width and height, in the head chunk after its name
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    tracemalloc.start()
    try:
        for read in (read_image, image_size):
            with pytest.raises(
                ImageError, match=r"60000 x 50000 takes 21.0 GB to decode, more than 1.4 GB; scale it down"
            ):
                read(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_pillows_own_limit_neither_stops_nor_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "a.png").shape == (40, 50, 3)
    assert image_size(tmp_path / "a.png") == (40, 50)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    Image.fromarray(QUADRANTS).save(tmp_path / "a.png")
    before, results = list(warnings.filters), []
    threads = [
        threading.Thread(target=lambda: results.extend(read_image(tmp_path / "a.png").shape for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(4, 6, 3)] * 80
    assert list(warnings.filters) == before


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "deep/er/c.jpeg", ".hidden/d.png", ".e.png", "notes.txt", "deep/f.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*sources: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_images([tmp_path / source for source in sources])]

    assert names("") == ["a.png", "b.JPG", "deep/er/c.jpeg", "deep/f.webp"]
    assert names("a.png", "", "./a.png") == ["a.png", "b.JPG", "deep/er/c.jpeg", "deep/f.webp"]
    assert names("notes.txt") == ["notes.txt"]  # a file named is taken at its word
    assert names("*") == ["a.png", "b.JPG", "deep/er/c.jpeg", "deep/f.webp"]
    assert names("*.png") == ["a.png"]
    assert names("**/*.jpeg") == ["deep/er/c.jpeg"]
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert names("") == ["a.png", "b.JPG", "deep/er/c.jpeg", "deep/f.webp"]  # ends, and lists nothing twice


def test_file_names_with_glob_signs_are_files_first(tmp_path: Path) -> None:
    (tmp_path / "photo[1].jpg").touch()
    assert find_images([tmp_path / "photo[1].jpg"]) == [tmp_path / "photo[1].jpg"]


@pytest.mark.parametrize("source", ["missing", "*.jpg", "nothing", ""])
def test_a_source_without_images_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ImageError) as caught:
        find_images([source])
    assert (source or "''") in str(caught.value)


def test_scaled_size_worked_cases() -> None:
    assert scaled_size((375, 500), 600, 1000) == (600, 800)
    assert scaled_size((500, 375), 600, 1000) == (800, 600)
    assert scaled_size((200, 600), 600, 1000) == (333, 1000)  # the long side decides
    assert scaled_size((20000, 20), 600, 1000) == (1000, 32)
    assert scaled_size((1, 1), 600, 1000) == (600, 600)
    with pytest.raises(ValueError, match="at least 1"):
        scaled_size((0, 5), 600, 1000)


@given(
    st.tuples(st.integers(1, 30000), st.integers(1, 30000)),
    st.integers(32, 2000),
    st.integers(0, 2000),
    st.integers(1, 32),
)
def test_scaled_size_keeps_its_bounds_and_the_aspect(
    size: tuple[int, int], short_side: int, more: int, minimum: int
) -> None:
    height, width = scaled_size(size, short_side, short_side + more, minimum)
    assert minimum <= min(height, width) <= short_side
    assert max(height, width) <= short_side + more
    if min(height, width) > minimum:
        scale = min(short_side / min(size), (short_side + more) / max(size))
        assert abs(height - size[0] * scale) <= 0.5 + 1e-6
        assert abs(width - size[1] * scale) <= 0.5 + 1e-6
    assert scaled_size(size[::-1], short_side, short_side + more, minimum) == (width, height)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_resizing_gives_the_size_and_keeps_one_colour(h: int, w: int, new_h: int, new_w: int) -> None:
    image = np.full((h, w, 3), (10, 20, 30), dtype=np.uint8)
    image.flags.writeable = False
    resized = resize_image(image, (new_h, new_w))
    assert resized.shape == (new_h, new_w, 3)
    assert (resized == (10, 20, 30)).all()


def test_shrinking_averages_and_long_images_work() -> None:
    stripes = np.zeros((2, 4, 3), dtype=np.uint8)
    stripes[:, ::2] = 100
    assert (resize_image(stripes, (2, 2)) == 50).all()
    assert (resize_image(stripes, (5, 2)) == 50).all()  # each direction by itself: one shrinks, one grows
    assert resize_image(np.zeros((20000, 20, 3), np.uint8), (1000, 32)).shape == (1000, 32, 3)
    assert resize_image(np.zeros((1, 40000, 3), np.uint8), (32, 40000)).shape == (32, 40000, 3)
    with pytest.raises(ValueError, match="expected"):
        resize_image(stripes[:, :, 0], (2, 2))


def test_content_key(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"two")
    assert content_key(tmp_path / "a") == content_key(tmp_path / "b") != content_key(tmp_path / "c")
    assert len(content_key(tmp_path / "a")) == 32
    flat = np.zeros((2, 6, 3), dtype=np.uint8)
    assert content_key(flat) == content_key(flat.copy()) != content_key(flat.reshape(3, 4, 3))
    assert content_key(np.asfortranarray(QUADRANTS)) == content_key(QUADRANTS)
    with pytest.raises(ImageError, match="no such file"):
        content_key(tmp_path / "d")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_fractions_slightly_above_1_are_white(tmp_path: Path) -> None:
    """As sharpening and interpolation leave them; until 1.05 they do not change what gray is."""
    gray = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    Image.fromarray(gray).save(tmp_path / "exact.tif")
    gray[5, 9] = 1.03
    Image.fromarray(gray).save(tmp_path / "above.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "above.tif"), read_image(tmp_path / "exact.tif"))


@pytest.mark.parametrize("after_the_pixels", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
def test_long_texts_in_a_png_do_not_matter(tmp_path: Path, kind: bytes, after_the_pixels: bool) -> None:
    """Pillow alone refuses what unpacks to more than a million bytes, though the picture is sound."""
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    text = b"Comment\0\0" + (b"\0\0\0" if kind == b"iTXt" else b"") + zlib.compress(bytes(20_000_000))
    chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
    content = file.getvalue()
    at = len(content) - 12 if after_the_pixels else 33  # before the last chunk, or behind the first
    (tmp_path / "a.png").write_bytes(content[:at] + chunk + content[at:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    np.testing.assert_array_equal(read_image((tmp_path / "a.png").read_bytes()), picture)


def test_memory_is_bounded_by_mode_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gray image takes less than a colored one, and a WebP more, as its decoder holds the pixels too."""
    files = {}
    for mode, kind in (("L", "PNG"), ("RGB", "PNG"), ("RGB", "WEBP")):
        files[mode, kind] = io.BytesIO()
        Image.new(mode, (100, 100)).save(files[mode, kind], format=kind)
    for most, readable in ((39_999, 0), (69_999, 1), (70_000, 2), (200_000, 3)):
        monkeypatch.setattr(decode, "MOST_MEMORY", most)
        found = [images.image_or_error(file.getvalue()) for file in files.values()]
        assert [isinstance(one, np.ndarray) for one in found] == [True] * readable + [False] * (3 - readable)


def test_warnings_and_pillows_limit_are_put_back(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.tif")
    before = Image.MAX_IMAGE_PIXELS, warnings.filters[:]
    list(images.read_ahead([tmp_path / "a.tif"] * 9))
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters[:]) == before


def test_a_pattern_over_links_that_lead_in_circles(tmp_path: Path) -> None:
    (tmp_path / "d" / "deep").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "d" / name).symlink_to(".")
    for path in (tmp_path / "d/a.jpg", tmp_path / "d/deep/b.jpg"):
        path.touch()
    for pattern in ("d/**/*.jpg", "d/**", "**/deep/*.jpg", "*/**/b.jpg"):
        found = {path.name for path in find_images([str(tmp_path / pattern)])}
        assert found == ({"b.jpg"} if "b" in pattern or "deep" in pattern else {"a.jpg", "b.jpg"})


def test_images_that_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused; where the user allows it, read as far as they go."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format=kind)
        whole, cut = read_image(file.getvalue()), file.getvalue()[: len(file.getvalue()) * 3 // 4]
        with pytest.raises(ImageError, match="cut short"):
            read_image(cut)
        with monkeypatch.context() as allowed:
            allowed.setenv(decode.TRUNCATED, "1")
            found = read_image(cut)
        np.testing.assert_array_equal(found[:24], whole[:24])
        assert found.shape == whole.shape
        with pytest.raises(ImageError, match="cut short"):
            read_image(cut)


def test_a_head_that_promises_fewer_rows_than_there_are(tmp_path: Path) -> None:
    """Pillow would map such a file into memory, and show what stands behind its pixels; from bytes it shows black."""
    picture = np.full((20, 30), 40_000, np.uint16)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="TIFF")
    content = bytearray(file.getvalue())
    at = content.index(struct.pack("<HHI", 278, 4, 1)[:4]) if struct.pack("<HHI", 278, 4, 1)[:4] in content else None
    assert at is not None
    content[at + 8 : at + 12] = struct.pack("<I", 5)  # rows a strip, of 20
    (tmp_path / "a.tif").write_bytes(content)
    read = [images.image_or_error(source) for source in (tmp_path / "a.tif", bytes(content))]
    assert type(read[0]) is type(read[1])
    assert not isinstance(read[0], np.ndarray) or np.array_equal(read[0], read[1])
