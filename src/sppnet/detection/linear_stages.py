"""The paper's detector after fine-tuning: one SVM a class scores the windows, ridge regressions move the boxes.

Both learn from cached maps (`sppnet.detection.mapped_windows`), are kept in the model, and take the place of the network's own
outputs, which stay beside them: what an `SPPNet` does with a window is said by ``architecture.classifier`` and ``.regression``.

    classifier  "softmax"       probabilities, from the network itself
                "svm"           margins, above 0 for yes: `sppnet.detection.svm`, on what the fully connected layers say
    regression  "network"       the network's own box deltas
                "ridge"         `sppnet.detection.box_regression` on what the fully connected layers say
                "ridge-pooled"  the same on the pooled windows, as in the paper

Source: arXiv:1406.4729, sections 4.1 and 4.2.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sppnet.cache import fingerprint
from sppnet.data.annotations import AnnotatedImage
from sppnet.detection.box_regression import BoxRegression, BoxRegressionSettings, train_box_regression
from sppnet.detection.map_cache import MapCache
from sppnet.detection.mapped_windows import MappedWindows
from sppnet.detection.svm import LinearSVMs, SVMSettings, train_svms
from sppnet.errors import UserError
from sppnet.models.sppnet import CLASSIFIERS, REGRESSIONS, LinearOutputs, SPPNet

Report = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class LinearStages:
    """What follows fine-tuning, and how."""

    classifier: str = "softmax"  # or "svm"
    regression: str = "network"  # or "ridge", "ridge-pooled"
    svm: SVMSettings = field(default_factory=SVMSettings)
    box_regression: BoxRegressionSettings = field(default_factory=BoxRegressionSettings)

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS or self.regression not in REGRESSIONS:
            raise UserError(
                f"expected a classifier of {', '.join(CLASSIFIERS)} and a regression of {', '.join(REGRESSIONS)}, "
                f"got {self.classifier!r} and {self.regression!r}"
            )


def train_linear_stages(
    model: SPPNet,
    cache: MapCache,
    images: Sequence[AnnotatedImage],
    proposals: Sequence[Path],
    maps: Sequence[Path],
    stages: LinearStages,
    state: Path,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train what ``stages`` asks for, and put it into the model, in place.

    Args:
        model: fine-tuned; what a model file holds of it (`sppnet.models.files.round_to_stored`).
        cache, images, proposals, maps: as of `MappedWindows`.
        stages: see there; what it does not ask for stays as it is.
        state: the beginning of the names of the files in which the stages keep where they stand. A stage that was killed goes
            on from there; a damaged file is found by its checksum, and that stage begins anew.
        report: told of each stage's progress: its name, done, total.

    Returns:
        For the model's record: settings, seconds of each stage, and the SVMs' file, from which a class can be added.
    """
    report = report or (lambda stage, done, total: None)
    names = model.class_names
    record: dict[str, Any] = {"seconds": {}}
    if stages.classifier == "svm":
        started = time.perf_counter()
        windows = MappedWindows(model, cache, images, proposals, maps, classes=len(names))
        file = svm_file(state, windows, stages.svm)
        store_svms(model, train_svms(windows, names, stages.svm, state=file, progress=partial(report, "SVMs")))
        record |= {"svm": dataclasses.asdict(stages.svm), "svm_states": [file.name]}
        record["seconds"]["SVMs"] = round(time.perf_counter() - started)
    if stages.regression != "network":
        started = time.perf_counter()
        pooled = stages.regression == "ridge-pooled"
        windows = MappedWindows(model, cache, images, proposals, maps, classes=len(names), pooled=pooled)
        settings = stages.box_regression
        file = ridge_file(state, windows, settings)
        progress = partial(report, "box regression")
        regression = train_box_regression(windows, len(names), settings, state=file, progress=progress)
        store_regression(model, regression, stages.regression)
        record["box_regression"] = dataclasses.asdict(settings)
        record["seconds"]["box regression"] = round(time.perf_counter() - started)
    return record


def svm_file(state: Path, windows: MappedWindows, settings: SVMSettings) -> Path:
    """Where an SVM training keeps its state; named for all that it starts from."""
    return _file(state, "svms", windows, settings)


def ridge_file(state: Path, windows: MappedWindows, settings: BoxRegressionSettings) -> Path:
    """Where a fit of box regressors keeps its state; named for all that it starts from."""
    return _file(state, "ridge", windows, settings)


def store_svms(model: SPPNet, svms: LinearSVMs) -> None:
    """Have the model score windows by these SVMs."""
    model.svms = _outputs(svms.arrays(), model.device)
    model.architecture = dataclasses.replace(model.architecture, classifier="svm")


def stored_svms(model: SPPNet) -> LinearSVMs:
    """The SVMs of a model that has some."""
    return LinearSVMs.of_arrays(dict(model.svms.named_buffers()))


def store_regression(model: SPPNet, regression: BoxRegression, kind: str) -> None:
    """Have the model move boxes by these regressors; ``kind`` is "ridge" or "ridge-pooled": what they take."""
    model.ridge = _outputs(regression.arrays(), model.device)
    model.architecture = dataclasses.replace(model.architecture, regression=kind)


def stored_regression(model: SPPNet) -> BoxRegression:
    """The box regressors of a model that has some."""
    return BoxRegression.of_arrays(dict(model.ridge.named_buffers()))


def _outputs(arrays: dict[str, Tensor], device: torch.device) -> LinearOutputs:
    outputs = LinearOutputs(tuple(arrays["biases"].shape), arrays["weights"].shape[-1])
    outputs.load_state_dict(arrays)
    return outputs.eval().to(device)


def _file(state: Path, stage: str, windows: MappedWindows, settings: Any) -> Path:
    told = dataclasses.asdict(settings)
    del told["save_every"]  # decides nothing
    settings_key = fingerprint([repr(sorted(told.items()))], size=3)
    return state.with_name(f"{state.name}-{stage}-{windows.fingerprint()}-{settings_key}.safetensors")
