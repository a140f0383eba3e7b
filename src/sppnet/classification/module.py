"""The network in training, for Lightning: its loss, its optimiser, and what is measured on held-out images.

images, or what was pooled from them -> class logits [N, K] -> cross-entropy. Source: arXiv:1406.4729, section 3.1.
Different from the paper unless asked for: AdamW and a cosine instead of SGD and a rate that falls by ten, in bfloat16 where
the processor is fast at it; softmax over the classes of a folder; as many fully connected layers as the model has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sppnet.classification.loader import Batch
from sppnet.classification.settings import ClassifierSettings
from sppnet.errors import UserError
from sppnet.models.mixed_batch import mixed_features, own_windows
from sppnet.models.precision import autocast
from sppnet.models.sppnet import SPPNet

LOG_EVERY = 10  # steps
REFERENCE_WIDTH = 1024  # of a layer's input; wider layers learn slower in proportion, as Adam's steps add up over it
WARM_UP = 0.05  # of all steps
FALLS = (0.6, 0.85)  # "sgd": shares of all steps after which the rate is a tenth (paper: when the error stops falling)

Loaders = Callable[["ClassifierModule"], DataLoader[Any]]


class ClassifierModule(L.LightningModule):
    """Trains a model, in place.

    Args:
        model: single-label.
        settings: how.
        steps: of the whole training, on each device.
        train_loader, held_out_loader: make the batches; asked once the ranks of all processes are known.
    """

    def __init__(
        self,
        model: SPPNet,
        settings: ClassifierSettings,
        steps: int,
        train_loader: Loaders,
        held_out_loader: Loaders | None,
    ) -> None:
        super().__init__()
        # Only what learns is a submodule here, so that a checkpoint of a head holds no backbone.
        if settings.learn == "all":
            self.backbone = model.backbone
        self.fully_connected = model.fully_connected
        self.image_classifier = model.image_classifier
        self.settings, self.steps = settings, steps
        self.loaders = (train_loader, held_out_loader)
        self.watches = held_out_loader is not None
        self.measured: dict[str, float] | None = None  # on the held-out images, most lately
        self.model = [model]  # in a list: not a submodule

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loaders[0](self)

    def val_dataloader(self) -> Any:
        held_out = self.loaders[1]
        return [] if held_out is None else held_out(self)

    def on_fit_start(self) -> None:
        self.model[0].to(self.device)  # of several devices, Lightning has put only its submodules on this one

    def logits(self, batch: Batch) -> Tensor:
        """[N, K] float32."""
        model = self.model[0]
        with self.autocast():
            if "images" in batch and isinstance(batch["images"], Tensor):
                logits = model(self.normalised(batch["images"]))
            else:
                pooled = batch["pooled"] if "pooled" in batch else self.pooled(batch["images"])
                logits = model.image_classifier(model.fully_connected(pooled))
        return logits.float()

    def autocast(self) -> torch.autocast:
        """A context that computes in the precision asked for."""
        if self.settings.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return autocast(self.device, enabled=self.settings.precision == "auto")

    def pooled(self, images: list[Tensor]) -> Tensor:
        """Images of different sizes -> [N, M, C], in one batch: a BatchNorm that learns sees all of them together."""
        model = self.model[0]
        features, cells = mixed_features(model.backbone, [self.normalised(image[None])[0] for image in images])
        return model.pool(features * model.feature_scale, own_windows(cells, features.device))

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images [N, 3, h, w] as `SPPNet.prepare` gives them."""
        settings = self.model[0].architecture
        mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (settings.mean, settings.std))
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        # Of the step alone, so that dropout of a resumed run is the same; and of the rank, so that two draw differently.
        torch.manual_seed((self.settings.seed * 1_000_003 + self.global_step) * 1009 + self.global_rank)
        loss = F.cross_entropy(self.logits(batch), batch["labels"])
        if self.global_step % LOG_EVERY == 0:
            self._finite(loss.item())
        rate = self.trainer.optimizers[0].param_groups[-1]["lr"]
        shown = {"train_loss": loss, "learning_rate": rate, "epoch": self._epoch()}
        self.log_dict(shown, batch_size=len(batch["labels"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.sums = torch.zeros(3, device=self.device)  # images, wrong answers, losses

    def validation_step(self, batch: Batch, _: int) -> None:
        logits, labels = self.logits(batch), batch["labels"]
        wrong, losses = logits.argmax(1) != labels, F.cross_entropy(logits, labels, reduction="sum")
        self.sums += torch.stack([wrong.new_tensor(len(labels), dtype=torch.float32), wrong.float().sum(), losses])

    def on_validation_epoch_end(self) -> None:
        images, wrong, losses = self.trainer.strategy.reduce(self.sums, reduce_op="sum").tolist()  # over all ranks
        loss = self._finite(losses / images)
        self.measured = {"images": images, "wrong": wrong, "loss": loss, "epoch": self._epoch()}
        shown = {"val_loss": loss, "val_accuracy": 1 - wrong / images, "epoch": self._epoch()}
        self.log_dict(shown, sync_dist=True)
        # What the best checkpoint is chosen by: fewest mistakes; of as many, the smallest loss.
        self.log("choice", wrong + loss / (1 + loss), logger=False, sync_dist=True)

    def _epoch(self) -> float:
        return self.global_step * self.settings.epochs / self.steps

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise UserError(
                f"training went astray by step {self.global_step}: the loss is {loss}; take a smaller learning rate"
            )
        return loss

    def configure_optimizers(self) -> Any:
        settings = self.settings
        groups = [
            {
                "params": [parameter],
                "lr": settings.learning_rate * self._rate_of(name, parameter),
                "weight_decay": settings.weight_decay if parameter.ndim > 1 else 0.0,
            }
            for name, parameter in self.named_parameters()
        ]
        optimiser: torch.optim.Optimizer
        if settings.optimiser == "sgd":
            optimiser = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9)
            factor = self._falling
        else:
            optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
            factor = self._cosine
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_of(self, name: str, parameter: nn.Parameter) -> float:
        """Of one layer, as a share of the learning rate."""
        if name.startswith("backbone."):
            return self.settings.backbone_rate
        return 1.0 if self.settings.optimiser == "sgd" else min(1.0, REFERENCE_WIDTH / parameter.shape[-1])

    def _cosine(self, step: int) -> float:
        warm = max(1, round(WARM_UP * self.steps))
        return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2

    def _falling(self, step: int) -> float:
        return float(0.1 ** sum(step >= share * self.steps for share in FALLS))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["held_out"] = self.measured
        for logger in self.loggers:
            logger.save()  # so that the log of a run that is killed reaches to its checkpoint
