"""Learning end to end: one stage, in which the loss of windows reaches the convolutions through the pooling.

images -> features, each image alone at its own size -> windows pooled [R, M, C] -> class scores and box deltas -> one loss,
whose gradient goes all the way back. What SPP-net does in stages, and with convolutions that stay as they are, is one; and
nothing lies on disk but checkpoints. Source: Girshick, arXiv:1504.08083, section 2.3. Different from it: AdamW and a cosine
instead of SGD and steps; a pyramid instead of one level; BatchNorm folded into the convolutions before it, so that its
statistics stay; the whole image as one more window.

One by one, and not padded to one batch: `sppnet.models.mixed_batch` gives the same features, and took 1.6 times as long a
step where MobileNetV2 learns from its 7th layer on, 1.75 times where all of it does (images of 480 x 640 and 640 x 480).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sppnet.detection.feature_maps import FeatureMaps
from sppnet.detection.finetune import REFERENCE_WIDTH, detection_losses
from sppnet.detection.image_batches import ImageBatches, LearningImage, Sample
from sppnet.detection.learning_layers import choose_layers
from sppnet.detection.steps import Steps
from sppnet.errors import UserError
from sppnet.models.precision import autocast, fast_backward
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress

WARM_UP = 0.05  # of all steps
LOG_EVERY = 10  # steps
LAST = "last.ckpt"
# Of Lightning's advice, what a user can do nothing about here.
UNWANTED = (
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    ".*exists and is not empty.*",  # it holds the checkpoint that a run goes on from
    ".*treespec.*",  # Lightning's use of PyTorch
    ".*in eval mode at the start of training.*",  # the backbone is: its BatchNorm and dropout stay as they are in use
)


@dataclass(frozen=True)
class FastRcnnSettings:
    """How a detector learns end to end.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> FastRcnnSettings(epochs=0)
        Traceback (most recent call last):
        sppnet.errors.UserError: epochs must be at least 1: got 0
    """

    learn: str = "all"  # see `sppnet.detection.learning_layers.choose_layers`
    epochs: int = 6  # of all images
    images_per_step: int = 2  # on each device (paper)
    windows_per_image: int = 64  # (paper)
    foreground_share: float = 0.25  # of the windows, at most (paper)
    foreground_iou: float = 0.5  # (paper)
    background_iou: float = 0.1  # (paper)
    short_sides: tuple[int, ...] = ()  # pixels; one is drawn for each image; none: of the architecture's own
    mirrored: bool = True
    learning_rate: float = 1e-3  # peak, of fully connected layers up to 1024 wide; 5 % warm-up, then along a cosine
    backbone_rate: float = 0.03  # the convolutions' learning rate, as a share
    weight_decay: float = 1e-2  # not of biases
    gradient_norm: float = 40.0  # longer gradients, which are rare, are shortened to this
    image_weight: float = 0.5  # of the whole-image loss against the windows'
    checkpoint_every: int = 250  # steps; a run that was stopped goes on from the last of these
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "images_per_step", "windows_per_image", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1: got {getattr(self, name)}")
        for name in ("learning_rate", "foreground_share", "backbone_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must be above 0 and at most 1: got {getattr(self, name)}")
        if not 0 <= self.background_iou < self.foreground_iou <= 1:
            raise UserError(
                "expected 0 <= background_iou < foreground_iou <= 1: "
                f"got {self.background_iou} and {self.foreground_iou}"
            )
        if self.gradient_norm <= 0 or self.weight_decay < 0 or self.image_weight < 0:
            raise UserError(
                "gradient_norm must be above 0, weight_decay and image_weight at least 0: "
                f"got {self.gradient_norm}, {self.weight_decay} and {self.image_weight}"
            )
        if any(side < 1 for side in self.short_sides):
            raise UserError(f"short_sides must be at least 1 pixel: got {list(self.short_sides)}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be a whole number from 0 to {2**32 - 1}: got {self.seed}")

    def steps(self, images: int, devices: int = 1) -> int:
        """On each device, for so many images.

        Example:
            >>> FastRcnnSettings(epochs=3).steps(images=5)
            8
        """
        return math.ceil(self.epochs * images / (self.images_per_step * devices))


def learn_end_to_end(
    model: SPPNet,
    images: Sequence[LearningImage],
    settings: FastRcnnSettings,
    folder: Path,
    *,
    devices: int = 1,
    workers: int = 0,
    progress: Progress | None = None,
) -> int:
    """Train a detector in place, convolutions included as far as ``settings.learn`` says.

    Args:
        model: a detector, on its device; left in evaluation mode.
        images: to learn from.
        settings: how.
        folder: checkpoints and a log (CSV) go here. If it holds a checkpoint of an earlier, stopped run of the same kind,
            that run goes on, and ends with the same weights, bit for bit on a CPU, as if never stopped.
        devices: processes, one on each device of the model's kind (on a CPU: gloo). Lightning starts the others by running
            the very same command again.
        workers: processes that read images; 0: the training itself does.
        progress: called with steps done, and all.

    Returns:
        The rank of this process: with several devices every process gets here, and only 0 should write the model.

    Raises:
        UserError: no such layers to learn, or a loss that is no number.
        KeyboardInterrupt: at Ctrl-C; the next call goes on from the last checkpoint.

    Source: arXiv:1504.08083, section 2.3.
    """
    torch.manual_seed(settings.seed)
    steps = settings.steps(len(images), devices)
    module = FastRcnn(model.train(), images, settings, steps, workers)
    model.backbone.eval()
    last, device = folder / LAST, model.device
    tell = progress or (lambda done, total: None)
    runs = len(list((folder / "log").glob("*")))
    callbacks: list[Callback] = [
        _Last(last),
        LambdaCallback(
            on_train_batch_end=lambda trainer, *_: trainer.is_global_zero and tell(trainer.global_step, steps)
        ),
    ]
    with warnings.catch_warnings():
        for message in UNWANTED:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it greets, and recommends other products
        trainer = L.Trainer(
            accelerator=device.type,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            # Its epochs are stretches between checkpoints: it resumes exactly between epochs, but not within one. And no
            # `max_steps`: with it, it loses a stretch where it resumes.
            max_epochs=math.ceil(steps / settings.checkpoint_every),
            logger=CSVLogger(folder, name="log", version=f"{runs:04d}"),
            callbacks=callbacks,
            log_every_n_steps=LOG_EVERY,
            enable_checkpointing=False,  # `_Last` does
            enable_progress_bar=False,  # Lightning's writes to standard output
            enable_model_summary=False,
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
        at_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C, which it then ignores; whether to end is not ours
            signal.signal(signal.SIGINT, at_interrupt)
            raise KeyboardInterrupt from error
    model.to(device).eval().requires_grad_(True)  # Lightning leaves what it trained on the CPU
    return module.global_rank


class FastRcnn(L.LightningModule):
    """The network as it learns end to end, for Lightning.

    Args:
        model: a detector; its backbone in evaluation mode.
        images: to learn from.
        settings: how.
        steps: of the whole training, on each device.
        workers: processes that read images.
    """

    def __init__(
        self, model: SPPNet, images: Sequence[LearningImage], settings: FastRcnnSettings, steps: int, workers: int = 0
    ) -> None:
        super().__init__()
        self.settings, self.steps, self.images, self.workers = settings, steps, images, workers
        # Only what learns is held here, so that a checkpoint has nothing else.
        self.convolutions = nn.ParameterList(choose_layers(model.backbone, settings.learn).values())
        self.fully_connected = model.fully_connected
        deltas = (model.shared_deltas, model.class_deltas, model.residual_deltas)
        self.outputs = nn.ModuleList([model.window_classifier, *deltas, model.image_classifier])
        self.model = [model]  # in a list: not a submodule

    def train_dataloader(self) -> DataLoader[list[Sample]]:
        model, settings = self.model[0], self.settings
        batches = ImageBatches(
            self.images, model.architecture, model.smallest_side,
            images_per_step=settings.images_per_step, windows_per_image=settings.windows_per_image,
            foreground_share=settings.foreground_share, short_sides=settings.short_sides, mirrored=settings.mirrored,
            seed=settings.seed, rank=self.global_rank, ranks=self.trainer.world_size,
        )  # fmt: skip
        sampler = Steps(self.steps, settings.checkpoint_every, self)
        return DataLoader(
            batches, batch_size=None, sampler=sampler, collate_fn=_as_it_is, num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )  # fmt: skip

    def transfer_batch_to_device(self, batch: list[Sample], device: torch.device, dataloader_idx: int) -> list[Sample]:
        return batch  # `losses` moves what is needed: windows are worked out on the CPU

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """Of windows, boxes and whole images: see `sppnet.detection.finetune.detection_losses`."""
        model, device = self.model[0], self.device
        whole, pooled, residuals = [], [], []
        with autocast(device), fast_backward(model.backbone):
            for sample in batch:
                features = model.features(model.normalise(sample.image))
                maps = FeatureMaps((features,), (sample.scale,), sample.size)
                windows, off = maps.windows(model, sample.boxes)
                residuals.append(off)
                vectors = maps.pool(model, torch.cat([maps.whole_window(), windows]))
                whole.append(vectors[:1])
                pooled.append(vectors[1:])
            described = model.fully_connected(torch.cat(whole + pooled))
            logits, deltas = model.window_outputs(described[len(batch) :])
            deltas = model.correct_deltas(deltas, torch.cat(residuals).to(device))
            image_logits = model.image_classifier(described[: len(batch)])
        targets = {
            "labels": torch.cat([sample.labels for sample in batch]).to(device),
            "deltas": torch.cat([sample.deltas for sample in batch]).to(device),
            "image_labels": torch.stack([sample.image_labels for sample in batch]).to(device),
        }
        return detection_losses(logits, deltas, image_logits, targets)

    def training_step(self, batch: list[Sample], _: int) -> Tensor:
        # Of the step alone, so that dropout of a resumed run is the same; and of the rank, so that two draw differently.
        torch.manual_seed((self.settings.seed * 1_000_003 + self.global_step) * 1009 + self.global_rank)
        losses = self.losses(batch)
        total = losses["windows"] + losses["boxes"] + self.settings.image_weight * losses["images"]
        rate = self.trainer.optimizers[0].param_groups[-1]["lr"]
        shown = {f"loss_{name}": value for name, value in losses.items()} | {"learning_rate": rate}
        self.log_dict(shown, batch_size=len(batch))
        return total

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not norm.isfinite():
            raise UserError(
                f"training went astray at step {self.global_step}: the gradient is {float(norm)}; take a smaller learning rate"
            )
        if norm > self.settings.gradient_norm:  # else the gradients are read once less
            nn.utils.clip_grads_with_norm_(self.parameters(), self.settings.gradient_norm, norm)
        self.log("gradient_norm", norm)

    def configure_optimizers(self) -> Any:
        settings = self.settings
        convolutions = {id(parameter) for parameter in self.convolutions}
        groups = [
            {
                "params": [parameter],
                "lr": settings.learning_rate
                * (settings.backbone_rate if id(parameter) in convolutions else _share(parameter)),
                "weight_decay": settings.weight_decay if parameter.ndim > 1 else 0.0,
            }
            for parameter in self.parameters()
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        warm = max(1, round(WARM_UP * self.steps))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.save()  # so that the log of a run that is killed reaches to its checkpoint


def _share(parameter: Tensor) -> float:
    """Of the learning rate: wide layers learn slower in proportion, as Adam's steps add up over their input."""
    return min(1.0, REFERENCE_WIDTH / parameter.shape[-1])


def _as_it_is(batch: list[Sample]) -> list[Sample]:
    return batch


class _Last(Callback):
    """Saves all that a run needs to go on, after every stretch; a file that is there is always whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)  # asked of every rank
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
