"""Photos with what a model says about them: boxes and labels, bars of the best classes, a contact sheet of mistakes.

Images are [H, W, 3] uint8 RGB, as `sppnet.data.images.read_image` gives them, and so are pictures. Lines and letters grow with
the picture, so that a thumbnail and a photo of 20 megapixels read alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont

from sppnet.data.images import checked_size
from sppnet.errors import OutputError
from sppnet.files import MADE_BY, atomic_write
from sppnet.results import Classification, Detections

Color = tuple[int, int, int]
Photo = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float64]

LEAST_LONG_SIDE, MOST_LONG_SIDE = 640, 6000  # px; smaller images are enlarged, or a label would hide them
LEAST_SHORT_SIDE = 96  # px, room for a few lines of labels
LEAST_FONT = 13  # px, still readable
FONTS_PER_SIDE = 48  # font size = side of a square of the picture's area, divided by this

BACKGROUND: Color = (24, 24, 27)
FOREGROUND: Color = (244, 244, 245)
MUTED: Color = (161, 161, 170)
TRACK: Color = (63, 63, 70)

# Seven colors of Okabe and Ito (distinct for the color-blind) and five more; black letters read on all of them.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 178, 131), (240, 228, 66), (47, 143, 216), (232, 112, 42),
    (217, 140, 186), (238, 51, 119), (170, 221, 51), (255, 179, 193), (167, 139, 250), (68, 221, 192),
)  # fmt: skip
PALETTE_SALT = "2475"  # of VOC's 20 names no three share a color then, and person shares none


def draw_detections(image: Photo, detections: Detections, title: str | None = None) -> Photo:
    """The image with a box and a label (class name and score) for each detection.

    Images with sides below 640 and 96 px are enlarged, those beyond 6000 px reduced; of a strip more than 62 times as long as
    wide, the short side is stretched to 96 px. Labels stay inside the picture and out of each other's way as far as there is
    room, for which strips get a margin; the most confident detections lie on top.

    Args:
        image: [H, W, 3] uint8 RGB, any size. Not modified.
        detections: boxes in pixels of ``image``; parts outside it are not shown.
        title: a line above the picture; cut short if it does not fit.

    Returns:
        [H', W', 3] uint8 RGB, a new array, not of the size of ``image``.

    Raises:
        ValueError: not [H, W, 3] uint8, or without pixels.

    Example:
        >>> photo = np.zeros((480, 640, 3), np.uint8)
        >>> draw_detections(photo, Detections([[50, 60, 200, 300]], [0.9], [8], ["cat"])).shape
        (480, 640, 3)
    """
    photo, scale, size = _at_readable_size(image)
    width, height = photo.size
    boxes = detections.boxes.astype(np.float64) * [*scale, *scale]
    within = np.hstack([boxes[:, :2] < (width, height), boxes[:, 2:] > 0])  # [R, 4]; all, where a box can be seen
    order = [row for row in np.argsort(-detections.scores, kind="stable").tolist() if within[row].all()]
    _draw_boxes(photo, [(boxes[row], color_of(detections.class_names[row])) for row in reversed(order)], size)

    font, padding, chip_height = font_of(size), round(0.4 * size), round(1.55 * size)
    narrow = width < 12 * size
    longest = (24 * size if narrow else width) - 2 * padding
    texts = []
    for row in order:
        score = f" {detections.scores[row]:.2f}"
        texts.append(fit_text(detections.class_names[row], font, longest - font.getlength(score)) + score)
    chips = np.array([(font.getlength(text) + 2 * padding, chip_height) for text in texts]).reshape(-1, 2)
    above = chip_height if len(order) and height < 8 * chip_height else 0
    beside = math.ceil(chips[:, 0].max()) if len(order) and narrow else 0
    picture = Image.new("RGB", (width + beside, height + 2 * above), BACKGROUND)
    picture.paste(photo, (0, above))
    parts = np.clip(boxes[order], 0, [width, height, width, height]) + [0, above, 0, above]
    draw = ImageDraw.Draw(picture)
    places = _place_labels(parts, chips, picture.size)
    for place, text, row in reversed(list(zip(places, texts, order, strict=True))):
        _draw_chip(draw, place, text, color_of(detections.class_names[row]), (0, 0, 0), size)
    if not len(detections):  # so that nobody takes it for a picture that was forgotten
        end = 1.3 * size + font.getlength("nothing found")
        _draw_chip(draw, np.array([size / 2, size / 2, end, 2.05 * size]), "nothing found", TRACK, FOREGROUND, size)
    return np.array(picture if title is None else with_title(picture, title, size))


def draw_classification(image: Photo, classification: Classification, title: str | None = None) -> Photo:
    """The image with bars for its best five classes: below a wide image, beside a tall one.

    Colored are the classes the answer names: the best one, or, where several may be present, those from .5 on.

    Args:
        image: [H, W, 3] uint8 RGB, any size; resized as `draw_detections` does. Not modified.
        classification: what the model says about it.
        title: a line above the picture; cut short if it does not fit.

    Returns:
        [H', W', 3] uint8 RGB, a new array, not of the size of ``image``.

    Raises:
        ValueError: not [H, W, 3] uint8, or without pixels.

    Example:
        >>> photo = np.zeros((480, 640, 3), np.uint8)
        >>> draw_classification(photo, Classification([0.8, 0.2], ("cat", "dog"))).shape[1]
        640
    """
    photo, _, size = _at_readable_size(image)
    best = classification.top(5)
    named = [name for name, _ in classification.present()] if classification.multi_label else [classification.label]
    bars_height = round((1.9 * len(best) + 1.2) * size)
    if photo.height > photo.width:
        left, right = photo.width, photo.width + 24 * size
        picture = Image.new("RGB", (right, max(photo.height, bars_height)), BACKGROUND)
        bars_top = (picture.height - bars_height) / 2
        picture.paste(photo, (0, (picture.height - photo.height) // 2))
    else:
        left, right, bars_top = 0, min(max(photo.width, 22 * size), 52 * size), photo.height
        picture = Image.new("RGB", (max(photo.width, right), photo.height + bars_height), BACKGROUND)
        picture.paste(photo)
    draw, font, margin, thickness = ImageDraw.Draw(picture), font_of(size), 0.8 * size, 0.9 * size
    shown = [fit_text(name, font, 0.4 * (right - left)) for name, _ in best]
    start = left + 2 * margin + max(font.getlength(name) for name in shown)
    end = right - 2 * margin - font.getlength("0.00")
    for row, (name, score) in enumerate(best):
        y = bars_top + (0.6 + 1.9 * (row + 0.5)) * size
        ink, color = (FOREGROUND, color_of(name)) if name in named else (MUTED, MUTED)
        draw.text((left + margin, y), shown[row], ink, font, anchor="lm")
        draw.text((right - margin, y), f"{score:.2f}", ink, font, anchor="rm")
        length = (end - start) * min(max(score, 0.0), 1.0)
        for reach, fill in ((end - start, TRACK), (length, color)):
            if reach >= 1:
                draw.rectangle((start, y - thickness / 2, start + reach, y + thickness / 2), fill)
    return np.array(picture if title is None else with_title(picture, title, size))


TILE = (220, 165)  # px: width and height of a photo on a contact sheet


def draw_mistakes(mistakes: Sequence[tuple[Photo, str, str, float]], title: str | None = None) -> Photo:
    """A contact sheet of photos that were taken for something else: each with the answer, its score, and the truth.

    Args:
        mistakes: at least one: the photo [H, W, 3] uint8 RGB, of any size, which is not modified; its true class; the
            answer to it; and the score of that, 0..1.
        title: a line above the sheet; cut short if it does not fit.

    Returns:
        [H', W', 3] uint8 RGB, about 4 : 3 with many photos.

    Raises:
        ValueError: an image of another form.

    Example:
        >>> draw_mistakes([(np.zeros((30, 40, 3), np.uint8), "cat", "dog", 0.9)]).shape
        (232, 244, 3)
    """
    (width, height), gap, size = TILE, 12, LEAST_FONT
    text_height, font = round(3.3 * size), font_of(size)
    columns = min(math.ceil(math.sqrt(1.25 * len(mistakes))), len(mistakes))
    rows = math.ceil(len(mistakes) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + text_height + gap) + gap), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (image, truth, answer, score) in enumerate(mistakes):
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + row * (height + text_height + gap)
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=(0, 0, 0))
        h, w = checked_size(image, "image")
        scale = min(width / w, height / h)
        photo = resized(image, (round(w * scale), round(h * scale)))
        sheet.paste(photo, (left + (width - photo.width) // 2, top + (height - photo.height) // 2))
        after, y = f" {score:.2f}", top + height + 0.95 * size
        text = fit_text(answer, font, width - font.getlength(after))
        draw.text((left, y), text, color_of(answer), font, anchor="lm")
        draw.text((left + font.getlength(text), y), after, FOREGROUND, font, anchor="lm")
        draw.text((left, y + 1.4 * size), fit_text(f"is {truth}", font, width), MUTED, font, anchor="lm")
    return np.array(sheet if title is None else with_title(sheet, title, size))


def save_image(image: Photo, path: str | Path) -> None:
    """Write a picture atomically, with our mark in its EXIF data; a file without the mark is not replaced.

    Args:
        image: [H, W, 3] uint8 RGB.
        path: its ending chooses the format: .png, .jpg or .webp. Missing folders are made.

    Raises:
        OutputError: another ending, a place that cannot be written to, or somebody else's file.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "pictures" / "grey.png"
        >>> save_image(np.full((4, 6, 3), 128, np.uint8), target)
        >>> target.exists()
        True
    """
    path = Path(path)
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    form = formats.get(path.suffix.lower())
    if form is None:
        ending = path.suffix or "no ending"
        raise OutputError(f"{path}: expected a file name that ends in .png, .jpg or .webp, got {ending}")
    mark = Image.Exif()
    mark[ExifTags.Base.Software] = MADE_BY
    # Level 3: a photo barely gets smaller at Pillow's usual 6, and takes twice as long.
    settings = {"PNG": {"compress_level": 3}, "JPEG": {"quality": 92}}.get(form, {})
    with atomic_write(path) as unfinished:
        Image.fromarray(np.ascontiguousarray(image)).save(unfinished, form, exif=mark, **settings)


def color_of(name: str) -> Color:
    """The color of a class: the same for the same name, in every picture and on every machine."""
    digest = hashlib.blake2b((PALETTE_SALT + name).encode(), digest_size=8).digest()
    return PALETTE[int.from_bytes(digest, "big") % len(PALETTE)]


@lru_cache(maxsize=32)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: accents, Greek, Cyrillic. Pillow's own font has ASCII only."""
    matplotlib = distribution("matplotlib")  # found, not imported: that would take a while
    return ImageFont.truetype(str(matplotlib.locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")), size)


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text on one line, its end replaced by dots where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def with_title(picture: Image.Image, title: str, font_size: int) -> Image.Image:
    """The picture below a band that holds the title."""
    font, band, margin = font_of(round(1.15 * font_size)), round(2.4 * font_size), round(0.7 * font_size)
    titled = Image.new("RGB", (picture.width, picture.height + band), BACKGROUND)
    titled.paste(picture, (0, band))
    text = fit_text(title, font, picture.width - 2 * margin)
    ImageDraw.Draw(titled).text((margin, band / 2), text, FOREGROUND, font, anchor="lm")
    return titled


def resized(image: Photo, size: tuple[int, int]) -> Image.Image:
    """The image at a size (width, height), each side at least 1 px."""
    photo = Image.fromarray(np.ascontiguousarray(image))
    size = max(1, size[0]), max(1, size[1])
    return photo if photo.size == size else photo.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _at_readable_size(image: Photo) -> tuple[Image.Image, tuple[float, float], int]:
    """The image at the size to draw it at, picture pixels per image pixel (across, down), and the font size."""
    height, width = checked_size(image, "image")
    enlarge = max(1.0, LEAST_LONG_SIDE / max(height, width), LEAST_SHORT_SIDE / min(height, width))
    scale = min(enlarge, MOST_LONG_SIDE / max(height, width))
    size = max(LEAST_SHORT_SIDE, round(width * scale)), max(LEAST_SHORT_SIDE, round(height * scale))
    font_size = max(LEAST_FONT, round(math.sqrt(size[0] * size[1]) / FONTS_PER_SIDE))
    return resized(image, size), (size[0] / width, size[1] / height), font_size


def _draw_boxes(photo: Image.Image, boxes: Sequence[tuple[Boxes, Color]], font_size: int) -> None:
    """Outlines, each with a dark rim that sets it off against a light or like-colored photo."""
    draw, line = ImageDraw.Draw(photo, "RGBA"), max(2, round(font_size / 5))
    rim, beyond = max(1, line // 3), 3 * line  # an edge beyond is not seen; the true one may be too far for Pillow
    limits = np.array([photo.width, photo.height, photo.width, photo.height])
    for box, color in boxes:
        x0, y0, x1, y1 = np.clip(box, -beyond, limits + beyond).round().astype(int).tolist()
        x1, y1 = max(x1, x0 + line) - 1, max(y1, y0 + line) - 1
        draw.rectangle((x0 - rim, y0 - rim, x1 + rim, y1 + rim), outline=(0, 0, 0, 110), width=line + 2 * rim)
        draw.rectangle((x0, y0, x1, y1), outline=color, width=line)


def _place_labels(boxes: Boxes, labels: Boxes, size: tuple[int, int]) -> list[Boxes]:
    """Where the labels [R, 2] (width, height) of boxes [R, 4] lie in a picture; the first ones choose first."""
    taken = np.empty((0, 4))
    for (x0, y0, x1, y1), (width, height) in zip(boxes, labels, strict=True):
        # By preference: above the box, inside at its top, below, inside at its bottom, beside, then down along its sides.
        heights = [y0 - height, y0, y1, y1 - height]
        wanted = [(x, y) for y in heights for x in (x0, x1 - width)] + [(x1, y0), (x0 - width, y0)]
        steps = min(12, int((y1 - y0) / height))
        wanted += [(x, y0 + step * height) for step in range(1, steps) for x in (x0, x1 - width)]
        corners = np.clip(wanted, 0, np.maximum((size[0] - width, size[1] - height), 0))  # inside the picture
        places = np.hstack([corners, corners + (width, height)])
        shared = np.minimum(places[:, None, 2:], taken[:, 2:]) - np.maximum(places[:, None, :2], taken[:, :2])
        hidden = np.clip(shared, 0, None).prod(axis=2).sum(axis=1)  # px of other labels
        pushed = np.abs(corners - np.array(wanted)).sum(axis=1)  # px from where it was wanted
        best = int(np.argmin(hidden + pushed * height / 4))  # of equals the first: the order is a preference
        taken = np.vstack([taken, places[best]])
    return list(taken)


def _draw_chip(draw: ImageDraw.ImageDraw, place: Boxes, text: str, color: Color, ink: Color, font_size: int) -> None:
    x0, y0, x1, y1 = place.tolist()
    draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), 0.25 * font_size, color)
    draw.text(((x0 + x1) / 2, (y0 + y1) / 2), text, ink, font_of(font_size), anchor="mm")
