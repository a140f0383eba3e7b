"""The training loop: what ends a training, and how it goes on from there.

Also run as a script, by tests that need processes of their own: ``python test_loop.py FOLDER DEVICES [STEP SIGNAL]``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet import files
from sppnet.errors import DataError, OutputError, SettingsError
from sppnet.progress import Progress, no_progress
from sppnet.training.checkpoints import training_lock
from sppnet.training.loop import History, LoopSettings, Validation, adamw, fit, parameter_groups, sgd

STEPS, INTERVAL = 12, 4
CPU = torch.device("cpu")


class Sums:
    """A few vectors and their sums."""

    def __init__(self, size: int = 8, *, bad: int = -1) -> None:
        self.size, self.bad = size, bad

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        if n == self.bad:
            raise DataError(Path("labels/a.txt"), "box is empty", line=3)
        rows = range(n * self.size, (n + 1) * self.size)
        vectors = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(row)) for row in rows])
        return vectors, vectors.sum(1, keepdim=True)


def network(dropout: float = 0.2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))


def squares(net: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
    error = F.mse_loss(net(batch[0]), batch[1])
    return {"error": error, "loss": 2 * error}


def train(
    folder: Path,
    progress: Progress = no_progress,
    *,
    net: nn.Module | None = None,
    batches: Sums | None = None,
    method: Any = adamw,
    loss: Callable[..., dict[str, Tensor]] = squares,
    key: str = "sums",
    learning_rate: float = 0.01,
    validation: Validation | None = None,
    **changes: Any,
) -> tuple[nn.Module, History]:
    net = network() if net is None else net
    settings = LoopSettings(**({"steps": STEPS, "checkpoint_interval": INTERVAL, "log_interval": 1} | changes))
    optimizer, schedule = method(
        parameter_groups(net.parameters(), learning_rate=learning_rate, weight_decay=0.01), settings.steps
    )
    history = fit(
        net, batches or Sums(), partial(loss, net), optimizer, schedule, folder, settings, key={"data": key}, device=CPU,
        validation=validation, progress=progress,
    )  # fmt: skip
    return net, history


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def at(step: int, action: Callable[[], Any]) -> Progress:
    """Do something when so many steps are done."""

    def progress(stage: str, done: int, total: int) -> None:
        if done == step:
            action()

    return progress


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def interrupt() -> None:
    raise KeyboardInterrupt


def steps_of(run: Callable[[Progress], Any]) -> list[int]:
    """The steps that a run takes."""
    steps: list[int] = []
    run(lambda stage, done, total: steps.append(done))
    return steps


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over another number of threads differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, History]:
    return train(tmp_path_factory.mktemp("unbroken"))


# What it comes to


def test_it_learns_and_logs(unbroken: tuple[nn.Module, History]) -> None:
    _, history = unbroken
    assert list(history.log) == ["step", "train_error", "train_loss", "learning_rate", "gradient_norm"]
    assert history.log["step"] == list(range(1, STEPS + 1))
    assert history.log["train_loss"] == pytest.approx([2 * error for error in history.log["train_error"]])
    assert sum(history.log["train_loss"][-3:]) < sum(history.log["train_loss"][:3])
    assert (history.rank, history.best) == (0, {})


def test_the_callers_random_numbers_stay(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_holds_what_is_trained_alone(tmp_path: Path) -> None:
    net = network()
    net[0].requires_grad_(False)  # a frozen layer
    net[1].eval()  # and frozen statistics
    before = net[1].running_mean.clone()  # type: ignore[union-attr, operator]
    train(tmp_path, net=net)
    from sppnet.cache import read_tensors

    tensors, _ = read_tensors(tmp_path / checkpoints(tmp_path)[-1]) or ({}, {})
    assert sorted(name for name in tensors if name.startswith("trained/")) == [
        f"trained/{name}" for name in ("1.bias", "1.weight", "4.bias", "4.weight")
    ]
    assert torch.equal(net[0].weight, network()[0].weight)  # type: ignore[arg-type]
    assert torch.equal(net[1].running_mean, before)  # type: ignore[arg-type]


def test_long_gradients_are_shortened(tmp_path: Path) -> None:
    """Without momentum yet, SGD's first step is the gradient times the rate."""

    def first_step(folder: str, **changes: Any) -> float:
        net, _ = train(tmp_path / folder, method=sgd, steps=1, learning_rate=0.1, loss=exact, **changes)
        moved = [(new - old).flatten() for new, old in zip(net.parameters(), network(0).parameters(), strict=True)]
        return float(torch.cat(moved).detach().norm())

    def exact(net: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        return {"loss": sum((parameter.sum() for parameter in net.parameters()), torch.zeros(()))}

    length = sum(parameter.numel() for parameter in network().parameters()) ** 0.5
    assert first_step("free") == pytest.approx(0.1 * length, rel=1e-2)
    assert first_step("short", gradient_norm=2.0) == pytest.approx(0.1 * 2.0, rel=1e-2)


def test_bfloat16_on_request(tmp_path: Path) -> None:
    seen = []

    def loss(net: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        seen.append(net(batch[0]).dtype)
        return {"loss": net(batch[0]).float().square().mean()}

    net, _ = train(tmp_path / "short", loss=loss, steps=1, precision="bfloat16")
    train(tmp_path / "exact", loss=loss, steps=1, precision="float32")
    assert seen == [torch.bfloat16, torch.float32]
    assert {value.dtype for value in net.parameters()} == {torch.float32}


# Validation


def scripted(costs: list[float], interval: int = 3) -> Validation:
    """Figures as they are given, one after the other: of the step, so that a resumed run gets the same."""
    return Validation(interval, lambda fabric: {"val_wrong": 1.0, "val_loss": costs.pop(0)}, ("val_wrong", "val_loss"))


def test_it_ends_with_the_weights_that_did_best(tmp_path: Path) -> None:
    at_best: dict[str, Tensor] = {}
    net = network()
    kept = at(6, lambda: at_best.update({name: value.clone() for name, value in net.state_dict().items()}))
    _, history = train(tmp_path, kept, net=net, validation=scripted([0.5, 0.1, 0.1, 0.3]))  # of equals, the first
    assert history.best == {"step": 6, "val_wrong": 1, "val_loss": 0.1}
    assert all(torch.equal(value, at_best[name]) for name, value in net.state_dict().items())
    assert [value for value in history.log["val_loss"] if not math.isnan(value)] == [0.5, 0.1, 0.1, 0.3]


def test_the_best_so_far_is_resumed_too(tmp_path: Path) -> None:
    unbroken, expected = train(tmp_path / "unbroken", validation=scripted([0.5, 0.1, 0.2, 0.3]))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", at(10, interrupt), validation=scripted([0.5, 0.1, 0.2]))
    resumed, history = train(tmp_path / "broken", validation=scripted([0.2, 0.3]))  # from step 8 on
    assert same(unbroken, resumed)
    assert str(history) == str(expected)
    again, history = train(tmp_path / "broken", validation=scripted([]))  # it is finished
    assert same(unbroken, again)
    assert str(history) == str(expected)


# Going on


@pytest.mark.parametrize("method", [adamw, sgd])
@pytest.mark.parametrize("stop", [1, 6, 8, 11])
def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path, method: Any, stop: int) -> None:
    unbroken, expected = train(tmp_path / "unbroken", method=method)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", at(stop, interrupt), method=method)
    resumed: list[tuple[nn.Module, History]] = []
    steps = steps_of(lambda progress: resumed.append(train(tmp_path / "broken", progress, method=method)))
    assert steps == list(range(stop // INTERVAL * INTERVAL + 1, STEPS + 1))
    assert same(unbroken, resumed[0][0])
    assert resumed[0][1].log == expected.log  # what was logged beyond the checkpoint is there once


def test_weights_in_another_order_in_memory_go_on_too(tmp_path: Path) -> None:
    """Fused steps go through a parameter and the optimizer's averages of it side by side."""

    def convolutions() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Unflatten(1, (2, 1, 2)), nn.Conv2d(2, 3, (1, 2)), nn.Flatten(), nn.Linear(3, 1)
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)

    unbroken, _ = train(tmp_path / "unbroken", net=convolutions())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", at(6, interrupt), net=convolutions())
    assert same(unbroken, train(tmp_path / "broken", net=convolutions())[0])


def test_a_finished_training_is_not_done_again(tmp_path: Path, unbroken: tuple[nn.Module, History]) -> None:
    train(tmp_path)
    again: list[nn.Module] = []
    assert steps_of(lambda progress: again.append(train(tmp_path, progress)[0])) == []
    assert same(unbroken[0], again[0])


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_leaves_a_checkpoint_of_the_running_step(
    tmp_path: Path, unbroken: tuple[nn.Module, History], number: int, ending: type[BaseException]
) -> None:
    """The signal comes in the midst of step 6, far from a checkpoint by interval."""
    handler = signal.getsignal(number)

    def loss(net: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        if step == 5:
            kill(number)()
        return squares(net, batch, step)

    with pytest.raises(ending) as error:
        train(tmp_path, loss=loss)
    if ending is SystemExit:
        assert error.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(number) == handler
    assert checkpoints(tmp_path) == ["step-00000004.safetensors", "step-00000006.safetensors"]
    resumed, history = train(tmp_path)
    assert same(unbroken[0], resumed)
    assert history.log == unbroken[1].log


def test_a_signal_in_the_last_step_is_not_lost(tmp_path: Path, unbroken: tuple[nn.Module, History]) -> None:
    def loss(net: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        if step == STEPS - 1:
            kill(signal.SIGINT)()
        return squares(net, batch, step)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=loss)
    assert same(unbroken[0], train(tmp_path, at(STEPS, interrupt))[0])  # nothing is left to do


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    def loss(net: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        kill(signal.SIGINT)()
        kill(signal.SIGINT)()
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=loss)
    assert checkpoints(tmp_path) == []


# What goes wrong with checkpoints


def test_a_torn_checkpoint_is_set_aside_and_the_one_before_used(
    tmp_path: Path, unbroken: tuple[nn.Module, History], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at(10, interrupt))
    newest = tmp_path / checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed: list[nn.Module] = []
    assert steps_of(lambda progress: resumed.append(train(tmp_path, progress)[0]))[0] == 5
    assert same(unbroken[0], resumed[0])
    assert capsys.readouterr().err == f"{newest} is damaged: set aside as {newest.name}.damaged, not used\n"
    assert (tmp_path / f"{newest.name}.damaged").exists()


def test_one_changed_bit_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    for name in checkpoints(tmp_path):
        content = bytearray((tmp_path / name).read_bytes())
        content[-3] ^= 1
        (tmp_path / name).write_bytes(content)
    assert steps_of(lambda progress: train(tmp_path, progress))[0] == 1
    assert "no checkpoint can be used, so training begins anew" in capsys.readouterr().err


def test_what_a_kill_leaves_half_written_is_removed(tmp_path: Path, unbroken: tuple[nn.Module, History]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at(5, interrupt))
    (tmp_path / ".0123abcd-77-88.tmp").write_bytes(b"half a checkpoint")
    resumed, _ = train(tmp_path)
    assert same(unbroken[0], resumed)
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_checkpoints_before(
    tmp_path: Path, unbroken: tuple[nn.Module, History], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="No space left on device") as error:
        train(tmp_path, at(7, lambda: monkeypatch.setattr(files.os, "fsync", full)))
    assert "\n" not in str(error.value)
    assert checkpoints(tmp_path) == ["step-00000004.safetensors"]
    assert not list(tmp_path.glob(".*.tmp"))
    monkeypatch.setattr(files.os, "fsync", flush)
    assert same(unbroken[0], train(tmp_path)[0])


def test_another_training_does_not_go_on_from_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    assert steps_of(lambda progress: train(tmp_path, progress, key="differences", seed=1))[0] == 1
    assert "is of another training (not the same: data, seed)" in capsys.readouterr().err
    assert steps_of(lambda progress: train(tmp_path, progress, key="differences", seed=1, log_interval=3)) == []


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    with training_lock(tmp_path), pytest.raises(SettingsError, match=rf"in use by process {os.getpid()} on .*: wait"):
        train(tmp_path)
    train(tmp_path)


@pytest.mark.slow  # a process of its own takes seconds to import
def test_a_crash_leaves_no_lock(tmp_path: Path, unbroken: tuple[nn.Module, History]) -> None:
    ran = subprocess.run([sys.executable, __file__, tmp_path, "1", "5", "9"], capture_output=True, check=False)
    assert ran.returncode == -signal.SIGKILL
    assert (tmp_path / "training.lock").exists()
    resumed, history = train(tmp_path)
    assert same(unbroken[0], resumed)
    assert history.log == unbroken[1].log


# What is refused


@pytest.mark.parametrize("spoiled", [math.nan, math.inf])
def test_a_diverged_training_says_so(tmp_path: Path, spoiled: float) -> None:
    def loss(net: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        return {"loss": squares(net, batch, step)["loss"] * (spoiled if step == 6 else 1)}

    with pytest.raises(
        SettingsError, match=r"diverged at step 7: train_loss is .*; take a smaller learning rate"
    ) as error:
        train(tmp_path, loss=loss)
    assert "\n" not in str(error.value)
    assert checkpoints(tmp_path) == ["step-00000004.safetensors"]


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The root's slope at 0 is infinite, its value is not."""
    with pytest.raises(SettingsError, match="diverged at step 1: train_loss is 0, gradient_norm is"):
        train(tmp_path, loss=lambda net, batch, step: {"loss": (net(batch[0]) * 0).square().sum().sqrt()})


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_bad_batch_keeps_its_error(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=r"^labels/a\.txt:3: box is empty$"):
        train(tmp_path, batches=Sums(bad=2), workers=workers)


# Several processes


@pytest.mark.slow
def test_workers_make_no_difference(tmp_path: Path, unbroken: tuple[nn.Module, History]) -> None:
    assert same(unbroken[0], train(tmp_path, workers=2)[0])


def averaged(net: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
    """Without BatchNorm, which sees half a batch alone."""
    return {
        "loss": F.mse_loss(net[4](net[0](batch[0]).relu()), batch[1]) + 0 * net[1].weight.sum() + 0 * net[1].bias.sum()
    }  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    one, expected = train(tmp_path / "one", loss=averaged, batches=Sums(8), precision="float32")
    script = [sys.executable, __file__, tmp_path / "two", "2"]
    ran = subprocess.run([*script, "6", str(int(signal.SIGTERM))], capture_output=True, text=True, check=False)
    assert ran.returncode == 143, ran.stderr  # both stop after the step in which the first got the signal
    assert checkpoints(tmp_path / "two")[-1] in ("step-00000006.safetensors", "step-00000007.safetensors")
    subprocess.run(script, capture_output=True, text=True, check=True)
    two = torch.load(tmp_path / "two" / "weights.pt", weights_only=True)
    for name, value in one.named_parameters():
        assert torch.allclose(value, two[name], atol=1e-5), name
    log = json.loads((tmp_path / "two" / "log.json").read_text())
    assert log["step"] == expected.log["step"]
    assert log["train_loss"] == pytest.approx(expected.log["train_loss"], rel=1e-4)


def main(folder: Path, devices: int, step: int = 0, number: int = 0) -> None:
    torch.set_num_threads(1)
    two = {"loss": averaged, "batches": Sums(4), "precision": "float32"} if devices == 2 else {}
    net, history = train(folder, at(step, kill(number)), devices=devices, **two)  # type: ignore[arg-type]
    if history.rank == 0:
        torch.save(dict(net.named_parameters()), folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(history.log))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
