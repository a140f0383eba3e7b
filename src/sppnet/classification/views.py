"""How an image is looked at in testing: one view, or the mean of many. Views are windows of the feature map.

image [H, W, 3] -> for each scale, it and its mirror image [2, 3, h, w] -> features [2, C, h', w'] -> windows of them
[V, 5] -> pooled [V, M, C] -> scores [V, K] -> their mean [K]. So each scale's convolutions run once, however many
windows are looked at; the same views as crops, each through the whole network, are there to compare with.

A window of the map is not quite the map of the crop: a crop ends in the padding of every layer, a window goes on in the
photo, and it begins at whole cells. Source: arXiv:1406.4729, section 3.1, multi-view testing on feature maps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.data.images import read_image, resize_image, scaled_size
from sppnet.errors import UserError
from sppnet.models.geometry import boxes_to_windows
from sppnet.models.precision import autocast
from sppnet.models.sppnet import WINDOW_CHUNK, SPPNet
from sppnet.ops.bins import whole_windows
from sppnet.results import Classification

Place = tuple[float, float]  # where a window lies: the share, 0..1, of the free room (across, down) that is before it

CENTRE: tuple[Place, ...] = ((0.5, 0.5),)
CORNERS: tuple[Place, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))
SIDE_MIDDLES: tuple[Place, ...] = ((0.5, 0), (0, 0.5), (1, 0.5), (0.5, 1))

PAPER_WINDOW = 224  # pixels
PAPER_SHORT_SIDES = (224, 256, 300, 360, 448, 560)
PAPER_SHORT_SIDE = 256  # of the tests at one scale
LARGEST_ASPECT = 4  # longer images are looked at smaller (full) or squeezed (windows): one may be 20000 x 20
CROPS_AT_ONCE = 32  # bounds the memory of crops through the network

ViewName = Literal["single", "centre-crop", "10-view", "full", "multi-view", "multi-view+full"]
VIEW_NAMES: tuple[ViewName, ...] = ("single", "centre-crop", "10-view", "full", "multi-view", "multi-view+full")


@dataclass(frozen=True)
class Views:
    """Which parts of an image are looked at, at which sizes. The scores of all of them are averaged, each counting once.

    `view_set` has those of the paper by name.

    Raises:
        UserError: no views at all, or a length below 1, or a window that is larger than the image it is taken from.

    Example:
        >>> Views(short_sides=(256,), places=CENTRE + CORNERS, mirrored=True)  # the usual ten
        Views(short_sides=(256,), places=((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)), window=224, full=(), ...)
    """

    short_sides: tuple[int, ...] = ()  # pixels, of the resized images that windows are taken from; aspect kept
    places: tuple[Place, ...] = CENTRE  # of the windows on each
    window: int = PAPER_WINDOW  # pixels of the resized image: the side of every window
    full: tuple[int | None, ...] = ()  # short sides at which the whole image is a view; None: as the model prepares it
    mirrored: bool = False  # whether the same is looked at in the mirror image
    crops: bool = False  # whether each window is cut out and goes through the whole network: slow

    def __post_init__(self) -> None:
        if not (self.short_sides and self.places) and not self.full:
            raise UserError("views: nothing to look at; give short_sides with places, or full, or both")
        lengths = [self.window, *self.short_sides, *(side for side in self.full if side is not None)]
        if min(lengths) < 1:
            raise UserError(f"views: every length must be at least 1 pixel, got {min(lengths)}")
        if self.short_sides and min(self.short_sides) < self.window:
            raise UserError(
                f"views: a window of {self.window} pixels does not fit an image with a short side of "
                f"{min(self.short_sides)}; give larger short sides or a smaller window"
            )
        if any(not 0 <= share <= 1 for place in self.places for share in place):
            raise UserError(f"views: places are shares of the free room, each in 0..1, got {self.places}")


def view_set(
    name: str, size: int = PAPER_WINDOW, *, short_sides: tuple[int, ...] | None = None, crops: bool | None = None
) -> Views:
    """The views of the paper, and the usual ones, by name.

    ============================  ===================================================================================
    ``single``                    the whole image at the size that the model's architecture prepares it: `classify`
    ``centre-crop``               short side 256, a window of 224 in the middle, cut out: one view
    ``10-view``                   short side 256, windows of 224 in the middle and the corners, mirrored too
    ``full``                      short side 256, the whole image: one view
    ``multi-view``                short sides 224, 256, 300, 360, 448, 560; on each, windows of 224 in the middle, the
                                  corners and the middles of the sides, mirrored too: 5 x 18 + 6 = 96 views
    ``multi-view+full``           those, and the whole image at short side 256, mirrored too: 98 views
    ============================  ===================================================================================

    Args:
        name: one of these.
        size: pixels; for a model that was trained at another size than 224, all lengths change in proportion.
        short_sides: pixels; in place of the ones above: those that windows are taken from, of ``full`` the full image's.
        crops: whether each window goes through the whole network by itself; if not given, only ``centre-crop`` does,
            since one crop is less work than the whole map.

    Raises:
        UserError: no such name; lengths below 1, or a short side below the window's.

    Source: arXiv:1406.4729, section 3.1 and Tables 2 to 4.

    Example:
        >>> view_set("multi-view").short_sides, view_set("multi-view", 128).short_sides
        ((224, 256, 300, 360, 448, 560), (128, 146, 171, 206, 256, 320))
    """
    if size < 1:
        raise UserError(f"size: expected the side of a view, at least 1 pixel, got {size}")

    def in_proportion(length: int) -> int:
        return round(length * size / PAPER_WINDOW)

    one = short_sides or (in_proportion(PAPER_SHORT_SIDE),)
    six = short_sides or tuple(map(in_proportion, PAPER_SHORT_SIDES))
    everywhere = CENTRE + CORNERS + SIDE_MIDDLES
    if name == "single":
        return Views(full=(None,))
    if name == "centre-crop":
        return Views(one, CENTRE, size, crops=crops is not False)
    if name == "10-view":
        return Views(one, CENTRE + CORNERS, size, mirrored=True, crops=bool(crops))
    if name == "full":
        return Views(full=one)
    if name == "multi-view":
        return Views(six, everywhere, size, mirrored=True, crops=bool(crops))
    if name == "multi-view+full":
        full = (in_proportion(PAPER_SHORT_SIDE),)
        return Views(six, everywhere, size, full, mirrored=True, crops=bool(crops))
    raise UserError(f"no views named {name!r}: expected one of {', '.join(VIEW_NAMES)}")


def view_windows(size: tuple[int, int], places: tuple[Place, ...], window: int = PAPER_WINDOW) -> np.ndarray:
    """Where the windows lie on a resized image.

    Those that would lie on the very same pixels are there once: where the short side is as long as the window, the paper's
    nine are three.

    Args:
        size: (height, width) of the resized image in pixels, each at least ``window``.
        places: `CENTRE`, `CORNERS`, `SIDE_MIDDLES`, any sum of them, or others.
        window: pixels, the side of each window.

    Returns:
        [V, 4] float32, xyxy in pixels of the resized image, inside it, in the order of ``places``; no two are equal.

    Raises:
        ValueError: a window larger than the image.

    Example:
        >>> view_windows((224, 300), CENTRE + CORNERS + SIDE_MIDDLES).tolist()
        [[38.0, 0.0, 262.0, 224.0], [0.0, 0.0, 224.0, 224.0], [76.0, 0.0, 300.0, 224.0]]
    """
    height, width = size
    if window > min(size):
        raise ValueError(f"a window of {window} pixels does not fit an image of {height} x {width}")
    corners = [(int(across * (width - window)), int(down * (height - window))) for across, down in places]
    distinct = list(dict.fromkeys(corners))
    return np.array([(x, y, x + window, y + window) for x, y in distinct], np.float32).reshape(-1, 4)


def classify_views(
    source: str | os.PathLike[str] | Image.Image | np.ndarray, model: SPPNet, views: Views | str = "single"
) -> Classification:
    """Say what is in one image of any size, from the mean of several views.

    Args:
        source: path, PIL image, or [H, W, 3] uint8 array. EXIF rotation is applied to files and PIL images.
        model: any model, such as ``load("voc")``.
        views: what to look at; by name, it is that `view_set` with windows as large as the model's own short side, so
            that things are seen at about the size that they had in training.

    Returns:
        `Classification`: for every class the mean over all views of its probability: of the softmax outputs of a
        single-label model, of the sigmoid outputs of a multi-label one.

    Raises:
        UserError: no such file, or not an image; no views of that name.

    Source: arXiv:1406.4729, section 3.1.

    Example:
        >>> from skimage.data import chelsea
        >>> classify_views(chelsea(), sppnet.load("voc"), "10-view").label
        'cat'
    """
    settings = model.architecture
    scores = view_scores(read_image(source), model, views_for(model, views)).mean(0)
    return Classification(scores.numpy(), settings.names, settings.multi_label)


def views_for(model: SPPNet, views: Views | str) -> Views:
    """The views themselves, where they are given by name; see `classify_views`.

    Example:
        >>> views_for(sppnet.load("voc"), "10-view").window
        600
    """
    return views if isinstance(views, Views) else view_set(views, model.architecture.short_side)


def view_scores(image: np.ndarray, model: SPPNet, views: Views, *, crops_at_once: int = CROPS_AT_ONCE) -> Tensor:
    """The probabilities that each view gives.

    Args:
        image: [H, W, 3] uint8, upright. Not modified.
        model: in evaluation mode.
        views: what to look at.
        crops_at_once: with ``views.crops``, how many go through the network together.

    Returns:
        [V, K] float32 on the CPU: sigmoid or softmax outputs. Scale by scale; within one its windows in the order of
        `view_windows`, then the full view, then the same of the mirror image. Crops come first, full views after them.

    Example:
        >>> photo = np.zeros((300, 400, 3), np.uint8)
        >>> view_scores(photo, sppnet.load("voc"), view_set("multi-view+full")).shape
        torch.Size([98, 20])
    """
    with torch.inference_mode(), autocast(model.device):
        if views.crops:
            logits = _crop_logits(image, model, views, crops_at_once)
        else:
            pooled = torch.cat([_pooled_views(image, model, views, scale) for scale in _scales(image, model, views)])
            logits = _described_logits(model, pooled)
        logits = logits.float()
        return (logits.sigmoid() if model.architecture.multi_label else logits.softmax(1)).cpu()


@dataclass(frozen=True)
class _Scale:
    size: tuple[int, int] | None  # (height, width) of the resized image; None: as the model prepares it
    windows: bool  # whether windows of it are views
    full: bool  # whether the whole of it is


def _scales(image: np.ndarray, model: SPPNet, views: Views) -> list[_Scale]:
    """The sizes at which the image is looked at, each once."""
    original, least = (image.shape[0], image.shape[1]), model.smallest_side
    windowed = [scaled_size(original, side, LARGEST_ASPECT * side, minimum=views.window) for side in views.short_sides]
    full = [
        None if side is None else scaled_size(original, side, max(LARGEST_ASPECT * side, least), minimum=least)
        for side in views.full
    ]
    return [_Scale(size, size in windowed, size in full) for size in dict.fromkeys([*windowed, *full])]


def _pooled_views(image: np.ndarray, model: SPPNet, views: Views, scale: _Scale) -> Tensor:
    """The views of one scale, pooled from its map and that of its mirror image: [V, M, C]."""
    features = model.features(_images(image, model, scale.size, views.mirrored))
    map_size = (features.shape[2], features.shape[3])
    windows = torch.empty(0, 4, dtype=torch.int64)
    if scale.size and scale.windows:
        boxes = torch.from_numpy(view_windows(scale.size, views.places, views.window))
        windows = boxes_to_windows(boxes, model.geometry, map_size, (1.0, 1.0))
    if scale.full:
        windows = torch.cat([windows, whole_windows(features[:1])[:, 1:].cpu()])
    on_maps = torch.cat([torch.nn.functional.pad(windows, (1, 0), value=n) for n in range(len(features))])
    return model.pool(features, on_maps.to(features.device))


def _described_logits(model: SPPNet, pooled: Tensor) -> Tensor:
    """Pooled views [V, M, C] -> logits [V, K]."""
    return torch.cat([model.image_classifier(model.fully_connected(part)) for part in pooled.split(WINDOW_CHUNK)])


def _crop_logits(image: np.ndarray, model: SPPNet, views: Views, crops_at_once: int) -> Tensor:
    """The same views as `_pooled_views`, each window through the whole network: [V, K]. They are all of one size, so
    those of several scales share a batch."""
    scales = _scales(image, model, views)
    crops = list(_crops(image, model, views, scales))
    logits = [
        model(torch.stack(crops[start : start + crops_at_once]).contiguous(memory_format=torch.channels_last))
        for start in range(0, len(crops), crops_at_once)
    ]
    logits += [model(_images(image, model, scale.size, views.mirrored)) for scale in scales if scale.full]
    return torch.cat(logits)


def _crops(image: np.ndarray, model: SPPNet, views: Views, scales: list[_Scale]) -> Iterator[Tensor]:
    for scale in scales:
        if scale.size and scale.windows:
            boxes = view_windows(scale.size, views.places, views.window).astype(int).tolist()
            for resized in _images(image, model, scale.size, views.mirrored):
                yield from (resized[:, y0:y1, x0:x1] for x0, y0, x1, y1 in boxes)


def _images(image: np.ndarray, model: SPPNet, size: tuple[int, int] | None, mirrored: bool) -> Tensor:
    """The image at a size, and its mirror image, as the backbone takes them: [1 or 2, 3, h, w], channels last."""
    if size is None:
        normalised, _ = model.prepare(image)
    else:
        normalised = model.normalise(resize_image(image, size))
    both = torch.cat([normalised, normalised.flip(3)]) if mirrored else normalised
    return both.contiguous(memory_format=torch.channels_last)
