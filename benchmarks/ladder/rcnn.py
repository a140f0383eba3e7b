"""The steps of R-CNN: every window cut out, warped and sent through the network by itself; otherwise what SPP-net does.

Backbone, pyramid, fully connected layers, schedule and SVMs are those of the ladder's SPP-net of one scale, so what differs is what
a window's features come from. As fast as it can be: the size of batch that is fastest on this machine; each crop of the training goes
through the convolutions once. Two kinds of files are cached, one for each image:

- of a sample of windows, and of the whole image warped, what the pyramid makes of their crops: pooled [1 + N, M, C], on which the fully
  connected layers are trained. `WarpedMaps` stands in for an image's maps in `sppnet.detection.finetune`;
- of all windows that the SVMs may ask for, the head features [R, D].

Source: arXiv:1311.2524, section 2 and appendix A.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.steps import Step
from benchmarks.ladder.training import finetune_settings, images_to_train, proposals_step, training_step, untrained_step
from benchmarks.rcnn import AT_ONCE, RcnnSettings, fastest_batch, rcnn_features, rcnn_maps, rcnn_pooled
from benchmarks.results_file import read_results, write_results
from sppnet.boxes import flip_boxes
from sppnet.cache import fingerprint, read_tensors, write_tensors
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import content_key, image_size, read_image
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.finetune import finetune
from sppnet.detection.linear_heads import train_linear_heads
from sppnet.detection.svm import SVMSettings
from sppnet.detection.targets import TrainingImage, draw
from sppnet.detection.windows_of_images import ImageWindows
from sppnet.models.files import load
from sppnet.models.precision import to_half
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress


def some_proposals(ladder: Ladder, data: DetectionData, progress: Progress = no_progress) -> list[np.ndarray]:
    """The proposals of each image that R-CNN looks at: so many, drawn at random, the same for the same image's name."""
    boxes, most = ladder.proposals(data, progress), ladder.settings.rcnn_proposals
    if not most:
        return boxes
    chosen = []
    for image, each in zip(data.images, boxes, strict=True):
        rows = np.random.default_rng(zlib.crc32(image.image_id.encode())).permutation(len(each))[:most]
        chosen.append(each[np.sort(rows)])
    return chosen


# What stands in for feature maps and windows of them


