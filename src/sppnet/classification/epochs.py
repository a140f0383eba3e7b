"""Train a classifier by gradients: the head on a frozen backbone, or all of it; the epoch that does best on validation images stays.

images, or what a frozen backbone made of them -> class logits [N, K] -> cross-entropy. Source: arXiv:1406.4729, section 3.1.
Different from the paper unless asked for: AdamW and a cosine instead of SGD and a rate that falls by ten, in bfloat16 where
the processor is fast at it; softmax over the classes of a folder; as many fully connected layers as the model has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.cache import fingerprint
from sppnet.classification.batches import FeatureBatches, ImageBatches, Images, TrainingSizes, stack
from sppnet.classification.features import PooledFeatures, ReadableImages, pooled_features
from sppnet.data.images import read_ahead, read_image
from sppnet.data.samplers import SizeBuckets
from sppnet.errors import SettingsError
from sppnet.models.cut import fold_batch_norm
from sppnet.models.mixed_batch import MixedBatch
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.training.loop import LoopSettings, Precision, Validation, adamw, fit, parameter_groups, sgd

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Of each name the optimizer, and its learning rate and weight decay where none is given (sgd: the paper's, section 3.1).
OPTIMIZERS = {"adamw": (adamw, 1e-3, 1e-2), "sgd": (sgd, 1e-2, 5e-4)}
# Settings that do not count for whether a checkpoint fits, or are in the loop's own key.
NOT_IN_KEY = ("checkpoint_interval", "devices", "workers")


@dataclass(frozen=True)
class EpochSettings:
    """How a classifier is trained in epochs.

    Raises:
        SettingsError: a setting out of its range.

    Example:
        >>> EpochSettings(epochs=0)
        Traceback (most recent call last):
        sppnet.errors.SettingsError: epochs must be at least 1: got 0
    """

    train_backbone: bool = False  # False: it is frozen, and the layers behind it are trained on pooled features
    epochs: int = 30
    batch_size: int = 32  # images on each device
    learning_rate: float | None = None  # peak; None: 0.001 for adamw, 0.01 for sgd
    optimizer: Literal["adamw", "sgd"] = "adamw"  # "sgd": momentum 0.9, as Krizhevsky et al., 2012
    backbone_rate: float = 0.1  # the backbone's learning rate, as a share; 1 where it is trained from random weights
    weight_decay: float | None = None  # not of biases and norms; None: 0.01 for adamw, 0.0005 for sgd
    sizes: TrainingSizes = field(default_factory=TrainingSizes)  # where the backbone is trained
    precision: Precision = "auto"
    checkpoint_interval: int = 100  # steps
    seed: int = 0
    devices: int = 1  # processes, one on each device; more than one only where the backbone is trained
    workers: int = 0  # processes that make batches of images

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "checkpoint_interval": 1, "devices": 1, "workers": 0}.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be at least {least}: got {getattr(self, name)}")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise SettingsError(f"learning_rate must be between 0 and 1: got {self.learning_rate}")


class TrainedEpochs(NamedTuple):
    """What training in epochs comes to, beside the model."""

    figures: dict[str, Any]  # JSON-ready: "steps"; "best_epoch", None without validation images; "padding_share"
    log: dict[str, list[float]]  # columns by name, for `sppnet.visualize.plots.plot_training`
    rank: int  # of this process: with several devices every process gets here, and only 0 should write the model


def train_epochs(
    model: SPPNet,
    train: ReadableImages,
    validation: ReadableImages,
    settings: EpochSettings,
    cache: Path,
    *,
    progress: Progress = no_progress,
) -> TrainedEpochs:
    """Train a single-label model in place, and keep the epoch with the fewest mistakes; of as many, the smallest loss.

    Args:
        model: on its device; in evaluation mode at the end. Where its backbone is trained from random weights, that should still
            have its BatchNorm, which is folded at the end.
        train: images to train on.
        validation: images that choose the epoch; none: the last is kept.
        settings: how.
        cache: a folder, in which each training has its own, named for all that it starts from: a run that was stopped goes on from
            its last checkpoint. Pooled features are shared by all.
        progress: told of "features" and "training".

    Raises:
        SettingsError: a training that diverged; images of different sizes, and a backbone that cannot take them together.
        ImageError: a file that cannot be read.
        KeyboardInterrupt: at Ctrl-C.
    """
    native = settings.train_backbone and settings.sizes.rule == "native"
    if native and model.preprocess.resize_mode == "keep-aspect":
        MixedBatch(model.backbone)  # a backbone that cannot take images of different sizes together says so here
    smallest = 2 if settings.train_backbone and has_batch_norm(model) else 1
    seen = _seen_sizes(model, train) if native else np.ones((len(train.images), 2), np.int64)
    size = max(settings.batch_size, smallest)
    order = SizeBuckets(seen, size, seed=settings.seed, ranks=settings.devices, smallest_batch=smallest)
    key = _key(model, train, validation, settings)
    heads = nn.ModuleList([model.fully_connected, model.image_classifier])
    trained = model if settings.train_backbone else heads
    batches: ImageBatches | FeatureBatches
    features: PooledFeatures | None = None
    if settings.train_backbone:
        batches = ImageBatches(train, order, model.preprocess, settings.sizes, settings.seed)
    else:
        paths, count = [*train.images.paths, *validation.images.paths], len(train.images)
        pooled = pooled_features(model, paths, cache / "features", flip=True, progress=progress)
        batches, features = FeatureBatches(pooled[:count], train.images.labels, order, settings.seed), pooled[count:]

    def logits(inputs: Any) -> Tensor:
        if not settings.train_backbone:
            return model.image_logits(inputs.to(model.device))
        if isinstance(inputs, Tensor):
            return model(inputs.to(model.device).contiguous(memory_format=torch.channels_last))
        return model([image.to(model.device) for image in inputs])

    def cross_entropy(batch: tuple[Images, Tensor], _: int) -> dict[str, Tensor]:
        inputs, labels = batch
        return {"loss": F.cross_entropy(logits(inputs).float(), labels.to(model.device))}

    def read_validation(indices: list[int]) -> Images:
        if features is not None:
            return torch.stack([features.read(index) for index in indices])
        return stack([model.preprocess(read_image(validation.images.paths[index]))[0][0] for index in indices])

    def measure(fabric: Fabric) -> dict[str, float]:
        sizes = _seen_sizes(model, validation) if features is None else np.ones((len(features), 2), np.int64)
        rank = {"ranks": fabric.world_size, "rank": fabric.global_rank}
        batches = SizeBuckets(sizes, settings.batch_size, shuffle=False, smallest_batch=1, **rank).batches(0)
        truths = torch.from_numpy(validation.images.labels).to(model.device)
        sums = torch.zeros(2, device=model.device)  # mistakes, losses
        with model.inference(bfloat16=settings.precision != "float32"):
            for indices, inputs in zip(batches, read_ahead(batches, read_validation), strict=True):
                answers, labels = logits(inputs), truths[indices]
                losses = F.cross_entropy(answers.float(), labels, reduction="sum")
                sums += torch.stack([(answers.argmax(1) != labels).float().sum(), losses])
        total: Any = fabric.all_reduce(sums, reduce_op="sum")
        wrong, loss = (float(value) for value in total)
        images = len(validation.images)
        return {"val_wrong": wrong, "val_loss": loss / images, "val_accuracy": 1 - wrong / images}

    steps = len(order) * settings.epochs
    optimize, rate, decay = OPTIMIZERS[settings.optimizer]
    groups = parameter_groups(
        heads.parameters(),
        model.backbone.parameters() if settings.train_backbone else (),
        learning_rate=settings.learning_rate or rate,
        backbone_rate=settings.backbone_rate,
        weight_decay=decay if settings.weight_decay is None else settings.weight_decay,
        by_width=settings.optimizer == "adamw",
    )
    optimizer, schedule = optimize(groups, steps)
    trained.train()
    loop = LoopSettings(
        steps, settings.checkpoint_interval, min(10, len(order)), settings.seed,
        precision=settings.precision, devices=settings.devices, workers=settings.workers,
    )  # fmt: skip
    checks = Validation(len(order), measure, ("val_wrong", "val_loss")) if len(validation.images) else None
    folder = cache / f"run-{fingerprint([repr(sorted(key.items()))], size=8)}"
    history = fit(
        trained, batches, cross_entropy, optimizer, schedule, folder, loop,
        key=key, device=model.device, validation=checks, progress=progress,
    )  # fmt: skip
    model.eval()
    if settings.train_backbone:
        fold_batch_norm(model.backbone)
    figures = {
        "steps": steps,
        "best_epoch": round(history.best["step"]) // len(order) if history.best else None,
        "padding_share": round(order.padding_share(), 4) if native else 0.0,
    }
    return TrainedEpochs(figures, history.log, history.rank)


def has_batch_norm(model: SPPNet) -> bool:
    """Whether some of the backbone's statistics are those of batches."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.backbone.modules())


def _seen_sizes(model: SPPNet, images: ReadableImages) -> np.ndarray:
    """The sizes at which the model takes the images: [N, 2]."""
    seen = [model.preprocess.input_size((int(height), int(width))) for height, width in images.sizes]
    return np.array(seen, np.int64).reshape(-1, 2)


def _key(model: SPPNet, train: ReadableImages, validation: ReadableImages, settings: EpochSettings) -> dict[str, str]:
    """What training starts from, by name: only a stopped run of the very same kind may go on from its checkpoint.

    A setting counts where it differs from its default, so that a setting more leaves users' checkpoints good.
    """
    parts: list[Any] = []
    for images in (train, validation):
        parts += [*map(str, images.images.paths), images.images.labels, images.sizes]
    usual, given = vars(EpochSettings()), vars(settings).items()
    changed = {name: str(value) for name, value in given if name not in NOT_IN_KEY and str(value) != str(usual[name])}
    return {
        "images": fingerprint(parts, size=8),
        "weights": fingerprint([model.state_dict()], size=8),
        "preprocess": str(model.preprocess),
        **changed,
    }
