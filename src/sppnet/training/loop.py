"""The training loop: what a step is, and all steps from the last checkpoint on.

batches[n] -> named losses -> gradients, averaged over all processes -> optimizer. Batch ``n`` and what is random in a step depend
on the seed and on the step alone, so a training that was stopped and goes on ends with the same weights, bit for bit on a
CPU, as one that was not. Device and processes: Lightning Fabric.
"""

from __future__ import annotations

import math
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sppnet.cache import fingerprint
from sppnet.errors import SettingsError, UserError
from sppnet.models.precision import autocast
from sppnet.progress import Progress, no_progress
from sppnet.training.checkpoints import Checkpoint, Checkpoints, training_lock
from sppnet.training.log import TrainingLog
from sppnet.training.schedule import Schedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["auto", "bfloat16", "float32"]
Loss = Callable[[Any, int], dict[str, Tensor]]


class Batches(Protocol):
    """Batch number ``n``, from 0, always the same: what makes a resumed training equal an unbroken one."""

    def __getitem__(self, n: int, /) -> Any: ...


@dataclass(frozen=True)
class LoopSettings:
    """How the loop goes.

    Raises:
        SettingsError: a setting out of its range.
    """

    steps: int  # on each device
    checkpoint_interval: int = 100  # steps
    log_interval: int = 10  # steps
    seed: int = 0
    gradient_norm: float = float("inf")  # longer gradients are shortened to this
    precision: Precision = "auto"  # of matrix products and convolutions; auto: bfloat16 where the device is fast at it
    devices: int = 1  # processes, one on each device; on a CPU they talk by gloo
    workers: int = 0  # processes that make batches, for each device; 0: the training itself does

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_interval", "log_interval", "devices"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.gradient_norm <= 0 or self.workers < 0 or not 0 <= self.seed < 2**32:
            raise SettingsError(
                "expected gradient_norm above 0, workers of at least 0, and a seed from 0 to 2**32 - 1: "
                f"got {self.gradient_norm}, {self.workers} and {self.seed}"
            )


class Validation(NamedTuple):
    """Measured every ``interval`` steps; the weights that did best are those that training ends with.

    ``measure`` gives named figures, the same on every process (`fabric.all_reduce` adds up what each did), and leaves the
    modules in the modes that they were in. The best has the smallest figure named first in ``minimize``; of equals, the
    smallest named next.
    """

    interval: int
    measure: Callable[[Fabric], dict[str, float]]
    minimize: tuple[str, ...]


class History(NamedTuple):
    """What a training comes to, beside the weights."""

    rank: (
        int  # of this process, from 0: with several devices every process gets here, and only 0 should write the model
    )
    log: dict[str, list[float]]  # columns by name, ``step`` (steps done) first; NaN where a row has no such value
    best: dict[str, float]  # figures of the validation whose weights were taken, with its ``step``; empty without one


