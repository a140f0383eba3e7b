"""Fine-tune everything behind the pooling, on windows pooled from cached feature maps.

The backbone stays frozen: that is SPP-net's limit, and what makes it fast. A batch holds a few images, from each a few dozen
windows (`sppnet.detection.targets`) and the whole image as one more window, asked which classes are in it.
Source: arXiv:1406.4729, section 4.1; class scores and box deltas in one loss: arXiv:1504.08083, section 2.3. Different
from the paper, for speed: AdamW and a cosine schedule over a few thousand steps, in bfloat16 where the CPU has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.cache import Part, fingerprint
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import FeatureMaps
from sppnet.detection.targets import Candidates, TrainingImage, draw, flip, image_at
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.training.loop import LoopSettings, adamw, fit, parameter_groups


@dataclass(frozen=True)
class WindowSettings:
    """Which windows a batch holds, and what they weigh: of both trainings by gradients."""

    windows_per_image: int = 64
    foreground_share: float = 0.25  # of the windows, at most (paper, section 4.1)
    flip: bool = True  # train on the flipped images too
    learning_rate: float = 1e-3  # peak, of layers up to 1024 wide; 5 % warm-up, then along a cosine
    weight_decay: float = 1e-2  # not of biases
    image_weight: float = 0.5  # of the whole-image loss against the windows'
    seed: int = 0


@dataclass(frozen=True)
class FinetuneSettings(WindowSettings):
    """How the fully connected layers and heads are fine-tuned."""

    steps: int = 2500
    images_per_step: int = 8  # few images, many windows: reading a map costs more than pooling one more window
    checkpoint_interval: int = 100  # steps


class WindowBatch(NamedTuple):
    """Pooled windows of B images, R in all, and what they should answer."""

    pooled: Tensor  # [B + R, M, C]: the whole images first
    residuals: Tensor  # [R, 4]: see `sppnet.models.geometry.window_residuals`
    labels: Tensor  # [R], 0 = background
    deltas: Tensor  # [R, 4], over DELTA_SCALE
    image_labels: Tensor  # [B, K]

    def to(self, device: torch.device) -> WindowBatch:
        return WindowBatch(*(part.to(device) for part in self))


def pool_windows(model: SPPNet, images: Iterable[tuple[FeatureMaps, Candidates, Tensor | None]]) -> WindowBatch:
    """Pool the windows of some images, each given by its maps, its windows, and the map of each window [R] or None."""
    pooled, residuals, drawn = [], [], []
    for maps, candidates, scale in images:
        windows, its_residuals = maps.windows(model, candidates.boxes, scale)
        pooled.append(maps.pool(model, torch.cat([maps.whole_window(), windows])))  # [1 + R, M, C]
        residuals.append(its_residuals)
        drawn.append(candidates)
    return WindowBatch(
        torch.cat([part[:1] for part in pooled] + [part[1:] for part in pooled]),
        torch.cat(residuals),
        torch.cat([each.labels for each in drawn]),
        torch.cat([each.deltas for each in drawn]),
        torch.stack([each.image_labels for each in drawn]),
    )


def detection_losses(model: SPPNet, batch: WindowBatch, image_weight: float) -> dict[str, Tensor]:
    """Classify windows, move those of objects, classify whole images.

    Cross-entropy of the windows; smooth L1 of the foreground's box deltas, of the true class alone, over all windows, so that
    an image full of objects does not weigh more (arXiv:1504.08083); binary cross-entropy of the whole images.

    Args:
        model: its layers behind the pooling; the batch is on its device.
        image_weight: of the whole images.

    Returns:
        ``windows``, ``boxes``, ``images``, and their sum, ``loss``.
    """
    count = len(batch.image_labels)
    head_features = model.fully_connected(batch.pooled)  # [B + R, D]
    logits, deltas = model.heads(head_features[count:], batch.residuals)  # [R, 1 + K], [R, K, 4]
    image_logits = model.image_classifier(head_features[:count])  # [B, K]

    foreground = batch.labels.nonzero().flatten()
    moved = deltas[foreground, batch.labels[foreground] - 1].float()
    windows = F.cross_entropy(logits.float(), batch.labels)
    boxes = F.smooth_l1_loss(moved, batch.deltas[foreground], reduction="sum") / len(batch.labels)
    images = F.binary_cross_entropy_with_logits(image_logits.float(), batch.image_labels)
    return {"loss": windows + boxes + image_weight * images, "windows": windows, "boxes": boxes, "images": images}


class CachedBatches:
    """Batch number ``n``, always the same for the same seed."""

    def __init__(self, images: Sequence[TrainingImage], maps: FeatureMapCache, settings: FinetuneSettings) -> None:
        self.images, self.maps, self.settings = images, maps, settings

    def __getitem__(self, n: int) -> WindowBatch:
        settings, rng = self.settings, np.random.default_rng([self.settings.seed, n])
        parts = []
        for position in range(n * settings.images_per_step, (n + 1) * settings.images_per_step):
            image = self.images[image_at(position, len(self.images), settings.seed)]
            windows = draw(image.candidates, settings.windows_per_image, settings.foreground_share, rng)
            flipped = bool(rng.integers(1 + settings.flip))
            maps = self.maps.read(image.path, flip=flipped)
            scale = None
            if len(maps.scales) > 1:  # any (release), and not the one that suits the window
                scale = torch.from_numpy(rng.integers(len(maps.scales), size=len(windows.boxes)))
            parts.append((maps, flip(windows, maps.size[1]) if flipped else windows, scale))
        return pool_windows(self.maps.model, parts)


def finetune(
    model: SPPNet,
    images: Sequence[TrainingImage],
    maps: FeatureMapCache,
    settings: FinetuneSettings,
    folder: Path,
    *,
    progress: Progress = no_progress,
) -> None:
    """Train everything behind the pooling, in place; the model is left in evaluation mode.

    Args:
        model: a detector whose heads are the network's own.
        images: at least one.
        maps: of the model.
        settings: how.
        folder: checkpoints and a log go below it. Where an earlier run of the very same training was stopped, it goes on, and
            ends with the same weights, bit for bit on a CPU, as if never stopped.
        progress: called with "fine-tuning", steps done, all.

    Raises:
        SettingsError, OutputError, KeyboardInterrupt: see `sppnet.training.loop.fit`.

    Source: arXiv:1406.4729, section 4.1.
    """
    layers = (model.fully_connected, model.window_classifier, model.box_regressor, model.image_classifier)
    heads = nn.ModuleList(layer for layer in layers if layer is not None)
    names = [maps.folder.name, *(maps.path(image.path).name for image in images)]
    key = training_key(settings, names, images, heads)
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = parameter_groups(heads.parameters(), learning_rate=rate, weight_decay=decay)

    def loss(batch: WindowBatch, step: int) -> dict[str, Tensor]:
        return detection_losses(model, batch.to(model.device), settings.image_weight)

    loop = LoopSettings(settings.steps, settings.checkpoint_interval, seed=settings.seed, stage="fine-tuning")
    folder = checkpoint_folder(folder, loop.stage, key)
    batches = CachedBatches(images, maps, settings)
    heads.train()
    fit(heads, batches, loss, *adamw(groups, loop.steps), folder, loop, key=key, device=model.device, progress=progress)
    model.eval()


def training_key(
    settings: WindowSettings, names: Iterable[str], images: Sequence[TrainingImage], start: nn.Module
) -> dict[str, str]:
    """What a training starts from, by name: a stopped run of the very same kind alone may go on from its checkpoint.

    A setting counts where it differs from its default, so that a setting more leaves users' checkpoints good.
    """
    parts: list[Part] = [*names]
    for image in images:
        parts += [image.candidates.boxes, image.candidates.labels, image.candidates.image_labels]
    values = {each.name: (getattr(settings, each.name), each.default) for each in fields(settings)}
    values.pop("checkpoint_interval", None)
    told = {name: str(value) for name, (value, default) in values.items() if value != default}
    return {"images": fingerprint(parts, size=8), "weights": fingerprint([start.state_dict()], size=8), **told}


def checkpoint_folder(folder: Path, stage: str, key: Mapping[str, str]) -> Path:
    """Where a training leaves its checkpoints: named for the stage and all that it starts from."""
    return folder / f"{stage.replace(' ', '-')}-{fingerprint([repr(sorted(key.items()))], size=6)}"
