"""Pictures: at any size, with boxes where they belong and labels that can be read."""

import numpy as np
import pytest
from PIL import Image

from sppnet.data.voc import VOC_CLASSES
from sppnet.errors import UserError
from sppnet.metrics.voc import evaluate_voc
from sppnet.results import Classification, Detections
from sppnet.visualize import draw_classification, draw_detections, plot_precision_recall, save_image
from sppnet.visualize.annotate import _placed_chips
from sppnet.visualize.canvas import PALETTE, colour_of, fit_text, font_of, ink_on, lay_out

ANSWER = Classification([0.9, 0.6, 0.05], ("cat", "dog", "bird"), multi_label=True)
SIZES = [(1, 1), (32, 32), (64, 40), (375, 500), (500, 375), (900, 1200), (20, 20_000), (20_000, 20), (1, 20_000)]


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def found(*boxes, names=None):
    count = len(boxes)
    return Detections(boxes, np.linspace(0.9, 0.2, count), [1] * count, names or ["cat"] * count)


def has(picture, name):
    """Whether the colour of a class is in the picture."""
    return bool((picture == colour_of(name)).all(axis=2).any())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_gives_a_picture_of_a_size_people_can_look_at(size):
    image = grey(*size)
    box = [0.1 * size[1], 0.1 * size[0], 0.6 * size[1], 0.9 * size[0]]
    for picture in (draw_detections(image, found(box)), draw_classification(image, ANSWER)):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert 640 <= max(picture.shape[:2]) <= 6000
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
    picture = draw_detections(grey(700, 900), found([300, 200, 600, 500]))
    colour = np.array(colour_of("cat"))
    assert (picture[350, 300] == colour).all()
    assert (picture[350, 599] == colour).all()
    assert (picture[499, 450] == colour).all()
    assert not (picture[350, 299] == colour).all()
    assert not (picture[350, 600] == colour).all()


def test_boxes_of_a_small_image_are_enlarged_with_it():
    picture = draw_detections(grey(64, 64), found([16, 16, 48, 48]))  # ten times
    assert picture.shape == (640, 640, 3)
    for y, x in ((320, 160), (320, 479), (479, 320)):
        assert (picture[y, x] == colour_of("cat")).all()


def test_images_beyond_6000_pixels_are_reduced():
    assert draw_detections(grey(1000, 7500), Detections.empty()).shape == (800, 6000, 3)


@pytest.mark.parametrize("size", [(20, 20_000), (20_000, 20), (300, 2500)], ids=str)
def test_a_strip_is_cut_into_pieces_that_show_every_pixel_once(size):
    page = lay_out(grey(*size))
    along = 0 if size[1] > size[0] else 1
    assert len(page.panels) > 1
    assert page.panels[0].source[along] == 0
    assert page.panels[-1].source[along + 2] == max(size)
    for one, following in zip(page.panels[:-1], page.panels[1:], strict=True):
        assert one.source[along + 2] == following.source[along]
    assert 0.4 < page.picture.width / page.picture.height < 3


def test_a_box_across_two_pieces_is_drawn_in_both():
    page = lay_out(grey(20, 20_000))
    cut = page.panels[0].source[2]
    picture = draw_detections(grey(20, 20_000), found([cut - 50, 2, cut + 50, 18]))
    for panel in page.panels[:3]:
        (left, top), (width, height) = panel.corner, panel.size
        shown = has(picture[top : top + height, left : left + width], "cat")
        assert shown == (panel in page.panels[:2])


def test_labels_stay_inside_the_picture_and_apart_where_there_is_room():
    # the corners, the whole image, and one box three times
    boxes = [[0, 0, 60, 60], [840, 0, 900, 60], [0, 640, 60, 700], [840, 640, 900, 700], [0, 0, 900, 700]]
    boxes += [[400, 300, 500, 420]] * 3
    page = lay_out(grey(700, 900))
    chips = _placed_chips(page, found(*boxes, names=["diningtable"] * 8), np.arange(8))
    assert len(chips) == 8
    for i, chip in enumerate(chips):
        x0, y0, x1, y1 = chip.place
        assert 0 <= x0 < x1 <= 900
        assert 0 <= y0 < y1 <= 700
        for other in chips[:i]:
            a0, b0, a1, b1 = other.place
            assert min(x1, a1) <= max(x0, a0) or min(y1, b1) <= max(y0, b0), "labels cover each other"


def test_odd_boxes_do_no_harm():
    boxes = [[-50, -50, -10, -10], [-1e9, -1e9, 1e9, 1e9], [10, 10, 10, 10], [899, 699, 900, 700], [2000, 0, 2100, 50]]
    picture = draw_detections(grey(700, 900), found(*boxes))
    assert picture.shape == (700, 900, 3)


def test_odd_names_do_no_harm():
    names = ["a\nb", "", "x" * 500, "кошка", "猫", "Straßenbahn é"]
    boxes = [[10, 100 * i + 50, 200, 100 * i + 100] for i in range(6)]
    assert draw_detections(grey(700, 300), found(*boxes, names=names), title="two\nlines " * 50).shape[1] == 300
    scores = np.linspace(1.5, -0.5, 6)  # beyond 0..1, too
    assert draw_classification(grey(700, 300), Classification(scores, names), top=6).shape[0] == 700


