"""Twenty times SIGKILL and five times a full disk, in every stage of training a detector and scoring it: nothing is lost or changed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.train import DetectorSettings, train_detector
from sppnet.errors import OutputError
from sppnet.models.files import load
from sppnet.progress import no_progress

STAGES = ("proposals", "feature maps", "fine-tuning", "SVMs", "box regression", "images", "end to end", "detection")
DEATHS = dict(zip(STAGES, (2, 3, 4, 4, 2, 1, 2, 2), strict=True))
SETTINGS = DetectorSettings(
    levels=(2, 1), hidden=(32,), short_side=96, scales=(64, 96), epochs=10, checkpoint_interval=2
)
PRESETS = ("paper", "standard")
NO_ROOM = 7  # a child's exit status
Run = Callable[..., int]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Death:
    """Comes ``delay`` seconds after a stage, or a later one, has reported so many times."""

    stage: str
    reports: int
    delay: float

    def __call__(self, stage: str, done: int, total: int) -> None:
        ahead = STAGES.index(stage) - STAGES.index(self.stage)
        self.reports -= ahead == 0
        if ahead > 0 or self.reports <= 0:
            threading.Thread(target=self._strike, daemon=True).start()

    def _strike(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def live(voc: Path, folder: Path, death: Death | None, largest_file: int) -> None:
    """Train by two presets, the second with proposals of its own network, and evaluate, as far as it goes."""
    torch.set_num_threads(1)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    progress, cache, data = death or no_progress, folder / "cache", read_voc(voc, "train")
    try:
        for preset in PRESETS:
            output = folder / f"{preset}.safetensors"
            train_detector(data, output=output, cache=cache, settings=SETTINGS, preset=preset, progress=progress)
        answer = evaluate_detector(
            load(folder / "paper.safetensors"), read_voc(voc, "val"), cache=cache, cache_maps=True, progress=progress
        ).to_dict()
        answer.pop("seconds_per_image")
        (folder / "answer.json").write_text(json.dumps(answer, sort_keys=True))
    except OutputError as error:
        print(error)
        raise SystemExit(NO_ROOM) from None
    if death:
        time.sleep(1)  # it is coming


@pytest.fixture(scope="module")
def run(tiny_voc_original: Path) -> Run:
    """Live in a process of its own; its exit status."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "sppnet.detection.evaluate", "sppnet.detection.train"])

    def run(folder: Path, death: Death | None = None, largest_file: int = 0) -> int:
        folder.mkdir(exist_ok=True)
        process = context.Process(target=live, args=(tiny_voc_original, folder, death, largest_file))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def unbroken(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(folder) == 0
    return folder


def same(broken: Path, unbroken: Path) -> None:
    for preset in PRESETS:
        ours, theirs = (load_file(folder / f"{preset}.safetensors") for folder in (broken, unbroken))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert (broken / "answer.json").read_text() == (unbroken / "answer.json").read_text()


def test_twenty_kills(run: Run, unbroken: Path, tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)  # said where the test fails
    print(f"seed {seed}")
    broken, lives = tmp_path / "broken", 0
    for stage, times in DEATHS.items():
        for _ in range(times):
            death = Death(stage, int(rng.integers(1, 4)), float(rng.uniform(0, 0.2)))
            lives += 1
            assert run(broken, death) == -signal.SIGKILL, (lives, death)
            files = sorted(broken.glob("cache/**/*.safetensors"))
            if files and rng.random() < 0.3:  # and the disk loses something as well
                victim = files[rng.integers(len(files))]
                victim.write_bytes(victim.read_bytes()[: int(rng.integers(2000))])
    assert lives == 20
    assert run(broken) == 0
    same(broken, unbroken)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A folder on a disk of ``size`` bytes that can grow; False where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)  # files of it are still mapped into memory


def test_five_full_disks(run: Run, unbroken: Path, tmp_path: Path) -> None:
    """The disk is full in five stages; where no small one can be mounted, files may not grow beyond a size instead."""
    parts = ("proposals", "feature-maps", "fine-tuning-*", "svms-*", "end-to-end-*")
    files = [[path for path in (unbroken / "cache").glob(f"{part}/**/*") if path.is_file()] for part in parts]
    files[3] = [*(unbroken / "cache").glob(parts[3])]
    sizes = [[path.stat().st_size for path in part] for part in files]
    disk = tmp_path / "disk"
    with small_disk(disk, 2**16) as mounted:
        broken = disk / "broken"
        for stage in range(5):
            room = sum(map(sum, sizes[:stage])) + sum(sizes[stage]) // 2
            if mounted:
                subprocess.run(["mount", "-o", f"remount,size={room}", disk], check=True)
            assert run(broken, largest_file=0 if mounted else max(sizes[stage]) - 1) == NO_ROOM, parts[stage]
            assert not list(broken.rglob(".*.tmp"))  # what was not finished takes no room
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
        assert run(broken) == 0
        same(broken, unbroken)
