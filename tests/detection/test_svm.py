"""One linear SVM a class: a picture worked by hand, the solvers against each other, then mining, stopping and going on."""

from __future__ import annotations

import dataclasses
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
from hypothesis import given, settings
from hypothesis import strategies as st
from sppnet.detection.state_file import read_state
from torch import Tensor

from sppnet.detection.image_windows import ImageWindows
from sppnet.detection.svm import LinearSVMs, SVMSettings, add_svm, cached_windows, train_svms
from sppnet.detection.svm_solvers import Loss, solve_compiled, solve_liblinear
from sppnet.errors import UserError

HARD = SVMSettings(cost=100, positive_weight=1)  # hardly a margin is given up
ALL_KEPT = SVMSettings(cost=1, easy_margin=-100)


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


CROWD = [crowd(seed) for seed in range(12)]
NAMES = ("a", "b", "c")
MINING = SVMSettings(retrain_after=100, cost=0.1, save_every=5)


def test_a_picture_worked_by_hand() -> None:
    """Two positives at x = 2, two negatives at x = -2: the widest street between them runs along x = 0.

        y                      w = (1/2, 0), b = 0:
        1   -        +         margins +1 at the positives,
        0   - . . . .+ . x     -1 at the negatives,
           -2   0    2         0 in the middle
    """  # fmt: skip
    windows = image([[2, 0], [2, 1], [-2, 0], [-2, 1]], [1, 1, 0, 0])
    for told in (HARD, dataclasses.replace(HARD, solver="liblinear")):
        svms = train_svms([windows], ["thing"], told, scale=1.0)
        torch.testing.assert_close(svms.weights, torch.tensor([[0.5, 0.0]]), rtol=0, atol=0.01)
        assert float(svms.biases) == pytest.approx(0, abs=0.01)
        margins = svms.margins(torch.tensor([[2.0, 9.0], [0.0, 9.0], [-2.0, 9.0]]))
        torch.testing.assert_close(margins, torch.tensor([[1.0], [0.0], [-1.0]]), rtol=0, atol=0.1)


# The solvers


def problem(seed: int, count: int, width: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random(count) < share, 1.0, -1.0)
    signs[:2] = 1.0, -1.0
    return (rng.standard_normal((count, width)) + 0.4 * signs[:, None]).astype(np.float32), signs


def objective(features: np.ndarray, signs: np.ndarray, weights: np.ndarray, bias: float, loss: Loss) -> float:
    """What is minimised, at cost .1, positives counting twice, the bias on an input of 10."""
    short = np.maximum(0, 1 - signs * (features.astype(np.float64) @ weights + bias))
    costs = np.where(signs > 0, 0.2, 0.1)
    return float((weights @ weights + (bias / 10) ** 2) / 2 + costs @ (short if loss == "hinge" else short**2))


