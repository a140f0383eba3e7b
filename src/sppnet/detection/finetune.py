"""Train the fully connected layers, class scores and box deltas on windows pooled from cached maps.

The backbone does not learn here: that is SPP-net's limit, and what makes it fast. A batch holds a few images, from each a
few dozen windows (`sppnet.detection.targets`) and the whole image as one more window, asked which classes are in it.
Source: arXiv:1406.4729, section 4.1; class scores and box deltas in one loss: arXiv:1504.08083, section 2.3. Different
from the paper, for speed: AdamW and a cosine schedule over a few thousand steps, in bfloat16 where the CPU has it.
"""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sppnet.boxes import flip_boxes, flip_deltas
from sppnet.detection.feature_maps import Progress
from sppnet.detection.map_cache import MapCache
from sppnet.detection.steps import Steps
from sppnet.detection.targets import Candidates, draw
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet

REFERENCE_WIDTH = 1024  # of a layer's input; wider layers learn slower in proportion, as Adam's steps add up over it


@dataclass(frozen=True)
class FinetuneSettings:
    """How the fully connected layers learn."""

    steps: int = 2500
    images_per_step: int = 8  # few images, many windows: reading a map costs more than pooling one more window
    windows_per_image: int = 64
    foreground_share: float = 0.25  # of the windows (paper, section 4.1)
    foreground_iou: float = 0.5
    background_iou: float = 0.1
    learning_rate: float = 1e-3  # peak, of layers up to REFERENCE_WIDTH wide; 5 % warm-up, then along a cosine
    weight_decay: float = 1e-2
    image_weight: float = 0.5  # of the whole-image loss against the windows'
    random_scale: bool = True  # of several scales, pool each window at any (release), and not at the one that suits it
    checkpoint_every: int = 100  # steps; a run that was stopped goes on from the last of these
    seed: int = 0


@dataclass(frozen=True)
class TrainingImage:
    """One image as training sees it: its candidates, and the maps of it and of its mirror image."""

    candidates: Candidates
    maps: tuple[Path, ...]  # the image's; then, if there is one, its mirror image's
    size: tuple[int, int]  # (height, width), pixels of the original


class WindowBatches(Dataset[dict[str, Tensor]]):
    """Batch number ``step``, always the same for the same seed: what makes a resumed run equal an unbroken one."""

    def __init__(
        self, images: Sequence[TrainingImage], model: SPPNet, cache: MapCache, settings: FinetuneSettings
    ) -> None:
        self.images, self.model, self.cache, self.settings = images, model, cache, settings

    def __len__(self) -> int:
        return self.settings.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.settings.seed, step])
        pooled, whole, residuals, labels, deltas, image_labels = [], [], [], [], [], []
        for index in self._images_of(step):
            image = self.images[index]
            chosen = torch.from_numpy(
                draw(image.candidates, self.settings.windows_per_image, self.settings.foreground_share, rng)
            )
            side = int(rng.integers(len(image.maps)))
            boxes, delta = image.candidates.boxes[chosen], image.candidates.deltas[chosen]
            if side:
                boxes, delta = flip_boxes(boxes, image.size[1]), flip_deltas(delta)
            maps = self.cache.read(image.maps[side])
            which = None
            if self.settings.random_scale and len(maps.scales) > 1:
                which = torch.from_numpy(rng.integers(len(maps.scales), size=len(boxes)))
            windows, off = maps.windows(self.model, boxes, which)
            residuals.append(off)
            vectors = maps.pool(self.model, torch.cat([maps.whole_window(), windows]))
            whole.append(vectors[:1])
            pooled.append(vectors[1:])
            labels.append(image.candidates.labels[chosen])
            deltas.append(delta)
            image_labels.append(image.candidates.image_labels)
        return {
            "pooled": torch.cat(whole + pooled),  # [B + R, M, C]: whole images first
            "residuals": torch.cat(residuals),  # [R, 4]
            "labels": torch.cat(labels),  # [R]
            "deltas": torch.cat(deltas),  # [R, 4]
            "image_labels": torch.stack(image_labels),  # [B, K]
        }

    def _images_of(self, step: int) -> list[int]:
        """Every image once before any comes again, in a new order each time round."""
        count, wanted = len(self.images), self.settings.images_per_step
        orders: dict[int, np.ndarray] = {}
        chosen = []
        for position in range(step * wanted, (step + 1) * wanted):
            turn = position // count
            if turn not in orders:
                orders[turn] = np.random.default_rng([self.settings.seed, 1, turn]).permutation(count)
            chosen.append(int(orders[turn][position % count]))
        return chosen


