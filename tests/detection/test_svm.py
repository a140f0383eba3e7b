"""One linear SVM a class: mining hard negatives, stopping and going on, and what adding a class starts from."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.cache import read_tensors
from sppnet.detection.svm import SVMSettings, cached_windows, train_svms
from sppnet.detection.windows_of_images import ImageWindows
from sppnet.errors import UserError
from sppnet.linear.svm import solve_svms
from sppnet.models.heads import SVMClassifier

HARD = SVMSettings(cost=100, positive_weight=1)  # hardly a margin is given up
ALL_KEPT = SVMSettings(cost=1, easy_score=-100)


def image(
    vectors: Tensor | list[list[float]], labels: Sequence[int], boxes: Tensor | None = None, classes: int = 1
) -> ImageWindows:
    """Windows that are what ``vectors`` say; those with a label are objects, and nothing overlaps another."""
    vectors = torch.as_tensor(vectors, dtype=torch.float32)
    left = 20.0 * torch.arange(len(vectors))
    apart = torch.stack([left, torch.zeros(len(left)), left + 10, torch.full((len(left),), 10.0)], dim=1)
    overlaps = torch.zeros(len(vectors), classes)
    for row, label in enumerate(labels):
        if label:
            overlaps[row, label - 1] = 1
    return ImageWindows(apart if boxes is None else boxes, torch.tensor(labels), overlaps, lambda rows: vectors[rows])


def crowd(seed: int, *, count: int = 60, width: int = 16, classes: int = 3) -> ImageWindows:
    """An image with one object of each class, whose vectors lie around the class's own direction, and noise."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(classes + count, width, generator=generator)
    vectors[:classes] += 6 * torch.eye(width)[:classes]
    return image(vectors, [*range(1, classes + 1), *[0] * count], classes=classes)


def scores_of(svms: SVMClassifier, features: Tensor) -> Tensor:
    """[R, K] decision scores, without the background's."""
    return svms(features)[:, 1:]


CROWD = [crowd(seed) for seed in range(12)]
NAMES = ("a", "b", "c")
MINING = SVMSettings(retrain_after=100, cost=0.1, checkpoint_interval=5)


# Mining


def test_mining_finds_what_random_negatives_miss() -> None:
    """Positives lie up right. Of 4000 negatives 3992 lie left; 8 lie down right, where only y tells them apart."""
    generator = torch.Generator().manual_seed(0)
    positives = torch.tensor([2.0, 2.0]) + 0.2 * torch.randn(40, 2, generator=generator)
    images, hard = [], []
    for number in range(8):
        negatives = torch.tensor([-2.0, 0.0]) + torch.tensor([0.2, 1.5]) * torch.randn(500, 2, generator=generator)
        negatives[17] = torch.tensor([2.0, -2.0])
        hard.append(negatives[17])
        here = positives[5 * number : 5 * number + 5]
        images.append(image(torch.cat([here, negatives]), [1] * 5 + [0] * 500))
    told = dataclasses.replace(HARD, cost=1.0, retrain_after=200)
    mined = train_svms(images, ["thing"], told, scale=1.0)
    random = torch.cat([windows.features(torch.arange(5, 505, 16)) for windows in images])  # 256 of them, no hard one
    assert not (random[:, 0] > 0).any()
    targets = np.repeat((1, -1), (len(positives), len(random)))[:, None]
    by_chance = solve_svms(torch.cat([positives, random]).numpy(), targets, bias_input=10, loss="hinge")
    missed = by_chance.decision_scores(torch.stack(hard).numpy())
    assert float(missed.min()) > 0, "the random negatives' SVM takes them for objects"
    assert float(scores_of(mined, torch.stack(hard)).max()) < -0.8
    assert float(scores_of(mined, positives).min()) > 0.5


