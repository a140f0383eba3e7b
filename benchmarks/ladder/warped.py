"""R-CNN's windows of the images to learn from, each cut out, warped and sent through the backbone, kept on disk.

Two kinds of files, one for each image:

- of a sample of windows, and of the whole image warped, what the pyramid makes of their crops: pooled [1 + N, M, C] half precision,
  from which the fully connected layers learn. `WarpedMaps` stands in for an image's maps in `sppnet.detection.finetune`, so that
  R-CNN learns by the very same steps as SPP-net.
- of all windows that the SVMs may ask for, what the fully connected layers say: described [R, D] half precision. So every window
  goes through the network once, and not once for each stage.

Source: arXiv:1311.2524, sections 2.3 and appendix A.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sppnet.detection.image_windows import ImageWindows, WindowsOfImages
from sppnet.detection.rcnn import RcnnSettings, rcnn_features, rcnn_pooled
from sppnet.whole_file import whole_file
from torch import Tensor

from sppnet.boxes import flip_boxes
from sppnet.data.annotations import AnnotatedImage
from sppnet.data.images import read_image
from sppnet.detection.targets import Candidates, draw
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.files import load_proposals, save_proposals


@dataclass(frozen=True, eq=False)
class WarpedMaps:
    """Windows of one image that were pooled before, in the place of `sppnet.detection.maps.FeatureMaps`."""

    boxes: Tensor  # [N, 4] of the sample
    pooled: Tensor  # [1 + N, M, C], the whole image first
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
    """Reads what `pool_sample` wrote, where `sppnet.detection.finetune` expects a cache of maps."""

    def read(self, path: Path) -> WarpedMaps:
        stored = load_file(path)
        return WarpedMaps(stored["boxes"], stored["pooled"])


def sample_candidates(candidates: Candidates, count: int, foreground_share: float, seed: int) -> Candidates:
    """At most ``count`` of an image's candidates, with the share of foreground that learning draws them with."""
    rows = torch.from_numpy(np.sort(draw(candidates, count, foreground_share, np.random.default_rng(seed))))
    foreground = int((rows < candidates.foreground).sum())
    return replace(
        candidates, boxes=candidates.boxes[rows], labels=candidates.labels[rows], deltas=candidates.deltas[rows],
        foreground=foreground,
    )  # fmt: skip


def pool_sample(model: SPPNet, image: Path, boxes: Tensor, path: Path, *, at_once: int, mirrored: bool = False) -> None:
    """Write the file of a sample of windows, of the image or of its mirror image; nothing where it is there and whole.

    Args:
        model: gives the backbone and the pyramid.
        image: its file.
        boxes: [N, 4] in pixels of the image.
        path: of the file, .safetensors.
        at_once: crops in a batch.
        mirrored: of the mirror image; the boxes are mirrored too.
    """
    if is_whole(path):
        return
    pixels = read_image(image)
    if mirrored:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        boxes = flip_boxes(boxes, pixels.shape[1])
    whole = torch.tensor([[0.0, 0.0, pixels.shape[1], pixels.shape[0]]])
    pooled = rcnn_pooled(pixels, torch.cat([whole, boxes]).numpy(), model, RcnnSettings(at_once))
    write(path, {"boxes": boxes.contiguous(), "pooled": in_half(pooled)})


def describe_all(model: SPPNet, image: AnnotatedImage, proposals: Path, path: Path, *, at_once: int) -> None:
    """Write what the fully connected layers say of an image's objects and proposals; nothing where it is there and whole."""
    if is_whole(path):
        return
    boxes = _all_boxes(image, load_proposals(proposals)[0])
    described = rcnn_features(read_image(image.path), boxes, model, RcnnSettings(at_once))
    write(path, {"described": in_half(described)})


class WarpedWindows(WindowsOfImages):
    """Images as the SVMs and box regressors take them, from the files that `describe_all` wrote.

    Args:
        images: the images and their objects.
        proposals: the proposals' file of each.
        files: of each, what was described.
        classes: K.
    """

    def __init__(
        self, images: Sequence[AnnotatedImage], proposals: Sequence[Path], files: Sequence[Path], classes: int
    ) -> None:
        super().__init__(images)
        self.proposals, self.files, self.classes = proposals, files, classes

    def windows_of(self, index: int) -> ImageWindows:
        boxes = load_proposals(self.proposals[index])[0]
        windows = ImageWindows.of(self.images[index], boxes, self.classes, lambda asked: asked)
        file = self.files[index]
        return replace(windows, describe=lambda rows: load_file(file)["described"][rows])


def capped_proposals(source: Path, target: Path, image_id: str, most: int) -> None:
    """Write a file of at most ``most`` of the proposals of another, drawn at random, the same for the same image's name."""
    boxes, made_by = load_proposals(source)
    wanted = {**made_by, "at most": most}
    if target.exists() and load_proposals(target)[1] == wanted:
        return
    rows = np.random.default_rng(zlib.crc32(image_id.encode())).permutation(len(boxes))[:most]
    save_proposals(target, boxes[np.sort(rows)], wanted)


def in_half(values: Tensor) -> Tensor:
    """In half precision on the CPU; what it cannot hold becomes its largest number."""
    limit = torch.finfo(torch.float16).max
    return values.float().clamp(-limit, limit).half().cpu().contiguous()


def is_whole(path: Path) -> bool:
    """Whether a file is there and can be read; it was written whole or not at all."""
    try:
        load_file(path)
    except (FileNotFoundError, SafetensorError):
        return False
    return True


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """A .safetensors file, whole or not at all."""
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished)


def _all_boxes(image: AnnotatedImage, proposals: np.ndarray) -> np.ndarray:
    """In the order of `ImageWindows.of`: objects that are not difficult, then proposals."""
    return np.concatenate([image.gt_boxes[~image.difficult], proposals]).astype(np.float32)
