"""Pictures: at any size, with boxes where they belong and labels that can be read."""

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.voc import VOC_CLASSES
from sppnet.errors import OutputError, UserError
from sppnet.results import Classification, Detections
from sppnet.visualize.draw import (
    PALETTE,
    TILE,
    color_of,
    draw_classification,
    draw_detections,
    draw_mistakes,
    fit_text,
    font_of,
    save_image,
)

ANSWER = Classification([0.9, 0.6, 0.05], ("cat", "dog", "bird"), multi_label=True)
SIZES = [(1, 1), (64, 40), (375, 500), (40, 600), (600, 40), (20, 20_000), (20_000, 1)]


def gray(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def found(*boxes, names=None):
    count = len(boxes)
    return Detections(boxes, np.linspace(0.9, 0.2, count), [1] * count, names or ["cat"] * count)


def has(picture, name):
    """Whether the color of a class is in the picture."""
    return bool((picture == color_of(name)).all(axis=2).any())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_gives_a_picture_of_a_size_people_can_look_at(size):
    image = gray(*size)
    box = [0.1 * size[1], 0.1 * size[0], 0.6 * size[1], 0.9 * size[0]]
    for picture in (draw_detections(image, found(box)), draw_classification(image, ANSWER)):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert 640 <= max(picture.shape[:2]) <= 6400
        assert min(picture.shape[:2]) >= 96
        assert has(picture, "cat")
    assert (image == 128).all()


def test_a_photo_keeps_its_pixels_but_for_lines_and_labels():
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    picture = draw_detections(image, found([300, 200, 600, 500]))
    assert picture.shape == image.shape
    touched = np.argwhere((picture != image).any(axis=2))
    assert (touched.min(axis=0) >= (200 - 40, 300 - 5)).all()  # the label stands on the box
    assert (touched.max(axis=0) < (500 + 5, 600 + 5)).all()
    assert (picture[240:460, 340:560] == image[240:460, 340:560]).all()


def test_lines_lie_just_inside_the_half_open_box():
    picture = draw_detections(gray(700, 900), found([300, 200, 600, 500]))
    color = np.array(color_of("cat"))
    assert (picture[350, 300] == color).all()
    assert (picture[350, 599] == color).all()
    assert (picture[499, 450] == color).all()
    assert not (picture[350, 299] == color).all()
    assert not (picture[350, 600] == color).all()


def test_boxes_of_a_small_image_are_enlarged_with_it():
    picture = draw_detections(gray(64, 64), found([16, 16, 48, 48]))  # ten times
    assert picture.shape == (640, 640, 3)
    for y, x in ((320, 160), (320, 479), (479, 320)):
        assert (picture[y, x] == color_of("cat")).all()


def test_images_beyond_6000_pixels_are_reduced():
    assert draw_detections(gray(1000, 7500), Detections.empty()).shape == (800, 6000, 3)


@pytest.mark.parametrize("size", [(40, 600), (600, 40)], ids=str)
def test_a_strip_gets_a_margin_for_its_labels(size):
    """A box that fills a strip: its label lies beside the photo, of which only the outline hides something."""
    plain = draw_detections(gray(*size), Detections.empty())
    picture = draw_detections(gray(*size), found([0, 0, size[1], size[0]]))
    assert picture.shape[0] > plain.shape[0] or picture.shape[1] > plain.shape[1]
    assert (picture == 128).all(axis=2).sum() > 0.8 * plain.shape[0] * plain.shape[1]


def letters(picture):
    """How many pixels of black letters are on the labels."""
    return (picture == 0).all(axis=2).sum()


def test_labels_stay_inside_the_picture_and_apart_where_there_is_room():
    """The corners, the whole image, and one box three times: as many letters as on each label alone."""
    boxes = [[0, 0, 60, 60], [840, 0, 900, 60], [0, 640, 60, 700], [840, 640, 900, 700], [0, 0, 900, 700]]
    boxes += [[400, 300, 500, 420]] * 3
    detections = found(*boxes, names=["diningtable"] * 8)
    alone = [letters(draw_detections(gray(700, 900), detections.select([k]))) for k in range(8)]
    assert min(alone) > 100
    together = letters(draw_detections(gray(700, 900), detections))
    assert together == sum(alone), "labels cover each other, or letters are cut off"


def test_odd_boxes_do_no_harm():
    boxes = [[-50, -50, -10, -10], [-1e9, -1e9, 1e9, 1e9], [10, 10, 10, 10], [899, 699, 900, 700], [2000, 0, 2100, 50]]
    picture = draw_detections(gray(700, 900), found(*boxes))
    assert picture.shape == (700, 900, 3)


def test_odd_names_do_no_harm():
    names = ["a\nb", "", "x" * 500, "кошка", "猫", "Straßenbahn é"]
    boxes = [[10, 100 * i + 50, 200, 100 * i + 100] for i in range(6)]
    assert draw_detections(gray(700, 300), found(*boxes, names=names), title="two\nlines " * 50).shape[1] == 300
    scores = np.linspace(1.5, -0.5, 6)  # beyond 0..1, too
    assert draw_classification(gray(700, 300), Classification(scores, names)).shape[0] == 700


def test_a_title_is_a_band_above():
    plain = draw_detections(gray(700, 900), found([300, 200, 600, 500]))
    titled = draw_detections(gray(700, 900), found([300, 200, 600, 500]), title="photo.jpg")
    band = titled.shape[0] - plain.shape[0]
    assert band > 0
    assert (titled[band:] == plain).all()
    assert titled[:band].max() > 200  # light letters


def test_a_picture_without_detections_says_so():
    picture = draw_detections(gray(700, 900), Detections.empty())
    assert (picture != 128).any()
    assert (picture[100:] == 128).all()


def test_class_colors_never_change():
    assert color_of("person") == (0x44, 0xDD, 0xC0)
    assert color_of("cat") == (0xE6, 0x9F, 0x00)
    colors = [color_of(name) for name in VOC_CLASSES]
    assert max(colors.count(color) for color in colors) == 2
    assert colors.count(color_of("person")) == 1


def luminance(color):
    parts = np.array(color) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("color", PALETTE, ids=str)
def test_letters_have_the_contrast_of_wcag_aa_on_every_class_color(color):
    assert (luminance(color) + 0.05) / 0.05 >= 4.5  # of black letters


def test_text_that_does_not_fit_is_cut():
    font = font_of(20)
    assert fit_text("cat", font, 200) == "cat"
    cut = fit_text("a very long name of a class", font, 100)
    assert cut.startswith("a v")
    assert cut.endswith("...")
    assert font.getlength(cut) <= 100


def test_bars_are_colored_for_the_classes_the_answer_names():
    picture = draw_classification(gray(500, 700), ANSWER)
    assert has(picture, "cat")
    assert has(picture, "dog")  # .6: present
    assert not has(picture, "bird")
    single = draw_classification(gray(500, 700), Classification([0.5, 0.5, 0.0], ("cat", "dog", "bird")))
    assert has(single, "cat")
    assert not has(single, "dog")


def test_bars_stand_below_wide_and_beside_tall_images():
    wide, tall = draw_classification(gray(500, 700), ANSWER), draw_classification(gray(700, 500), ANSWER)
    assert wide.shape[1] == 700
    assert (wide[:500] == 128).all()
    assert tall.shape[0] == 700
    assert (tall[:, :500] == 128).all()
    assert tall.shape[1] > 500


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)],
)
def test_what_is_not_an_image_is_refused(image):
    with pytest.raises(ValueError, match=r"image: expected \[H, W, 3\] uint8 with pixels, got \("):
        draw_detections(image, Detections.empty())
    with pytest.raises(ValueError, match="image: expected"):
        draw_classification(image, ANSWER)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "new/folder/A.PNG"])