def fit(
    trainable: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    folder: Path,
    settings: LoopSettings,
    *,
    key: Mapping[str, str],
    device: torch.device,
    validation: Validation | None = None,
    progress: Progress = no_progress,
) -> History:
    """Train in place, going on from the last checkpoint of the same training.

    Args:
        trainable: holds all that is trained. Checkpoints hold its parameters that require a gradient, and the buffers of its
            modules in training mode. Moved to the device of its process.
        batches: process r of R takes number ``step * R + r`` for each step. With workers, it must be possible to pickle it.
        loss: ``loss(batch, step)`` -> named losses, each a scalar; "loss" is minimized, all are logged. It moves the batch to
            the device; it runs under autocast. Every trainable parameter must take part in it.
        optimizer: its parameter groups' learning rates are multiplied by
        schedule: step -> factor, steps counted from 0.
        folder: checkpoints and logs; of this training alone.
        settings: how.
        key: what the training starts from, by name: data, weights, whatever shapes the batches. The settings here and the
            names and shapes of what is trained are added.
        device: that the model is on; with several devices, their kind.
        validation: chooses the weights; None: the last.
        progress: called with "training", steps done, all.

    Raises:
        SettingsError: training diverged; or another process trains in this folder.
        OutputError: a checkpoint cannot be written.
        UserError: from a batch.
        KeyboardInterrupt, SystemExit: at Ctrl-C, and (143) at SIGTERM: after the running step and a checkpoint of it.
    """
    fabric = _fabric(settings, device)
    first = fabric.global_rank == 0
    with (
        training_lock(folder) if first else nullcontext(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        _stop_signals() as stop,
    ):
        fabric.launch()
        model = fabric.setup_module(_Losses(trainable, loss))
        checkpoints = Checkpoints(folder, _full_key(key, settings, trainable))
        state = _State(trainable, optimizer)
        with fabric.rank_zero_first():  # it sets damaged ones aside
            state.load(checkpoints.newest())
        with TrainingLog(folder, state.step) if first else nullcontext() as log:
            for batch in _loader(batches, state.step, settings, fabric):
                row = train_step(fabric, model, batch, state.step, optimizer, schedule, settings)
                state.step += 1
                validates = validation is not None and state.step % validation.interval == 0
                if validation is not None and validates:
                    row |= state.validated(validation.measure(fabric), validation.minimize)
                ends = _any_process(fabric, bool(stop)) or state.step == settings.steps
                if log is not None:
                    if validates or ends or state.step % settings.log_interval == 0:
                        log.write({"step": state.step, **row})
                    if ends or state.step % settings.checkpoint_interval == 0:
                        checkpoints.write(state.checkpoint())
                    progress("training", state.step, settings.steps)
                if ends and state.step < settings.steps:
                    raise SystemExit(143) if signal.SIGTERM in stop else KeyboardInterrupt
        state.take_best()
        return History(fabric.global_rank, {} if log is None else log.columns(), state.best)


def train_step(
    fabric: Fabric,
    model: nn.Module,
    batch: Any,
    step: int,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: LoopSettings,
) -> dict[str, float]:
    """Take one step; its losses, averaged over all processes, learning rate and gradient norm, by name.

    Raises:
        SettingsError: the loss or the gradient is not finite; the weights are as before.
    """
    # Of the step alone, so that dropout of a resumed training is the same; and of the rank, so that two draw differently.
    torch.manual_seed((settings.seed * 1_000_003 + step) * 1009 + fabric.global_rank)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * schedule(step)
    optimizer.zero_grad()
    with _autocast(settings.precision, fabric.device):
        losses = model(batch, step)
    fabric.backward(losses["loss"])

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    means: Any = fabric.all_reduce(torch.stack([value.detach().float() for value in losses.values()]))
    values = dict(zip(losses, means.tolist(), strict=True))
    if not (math.isfinite(values["loss"]) and norm.isfinite()):
        raise SettingsError(
            f"training diverged at step {step + 1}: the loss is {values['loss']:.3g}, the gradient's norm {norm:.3g}; "
            "take a smaller learning rate"
        )
    if norm > settings.gradient_norm:
        nn.utils.clip_grads_with_norm_(parameters, settings.gradient_norm, norm)
    optimizer.step()
    rate = optimizer.param_groups[-1]["lr"]
    return {
        **{f"train_{name}": value for name, value in values.items()},
        "learning_rate": rate,
        "gradient_norm": float(norm),
    }


class _Losses(nn.Module):
    """The loss as a module's forward pass, between whose beginning and end DDP knows that gradients are to come."""

    def __init__(self, trainable: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.trainable, self.loss = trainable, loss

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        return self.loss(batch, step)


class _State:
    """All that changes while a training goes on."""

    def __init__(self, trainable: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.trained, self.optimizer = trained_tensors(trainable), optimizer
        self.step = 0
        self.best: dict[str, float] = {}
        self.best_tensors: dict[str, Tensor] = {}

    def checkpoint(self) -> Checkpoint:
        tensors = {f"model.{name}": value for name, value in self.trained.items()}
        tensors |= {f"best.{name}": value for name, value in self.best_tensors.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
        return Checkpoint(self.step, tensors, self.best)

    def load(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self.step, self.best = checkpoint.step, checkpoint.best
        of_optimizer: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in checkpoint.tensors.items():
            part, _, rest = name.partition(".")
            if part == "model":
                self.trained[rest].copy_(value)
            elif part == "best":
                self.best_tensors[rest] = value
            else:
                index, _, its_name = rest.partition(".")
                of_optimizer[int(index)][its_name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": of_optimizer, "param_groups": groups})

    def validated(self, figures: dict[str, float], minimize: tuple[str, ...]) -> dict[str, float]:
        """Keep the weights if they are the best so far."""
        if not self.best or [figures[name] for name in minimize] < [self.best[name] for name in minimize]:
            self.best = {"step": self.step, **figures}
            self.best_tensors = {name: value.detach().cpu().clone() for name, value in self.trained.items()}
        return figures

    def take_best(self) -> None:
        for name, value in self.best_tensors.items():
            self.trained[name].copy_(value)


def trained_tensors(trainable: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: parameters that require a gradient, and buffers of modules in training mode."""
    training = {name for name, module in trainable.named_modules() if module.training}
    parameters = {name: value.data for name, value in trainable.named_parameters() if value.requires_grad}
    return parameters | {
        name: value for name, value in trainable.named_buffers() if name.rpartition(".")[0] in training
    }


def _full_key(key: Mapping[str, str], settings: LoopSettings, trainable: nn.Module) -> dict[str, str]:
    shapes = (f"{name} {list(value.shape)}" for name, value in trained_tensors(trainable).items())
    ours = ("steps", "seed", "gradient_norm", "precision", "devices")
    return {**key, **{name: str(getattr(settings, name)) for name in ours}, "layers": fingerprint(shapes, size=8)}


def _fabric(settings: LoopSettings, device: torch.device) -> Fabric:
    from lightning_fabric import Fabric  # takes seconds

    devices = [device.index] if settings.devices == 1 and device.index is not None else settings.devices
    return Fabric(accelerator=device.type, strategy="ddp" if settings.devices > 1 else "auto", devices=devices)


def _autocast(precision: Precision, device: torch.device) -> torch.autocast:
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return autocast(device, enabled=precision == "auto")


def _any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether it is so on any: all stop at the same step, whichever of them the signal reached."""
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="max"))


@contextmanager
def _stop_signals() -> Iterator[set[int]]:
    """Within it, Ctrl-C and SIGTERM are noted in the set; a second one interrupts at once."""
    received: set[int] = set()

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.add(number)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Numbered(Dataset[Any]):
    """A batch, or the message of the `UserError` that it raised, which a worker would wrap in a traceback."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> tuple[Any, str | None]:
        try:
            return self.batches[number], None
        except UserError as error:
            return None, str(error)


def _loader(batches: Batches, step: int, settings: LoopSettings, fabric: Fabric) -> Iterator[Any]:
    """The batches of this process, from a step on."""
    loader = DataLoader(
        _Numbered(batches),
        batch_size=None,
        sampler=range(
            step * settings.devices + fabric.global_rank, settings.steps * settings.devices, settings.devices
        ),
        num_workers=settings.workers,
        # Not forked: of the threads of OpenCV and OpenMP a fork has only the locks, and waits for them for ever.
        multiprocessing_context="spawn" if settings.workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=fabric.device.type == "cuda",
    )
    for batch, failure in loader:
        if failure is not None:
            raise UserError(failure)
        yield batch


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(1)  # each worker is a thread of its own already
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to every process of a terminal: the training stops its workers