def test_a_title_is_a_band_above():
    plain = draw_detections(grey(700, 900), found([300, 200, 600, 500]))
    titled = draw_detections(grey(700, 900), found([300, 200, 600, 500]), title="photo.jpg")
    band = titled.shape[0] - plain.shape[0]
    assert band > 0
    assert (titled[band:] == plain).all()
    assert titled[:band].max() > 200  # light letters


def test_a_picture_without_detections_says_so():
    picture = draw_detections(grey(700, 900), Detections.empty())
    assert (picture != 128).any()
    assert (picture[100:] == 128).all()


def test_class_colours_never_change():
    assert colour_of("person") == (0x44, 0xDD, 0xC0)
    assert colour_of("cat") == (0xE6, 0x9F, 0x00)
    colours = [colour_of(name) for name in VOC_CLASSES]
    assert max(colours.count(colour) for colour in colours) == 2
    assert colours.count(colour_of("person")) == 1


def luminance(colour):
    parts = np.array(colour) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("colour", PALETTE, ids=str)
def test_letters_have_the_contrast_of_wcag_aa_on_every_class_colour(colour):
    dark, light = sorted((luminance(colour), luminance(ink_on(colour))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_text_that_does_not_fit_is_cut():
    font = font_of(20)
    assert fit_text("cat", font, 200) == "cat"
    cut = fit_text("a very long name of a class", font, 100)
    assert cut.startswith("a v")
    assert cut.endswith("...")
    assert font.getlength(cut) <= 100


def test_bars_are_coloured_for_the_classes_the_answer_names():
    picture = draw_classification(grey(500, 700), ANSWER)
    assert has(picture, "cat")
    assert has(picture, "dog")  # .6: present
    assert not has(picture, "bird")
    single = draw_classification(grey(500, 700), Classification([0.5, 0.5, 0.0], ("cat", "dog", "bird")))
    assert has(single, "cat")
    assert not has(single, "dog")


def test_bars_stand_below_wide_and_beside_tall_images():
    wide, tall = draw_classification(grey(500, 700), ANSWER), draw_classification(grey(700, 500), ANSWER)
    assert wide.shape[1] == 700
    assert (wide[:500] == 128).all()
    assert tall.shape[0] == 700
    assert (tall[:, :500] == 128).all()
    assert tall.shape[1] > 500


def test_fewer_bars_on_demand():
    heights = [draw_classification(grey(500, 700), ANSWER, top=top).shape[0] for top in (1, 2, 3, 9)]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        draw_classification(grey(500, 700), ANSWER, top=0)


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)],
)
def test_what_is_not_an_image_is_refused(image):
    with pytest.raises(ValueError, match=r"image: expected \[H, W, 3\] uint8 RGB with pixels, got \["):
        draw_detections(image, Detections.empty())
    with pytest.raises(ValueError, match="image: expected"):
        draw_classification(image, ANSWER)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "new/folder/a.png"])
def test_saved_pictures_come_back(tmp_path, name):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    save_image(image, tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert (np.array(saved) == image).all()
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_jpeg_too(tmp_path):
    save_image(grey(20, 30), str(tmp_path / "a.jpg"))
    with Image.open(tmp_path / "a.jpg") as saved:
        assert saved.format == "JPEG"


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_image(grey(20, 30), path)
    before = path.read_bytes()

    def full(self, target, *args, **kwargs):
        target.write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be written: No space left on device"):
        save_image(grey(20, 30), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.png: cannot be written"):
        save_image(grey(20, 30), tmp_path / "file" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png: cannot be written"):
        save_image(grey(20, 30), tmp_path / "folder.png")
    for name in ("a", "a.xyz", "a.xcf"):
        with pytest.raises(UserError, match=r"expected a file name that ends in \.png, \.jpg or \.webp"):
            save_image(grey(20, 30), tmp_path / name)


def evaluation(n_classes):
    box = [0, 0, 10, 10]
    truth = [([box], [k], [False]) for k in range(1, n_classes)]  # the last class has no objects
    detections = [([box, [50, 50, 60, 60]], [0.9 - 0.001 * k, 0.95], [k, k]) for k in range(1, n_classes)]
    return evaluate_voc(detections, truth, [f"class {k}" for k in range(n_classes)])


@pytest.mark.parametrize("n_classes", [1, 2, 20])
def test_curves_are_drawn_for_few_and_many_classes(tmp_path, n_classes):
    plot_precision_recall(evaluation(n_classes), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as plot:
        assert plot.width >= 640
        assert np.array(plot.convert("L")).std() > 5
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_curves_of_a_great_many_classes(tmp_path):
    plot_precision_recall(evaluation(150), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as plot:
        assert max(plot.size) < 8000


def test_curves_go_to_known_kinds_of_files(tmp_path):
    with pytest.raises(UserError, match=r"expected a file name that ends in \.png, \.jpg, \.pdf or \.svg, got xyz"):
        plot_precision_recall(evaluation(1), tmp_path / "curves.xyz")
    plot_precision_recall(evaluation(2), tmp_path / "curves.svg")
    assert b"</svg>" in (tmp_path / "curves.svg").read_bytes()
