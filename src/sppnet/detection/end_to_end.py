"""Train a detector end to end, convolutions included: Fast R-CNN, as far as it goes beyond SPP-net.

image -> features -> windows -> pooled -> class scores and box deltas, in one graph: the gradient of a window goes through the
pooling into the convolutions. A batch holds few images and many windows of each, so that windows share what the convolutions
cost. Different from the paper, and measured with this project's own small network: AdamW and a cosine schedule, the convolutions
at a small part of the learning rate, bfloat16 where the processor has it. Source: arXiv:1504.08083, sections 2.3 and 4.5.

Images go through the backbone one by one, and not padded to one batch: that gives the same features, and took 1.6 times as long a
step where MobileNetV2 was trained from its 7th layer on, 1.75 times where all of it was (images of 480 x 640 and 640 x 480).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sppnet.data.annotations import AnnotatedImage
from sppnet.data.images import content_key, read_image
from sppnet.detection.feature_maps import FeatureMaps
from sppnet.detection.finetune import WindowSettings, checkpoint_folder, detection_losses, pool_windows, training_key
from sppnet.detection.network_proposals import best_proposals, place_anchors, proposal_losses
from sppnet.detection.targets import Candidates, TrainingImage, draw, find_candidates, flip, flip_objects, image_at
from sppnet.errors import SettingsError
from sppnet.models.precision import fast_backward
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.proposals.compute import NETWORK
from sppnet.training.loop import LoopSettings, adamw, fit, parameter_groups

TRAINED_PROPOSALS = 500  # of the network, from which windows are drawn


@dataclass(frozen=True)
class EndToEndSettings(WindowSettings):
    """How a detector is trained end to end."""

    train_layers: str = "all"  # see `trainable_layers`
    epochs: int = 6  # of all images
    images_per_step: int = 2  # on each device (paper)
    windows_per_image: int = 128
    side_shares: tuple[float, ...] = (0.75, 0.875, 1.0, 1.125)  # of a short side of the model's; drawn for each image
    backbone_rate: float = 0.1  # the convolutions' learning rate, as a share
    gradient_norm: float = 40.0  # longer gradients, which are rare, are shortened to this
    checkpoint_interval: int = 250  # steps


class Photo(NamedTuple):
    """One image of a batch, and windows of it."""

    pixels: Tensor  # [h, w, 3] uint8, as the backbone is to see it
    size: tuple[int, int]  # (height, width) before it was resized
    windows: Candidates  # in pixels of that
    objects: AnnotatedImage | None  # where the network proposes, in pixels of that


class PhotoBatches:
    """Batch number ``n``, always the same for the same seed."""

    def __init__(self, images: Sequence[TrainingImage], model: SPPNet, settings: EndToEndSettings) -> None:
        self.images, self.model, self.settings = images, model, settings

    def __getitem__(self, n: int) -> list[Photo]:
        count = self.settings.images_per_step
        return [self._photo(position) for position in range(n * count, (n + 1) * count)]

    def _photo(self, position: int) -> Photo:
        settings, rng = self.settings, np.random.default_rng([self.settings.seed, 2, position])
        image = self.images[image_at(position, len(self.images), settings.seed)]
        windows = draw(image.candidates, settings.windows_per_image, settings.foreground_share, rng)
        short_side = round(rng.choice(self.model.short_sides) * rng.choice(settings.side_shares))
        pixels, objects = read_image(image.path), image.objects if self.model.detection.proposals == NETWORK else None
        if settings.flip and rng.random() < 0.5:
            pixels, windows = pixels[:, ::-1], flip(windows, pixels.shape[1])
            objects = objects and flip_objects(objects, pixels.shape[1])
        resized = np.require(self.model.preprocess.resize(pixels, short_side), requirements=("C", "W"))
        return Photo(torch.from_numpy(resized), (pixels.shape[0], pixels.shape[1]), windows, objects)


def train_end_to_end(
    model: SPPNet,
    images: Sequence[TrainingImage],
    settings: EndToEndSettings,
    folder: Path,
    *,
    devices: int = 1,
    progress: Progress = no_progress,
) -> int:
    """Train a detector in place, convolutions included as far as ``settings.train_layers`` says.

    Args:
        model: a detector whose heads are the network's own; left in evaluation mode.
        images: at least one.
        settings: how.
        folder: as of `sppnet.detection.finetune.finetune`.
        devices: processes, one on each device of the model's kind: each runs the very same command.
        progress: called with "end to end", steps done, all.

    Returns:
        The rank of this process: of several, only 0 should write the model.

    Raises:
        SettingsError, OutputError, KeyboardInterrupt: see `sppnet.training.loop.fit` and `trainable_layers`.

    Source: arXiv:1504.08083, section 2.3.
    """
    convolutions = trainable_layers(model.backbone, settings.train_layers)
    heads = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
    key = training_key(settings, [content_key(image.path) for image in images], images, model)
    key |= {"preprocess": repr(model.preprocess), "scales": str(model.short_sides)}
    steps = math.ceil(settings.epochs * len(images) / (settings.images_per_step * devices))

    def loss(photos: Sequence[Photo], step: int) -> dict[str, Tensor]:
        maps, of_proposals = [], []
        for number, photo in enumerate(photos):
            with fast_backward(model.backbone):
                features = model.features(model.preprocess.normalize(photo.pixels, model.device))  # [1, C, h, w]
            scale = (photo.pixels.shape[0] / photo.size[0], photo.pixels.shape[1] / photo.size[1])
            windows = photo.windows
            if photo.objects is not None and model.proposal_head is not None:
                rng = np.random.default_rng([settings.seed, 4, step, number])
                answers, anchors = model.proposal_head(features), place_anchors(model, features, scale)
                of_proposals.append(proposal_losses(answers, anchors, photo.objects, rng))
                boxes = best_proposals([answers], [anchors], photo.size, TRAINED_PROPOSALS)
                found = find_candidates(photo.objects, boxes.numpy(), len(model.class_names), background_iou=0.0)
                windows = draw(found, settings.windows_per_image, settings.foreground_share, rng)
            maps.append((FeatureMaps((features,), (scale,), photo.size), windows, None))
        losses = detection_losses(model, pool_windows(model, maps).to(model.device), settings.image_weight)
        for name in of_proposals[0] if of_proposals else ():
            losses[name] = torch.stack([each[name] for each in of_proposals]).mean()
            losses["loss"] = losses["loss"] + losses[name]
        return losses

    groups = parameter_groups(
        heads, convolutions,
        learning_rate=settings.learning_rate, backbone_rate=settings.backbone_rate, weight_decay=settings.weight_decay,
    )  # fmt: skip
    loop = LoopSettings(
        steps, settings.checkpoint_interval, seed=settings.seed, gradient_norm=settings.gradient_norm, devices=devices,
        stage="end to end",
    )  # fmt: skip
    folder = checkpoint_folder(folder, loop.stage, key)
    model.train()
    model.backbone.eval()  # its BatchNorm and dropout stay as they are in use
    batches = PhotoBatches(images, model, settings)
    history = fit(
        model, batches, loss, *adamw(groups, steps), folder, loop, key=key, device=model.device, progress=progress
    )
    model.eval().requires_grad_(True)
    return history.rank


def trainable_layers(backbone: nn.Module, train_layers: str) -> list[nn.Parameter]:
    """Make some of a backbone's layers trainable, and freeze the others.

    Layers before the first that is trained keep no activations: their part of a step costs what it costs in use. What that
    saves, and what it loses: mAP 61.4 where the fully connected layers are trained, 66.9 from VGG-16's third stage on, 67.2
    from its second on, of which the first is not worth its time (arXiv:1504.08083, table 5).

    Args:
        backbone: its parameters' ``requires_grad`` are set. BatchNorm that is not folded (it follows no convolution) is never
            trained: two images say little about the statistics of all.
        train_layers: ``"all"``; ``"none"``, SPP-net's limit; or the first layer that is trained, in the order in which the
            backbone holds them: the name of a module, such as ``layer3`` or ``14.conv.1``, or the index of a top-level
            layer, from 0; -1 is the last.

    Returns:
        The parameters that are trained.

    Raises:
        SettingsError: no such layer, or none from there on that has weights. The message lists the layers.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> len(trainable_layers(net, "1")), [parameter.requires_grad for parameter in net.parameters()]
        (2, [False, False, True, True])
    """
    modules = dict(backbone.named_modules())  # a module stands before those that it holds
    order, children = list(modules), [name for name, _ in backbone.named_children()]
    expected = f"expected all, none, a name out of {', '.join(children)}, or of a layer inside them, or an index below {len(children)}"
    if train_layers in ("all", "none"):
        first = 0 if train_layers == "all" else len(order)
    elif train_layers in modules and train_layers:
        first = order.index(train_layers)
    else:
        try:
            first = order.index(children[int(train_layers)])
        except (ValueError, IndexError):
            raise SettingsError(f"train_layers is {train_layers!r}: no such layer; {expected}") from None
    for name, parameter in backbone.named_parameters():
        owner = name.rpartition(".")[0]
        is_norm = isinstance(modules[owner], nn.modules.batchnorm._BatchNorm)
        parameter.requires_grad_(order.index(owner) >= first and not is_norm)
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not trained and train_layers != "none":
        raise SettingsError(f"train_layers is {train_layers!r}: no layer from there on has weights; {expected}")
    return trained
