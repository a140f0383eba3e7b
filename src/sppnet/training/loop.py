"""The training loop: what a step is, and all steps from the last checkpoint on.

batch number n -> named losses -> gradients, averaged over all processes -> optimizer. A batch, and what is random in a step,
depend on the seed and the step alone; so a training that was stopped and goes on ends with the same weights as an unbroken
one, bit for bit on a CPU. Device and processes: Lightning Fabric.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
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
from sppnet.training.checkpoints import TrainingLog, TrainingState, read_checkpoint, training_lock, write_checkpoint

if TYPE_CHECKING:
    from lightning_fabric import Fabric

REFERENCE_WIDTH = 1024  # of a layer's input; wider layers take smaller steps, as Adam's add up over it
WARM_UP = 0.05  # of all steps
MILESTONES = (0.6, 0.85)  # shares of all steps after which the rate is a tenth (paper: when the error stops falling)
MOMENTUM = 0.9  # Krizhevsky et al., 2012, whom the paper follows
Schedule = Callable[[int], float]
Precision = Literal["auto", "bfloat16", "float32"]
Loss = Callable[[Any, int], dict[str, Tensor]]


class Batches(Protocol):
    """Batch number ``n``, from 0, always the same."""

    def __getitem__(self, n: int, /) -> Any: ...


@dataclass(frozen=True)
class LoopSettings:
    """How the loop goes. All but the intervals, the workers and the stage change what it comes to."""

    steps: int  # on each device
    checkpoint_interval: int = 100  # steps
    log_interval: int = 10  # steps
    seed: int = 0
    gradient_norm: float = math.inf  # longer gradients are shortened to this
    precision: Precision = "auto"  # of matrix products and convolutions; auto: bfloat16 where the device is fast at it
    devices: int = 1  # processes, one on each device; on a CPU they talk by gloo
    workers: int = 0  # processes that make batches, for each device; 0: the training itself does
    stage: str = "training"  # what progress calls it


class Validation(NamedTuple):
    """What is measured every ``interval`` steps, to end with the weights that did best.

    ``measure`` gives named figures, the same on every process (``fabric.all_reduce`` adds up what each measured), and leaves
    modules in the modes that they were in. The best has the smallest figure of the name that stands first in ``minimize``; of
    equals, the smallest of the next.
    """

    interval: int
    measure: Callable[[Fabric], dict[str, float]]
    minimize: tuple[str, ...]


class History(NamedTuple):
    """What a training comes to, beside the weights."""

    rank: int  # of this process, from 0: every one of several gets here, and only the first should write the model
    log: dict[str, list[float]]  # columns by name, ``step`` (steps done) first; NaN where a row has no such value
    best: dict[str, float]  # figures of the validation whose weights were taken, with its ``step``; empty without any


def fit(
    trainable: nn.Module, batches: Batches, loss: Loss, optimizer: torch.optim.Optimizer, schedule: Schedule,
    folder: Path, settings: LoopSettings, *, key: Mapping[str, str], device: torch.device,
    validation: Validation | None = None, progress: Progress = no_progress,
) -> History:  # fmt: skip
    """Train in place, going on from the last checkpoint of the same training.

    Args:
        trainable: holds all that is trained, and is moved to the device of its process. Checkpoints hold its parameters that
            require a gradient, and the buffers of its modules in training mode.
        batches: in step s, process r of R takes number ``s * R + r``. With workers, it must be possible to pickle it.
        loss: ``loss(batch, step)`` -> named losses, each a scalar: "loss" is minimized, all are logged. It moves what it needs
            to the device, and runs under autocast. Every parameter that is trained must take part in it.
        optimizer: the learning rates of its groups are multiplied by
        schedule: step, from 0 -> factor.
        folder: of checkpoints and logs; of this training alone.
        settings: how.
        key: what the training starts from, by name: data, weights, whatever shapes batches and loss. The settings here, and
            names and shapes of what is trained, are added.
        device: the model's; with several devices, their kind.
        validation: chooses the weights; None: the last are taken.
        progress: of the settings' stage, in steps.

    Raises:
        SettingsError: training diverged, or another process trains in this folder.
        OutputError: a checkpoint or the log cannot be written; earlier checkpoints stay.
        UserError: from a batch.
        KeyboardInterrupt, SystemExit: Ctrl-C, and SIGTERM (status 143): after the running step and a checkpoint of it.
    """
    fabric = _fabric(device, settings.devices)
    first = fabric.global_rank == 0
    generators = [fabric.device] if device.type == "cuda" else []
    with (
        training_lock(folder) if first else nullcontext(),
        torch.random.fork_rng(generators),
        _stop_signals() as stop,
    ):
        fabric.launch()  # starts the other processes: each runs the same command up to here
        model = fabric.setup_module(_Losses(trainable, loss))
        state = TrainingState(trainable, optimizer)
        shapes = (f"{name} {list(value.shape)} " for name, value in state.trained.items())
        ours = ("steps", "seed", "gradient_norm", "precision", "devices")
        key = {**key, **{name: str(getattr(settings, name)) for name in ours}, "layers": fingerprint(shapes, size=8)}
        key = fabric.broadcast(key)
        with fabric.rank_zero_first():  # it sets damaged ones aside
            read_checkpoint(folder, key, state)
        with closing(TrainingLog(folder, state.step)) if first else nullcontext() as log:
            for batch in _loader(batches, state.step, settings, fabric):
                row = train_step(fabric, model, batch, state, schedule, settings)
                state.step += 1
                validated = validation is not None and state.step % validation.interval == 0
                if validation is not None and validated:
                    figures = validation.measure(fabric)
                    _check_finite(state.step, figures, validation.minimize)
                    state.keep_best(figures, validation.minimize)
                    row |= figures
                # All stop at the same step, whichever of the processes the signal reached.
                signaled = torch.tensor(float(bool(stop)), device=fabric.device)
                stopped = bool(fabric.all_reduce(signaled, reduce_op="max"))
                ends = stopped or state.step == settings.steps
                if log is not None:
                    if ends or validated or state.step % settings.log_interval == 0:
                        log.add({"step": float(state.step), **row})
                    if ends or state.step % settings.checkpoint_interval == 0:
                        write_checkpoint(folder, key, state)
                    progress(settings.stage, state.step, settings.steps)
                if stopped:
                    raise SystemExit(143) if signal.SIGTERM in stop else KeyboardInterrupt
        state.take_best()
        return History(fabric.global_rank, {} if log is None else log.columns(), state.best)


def train_step(
    fabric: Fabric, model: nn.Module, batch: Any, state: TrainingState, schedule: Schedule, settings: LoopSettings
) -> dict[str, float]:
    """Take one step; its losses, averaged over all processes, learning rate and gradient norm, by name.

    Raises:
        SettingsError: the loss or the gradient is not finite; the weights are as before.
    """
    step, optimizer = state.step, state.optimizer
    # Of the step alone, so that dropout of a resumed training is the same; and of the rank, so that two draw differently.
    torch.manual_seed((settings.seed * 1_000_003 + step) * 1009 + fabric.global_rank)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * schedule(step)
    optimizer.zero_grad()
    forced = settings.precision == "bfloat16"
    automatic = autocast(fabric.device, enabled=settings.precision == "auto")
    with torch.autocast(fabric.device.type, torch.bfloat16) if forced else automatic:
        losses = model(batch, step)
    fabric.backward(losses["loss"])

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    means: Any = fabric.all_reduce(torch.stack([value.detach().float() for value in losses.values()]))
    row = {f"train_{name}": value for name, value in zip(losses, means.tolist(), strict=True)}
    row |= {"learning_rate": optimizer.param_groups[0]["lr"], "gradient_norm": float(norm)}
    _check_finite(step + 1, row, ("train_loss", "gradient_norm"))
    if norm > settings.gradient_norm:
        nn.utils.clip_grads_with_norm_(parameters, settings.gradient_norm, norm)
    optimizer.step()
    return row


def _check_finite(step: int, figures: Mapping[str, float], names: Sequence[str]) -> None:
    if not all(math.isfinite(figures[name]) for name in names):
        found = ", ".join(f"{name} is {figures[name]:.3g}" for name in names)
        raise SettingsError(f"training diverged at step {step}: {found}; take a smaller learning rate")


class _Losses(nn.Module):
    """The loss as a module's forward pass: DDP learns from its beginning that gradients are to come."""

    def __init__(self, trainable: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.trainable, self.loss = trainable, loss

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        return self.loss(batch, step)


class _Safe(Dataset[Any]):
    """A batch, or the `UserError` that it raised: raised in a worker, it would come wrapped in a traceback."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, n: int) -> Any:
        try:
            return self.batches[n]
        except UserError as error:
            return error


def _loader(batches: Batches, step: int, settings: LoopSettings, fabric: Fabric) -> Iterator[Any]:
    """The batches of this process, from a step on."""
    every = settings.devices
    loader = DataLoader(
        _Safe(batches),
        batch_size=None,
        sampler=range(step * every + fabric.global_rank, settings.steps * every, every),
        num_workers=settings.workers,
        # Not forked: of the threads of OpenCV and OpenMP a fork has only the locks, and waits for them for ever.
        multiprocessing_context="spawn" if settings.workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=fabric.device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(1)  # each worker is a thread of its own already
    # a terminal sends it to all processes, and the training ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fabric(device: torch.device, devices: int) -> Fabric:
    from lightning_fabric import Fabric  # takes seconds

    if devices > 1:
        return Fabric(accelerator=device.type, strategy="ddp", devices=devices)
    return Fabric(accelerator=device.type, devices=1 if device.index is None else [device.index])


@contextmanager
def _stop_signals() -> Iterator[set[int]]:
    """Within it, Ctrl-C and SIGTERM are noted in the set; a second one interrupts at once."""
    received: set[int] = set()

    def note(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.add(number)

    ours = threading.current_thread() is threading.main_thread()  # which alone gets signals
    noted = [each for each in (signal.SIGINT, signal.SIGTERM) if ours and signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in noted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Which layer learns how fast, and how the rate goes over the steps, as pure functions step -> factor.


def parameter_groups(
    heads: Iterable[nn.Parameter], backbone: Iterable[nn.Parameter] = (), *,
    learning_rate: float, backbone_rate: float = 1.0, weight_decay: float = 0.0, by_width: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """A group for each parameter that requires a gradient, of the heads, then of the backbone.

    Args:
        heads: fully connected layers and classifiers, at ``learning_rate``; with ``by_width``, those whose input is wider than
            `REFERENCE_WIDTH` in proportion slower.
        backbone: convolutions, at ``learning_rate * backbone_rate``.
        weight_decay: of matrices and kernels; biases and norms have none.

    Example:
        >>> layer = nn.Linear(2048, 3)
        >>> [(group["lr"], group["weight_decay"]) for group in parameter_groups(layer.parameters(), learning_rate=0.1, weight_decay=0.01)]
        [(0.05, 0.01), (0.1, 0.0)]
    """

    rates = [(each, min(1.0, REFERENCE_WIDTH / each.shape[-1]) if by_width else 1.0) for each in heads]
    rates += [(each, backbone_rate) for each in backbone]
    return [
        {"params": [each], "lr": learning_rate * rate, "weight_decay": weight_decay * (each.ndim > 1)}
        for each, rate in rates
        if each.requires_grad
    ]


def adamw(groups: list[dict[str, Any]], steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    """AdamW along a cosine, after a warm-up."""
    return torch.optim.AdamW(groups, fused=True), partial(cosine, steps=steps)


def sgd(groups: list[dict[str, Any]], steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    """SGD with momentum and milestones. Source: arXiv:1406.4729, section 3.1."""
    return torch.optim.SGD(groups, momentum=MOMENTUM), partial(milestones, steps=steps)


def cosine(step: int, steps: int) -> float:
    """Rise to 1 over the first 5 % of all steps, then fall along half a cosine.

    Example:
        >>> [round(cosine(step, 40), 2) for step in (0, 1, 2, 20, 40)]
        [0.5, 1.0, 0.99, 0.5, 0.0]
    """
    warm = max(1, round(WARM_UP * steps))
    return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def milestones(step: int, steps: int) -> float:
    """Fall by ten at each of `MILESTONES`.

    Example:
        >>> [milestones(step, 100) for step in (0, 59, 60, 85)]
        [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    return float(0.1 ** sum(step >= share * steps for share in MILESTONES))
