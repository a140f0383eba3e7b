"""torchvision's Faster R-CNN on a backbone that is given, as its documentation builds one for a data set of one's own.

images, a list of [3, h, w] in 0..1 -> backbone [N, C, h / 32, w / 32] -> proposals from 5 x 3 anchors a cell -> RoIAlign 7 x 7 -> two
fully connected layers of 1024 -> scores and boxes. All layers are trained. It is made as fast as it will go on a CPU without changing what
it computes: BatchNorm is folded (it would be frozen in so small batches), memory is channels last, and convolutions and linear layers run in
bfloat16 where that is faster (`choose_precision`), with `sppnet.models.precision.fast_backward`. Two numbers are smaller than torchvision's:
windows an image that the last stage learns from, as many as are asked for, where 512 stand for batches of GPUs; and 300 proposals a
test image instead of 1000, as in arXiv:1506.01497.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from sppnet.boxes import flip_boxes
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import read_image
from sppnet.detection.evaluate import SCORE_THRESHOLDS
from sppnet.metrics.voc import ClassResult, evaluate_voc
from sppnet.models.geometry import backbone_geometry
from sppnet.models.precision import autocast, fast_backward, precision_of
from sppnet.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from sppnet.progress import Progress, no_progress

WIDTH = 1024  # of its fully connected layers
SIDE = 7  # of a window's map
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)  # of anchors, in pixels of the resized image
TEST_PROPOSALS = 300


class Part(nn.Module):
    """A part of the network that may compute in bfloat16; what comes out is float32 again, for boxes need it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.bfloat16 = False

    def forward(self, given: Any) -> Any:
        if isinstance(given, Tensor) and given.ndim == 4:
            given = given.contiguous(memory_format=torch.channels_last)
        with autocast(torch.device("cpu"), enabled=self.bfloat16), fast_backward(self.inner):
            return _single(self.inner(given))


def build_faster_rcnn(backbone: nn.Module, short_side: int, long_side: int, windows: int) -> FasterRCNN:
    """A detector of one class.

    Args:
        backbone: images to one map; all its layers will learn.
        short_side, long_side: pixels that images are resized to, as of `sppnet.models.preprocess.Preprocess`.
        windows: of an image, that the last stage learns from.
    """
    channels = backbone_geometry(backbone).channels
    part = Part(backbone.to(memory_format=torch.channels_last).requires_grad_(True))
    part.out_channels = channels  # type: ignore[assignment]
    return FasterRCNN(
        part,
        min_size=short_side,
        max_size=long_side,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        rpn_anchor_generator=AnchorGenerator((SIZES,), (RATIOS,)),
        rpn_head=Part(RPNHead(channels, len(SIZES) * len(RATIOS)).to(memory_format=torch.channels_last)),
        rpn_post_nms_top_n_test=TEST_PROPOSALS,
        box_roi_pool=MultiScaleRoIAlign(["0"], SIDE, 2),
        box_head=Part(TwoMLPHead(channels * SIDE**2, WIDTH)),
        box_predictor=Part(FastRCNNPredictor(WIDTH, 2)),
        box_score_thresh=SCORE_THRESHOLDS["probability"],
        box_batch_size_per_image=windows,
    )


def compute_in(model: nn.Module, *, bfloat16: bool) -> None:
    """Have its parts compute in bfloat16, or not."""
    for module in model.modules():
        if isinstance(module, Part):
            module.bfloat16 = bfloat16


def choose_precision(model: FasterRCNN, images: list[Tensor], targets: list[dict[str, Tensor]]) -> bool:
    """Whether a step of training is faster in bfloat16; the model is set to compute so. Its weights stay as they are."""
    if precision_of(torch.device("cpu")) != "bfloat16":
        return False
    seconds: dict[bool, float] = {}
    for bfloat16 in (False, True):
        compute_in(model, bfloat16=bfloat16)
        for turn in range(3):
            started = time.perf_counter()
            sum(model(images, targets).values()).backward()
            if turn:  # the first one prepares
                seconds[bfloat16] = min(seconds.get(bfloat16, math.inf), time.perf_counter() - started)
            model.zero_grad()
    compute_in(model, bfloat16=seconds[True] < seconds[False])
    return seconds[True] < seconds[False]


def example(image: AnnotatedImage, *, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """An image as torchvision's detectors learn from it: [3, h, w] in 0..1, boxes and labels; difficult objects are left out."""
    pixels, boxes = read_image(image.path), torch.from_numpy(image.gt_boxes[~image.difficult])
    if flip:
        pixels, boxes = pixels[:, ::-1], flip_boxes(boxes, pixels.shape[1])
    return _tensor(pixels), {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}


def average_precision_of(model: FasterRCNN, data: DetectionData, progress: Progress = no_progress) -> ClassResult:
    """What VOC's rules say of the boxes that the model finds.

    Args:
        model: of one class. In training mode afterwards.
        data: of that class alone.
        progress: the stage is "testing".
    """
    model.eval()
    found = []
    with torch.inference_mode():
        for done, image in enumerate(data.images):
            (answer,) = model([_tensor(read_image(image.path))])
            found.append((answer["boxes"].numpy(), answer["scores"].numpy(), answer["labels"].numpy()))
            progress("testing", done + 1, len(data))
    model.train()
    truth = [(image.gt_boxes, image.gt_labels, image.difficult) for image in data.images]
    return evaluate_voc(found, truth, data.class_names).classes[0]


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


def _single(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.float()
    kept: Sequence[Any] = [_single(each) for each in given]
    return tuple(kept) if isinstance(given, tuple) else kept