def test_what_is_kept_in_the_end_is_not_easy(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    svms = train_svms(CROWD, NAMES, MINING, state=state)
    stored = read_tensors(state)
    assert stored is not None
    kept, held = stored[0]["cache.features"], stored[0]["cache.held"]
    scores = scores_of(svms, kept)
    assert float(scores[held].min()) >= -1.2 - 1e-4
    assert held.any(1).all()
    seen = torch.cat([windows.features((windows.labels == 0).nonzero().flatten()) for windows in CROWD])
    assert (scores_of(svms, seen) < -1.2).any(), "there were easy ones"
    assert len(kept) < len(seen)


def test_no_two_negatives_of_an_image_are_nearly_the_same(tmp_path: Path) -> None:
    vectors = [[3.0, 0.0], [-1.0, 0.2], [-0.5, 0.1], [-1.0, 0.0]]
    boxes = torch.tensor([[100.0, 0, 110, 10], [0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5]])
    state = tmp_path / "svm.safetensors"
    train_svms([image(vectors, [1, 0, 0, 0], boxes=boxes)], ["thing"], ALL_KEPT, scale=1.0, state=state)
    stored = read_tensors(state)
    assert stored is not None
    assert stored[0]["cache.features"].tolist() == [
        pytest.approx(vectors[row]) for row in (1, 3)
    ]  # window 2 overlaps window 1 by .9


def test_windows_on_an_object_are_no_negatives(tmp_path: Path) -> None:
    windows = image([[2.0], [1.9], [1.8], [-2.0]], [1, 0, 0, 0])
    windows.overlaps[1, 0], windows.overlaps[2, 0] = 0.3, 0.29
    state = tmp_path / "svm.safetensors"
    train_svms([windows], ["thing"], ALL_KEPT, scale=1.0, state=state)
    stored = read_tensors(state)
    assert stored is not None
    assert stored[0]["cache.features"].flatten().tolist() == pytest.approx([1.8, -2.0])


def test_objects_of_one_class_are_negatives_of_another() -> None:
    windows = image([[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]], [1, 2, 0], classes=2)
    svms = train_svms([windows], ["a", "b"], HARD, scale=1.0)
    scores = scores_of(svms, torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert scores.sign().tolist() == [[1, -1], [-1, 1]]


def test_a_class_s_negatives_stay_within_their_memory(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    most = 20
    told = dataclasses.replace(MINING, memory_bytes=3 * (most * 16 * 4 + 63))  # vectors of 16 float32
    svms = train_svms(CROWD, NAMES, told, state=state)
    stored = read_tensors(state)
    assert stored is not None
    assert int(stored[0]["cache.held"].sum(0).max()) <= most
    own = scores_of(svms, torch.cat([windows.features(torch.arange(3)) for windows in CROWD])).reshape(12, 3, 3)
    assert (own.diagonal(dim1=1, dim2=2).mean(0) > own.mean((0, 1))).all()


def test_windows_in_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_svms(CROWD, NAMES, MINING)
    monkeypatch.setattr("sppnet.detection.svm.EMBEDDED_BYTES", 7 * 16 * 4)
    torch.testing.assert_close(train_svms(CROWD, NAMES, MINING).weights, whole.weights, rtol=1e-3, atol=1e-4)


def test_half_precision_serves() -> None:
    def halved(windows: ImageWindows) -> ImageWindows:
        return ImageWindows(windows.boxes, windows.labels, windows.overlaps, lambda rows: windows.embed(rows).half())

    whole, half = train_svms(CROWD, NAMES, MINING), train_svms([halved(windows) for windows in CROWD], NAMES, MINING)
    seen = CROWD[0].features(torch.arange(63))
    torch.testing.assert_close(scores_of(whole, seen), scores_of(half, seen.half()), rtol=0, atol=0.1)


# The same again


def test_the_same_seed_gives_the_same_svms() -> None:
    first, again, other = (train_svms(CROWD, NAMES, dataclasses.replace(MINING, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.biases, again.biases)
    assert not torch.equal(first.weights, other.weights)


class Stopped(Exception):
    pass


def stop_after(steps: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == steps:
            raise Stopped

    return progress


@pytest.mark.parametrize("steps", [3, 9, 12, 17, 24])
def test_a_training_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path, steps: int) -> None:
    unbroken = train_svms(CROWD, NAMES, MINING)
    state = tmp_path / "svm.safetensors"
    with pytest.raises(Stopped):
        train_svms(CROWD, NAMES, MINING, state=state, progress=stop_after(steps))
    seen: list[int] = []
    resumed = train_svms(CROWD, NAMES, MINING, state=state, progress=lambda stage, done, total: seen.append(done))
    assert torch.equal(resumed.weights, unbroken.weights)
    assert torch.equal(resumed.biases, unbroken.biases)
    assert resumed.scale == unbroken.scale
    last_saved = 24 if steps == 24 else steps // 5 * 5
    assert seen == list(range(last_saved + 1, 25))


def test_a_finished_training_only_reads(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    first = train_svms(CROWD, NAMES, MINING, state=state)
    nothing = [ImageWindows(windows.boxes, windows.labels, windows.overlaps, pytest.fail) for windows in CROWD]
    assert torch.equal(train_svms(nothing, NAMES, MINING, state=state).weights, first.weights)


def test_a_damaged_state_is_made_anew(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    first = train_svms(CROWD, NAMES, MINING, state=state)
    written = bytearray(state.read_bytes())
    written[-40] ^= 1
    state.write_bytes(written)
    steps: list[int] = []
    again = train_svms(CROWD, NAMES, MINING, state=state, progress=lambda stage, done, total: steps.append(done))
    assert steps[0] == 1
    assert torch.equal(again.weights, first.weights)


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    train_svms(CROWD, NAMES, MINING, state=state)
    with pytest.raises(UserError, match="another training"):
        train_svms(CROWD, NAMES, dataclasses.replace(MINING, cost=0.2), state=state)
    train_svms(CROWD, NAMES, dataclasses.replace(MINING, checkpoint_interval=7), state=state)  # decides nothing


KILLED = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from test_svm import CROWD, MINING, NAMES, Path, train_svms
train_svms(CROWD, NAMES, MINING, state=Path(sys.argv[2]), progress=lambda stage, done, total: time.sleep(.02) or print(done, flush=True))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_costs_nothing_but_time(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    unbroken = train_svms(CROWD, NAMES, MINING)
    rng = np.random.default_rng(0)
    for _ in range(5):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(state)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.3))
            os.kill(process.pid, signal.SIGKILL)
    resumed = train_svms(CROWD, NAMES, MINING, state=state)
    assert torch.equal(resumed.weights, unbroken.weights)


# One more class


def test_another_class_may_learn_from_what_the_others_ended_with(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    two = train_svms([crowd(seed, classes=2) for seed in range(6)], NAMES[:2], MINING, state=state)
    cached = cached_windows(state, group_size=50)
    stored = read_tensors(state)
    assert stored is not None
    assert sum(len(windows.labels) for windows in cached) == 12 + len(stored[0]["cache.features"])
    own = [image(windows.features(torch.tensor([2])), [1]) for windows in CROWD]  # nothing but the new class's objects
    third = train_svms([*own, *cached], "c", MINING, scale=float(two.scale))
    scores = torch.stack([scores_of(third, windows.features(torch.arange(63)))[:, 0] for windows in CROWD])
    assert float((scores.argmax(1) == 2).float().mean()) > 0.9, "the third class's object scores above all others"
    state.write_bytes(b"damaged")
    assert cached_windows(state) == cached_windows(tmp_path / "none.safetensors") == []


# Named, and mistaken


def test_what_decides_a_training_is_named_field_by_field() -> None:
    """So that a field that comes later, with its default, leaves what users have trained as it is."""

    @dataclasses.dataclass(frozen=True)
    class Later(SVMSettings):
        new: int = 1

    assert Later().key() == SVMSettings().key()
    assert SVMSettings(checkpoint_interval=7).key() == SVMSettings().key(), "decides nothing"
    assert json.dumps(SVMSettings().key()) == (
        '{"cost": 0.001, "positive_weight": 2.0, "bias_input": 10.0, "negative_iou": 0.3, "duplicate_iou": 0.7, '
        '"hard_score": -1.0001, "easy_score": -1.2, "retrain_after": 2000, "memory_bytes": 2147483648, "seed": 0}'
    ), "another text discards what is on users' disks"


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="class 'b' has no object to learn from"):
        train_svms([image([[1.0], [0.0]], [1, 0], classes=2)], ["a", "b"])
    with pytest.raises(UserError, match=r"no window overlaps the objects of class 'a' by less than 0\.3"):
        train_svms([image([[1.0], [2.0]], [1, 1])], ["a"])