def detection_losses(
    window_logits: Tensor, deltas: Tensor, image_logits: Tensor, batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Cross-entropy of windows, smooth L1 of the foreground's box deltas, binary cross-entropy of whole images.

    Args:
        window_logits: [R, 1 + K].
        deltas: [R, K, 4]; only the true class's counts.
        image_logits: [B, K].
        batch: ``labels`` [R], ``deltas`` [R, 4], ``image_labels`` [B, K].
    """
    labels = batch["labels"]
    foreground = labels.nonzero().flatten()
    predicted = deltas[foreground, labels[foreground] - 1]
    boxes = F.smooth_l1_loss(predicted.float(), batch["deltas"][foreground], reduction="sum") / len(labels)
    return {
        "windows": F.cross_entropy(window_logits.float(), labels),
        "boxes": boxes,  # over all windows, so that an image full of objects does not weigh more (1504.08083)
        "images": F.binary_cross_entropy_with_logits(image_logits.float(), batch["image_labels"]),
    }


class _Finetune(L.LightningModule):
    def __init__(self, model: SPPNet, settings: FinetuneSettings) -> None:
        super().__init__()
        # Only what learns is a submodule here, so that a checkpoint holds no backbone.
        self.fully_connected = model.fully_connected
        deltas = (model.shared_deltas, model.class_deltas, model.residual_deltas)
        self.outputs = nn.ModuleList([model.window_classifier, *deltas, model.image_classifier])
        self.settings = settings
        self.model = [model]  # in a list: not a submodule

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        torch.manual_seed(self.settings.seed * 1_000_003 + self.global_step)  # dropout of a resumed run is the same
        model, images = self.model[0], len(batch["image_labels"])
        with autocast(self.device):
            described = model.fully_connected(batch["pooled"])
            logits, deltas = model.window_outputs(described[images:])
            deltas = model.correct_deltas(deltas, batch["residuals"])
            image_logits = model.image_classifier(described[:images])
        losses = detection_losses(logits, deltas, image_logits, batch)
        total = losses["windows"] + losses["boxes"] + self.settings.image_weight * losses["images"]
        self.log_dict({f"loss_{name}": value for name, value in losses.items()})
        return total

    def configure_optimizers(self) -> Any:
        settings = self.settings
        groups = [
            {"params": [parameter], "lr": settings.learning_rate * min(1.0, REFERENCE_WIDTH / parameter.shape[-1])}
            for parameter in self.parameters()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        warm = max(1, settings.steps // 20)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * min(1.0, step / settings.steps))) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def finetune(
    model: SPPNet,
    images: Sequence[TrainingImage],
    cache: MapCache,
    settings: FinetuneSettings,
    folder: Path,
    progress: Progress | None = None,
) -> SPPNet:
    """Train everything behind the pooling, in place.

    Args:
        model: with a backbone that stays as it is.
        images: each with at least one candidate.
        cache: reads their maps.
        settings: how.
        folder: checkpoints and a log (CSV) go here. If it holds a checkpoint of an earlier, stopped run of the same
            settings, that run goes on, and ends with the same weights, bit for bit on a CPU, as if never stopped.
        progress: called with steps done, and all.

    Returns:
        The model, in evaluation mode.

    Raises:
        KeyboardInterrupt: at Ctrl-C; the next call goes on from the last checkpoint.
    """
    torch.manual_seed(settings.seed)
    module = _Finetune(model.train(), settings)
    model.backbone.eval()
    batches = WindowBatches(images, model, cache, settings)
    sampler = Steps(settings.steps, settings.checkpoint_every, module)
    loader = DataLoader(batches, batch_size=None, sampler=sampler, num_workers=0)
    stretches = math.ceil(settings.steps / settings.checkpoint_every)
    last = folder / "last.ckpt"
    tell = progress or (lambda done, total: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches are read from memory maps
        warnings.filterwarnings("ignore", ".*GPU available but not used.*")
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # a short run
        warnings.filterwarnings("ignore", ".*Total length of .* is zero.*")  # a run that was finished before
        warnings.filterwarnings("ignore", ".*treespec.*")  # Lightning's use of PyTorch
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # it holds the checkpoint that we resume from
        warnings.filterwarnings("ignore", ".*dirpath has changed.*")  # the work folder was moved, or copied
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it greets, and recommends other products
        trainer = L.Trainer(
            accelerator=model.device.type,
            devices=1,
            max_epochs=stretches,  # and no `max_steps`: with it, Lightning loses a stretch where it resumes
            logger=CSVLogger(folder, name="log", version=""),
            callbacks=[
                ModelCheckpoint(folder, filename="last", every_n_epochs=1, enable_version_counter=False),
                LambdaCallback(on_train_batch_end=lambda trainer, *_: tell(trainer.global_step, settings.steps)),
            ],
            log_every_n_steps=10,
            enable_progress_bar=False,  # Lightning's writes to standard output
            enable_model_summary=False,
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
        at_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C, which it then ignores; whether to end is not ours
            signal.signal(signal.SIGINT, at_interrupt)
            raise KeyboardInterrupt from error
    return model.eval()
