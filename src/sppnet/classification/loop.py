"""Lightning's loop around a classifier that learns: all epochs, checkpoints, logs, and going on exactly where a run was stopped.

`sppnet.classification.train` makes the module and its batches; this goes through them, and leaves the module with
the weights of the epoch that did best on the held-out images.
"""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint

from sppnet.classification.log import training_loggers
from sppnet.classification.module import LOG_EVERY, ClassifierModule
from sppnet.errors import UserError

LAST, BEST = "last.ckpt", "best.ckpt"
# Of Lightning's advice, what a user can do nothing about here.
UNWANTED = (
    ".*does not have many workers.*",  # that is for the caller to say
    ".*GPU available but not used.*",
    ".*exists and is not empty.*",  # it holds the checkpoint that a run goes on from
    ".*Total length of .* is zero.*",  # nothing was held out
    ".*treespec.*",  # Lightning's use of PyTorch
    ".*Checkpoint directory.*",
    ".*in eval mode at the start of training.*",  # a frozen part is
)


def fit(module: ClassifierModule, folder: Path, *, steps: int, devices: int, tell: Callable[[int, int], None]) -> None:
    """Train for all epochs, going on from the last checkpoint; the module then has the weights of its best epoch.

    What Lightning calls an epoch is a stretch between two checkpoints here, some to an epoch: it resumes exactly between
    its epochs, but not within one.

    Args:
        module: trained in place, and put back on its device.
        folder: of checkpoints and logs; of this training alone.
        steps: in one epoch, on each device.
        devices: processes, one on each.
        tell: told of steps done, and all.

    Raises:
        UserError: as the batches, or a loss that is no number.
        KeyboardInterrupt: at Ctrl-C.
    """
    model, settings, last = module.model[0], module.settings, folder / LAST
    stretches = math.ceil(steps / settings.checkpoint_every)  # in an epoch
    done = int(_read(last)["global_step"]) if last.exists() else 0
    model.train()
    if settings.learn == "head":
        model.backbone.eval()
    callbacks: list[Callback] = [
        _Last(last, every=max(1, settings.checkpoint_every // steps)),
        LambdaCallback(on_train_batch_end=lambda trainer, *_: tell(trainer.global_step, module.steps)),
    ]
    if module.watches:
        callbacks.append(
            ModelCheckpoint(
                folder,
                filename=Path(BEST).stem,
                monitor="choice",
                save_weights_only=True,
                save_on_train_epoch_end=False,  # when it was measured, and so before `_Last`, which keeps what it chose
                enable_version_counter=False,
            )
        )
    with warnings.catch_warnings():
        for message in UNWANTED:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it greets, and recommends other products
        trainer = L.Trainer(
            accelerator=model.device.type,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=settings.epochs * stretches,  # no `max_steps`: with it, Lightning loses a stretch as it resumes
            check_val_every_n_epoch=stretches,
            num_sanity_val_steps=0,
            logger=training_loggers(folder, done),
            callbacks=callbacks,
            log_every_n_steps=min(LOG_EVERY, steps),
            enable_checkpointing=module.watches,  # else Lightning adds a `ModelCheckpoint` of its own
            enable_progress_bar=False,  # Lightning's writes to standard output
            enable_model_summary=False,
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
        at_interrupt, device = signal.getsignal(signal.SIGINT), model.device
        try:
            trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C, which it then ignores; whether to end is not ours
            signal.signal(signal.SIGINT, at_interrupt)
            raise KeyboardInterrupt from error
        except UserError as error:
            raise _of_worker(error) from error
        model.to(device)  # Lightning leaves what it trained on the CPU
    if module.watches:
        best = _read(folder / BEST)
        module.load_state_dict(best["state_dict"])
        module.measured = best["held_out"]


class _Last(Callback):
    """Saves all that a run needs to go on: after every few stretches, and after the last."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        stretches = trainer.current_epoch + 1
        if stretches % self.every == 0 or stretches == trainer.max_epochs:
            trainer.save_checkpoint(self.path)


def _read(checkpoint: Path) -> dict[str, Any]:
    read: dict[str, Any] = torch.load(checkpoint, "cpu", weights_only=True, mmap=True)
    return read


def _of_worker(error: UserError) -> UserError:
    """An error without the traceback that a worker process wraps it in."""
    text = str(error).strip()
    if not text.startswith("Caught "):
        return error
    return UserError(text.splitlines()[-1].split(": ", 1)[-1])