@given(
    seed=st.integers(0, 99),
    count=st.integers(2, 80),
    width=st.integers(1, 40),
    share=st.floats(0.05, 0.95),
    loss=st.sampled_from(["hinge", "squared_hinge"]),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")  # its own limit, stricter than 1 %
def test_the_solvers_agree(seed: int, count: int, width: int, share: float, loss: Loss) -> None:
    features, signs = problem(seed, count, width, share)
    told = {"cost": 0.1, "positive_weight": 2.0, "bias_input": 10.0}
    ours = objective(features, signs, *solve_compiled(features, signs, loss=loss, **told), loss)
    theirs = objective(features, signs, *solve_liblinear(features, signs, loss=loss, **told), loss)
    assert ours == pytest.approx(theirs, rel=0.01)
    exact = objective(features, signs, *solve_compiled(features, signs, loss=loss, tolerance=1e-4, **told), loss)
    assert exact <= ours * 1.0001
    assert ours <= exact * 1.0011, "the gap to the dual bounds the error"


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_no_step_from_the_solution_leads_lower(loss: Loss) -> None:
    features, signs = problem(3, 200, 5, 0.3)
    weights, bias = solve_compiled(
        features, signs, cost=0.1, positive_weight=2, bias_input=10, loss=loss, tolerance=1e-4
    )
    lowest = objective(features, signs, weights, bias, loss)
    rng = np.random.default_rng(0)
    for _ in range(200):
        step = 0.01 * rng.standard_normal(6)
        assert objective(features, signs, weights + step[:5], bias + step[5], loss) >= lowest * 0.9999


def test_an_svm_of_one_sign_needs_no_weights() -> None:
    features = np.ones((3, 2), np.float32)
    told = {"cost": 1.0, "positive_weight": 1.0, "bias_input": 10.0}
    weights, bias = solve_compiled(features, -np.ones(3), loss="hinge", tolerance=1e-4, **told)
    assert (features @ weights + bias).tolist() == pytest.approx([-1, -1, -1], abs=1e-3)
    with pytest.raises(ValueError, match="both signs"):
        solve_liblinear(features, -np.ones(3), loss="hinge", **told)


def test_a_solver_says_what_it_takes_and_when_it_was_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    features, signs = problem(0, 50, 5, 0.5)
    told = {"cost": 1e3, "positive_weight": 1.0, "bias_input": 10.0}
    with pytest.raises(ValueError, match=r"expected features \[n, D\] float32, got float64"):
        solve_compiled(features.astype(float), signs, loss="hinge", **told)
    with pytest.raises(ValueError, match=r"expected signs \[50\] of \+1 and -1"):
        solve_compiled(features, signs * 2, loss="hinge", **told)
    with pytest.raises(ValueError, match="expected a tolerance of 1e-4 or more, got 0"):
        solve_compiled(features, signs, loss="hinge", tolerance=0, **told)
    monkeypatch.setattr("sppnet.detection.svm_solvers.MOST_ROUNDS", 2)
    with pytest.warns(UserWarning, match="above its optimum after 2 rounds; give a smaller cost than 1000"):
        solve_compiled(features, signs, loss="hinge", **told)


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
    features = torch.cat([positives, random]).numpy()
    signs = np.repeat((1.0, -1.0), (len(positives), len(random)))
    weights, bias = solve_compiled(features, signs, cost=1, positive_weight=1, bias_input=10, loss="hinge")
    missed = torch.stack(hard) @ torch.from_numpy(weights) + bias
    assert float(missed.min()) > 0, "the random negatives' SVM takes them for objects"
    assert float(mined.margins(torch.stack(hard)).max()) < -0.8
    assert float(mined.margins(positives).min()) > 0.5


def test_what_is_kept_in_the_end_is_not_easy(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    svms = train_svms(CROWD, NAMES, MINING, state=state)
    stored = read_state(state)
    assert stored is not None
    kept, held = stored[1]["cache.features"], stored[1]["cache.held"]
    margins = svms.margins(kept)
    assert float(margins[held].min()) >= -1.2 - 1e-4
    assert held.any(1).all()
    seen = torch.cat([windows.features((windows.labels == 0).nonzero().flatten()) for windows in CROWD])
    assert (svms.margins(seen) < -1.2).any(), "there were easy ones"
    assert len(kept) < len(seen)


def test_no_two_negatives_of_an_image_are_nearly_the_same(tmp_path: Path) -> None:
    vectors = [[3.0, 0.0], [-1.0, 0.2], [-0.5, 0.1], [-1.0, 0.0]]
    boxes = torch.tensor([[100.0, 0, 110, 10], [0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5]])
    state = tmp_path / "svm.safetensors"
    train_svms([image(vectors, [1, 0, 0, 0], boxes=boxes)], ["thing"], ALL_KEPT, scale=1.0, state=state)
    stored = read_state(state)
    assert stored is not None
    assert stored[1]["cache.keys"].tolist() == [[0, 1], [0, 3]]  # window 2 overlaps window 1 by .9


def test_windows_on_an_object_are_no_negatives(tmp_path: Path) -> None:
    windows = image([[2.0], [1.9], [1.8], [-2.0]], [1, 0, 0, 0])
    windows.overlaps[1, 0], windows.overlaps[2, 0] = 0.3, 0.29
    state = tmp_path / "svm.safetensors"
    train_svms([windows], ["thing"], ALL_KEPT, scale=1.0, state=state)
    stored = read_state(state)
    assert stored is not None
    assert stored[1]["cache.keys"].tolist() == [[0, 2], [0, 3]]


def test_objects_of_one_class_are_negatives_of_another() -> None:
    windows = image([[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]], [1, 2, 0], classes=2)
    svms = train_svms([windows], ["a", "b"], HARD, scale=1.0)
    margins = svms.margins(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert margins.sign().tolist() == [[1, -1], [-1, 1]]


def test_a_class_s_negatives_stay_within_their_memory(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    most = 20
    told = dataclasses.replace(MINING, bytes_per_class=most * 16 * 4 + 63)  # vectors of 16 float32
    svms = train_svms(CROWD, NAMES, told, state=state)
    stored = read_state(state)
    assert stored is not None
    assert int(stored[1]["cache.held"].sum(0).max()) <= most
    own = svms.margins(torch.cat([windows.features(torch.arange(3)) for windows in CROWD])).reshape(12, 3, 3)
    assert (own.diagonal(dim1=1, dim2=2).mean(0) > own.mean((0, 1))).all()


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_both_solvers_train_the_same_svms(loss: Loss) -> None:
    told = dataclasses.replace(MINING, loss=loss, retrain_after=10_000)  # once, on the same negatives
    ours = train_svms(CROWD, NAMES, told)
    theirs = train_svms(CROWD, NAMES, dataclasses.replace(told, solver="liblinear"))
    seen = torch.cat([windows.features(torch.arange(63)) for windows in CROWD])
    assert float((ours.margins(seen) - theirs.margins(seen)).abs().max()) < 0.02 * float(ours.margins(seen).abs().max())


def test_half_precision_serves() -> None:
    def halved(windows: ImageWindows) -> ImageWindows:
        return ImageWindows(windows.boxes, windows.labels, windows.overlaps, lambda rows: windows.describe(rows).half())

    whole, half = train_svms(CROWD, NAMES, MINING), train_svms([halved(windows) for windows in CROWD], NAMES, MINING)
    seen = CROWD[0].features(torch.arange(63))
    torch.testing.assert_close(whole.margins(seen), half.margins(seen.half()), rtol=0, atol=0.1)


# The same again


def test_the_same_seed_gives_the_same_svms() -> None:
    first, again, other = (train_svms(CROWD, NAMES, dataclasses.replace(MINING, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.biases, again.biases)
    assert not torch.equal(first.weights, other.weights)


class Stopped(Exception):
    pass


def stop_after(steps: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == steps:
            raise Stopped

    return progress


@pytest.mark.parametrize("steps", [3, 9, 12, 17, 24, 33, 36])
def test_a_training_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path, steps: int) -> None:
    told = dataclasses.replace(MINING, passes=2)
    unbroken = train_svms(CROWD, NAMES, told)
    state = tmp_path / "svm.safetensors"
    with pytest.raises(Stopped):
        train_svms(CROWD, NAMES, told, state=state, progress=stop_after(steps))
    seen: list[int] = []
    resumed = train_svms(CROWD, NAMES, told, state=state, progress=lambda done, total: seen.append(done))
    assert torch.equal(resumed.weights, unbroken.weights)
    assert torch.equal(resumed.biases, unbroken.biases)
    assert resumed.scale == unbroken.scale
    last_saved = 36 if steps == 36 else steps // 5 * 5
    assert seen == list(range(last_saved + 1, 37))


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
    again = train_svms(CROWD, NAMES, MINING, state=state, progress=lambda done, total: steps.append(done))
    assert steps[0] == 1
    assert torch.equal(again.weights, first.weights)


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    train_svms(CROWD, NAMES, MINING, state=state)
    with pytest.raises(UserError, match="another SVM training"):
        train_svms(CROWD, NAMES, dataclasses.replace(MINING, cost=0.2), state=state)
    train_svms(CROWD, NAMES, dataclasses.replace(MINING, save_every=7), state=state)  # decides nothing


KILLED = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from test_svm import CROWD, MINING, NAMES, Path, train_svms
train_svms(CROWD, NAMES, MINING, state=Path(sys.argv[2]), progress=lambda done, total: time.sleep(.02) or print(done, flush=True))
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


def finds_the_third(svms: LinearSVMs) -> bool:
    """Whether the third class's objects score above all others in their image for it, nearly always."""
    margins = torch.stack([svms.margins(windows.features(torch.arange(63)))[:, 2] for windows in CROWD])
    return float((margins.argmax(1) == 2).float().mean()) > 0.9


def test_another_class_leaves_the_others_as_they_are() -> None:
    two = train_svms([crowd(seed, classes=2) for seed in range(6)], NAMES[:2], MINING)

    def of_third(windows: ImageWindows) -> ImageWindows:
        return ImageWindows(windows.boxes, (windows.labels == 3).long(), windows.overlaps[:, 2:], windows.describe)

    images = [of_third(windows) for windows in CROWD]
    three = add_svm(two, images, "c", MINING)
    assert torch.equal(three.weights[:2], two.weights)
    assert torch.equal(three.biases[:2], two.biases)
    assert three.scale == two.scale
    assert finds_the_third(three)


def test_another_class_may_learn_from_the_others_cached_windows(tmp_path: Path) -> None:
    state = tmp_path / "svm.safetensors"
    two = train_svms([crowd(seed, classes=2) for seed in range(6)], NAMES[:2], MINING, state=state)
    cached = cached_windows(state, at_once=50)
    stored = read_state(state)
    assert stored is not None
    assert sum(len(windows.labels) for windows in cached) == 12 + len(stored[1]["cache.features"])
    own = [image(windows.features(torch.tensor([2])), [1]) for windows in CROWD]  # nothing but the new class's objects
    three = add_svm(two, [*own, *cached], "c", MINING)
    assert torch.equal(three.weights[:2], two.weights)
    assert finds_the_third(three)
    with pytest.raises(UserError, match="no state of an SVM training"):
        cached_windows(tmp_path / "none.safetensors")


def test_another_class_must_have_features_as_long() -> None:
    svms = LinearSVMs(torch.zeros(1, 3), torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match="expected features of length 3"):
        add_svm(svms, [image([[1.0, 0.0], [0.0, 1.0]], [1, 0])], "c")


# Stored, and mistaken


def test_svms_survive_being_stored() -> None:
    svms = LinearSVMs(torch.randn(2, 3), torch.randn(2), scale=1.234)
    again = LinearSVMs.of_arrays(svms.arrays())
    features = torch.randn(4, 3).half()
    assert torch.equal(again.margins(features), svms.margins(features))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="class 'b' has no object to learn from"):
        train_svms([image([[1.0], [0.0]], [1, 0], classes=2)], ["a", "b"])
    with pytest.raises(UserError, match=r"no window overlaps the objects of class 'a' by less than 0\.3"):
        train_svms([image([[1.0], [2.0]], [1, 1])], ["a"])
    with pytest.raises(UserError, match="no SVM can be trained of 1 classes on 0 images"):
        train_svms([], ["a"])
    with pytest.raises(ValueError, match=r"expected overlaps \[R, 1\]"):
        train_svms([image([[1.0], [0.0]], [1, 0], classes=2)], ["a"])
    with pytest.raises(ValueError, match=r"expected labels 0\.\.1, got 2"):
        train_svms([image([[1.0], [0.0]], [2, 0], classes=2)], ["a"])
    with pytest.raises(ValueError, match=r"expected features \[R, 3\], got shape \[1, 2\]"):
        LinearSVMs(torch.zeros(1, 3), torch.zeros(1), 1.0).margins(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"expected weights \[K, D\]"):
        LinearSVMs(torch.zeros(2, 3), torch.zeros(1), 1.0)