def test_saved_pictures_come_back(tmp_path, name):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    save_image(image, tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert (np.array(saved) == image).all()
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_our_own_pictures_are_replaced_and_others_never(tmp_path, ending):
    ours, photo = tmp_path / f"ours.{ending}", tmp_path / f"photo.{ending}"
    large = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    save_image(large, ours)
    save_image(gray(20, 30), str(ours))
    with Image.open(ours) as saved:
        assert saved.size == (30, 20)
    Image.fromarray(large).save(photo)
    before = photo.read_bytes()
    with pytest.raises(OutputError, match="was not written by sppnet"):
        save_image(gray(20, 30), photo)
    assert photo.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(gray(20, 30), path)
    before = path.read_bytes()

    def full(self, target, *args, **kwargs):
        target.write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be written: No space left on device"):
        save_image(gray(20, 30), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.png: cannot be written"):
        save_image(gray(20, 30), tmp_path / "file" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png is there and was not written by sppnet"):
        save_image(gray(20, 30), tmp_path / "folder.png")
    for name in ("a", "a.xyz", "a.bmp"):
        with pytest.raises(UserError, match=r"expected a file name that ends in \.png, \.jpg or \.webp"):
            save_image(gray(20, 30), tmp_path / name)


# --- contact sheets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (300, 400), (400, 300), (20, 5000), (5000, 20)], ids=str)
def test_a_mistake_is_shown_whole_whatever_its_shape(size: tuple[int, int]) -> None:
    sheet = draw_mistakes([(gray(*size), "cat", "a class of quite some name " * 3, 0.987)], title="mistakes " * 20)
    assert sheet.dtype == np.uint8
    band = sheet.shape[0] - draw_mistakes([(gray(*size), "cat", "dog", 0.9)]).shape[0]
    photo = sheet[band + 12 :, 12:][: TILE[1], : TILE[0]]
    shown = np.argwhere((photo == 128).all(2))
    (top, left), (bottom, right) = shown.min(0), shown.max(0)
    assert right - left + 1 == pytest.approx(min(TILE[0], TILE[1] * size[1] / size[0]), abs=1.5)
    assert bottom - top + 1 >= min(TILE[1], TILE[0] * size[0] / size[1]) - 1.5


def test_a_contact_sheet_has_rows_and_columns() -> None:
    def sheet(count: int) -> np.ndarray:
        return draw_mistakes([(gray(30, 40), "cat", "dog", 0.5)] * count)

    one = sheet(1).shape
    gap = 12
    assert [length - gap for length in sheet(5).shape[:2]] == [2 * (one[0] - gap), 3 * (one[1] - gap)]
    assert 0.7 < sheet(20).shape[1] / sheet(20).shape[0] < 2
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        draw_mistakes([(np.zeros((3, 4)), "cat", "dog", 0.5)])
