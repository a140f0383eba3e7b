"""Twenty times SIGKILL, in every stage of training a detector and evaluating it: nothing is lost, nothing changes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sppnet.detection.linear_stages import LinearStages

from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.finetune import FinetuneSettings
from sppnet.detection.svm import SVMSettings
from sppnet.detection.train import train_detector
from sppnet.models.files import load
from sppnet.models.sppnet import Architecture

STAGES = ("proposals", "maps", "fine-tuning", "SVMs", "box regression", "detection")
DEATHS = {"proposals": 3, "maps": 4, "fine-tuning": 5, "SVMs": 4, "box regression": 2, "detection": 2}
SMALL = Architecture(
    ("circle", "square"), levels=(2, 1), hidden=(32,), short_side=96, long_side=160, scales=(64, 96), proposer="selective-search"
)  # fmt: skip


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


def live(voc: Path, folder: Path, death: Death | None) -> None:
    """Train and evaluate, as far as it goes."""
    torch.set_num_threads(1)
    report = death or (lambda stage, done, total: None)
    model, work = folder / "m.safetensors", folder / "work"
    data = read_voc(voc, "train")
    tuning = FinetuneSettings(steps=40, images_per_step=4, windows_per_image=32, checkpoint_every=4)
    svm = SVMSettings(cost=0.01, retrain_after=50, save_every=2)
    stages = LinearStages("svm", "ridge", svm, BoxRegressionSettings(ridge=10, overlap=0.4, save_every=2))
    train_detector(data, SMALL, model, work, settings=tuning, stages=stages, report=report)
    answer = evaluate_detector(load(model), read_voc(voc, "val"), work, report).to_dict()
    answer.pop("seconds_per_image")
    (folder / "answer.json").write_text(json.dumps(answer, sort_keys=True))
    if death:
        threading.Event().wait()  # it is coming


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills(tiny_voc: Path, tmp_path: Path) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "sppnet.detection.evaluate", "sppnet.detection.train"])
    rng = np.random.default_rng()
    seed = int(rng.integers(2**32))
    rng = np.random.default_rng(seed)  # said where the test fails

    def run(folder: Path, death: Death | None = None) -> int:
        folder.mkdir(exist_ok=True)
        process = context.Process(target=live, args=(tiny_voc, folder, death))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert run(unbroken) == 0
    lives = 0
    for stage, times in DEATHS.items():
        for _ in range(times):
            death = Death(stage, int(rng.integers(1, 4)), float(rng.uniform(0, 0.2)))
            lives += 1
            assert run(broken, death) == -signal.SIGKILL, (seed, lives, death)
            maps = sorted(broken.glob("work/maps/*/*.safetensors"))
            if maps and rng.random() < 0.3:  # and the disk loses something as well
                victim = maps[rng.integers(len(maps))]
                victim.write_bytes(victim.read_bytes()[: int(rng.integers(2000))])
    assert lives == 20
    assert run(broken) == 0, seed
    ours, theirs = load_file(broken / "m.safetensors"), load_file(unbroken / "m.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == [], seed
    assert (broken / "answer.json").read_text() == (unbroken / "answer.json").read_text(), seed