@dataclass(frozen=True, eq=False)
class WarpedMaps:
    """Windows of one image that were pooled before, in the place of `sppnet.detection.feature_maps.FeatureMaps`."""

    boxes: Tensor  # [N, 4] of the sample
    pooled: Tensor  # [1 + N, M, C], the whole image first
    size: tuple[int, int]  # (height, width) of the image, in pixels
    scales: tuple[tuple[float, float], ...] = ((1.0, 1.0),)  # a crop has one

    def whole_window(self) -> Tensor:
        return torch.zeros(1, 5, dtype=torch.int64)

    def windows(self, model: SPPNet, boxes: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Their rows [R, 5] (the first number; from 1), and residuals [R, 4] of 0: a crop shows just its box."""
        rows = {box.tobytes(): row for row, box in enumerate(self.boxes.numpy())}
        windows = torch.zeros(len(boxes), 5, dtype=torch.int64)
        windows[:, 0] = torch.tensor([1 + rows[box.tobytes()] for box in boxes.numpy()])
        return windows, torch.zeros(len(boxes), 4)

    def pool(self, model: SPPNet, windows: Tensor) -> Tensor:
        return self.pooled[windows[:, 0]].to(model.device)


class WarpedCache:
    """Pooled crops of a sample of windows, where `sppnet.detection.finetune` expects a cache of feature maps."""

    def __init__(self, model: SPPNet, folder: Path, images: Iterable[TrainingImage], at_once: int) -> None:
        self.model, self.folder, self.at_once = model, folder, at_once
        self.boxes = {image.path: image.candidates.boxes for image in images}

    def path(self, image: Path, *, flip: bool = False) -> Path:
        return self.folder / f"{content_key(image)}{'-flipped' if flip else ''}.safetensors"

    def read(self, image: Path, *, flip: bool = False) -> WarpedMaps:
        """The crops of an image, or of its flip; computed where there are none."""
        path, size = self.path(image, flip=flip), image_size(image)
        found = read_tensors(path)
        if found is None:
            pixels, boxes = read_image(image), self.boxes[image]
            if flip:
                pixels, boxes = np.ascontiguousarray(pixels[:, ::-1]), flip_boxes(boxes, size[1])
            whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
            pooled = rcnn_pooled(pixels, torch.cat([whole, boxes]).numpy(), self.model, RcnnSettings(self.at_once))
            found = {"boxes": boxes, "pooled": to_half(pooled).cpu()}, {}
            write_tensors(path, *found)
        return WarpedMaps(found[0]["boxes"], found[0]["pooled"], size)


class WarpedWindows:
    """Images as SVMs and box regression take them, each window a crop through the whole network.

    Args:
        model: embeds.
        images: the images and their objects.
        proposals: [R, 4] of each.
        folder: head features that were computed are cached here, one file for each image.
        at_once: crops in a batch.
    """

    def __init__(
        self,
        model: SPPNet,
        images: Sequence[AnnotatedImage],
        proposals: Sequence[np.ndarray],
        folder: Path,
        at_once: int,
    ) -> None:
        self.model, self.images, self.proposals, self.folder, self.at_once = model, images, proposals, folder, at_once
        self.num_classes = len(model.class_names)
        self.fingerprint = fingerprint([str(folder), model.fully_connected.state_dict(), *proposals], size=8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageWindows:
        windows = ImageWindows.of(self.images[index], self.proposals[index], self.num_classes, lambda boxes: boxes)
        return replace(windows, embed=lambda rows: self.embedded(index, windows.boxes)[rows])

    def embedded(self, index: int, boxes: Tensor) -> Tensor:
        """Head features [R, D] of all windows of an image."""
        image = self.images[index].path
        path = self.folder / f"{content_key(image)}.safetensors"
        found = read_tensors(path)
        if found is None:
            features = rcnn_features(read_image(image), boxes.numpy(), self.model, RcnnSettings(self.at_once))
            found = {"features": to_half(features).cpu()}, {}
            write_tensors(path, *found)
        return found[0]["features"]


# The steps


def crops_at_once(ladder: Ladder) -> int:
    """The size of batch that takes least time for each crop, measured once on this machine."""
    file = ladder.folder / "rcnn-batch.json"
    known = read_results(file)
    if not known:
        model = load(untrained_step(ladder, "spp1", 0).model, ladder.settings.device)
        image = read_image(ladder.train.images[0].path)
        boxes = np.tile(np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32), (max(AT_ONCE), 1))
        best, seconds = fastest_batch(lambda size: rcnn_maps(image, boxes[:size], model), AT_ONCE)
        known = {"at once": best, "seconds a crop": seconds}
        write_results(file, known)
    return int(known["at once"])


def rcnn_finetune_step(ladder: Ladder, seed: int) -> Step:
    """A sample of each image's windows through the convolutions, then the fully connected layers on these crops, as SPP-net's."""
    settings, start = finetune_settings(ladder, seed), untrained_step(ladder, "spp1", seed)
    batch = untrained_step(ladder, "spp1", 0)
    crops = (
        ladder.cache
        / f"rcnn-crops-{ladder.key}-{ladder.settings.rcnn_windows}{f'-seed{seed}' if ladder.of_one_seed else ''}"
    )

    def train(model: SPPNet, folder: Path, progress: Progress) -> None:
        images, count = [], ladder.settings.rcnn_windows
        for number, each in enumerate(images_to_train(ladder)):  # the same for every seed, so that crops are made once
            sample = draw(each.candidates, count, settings.foreground_share, np.random.default_rng(number))
            images.append(TrainingImage(each.path, sample))
        cache = WarpedCache(model, crops, images, crops_at_once(ladder))
        for done, image in enumerate(images):
            for flip in (False, True)[: 1 + settings.flip]:
                cache.read(image.path, flip=flip)
            progress("crops", done + 1, len(images))
        finetune(model, images, cache, settings, folder, progress=progress)  # type: ignore[arg-type]

    name = f"rcnn-finetuned-{ladder.settings.rcnn_windows}-seed{seed}"
    step = training_step(ladder, name, start, train, (proposals_step(ladder), batch))
    return replace(step, shares=lambda: {"crops": [crops]})


def rcnn_linear_step(ladder: Ladder, seed: int, *, ridge: bool = False) -> Step:
    """All windows through the network, then SVMs on their head features; or ridge regression in their place, after the SVMs."""
    settings = ladder.settings
    windows = ladder.cache / f"rcnn-windows-{ladder.key}-{settings.rcnn_windows}-{settings.rcnn_proposals}-seed{seed}"

    def train(model: SPPNet, folder: Path, progress: Progress) -> None:
        proposals = some_proposals(ladder, ladder.train, progress)
        warped = WarpedWindows(model, ladder.train.images, proposals, windows, crops_at_once(ladder))
        for done in range(len(warped)):
            warped[done].embed(torch.zeros(0, dtype=torch.int64))
            progress("windows", done + 1, len(warped))
        heads = (None, BoxRegressionSettings()) if ridge else (SVMSettings(seed=seed), None)
        train_linear_heads(model, warped, folder, svm=heads[0], ridge=heads[1], progress=progress)  # type: ignore[arg-type]

    start = rcnn_linear_step(ladder, seed) if ridge else rcnn_finetune_step(ladder, seed)
    name = f"rcnn-{'ridge' if ridge else 'svm'}-{settings.rcnn_windows}-{settings.rcnn_proposals}-seed{seed}"
    step = training_step(ladder, name, start, train)
    return step if ridge else replace(step, shares=lambda: {"windows": [windows]})
