"""Files that cannot be read end the work before it begins, or are left out and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.classification.readable import readable_images
from sppnet.data.labelled import LabelledImages
from sppnet.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> LabelledImages:
    """Six images; number 1 is no image, number 4 ends too early."""
    paths = [tmp_path / f"{i}.bmp" for i in range(6)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + i, 30)).save(path)
    paths[1].write_text("this is text")
    paths[4].write_bytes(paths[4].read_bytes()[:-1000])
    return LabelledImages(tuple(paths), np.array([0, 0, 0, 1, 1, 1]), ("cat", "dog"))


def test_sizes_are_upright_and_in_order(photos: LabelledImages, tmp_path: Path) -> None:
    turned = Image.new("RGB", (50, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    good = LabelledImages((tmp_path / "turned.jpg", photos.paths[3]), np.array([1, 0]), photos.class_names)
    readable = readable_images(good)
    assert readable.images is good
    assert readable.sizes.tolist() == [[50, 20], [30, 43]]
    assert readable.broken == ()


def test_a_bad_file_ends_it_by_name(photos: LabelledImages) -> None:
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read: .*1\.bmp.*'sppnet check'") as error:
        readable_images(photos)
    assert "\n" not in str(error.value)


def test_skipped_files_are_listed_with_their_reason(photos: LabelledImages) -> None:
    told: list[tuple[str, int, int]] = []
    readable = readable_images(
        photos, skip_bad=True, report=lambda stage, done, total: told.append((stage, done, total)), stage="looking"
    )
    assert [path.name for path, _ in readable.broken] == ["1.bmp", "4.bmp"]  # also the one that is bad at its end
    assert all(str(path) in reason for path, reason in readable.broken)
    assert [path.name for path in readable.images.paths] == ["0.bmp", "2.bmp", "3.bmp", "5.bmp"]
    assert readable.images.labels.tolist() == [0, 0, 1, 1]
    assert readable.sizes.tolist() == [[30, 40], [30, 42], [30, 43], [30, 45]]
    assert told == [("looking", done, 6) for done in range(1, 7)]


def test_nothing_left_is_an_error_also_where_bad_files_are_skipped(photos: LabelledImages) -> None:
    with pytest.raises(UserError, match="1 of 1 images cannot be read"):
        readable_images(photos.subset([1]), skip_bad=True)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{i}.jpg" for i in range(8))
    with pytest.raises(UserError, match=r"8 of 8 .*0\.jpg.*4\.jpg.*; and 3 more\.") as error:
        readable_images(LabelledImages(paths, np.zeros(8, np.int64), ("cat",)))
    assert "5.jpg" not in str(error.value)


def test_no_images_at_all() -> None:
    readable = readable_images(LabelledImages((), np.zeros(0, np.int64), ("cat",)))
    assert readable.sizes.shape == (0, 2)
