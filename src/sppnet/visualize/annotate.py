"""Annotated images: `draw_detections` puts boxes and labels on them, `draw_classification` bars beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sppnet.results import Classification, Detections
from sppnet.visualize.canvas import (
    BACKGROUND,
    FOREGROUND,
    MUTED,
    TRACK,
    Box,
    Colour,
    Page,
    colour_of,
    fill_rounded,
    fit_text,
    font_of,
    ink_on,
    lay_out,
    with_title,
)


def draw_detections(
    image: npt.NDArray[np.uint8], detections: Detections, title: str | None = None
) -> npt.NDArray[np.uint8]:
    """The image with a box and a label (name and score) for each detection.

    Lines and letters grow with the picture; images below 640 pixels are enlarged, those above 6000 reduced; strips
    longer than 8 : 1 are cut into pieces, laid out like lines of text. A class has one colour, everywhere. Labels stay
    inside the picture and out of each other's way as far as there is room; the surest detections lie on top.

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
    page = lay_out(image)
    order = np.argsort(-detections.scores, kind="stable")
    _draw_boxes(page, detections, order[::-1])  # the surest last: on top
    chips = _placed_chips(page, detections, order) if len(detections) else [_nothing_found(page)]
    for chip in reversed(chips):
        _draw_chip(page, chip)
    picture = page.picture if title is None else with_title(page.picture, title, page.font_size)
    return np.array(picture)


