"""What every picture stands on: an image laid out on a page of sensible size, fonts, colours, and a safe way to disk.

A page is the image enlarged or reduced to a size people can look at. A strip (20000 x 20, say) is cut into pieces laid
below each other, like the lines of a text, or beside each other if it is a tall one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sppnet.errors import UserError
from sppnet.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST_LONG_SIDE = 640  # px; smaller images are enlarged to this, or a chip would hide them
LARGEST_LONG_SIDE = 6000  # px; beyond it viewers and PNG become slow and nothing more is to be seen
LARGEST_ASPECT = 8  # longer strips are cut into pieces
PAGE_ASPECT = 1.4  # width / height aimed at with the pieces
SMALLEST_FONT = 13  # px, still readable
FONTS_PER_SIDE = 48  # font size = side of a square of the image's area, divided by this

PLOT_FORMATS = ("png", "jpg", "pdf", "svg")

BACKGROUND: Colour = (24, 24, 27)
FOREGROUND: Colour = (244, 244, 245)
MUTED: Colour = (161, 161, 170)
TRACK: Colour = (63, 63, 70)

# Seven colours of Okabe and Ito (distinct for the colour-blind) and five more, all light enough for dark photos.
PALETTE = tuple(
    (int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16))
    for code in (
        *("E69F00", "56B4E9", "00B283", "F0E442", "2F8FD8", "E8702A", "D98CBA"),
        *("EE3377", "AADD33", "FFB3C1", "A78BFA", "44DDC0"),
    )
)
# Chosen so that of VOC's 20 names no three share a colour, person shares none, and the commonest differ.
PALETTE_SALT = "2475"


@dataclass(frozen=True)
class Panel:
    """A piece of the image and where it lies on the page."""

    source: tuple[int, int, int, int]  # x0, y0, x1, y1 in image pixels
    corner: tuple[int, int]  # left, top on the page
    size: tuple[int, int]  # width, height on the page


@dataclass(frozen=True)
class Page:
    """A picture to draw on, and how to find image pixels on it."""

    picture: Image.Image
    panels: tuple[Panel, ...]
    scale: float  # page pixels per image pixel
    font_size: int

    def locate(self, panel: Panel, box: Box) -> Box:
        """Where an image box lies on the page if its part in this panel is carried on beyond the panel."""
        (left, top), (x0, y0, *_), scale = panel.corner, panel.source, self.scale
        return (
            left + (box[0] - x0) * scale,
            top + (box[1] - y0) * scale,
            left + (box[2] - x0) * scale,
            top + (box[3] - y0) * scale,
        )


def lay_out(image: npt.NDArray[np.uint8]) -> Page:
    """Put an image on a page: at its own size, or enlarged, reduced, or cut into pieces if that is no good.

    Raises:
        ValueError: not [H, W, 3] uint8, or without pixels.
    """
    check_photo(image)
    height, width = image.shape[:2]
    long, short = max(height, width), min(height, width)
    photo = Image.fromarray(np.ascontiguousarray(image))
    if long <= LARGEST_ASPECT * short:
        scale = min(max(1.0, SMALLEST_LONG_SIDE / long), LARGEST_LONG_SIDE / long)
        panel = Panel((0, 0, width, height), (0, 0), (max(1, round(width * scale)), max(1, round(height * scale))))
        return Page(_resized(photo, panel.source, panel.size), (panel,), scale, _font_size(panel.size))
    return _folded(photo, long, short)


def fitted_photo(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """The image at a size (width, height), whatever its shape.

    Raises:
        ValueError: not [H, W, 3] uint8, or without pixels.
    """
    check_photo(image)
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def check_photo(image: npt.NDArray[np.uint8]) -> None:
    """A ValueError where an image is not [H, W, 3] uint8, or has no pixels."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image: expected [H, W, 3] uint8 RGB with pixels, got {list(image.shape)} {image.dtype}")


def colour_of(name: str) -> Colour:
    """The colour of a class: the same for the same name, in every picture and on every machine."""
    digest = hashlib.blake2b((PALETTE_SALT + name).encode(), digest_size=8).digest()
    return PALETTE[int.from_bytes(digest, "big") % len(PALETTE)]


