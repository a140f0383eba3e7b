"""How an image is looked at in testing: one view, or the mean of many. Views are windows of the feature map.

image [H, W, 3] -> for each scale, it and its horizontal flip [2, 3, h, w] -> features [2, C, h', w'] -> windows of them [V, 5] -> pooled
[V, M, C] -> scores [V, K] -> their mean [K]. So each scale's convolutions run once, however many windows are looked at; the same
views as crops, each through the whole network, are there to compare with.

A window of the map is not quite the map of the crop: a crop ends in the padding of every layer, a window goes on in the
photo, and it begins at whole cells. Source: arXiv:1406.4729, section 3.1, multi-view testing on feature maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.classification.features import LARGEST_ASPECT
from sppnet.data.images import resize_image, scaled_size
from sppnet.errors import SettingsError
from sppnet.models.sppnet import WINDOW_CHUNK, SPPNet

Position = tuple[float, float]  # of a window: the share, 0..1, of the free room (across, down) that is before it

CENTER: tuple[Position, ...] = ((0.5, 0.5),)
CORNERS: tuple[Position, ...] = ((0, 0), (1, 0), (0, 1), (1, 1))
SIDE_MIDDLES: tuple[Position, ...] = ((0.5, 0), (0, 0.5), (1, 0.5), (0.5, 1))

PAPER_WINDOW = 224  # pixels
PAPER_SHORT_SIDES = (224, 256, 300, 360, 448, 560)
PAPER_SHORT_SIDE = 256  # of the tests at one scale
CROP_CHUNK = 32  # bounds the memory of crops through the network

ViewName = Literal["single", "center-crop", "10-view", "full", "multi-view", "multi-view+full"]
VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)


@dataclass(frozen=True)
class Views:
    """Which parts of an image are looked at, at which sizes; their scores are averaged, each view counting once.

    Args:
        short_sides: pixels, of the resized images that windows are taken from; aspect kept.
        positions: of the windows on each.
        window: pixels of the resized image: the side of every window.
        full: short sides at which the whole image is a view; None: as the model preprocesses it.
        flip: whether the same is looked at in the horizontal flip.
        crops: whether each window is cut out and goes through the whole network: slow.

    Raises:
        SettingsError: no views at all, a length below 1, or a window that is larger than the image it is taken from.

    Example:
        >>> Views(short_sides=(256,), positions=CENTER + CORNERS, flip=True)  # the usual ten
        Views(short_sides=(256,), positions=((0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)), window=224, full=(), ...)
    """

    short_sides: tuple[int, ...] = ()
    positions: tuple[Position, ...] = CENTER
    window: int = PAPER_WINDOW
    full: tuple[int | None, ...] = ()
    flip: bool = False
    crops: bool = False

    def __post_init__(self) -> None:
        if not (self.short_sides and self.positions) and not self.full:
            raise SettingsError("views: nothing to look at; give short_sides with positions, or full, or both")
        lengths = [self.window, *self.short_sides, *(side for side in self.full if side is not None)]
        if min(lengths) < 1:
            raise SettingsError(f"views: every length must be at least 1 pixel, got {min(lengths)}")
        if self.short_sides and min(self.short_sides) < self.window:
            image = f"an image with a short side of {min(self.short_sides)}"
            remedy = "give larger short sides or a smaller window"
            raise SettingsError(f"views: a window of {self.window} pixels does not fit {image}; {remedy}")
        if any(not 0 <= share <= 1 for position in self.positions for share in position):
            raise SettingsError(f"views: positions are shares of the free room, each in 0..1, got {self.positions}")


def view_set(name: str, size: int = PAPER_WINDOW) -> Views:
    """The views of the paper, and the usual ones, by name.

    ============================  ===================================================================================
    ``single``                    the whole image as the model preprocesses it: one view
    ``center-crop``               short side 256, a window of 224 in the middle, cut out: one view
    ``10-view``                   short side 256, windows of 224 in the middle and the corners, flipped too
    ``full``                      short side 256, the whole image: one view
    ``multi-view``                short sides 224, 256, 300, 360, 448, 560; on each, windows of 224 in the middle, the
                                  corners and the middles of the sides, flipped too: 5 x 18 + 6 = 96 views
    ``multi-view+full``           those, and the whole image at short side 256, flipped too: 98 views
    ============================  ===================================================================================

    Args:
        name: one of these.
        size: pixels; for a model that was trained at another size than 224, all lengths change in proportion.

    Raises:
        SettingsError: no such name.

    Source: arXiv:1406.4729, section 3.1 and Tables 2 to 4.

    Example:
        >>> view_set("multi-view").short_sides, view_set("multi-view", 128).short_sides
        ((224, 256, 300, 360, 448, 560), (128, 146, 171, 206, 256, 320))
    """
    one, *six = (round(side * size / PAPER_WINDOW) for side in (PAPER_SHORT_SIDE, *PAPER_SHORT_SIDES))
    everywhere = CENTER + CORNERS + SIDE_MIDDLES
    named = {
        "single": Views(full=(None,)),
        "center-crop": Views((one,), CENTER, size, crops=True),
        "10-view": Views((one,), CENTER + CORNERS, size, flip=True),
        "full": Views(full=(one,)),
        "multi-view": Views(tuple(six), everywhere, size, flip=True),
        "multi-view+full": Views(tuple(six), everywhere, size, (one,), flip=True),
    }
    if name not in named:
        raise SettingsError(f"no views named {name!r}: expected one of {', '.join(VIEW_NAMES)}")
    return named[name]


def views_for(model: SPPNet, views: Views | str) -> Views:
    """The views themselves, where they are given by name, with windows as large as the model's short side.

    Example:
        >>> views_for(sppnet.load("voc"), "10-view").window
        480
    """
    return views if isinstance(views, Views) else view_set(views, model.preprocess.short_side)


def view_windows(size: tuple[int, int], positions: tuple[Position, ...], window: int = PAPER_WINDOW) -> np.ndarray:
    """Where the windows lie on a resized image.

    Those that would lie on the very same pixels are there once: where the short side is as long as the window, the paper's
    nine are three.

    Args:
        size: (height, width) of the resized image in pixels, each at least ``window``.
        positions: `CENTER`, `CORNERS`, `SIDE_MIDDLES`, any sum of them, or others.
        window: pixels, the side of each window.

    Returns:
        [V, 4] float32, xyxy in pixels of the resized image, inside it, in the order of ``positions``; no two are equal.

    Example:
        >>> view_windows((224, 300), CENTER + CORNERS + SIDE_MIDDLES).tolist()
        [[38.0, 0.0, 262.0, 224.0], [0.0, 0.0, 224.0, 224.0], [76.0, 0.0, 300.0, 224.0]]
    """
    height, width = size
    corners = [(int(across * (width - window)), int(down * (height - window))) for across, down in positions]
    distinct = list(dict.fromkeys(corners))
    return np.array([(x, y, x + window, y + window) for x, y in distinct], np.float32).reshape(-1, 4)


def view_scores(image: np.ndarray, model: SPPNet, views: Views, *, chunk_size: int = CROP_CHUNK) -> Tensor:
    """The probabilities that each view gives.

    Args:
        image: [H, W, 3] uint8, upright. Not modified.
        model: any.
        views: what to look at.
        chunk_size: with ``views.crops``, how many go through the network together.

    Returns:
        [V, K] float32 on the CPU. Scale by scale; within one its windows in the order of `view_windows`, then the full view, then
        the same of the horizontal flip. Crops come first, full views after them.

    Example:
        >>> photo = np.zeros((300, 400, 3), np.uint8)
        >>> view_scores(photo, sppnet.load("voc"), view_set("multi-view+full")).shape
        torch.Size([98, 20])
    """
    with model.inference():
        scales = _scales(image, model, views)
        if views.crops:
            logits = _crop_logits(model, list(scales), chunk_size)
        else:
            pooled = torch.cat([_pooled_views(model, *scale) for scale in scales])
            logits = torch.cat([model.image_logits(part) for part in pooled.split(WINDOW_CHUNK)])
        return model.image_classifier.probabilities(logits).cpu()


def _scales(image: np.ndarray, model: SPPNet, views: Views) -> Iterator[tuple[Tensor, np.ndarray, bool]]:
    """Each size at which the image is looked at, once: it, and its flip, as the backbone takes them [1 or 2, 3, h, w], channels
    last; the windows [V, 4] of it that are views; and whether the whole of it is one.
    """
    original, least, preprocess = (image.shape[0], image.shape[1]), model.preprocess.smallest_side, model.preprocess
    windowed = [scaled_size(original, side, LARGEST_ASPECT * side, minimum=views.window) for side in views.short_sides]
    full = [
        None if side is None else scaled_size(original, side, max(LARGEST_ASPECT * side, least), minimum=least)
        for side in views.full
    ]
    for size in dict.fromkeys([*windowed, *full]):
        boxes = np.empty((0, 4), np.float32)
        if size in windowed:
            boxes = view_windows(size, views.positions, views.window)
        images = preprocess(image)[0] if size is None else preprocess.normalize(resize_image(image, size))
        both = torch.cat([images, images.flip(3)]) if views.flip else images
        yield both, boxes, size in full


def _pooled_views(model: SPPNet, images: Tensor, boxes: np.ndarray, full: bool) -> Tensor:
    """The views of one scale, pooled from its map and that of its flip: [V, M, C]."""
    features = model.image_features(images)
    height, width = features.shape[2:]
    windows, _ = model.windows(torch.from_numpy(boxes), (height, width), (1.0, 1.0))
    if full:
        windows = torch.cat([windows, torch.tensor([[0, 0, width, height]])])
    on_maps = torch.cat([F.pad(windows, (1, 0), value=index) for index in range(len(features))])
    return model.pool(features, on_maps.to(features.device))


def _crop_logits(model: SPPNet, scales: list[tuple[Tensor, np.ndarray, bool]], chunk_size: int) -> Tensor:
    """The views of `_pooled_views`, each window through the whole network: [V, K]. All are of one size, and share batches."""
    crops = [
        shown[:, y0:y1, x0:x1]
        for images, boxes, _ in scales
        for shown in images
        for x0, y0, x1, y1 in boxes.astype(int).tolist()
    ]
    batches = [torch.stack(crops[start : start + chunk_size]) for start in range(0, len(crops), chunk_size)]
    logits = [model(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    return torch.cat([*logits, *(model(images) for images, _, full in scales if full)])