def draw_classification(
    image: npt.NDArray[np.uint8], classification: Classification, title: str | None = None, top: int = 5
) -> npt.NDArray[np.uint8]:
    """The image with bars for its best classes: below a wide image, beside a tall one.

    Coloured are the classes the answer names: the best one, or, where several may be present, those from .5 on.

    Args:
        image: [H, W, 3] uint8 RGB, any size; laid out as `draw_detections` does. Not modified.
        classification: what the model says about it.
        title: a line above the picture; cut short if it does not fit.
        top: how many classes to show, at least 1.

    Returns:
        [H', W', 3] uint8 RGB, a new array, not of the size of ``image``.

    Raises:
        ValueError: not [H, W, 3] uint8, or without pixels; ``top`` below 1.

    Example:
        >>> photo = np.zeros((480, 640, 3), np.uint8)
        >>> draw_classification(photo, Classification([0.8, 0.2], ("cat", "dog"))).shape[1]
        640
    """
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    page = lay_out(image)
    size, photo, best = page.font_size, page.picture, classification.top(top)
    named = {name for name, _ in classification.present()} if classification.multi_label else {classification.label}
    height = round((len(best) * 1.9 + 1.2) * size)
    if photo.height > photo.width:
        width = 24 * size
        picture = Image.new("RGB", (photo.width + width, max(photo.height, height)), BACKGROUND)
        area = (photo.width, (picture.height - height) / 2, photo.width + width, picture.height)
    else:
        width = min(max(photo.width, 22 * size), 52 * size)
        picture = Image.new("RGB", (max(photo.width, width), photo.height + height), BACKGROUND)
        area = (0, photo.height, width, picture.height)
    picture.paste(photo, (0, (picture.height - photo.height) // 2 if photo.height > photo.width else 0))
    _draw_bars(picture, area, best, named, size)
    return np.array(picture if title is None else with_title(picture, title, size))


@dataclass(frozen=True)
class _Chip:
    """A label: its text on a coloured ground, and where it lies on the page."""

    text: str
    colour: Colour
    place: Box


def _draw_boxes(page: Page, detections: Detections, order: npt.NDArray[np.int64]) -> None:
    """The outlines, each with a dark rim that sets it off against a light or like-coloured photo."""
    line = max(2, round(page.font_size / 5))
    for panel in page.panels:
        left, top, width, height = *panel.corner, *panel.size
        piece = page.picture.crop((left, top, left + width, top + height))  # lines end where the piece ends
        draw = ImageDraw.Draw(piece, "RGBA")
        for row in order:
            box = page.locate(panel, tuple(detections.boxes[row].tolist()))
            beyond = 3 * line  # far enough for an edge not to be seen; the true place may be too far for Pillow
            x0, x1 = (round(min(max(side - left, -beyond), width + beyond)) for side in (box[0], box[2]))
            y0, y1 = (round(min(max(side - top, -beyond), height + beyond)) for side in (box[1], box[3]))
            x1, y1 = max(x1, x0 + line), max(y1, y0 + line)
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                continue
            rim = max(1, line // 3)
            draw.rectangle(
                (x0 - rim, y0 - rim, x1 - 1 + rim, y1 - 1 + rim), outline=(0, 0, 0, 110), width=line + 2 * rim
            )
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour_of(detections.names[row]), width=line)
        page.picture.paste(piece, (left, top))


def _placed_chips(page: Page, detections: Detections, order: npt.NDArray[np.int64]) -> list[_Chip]:
    """A label for each box; the surest choose their places first."""
    font = font_of(page.font_size)
    width, height = page.picture.size
    padding = round(0.4 * page.font_size)
    chip_height = round(1.55 * page.font_size)
    chips: list[_Chip] = []
    taken = np.empty((0, 4))
    for row in order:
        box = _first_part(page, tuple(detections.boxes[row].tolist()))
        if box is None:
            continue
        score = f" {detections.scores[row]:.2f}"
        name = fit_text(detections.names[row], font, width - 2 * padding - font.getlength(score))
        chip_width = round(font.getlength(name + score)) + 2 * padding
        places = _candidates(box, chip_width, chip_height)
        limits = np.maximum((width - chip_width, height - chip_height), 0)
        corners = np.clip(np.array(places), 0, limits)  # inside the picture
        spots = np.hstack([corners, corners + np.array([chip_width, chip_height])])
        # What it hides of other labels, then how far it was pushed; of equals the first, so the order is a preference
        pushed = np.abs(corners - np.array(places)).sum(axis=1)
        cost = _covered(spots, taken) + pushed * chip_height / 4
        spot = spots[int(np.argmin(cost))]
        taken = np.vstack([taken, spot])
        chips.append(_Chip(name + score, colour_of(detections.names[row]), tuple(spot.tolist())))
    return chips


def _candidates(box: Box, width: int, height: int) -> list[tuple[float, float]]:
    """Places for a label by preference: above the box, inside at its top, below, then down along its sides."""
    x0, y0, x1, y1 = box
    places = [(x0, y0 - height), (x0, y0), (x1 - width, y0 - height), (x1 - width, y0)]
    places += [(x0, y1), (x0, y1 - height), (x1 - width, y1), (x1 - width, y1 - height)]
    steps = max(1, min(12, int((y1 - y0) / height)))
    for step in range(1, steps):
        places += [(x0, y0 + step * height), (x1 - width, y0 + step * height)]
    places += [(x1, y0), (x0 - width, y0)]
    return places


def _covered(spots: npt.NDArray[np.float64], taken: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How many pixels of taken places each spot would hide: [S, 4], [T, 4] -> [S]."""
    corner = np.maximum(spots[:, None, :2], taken[None, :, :2])
    end = np.minimum(spots[:, None, 2:], taken[None, :, 2:])
    shared: npt.NDArray[np.float64] = np.clip(end - corner, 0, None).prod(axis=2).sum(axis=1)
    return shared


def _first_part(page: Page, box: Box) -> Box | None:
    """The visible part of a box on the page, in the first piece of the image that shows it; None if none does."""
    for panel in page.panels:
        x0, y0, x1, y1 = page.locate(panel, box)
        left, top = panel.corner
        right, bottom = left + panel.size[0], top + panel.size[1]
        if x1 > left and y1 > top and x0 < right and y0 < bottom:
            return max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
    return None


def _nothing_found(page: Page) -> _Chip:
    """What is written on a picture without detections, so that nobody takes it for a forgotten one."""
    size = page.font_size
    text = fit_text("nothing found", font_of(size), page.picture.width - 1.8 * size)
    width = font_of(size).getlength(text) + 0.8 * size
    left, top = page.panels[0].corner
    return _Chip(text, TRACK, (left + size / 2, top + size / 2, left + size / 2 + width, top + 2.05 * size))


def _draw_chip(page: Page, chip: _Chip) -> None:
    x0, y0, x1, y1 = chip.place
    fill_rounded(page.picture, chip.place, 0.25 * page.font_size, chip.colour)
    draw = ImageDraw.Draw(page.picture)
    draw.text(((x0 + x1) / 2, (y0 + y1) / 2), chip.text, ink_on(chip.colour), font_of(page.font_size), anchor="mm")


def _draw_bars(
    picture: Image.Image, area: Box, best: Sequence[tuple[str, float]], named: set[str], font_size: int
) -> None:
    """A row for each class: name, bar, score."""
    font, draw = font_of(font_size), ImageDraw.Draw(picture)
    left, top, right, _ = area
    margin = round(0.8 * font_size)
    names = [fit_text(name, font, 0.4 * (right - left)) for name, _ in best]
    bar_start = left + margin + max(font.getlength(name) for name in names) + margin
    bar_end = right - margin - font.getlength("0.00") - margin
    for row, ((name, score), shown) in enumerate(zip(best, names, strict=True)):
        middle = top + (0.6 + 1.9 * (row + 0.5)) * font_size
        ink, colour = (FOREGROUND, colour_of(name)) if name in named else (MUTED, MUTED)
        draw.text((left + margin, middle), shown, ink, font, anchor="lm")
        y0, y1, radius = middle - 0.45 * font_size, middle + 0.45 * font_size, 0.45 * font_size
        fill_rounded(picture, (bar_start, y0, bar_end, y1), radius, TRACK)
        length = (bar_end - bar_start) * min(max(score, 0.0), 1.0)
        if length >= 1:
            fill_rounded(picture, (bar_start, y0, bar_start + length, y1), min(radius, length / 2), colour)
        draw.text((right - margin, middle), f"{score:.2f}", ink, font, anchor="rm")
