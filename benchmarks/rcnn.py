"""R-CNN, for comparison: every proposal cut out, warped to a square and sent through the whole network by itself.

image, boxes [R, 4] -> crops [R, 227, 227, 3] -> maps [R, C, h, w] -> pooled whole [R, M, C] -> head features [R, D]: the backbone and
the fully connected layers of the very `SPPNet` that it is compared with, whose convolutions run once for each image instead.
Made as fast as it can be: cut and warped in one pass over uint8 pixels, in batches whose size is measured. Source: Girshick et
al., arXiv:1311.2524, section 2.2 and appendix A (warped with 16 pixels of context).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from sppnet.models.sppnet import WINDOW_CHUNK, SPPNet
from sppnet.ops.pyramid_pool import pyramid_pool

SIDE = 227  # pixels of the warped square,
CONTEXT = 16  # of which this many on each side show what surrounds the box
AT_ONCE = (1, 2, 4, 8, 16, 32, 64)  # sizes of batches to choose from


@dataclass(frozen=True)
class RcnnSettings:
    """How boxes go through the network.

    Example:
        >>> RcnnSettings(at_once=0)
        Traceback (most recent call last):
        ValueError: at_once must be at least 1: got 0
    """

    at_once: int = 4  # crops in one batch of the convolutions: see `fastest_batch`
    side: int = SIDE  # as of `warp_boxes`; at least the model's smallest side
    context: int = CONTEXT  # as of `warp_boxes`
    bfloat16: bool = True  # compute in it where the device is fast at that; else in float32

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once must be at least 1: got {self.at_once}")


def warp_boxes(
    image: np.ndarray, boxes: np.ndarray, side: int = SIDE, context: int = CONTEXT, fill: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Cut boxes out of an image, with context around them, and warp each to a square.

    The box itself fills the middle ``side - 2 * context`` pixels, whatever its shape; around it is what surrounds it in the
    image. What lies outside the image is ``fill``.

    Args:
        image: [H, W, 3] uint8. Not modified.
        boxes: [R, 4] in pixels, each side above 0.
        side: of the squares, in pixels.
        context: pixels on each side, less than half of ``side``.
        fill: RGB.

    Returns:
        [R, side, side, 3] uint8, by linear interpolation without averaging, as in R-CNN.

    Raises:
        ValueError: boxes of another shape or without area, or context that leaves no room for the box.

    Source: arXiv:1311.2524, appendix A.

    Example:
        >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
        >>> warp_boxes(image, np.array([[1.0, 1, 3, 3]]), side=4, context=1)[0, :, :, 0].tolist()
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    """
    import cv2

    if boxes.ndim != 2 or boxes.shape[1] != 4 or not (boxes[:, 2:] > boxes[:, :2]).all():
        raise ValueError(
            f"boxes must be [R, 4] xyxy with sides above 0: got shape {list(boxes.shape)}, or a box without area"
        )
    if not 0 <= 2 * context < side:
        raise ValueError(f"expected 0 <= 2 * context < side: got context {context} and side {side}")
    boxes = boxes.astype(np.float64)
    steps = (boxes[:, 2:] - boxes[:, :2]) / (
        side - 2 * context
    )  # pixels of the image from one of the square's to the next
    # Of pixel 0, as OpenCV counts: from centers of pixels.
    starts = (boxes[:, :2] + boxes[:, 2:]) / 2 + steps * (0.5 - side / 2) - 0.5
    crops = np.empty((len(boxes), side, side, 3), np.uint8)
    image = np.ascontiguousarray(image)
    color = tuple(map(int, fill))
    for crop, (across, down), (x, y) in zip(crops, steps.tolist(), starts.tolist(), strict=True):
        matrix = np.array([[across, 0, x], [0, down, y]])
        cv2.warpAffine(
            image, matrix, (side, side), dst=crop, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT, borderValue=color,
        )  # fmt: skip
    return crops


def rcnn_features(
    image: np.ndarray, boxes: np.ndarray, model: SPPNet, settings: RcnnSettings = RcnnSettings()
) -> Tensor:
    """Embed boxes as R-CNN does: each through the whole network by itself.

    The convolutions take few crops at once, and the fully connected layers all of them: each what is fastest.

    Args:
        image: [H, W, 3] uint8.
        boxes: [R, 4] in pixels of the image.
        model: gives the backbone, the pyramid and the fully connected layers.
        settings: how.

    Returns:
        [R, D] on the model's device, in the precision that it computes in: what ``model.fully_connected`` gives.

    Source: arXiv:1311.2524, section 2.2.

    Example:
        >>> model = sppnet.load("voc")
        >>> boxes = np.array([[0, 0, 60, 40], [10, 10, 70, 50]], np.float32)
        >>> len(rcnn_features(np.zeros((60, 80, 3), np.uint8), boxes, model))
        2
    """
    pooled = rcnn_pooled(image, boxes, model, settings)
    with model.inference(bfloat16=settings.bfloat16):
        return torch.cat([model.fully_connected(part) for part in pooled.split(WINDOW_CHUNK)])


def rcnn_pooled(image: np.ndarray, boxes: np.ndarray, model: SPPNet, settings: RcnnSettings = RcnnSettings()) -> Tensor:
    """What the pyramid makes of each crop's map: [R, M, C], before the fully connected layers; see `rcnn_features`."""
    starts = range(0, max(1, len(boxes)), settings.at_once)
    maps = [rcnn_maps(image, boxes[start : start + settings.at_once], model, settings) for start in starts]
    with torch.inference_mode():
        return torch.cat([pyramid_pool(part, model.architecture.levels) for part in maps])


def rcnn_maps(image: np.ndarray, boxes: np.ndarray, model: SPPNet, settings: RcnnSettings = RcnnSettings()) -> Tensor:
    """The maps of boxes, all in one batch, however many ``settings`` asks for: [R, C, h, w]; see `rcnn_features`."""
    crops = torch.from_numpy(warp_boxes(image, boxes, settings.side, settings.context, model.preprocess.fill))
    crops = crops.to(model.device).permute(0, 3, 1, 2)  # [R, 3, s, s]
    mean, std = (
        torch.tensor(values, device=crops.device)[:, None, None]
        for values in (model.preprocess.mean, model.preprocess.std)
    )
    with model.inference(bfloat16=settings.bfloat16):
        return model.features(crops.float().mul_(1 / (255 * std)).sub_(mean / std))


def fastest_batch(
    run: Callable[[int], object],
    sizes: Sequence[int] = AT_ONCE,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, dict[int, float]]:
    """The size of batch that takes least time for each crop, measured on this machine.

    A slow baseline flatters: on a CPU, 4 crops at once were up to 3.4 times as fast as 25.

    Args:
        run: sends a batch of so many crops through the network.
        sizes: to choose from, each at least 1.
        repeats: of each, after one that is not counted; the median counts.
        clock: seconds.

    Returns:
        The size, and the seconds of one crop at each size.

    Example:
        >>> now = iter([0.0, 4.0, 4.0, 6.0])
        >>> fastest_batch(lambda size: None, sizes=(1, 4), repeats=1, clock=lambda: next(now))
        (4, {1: 4.0, 4: 0.5})
    """
    seconds: dict[int, float] = {}
    for size in sizes:
        run(size)
        times = []
        for _ in range(repeats):
            started = clock()
            run(size)
            times.append(clock() - started)
        seconds[size] = median(times) / size
    return min(seconds, key=lambda size: seconds[size]), seconds