def ink_on(background: Colour) -> Colour:
    """Black or white, whichever reads better on a colour (relative luminance of WCAG 2)."""
    linear = [((part / 255 + 0.055) / 1.055) ** 2.4 for part in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@lru_cache(maxsize=32)
def font_of(size: int) -> Font:
    """DejaVu Sans, which comes with matplotlib: accents, Greek, Cyrillic. Pillow's own font has ASCII only."""
    package = importlib.util.find_spec("matplotlib")  # found, not imported: that would take a while
    if package and package.origin:
        file = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


def fit_text(text: str, font: Font, width: float) -> str:
    """The text on one line, its end replaced by dots where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def fill_rounded(picture: Image.Image, box: Box, radius: float, colour: Colour, opacity: float = 1.0) -> None:
    """A filled rectangle with round, smooth corners, drawn onto the picture."""
    left, top, right, bottom = (round(side) for side in box)
    width, height = max(1, right - left), max(1, bottom - top)
    fine = 4  # drawn this much larger and reduced: smooth edges
    mask = Image.new("L", (width * fine, height * fine))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, width * fine - 1, height * fine - 1), radius * fine, fill=round(255 * opacity)
    )
    picture.paste(colour, (left, top, left + width, top + height), mask.reduce(fine))


def with_title(picture: Image.Image, title: str, font_size: int) -> Image.Image:
    """The picture below a band that holds the title."""
    font = font_of(round(1.15 * font_size))
    band, margin = round(2.4 * font_size), round(0.7 * font_size)
    titled = Image.new("RGB", (picture.width, picture.height + band), BACKGROUND)
    titled.paste(picture, (0, band))
    text = fit_text(title, font, picture.width - 2 * margin)
    ImageDraw.Draw(titled).text((margin, band / 2), text, FOREGROUND, font, anchor="lm")
    return titled


def save_image(image: npt.NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture; the file appears whole or not at all. Missing folders are made.

    Args:
        image: [H, W, 3] uint8 RGB.
        path: its ending chooses the format: .png, .jpg, .webp, .tif and what else Pillow writes.

    Raises:
        UserError: an ending Pillow cannot write, or a place that cannot be written to.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "pictures" / "grey.png"
        >>> save_image(np.full((4, 6, 3), 128, np.uint8), target)
        >>> target.exists()
        True
    """
    path = Path(path)
    form = Image.registered_extensions().get(path.suffix.lower())
    if form is None or form not in Image.SAVE:
        raise UserError(
            f"{path}: expected a file name that ends in .png, .jpg or .webp, got {path.suffix or 'no ending'}"
        )
    # Level 3: a photo barely gets smaller at Pillow's usual 6, and takes twice as long.
    settings = {"PNG": {"compress_level": 3}, "JPEG": {"quality": 92}}.get(form, {})
    with whole_file(path) as unfinished:
        Image.fromarray(np.ascontiguousarray(image)).save(unfinished, form, **settings)


def new_figure(width: float, height: float) -> Figure:
    """An empty plot, of a size in inches."""
    from matplotlib.figure import Figure  # slow to import; and without pyplot there is no global state and no window

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a plot; the file appears whole or not at all. Missing folders are made.

    Args:
        figure: of `new_figure`.
        path: where to; .png, .jpg, .pdf or .svg.

    Raises:
        UserError: another ending, or a place that cannot be written to.
    """
    path = Path(path)
    form = plot_format(path)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format=form, dpi=130)


def plot_format(path: str | Path) -> str:
    """The format of a plot, by the ending of its file's name: one of `PLOT_FORMATS`.

    Raises:
        UserError: another ending.

    Example:
        >>> plot_format("curves.PNG")
        'png'
    """
    form = Path(path).suffix.lstrip(".").lower()
    if form not in PLOT_FORMATS:
        raise UserError(
            f"{path}: expected a file name that ends in .png, .jpg, .pdf or .svg, got {form or 'no ending'}"
        )
    return form


def _folded(photo: Image.Image, long: int, short: int) -> Page:
    """A strip in pieces: the lines of a text if it is a wide one, columns if it is a tall one."""
    wide = photo.width >= photo.height
    scale = max(1.0, 32 / short)  # pieces 32 px thick, if that makes no more than about 1.5 megapixels
    if scale > 1:
        scale = max(1.0, min(scale, math.sqrt(1.5e6 / (long * short))))
    scale = min(scale, math.sqrt(LARGEST_LONG_SIDE**2 / PAGE_ASPECT / (long * short)))
    thickness = max(1, round(short * scale))
    font_size = _font_size((round(long * scale), thickness))
    gap = round((2.6 if wide else 8) * font_size)  # room for a label above a line, or beside a column
    aim = PAGE_ASPECT if wide else 1 / PAGE_ASPECT
    count = max(1, round(math.sqrt(long * scale / ((thickness + gap) * aim))))
    step = math.ceil(long / count)  # image pixels a piece
    starts = range(0, long, step)
    length = max(1, round(step * scale))
    font = font_of(max(SMALLEST_FONT, round(0.75 * font_size)))
    if wide:  # beside each line stands where it begins
        gutter = round(font.getlength(f"{long} px") + font_size)
        page = Image.new("RGB", (length + gutter, len(starts) * (thickness + gap) + gap // 3), BACKGROUND)
    else:  # above each column
        page = Image.new("RGB", (len(starts) * (thickness + gap), length + 2 * font_size), BACKGROUND)
    draw, panels = ImageDraw.Draw(page), []
    for row, start in enumerate(starts):
        end = min(start + step, long)
        piece = max(1, round((end - start) * scale))
        place = row * (thickness + gap)
        if wide:
            panel = Panel((start, 0, end, short), (gutter, place + gap), (piece, thickness))
            middle = place + gap + thickness / 2
            draw.text((gutter - font_size / 2, middle), f"{start} px", MUTED, font, anchor="rm")
        else:
            panel = Panel((0, start, short, end), (place, 2 * font_size), (thickness, piece))
            draw.text((place, font_size), f"{start} px", MUTED, font, anchor="lm")
        page.paste(_resized(photo, panel.source, panel.size), panel.corner)
        panels.append(panel)
    return Page(page, tuple(panels), scale, font_size)


def _resized(photo: Image.Image, source: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """A part of the photo at another size, as a picture of its own."""
    if size == (source[2] - source[0], source[3] - source[1]):
        return photo.crop(source)
    return photo.resize(size, Image.Resampling.BICUBIC, box=source, reducing_gap=3.0)


def _font_size(size: tuple[int, int]) -> int:
    return max(SMALLEST_FONT, round(math.sqrt(size[0] * size[1]) / FONTS_PER_SIDE))
