"""Add a class to a trained detector in seconds: one SVM and one box regressor more, every other number as it was.

A classifier by softmax shares its probability among its classes, so that a new one changes all. SVMs are trained each by itself:
the new class's learns from its own images and, as further negatives, from what the model's training kept of the old ones.

    data with objects of the new class -> proposals, maps (cached) -> SVM, ridge -> K + 1 classes

Whole images: the class's SVM looks at the whole map as at any window, and its margin is the logit. The network's own outputs
for windows, which the SVMs stand in for, give the new class probability 0. Source: the merit claimed for SVMs on fixed features
in arXiv:1311.2524, section 2.3, here for arXiv:1406.4729.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.data.annotations import DetectionData
from sppnet.detection.box_regression import BoxRegressionSettings, add_regressor
from sppnet.detection.image_windows import ImageWindows
from sppnet.detection.linear_stages import (
    Report,
    ridge_file,
    store_regression,
    store_svms,
    stored_regression,
    stored_svms,
    svm_file,
)
from sppnet.detection.mapped_windows import MappedWindows
from sppnet.detection.svm import LinearSVMs, SVMSettings, add_svm, cached_windows
from sppnet.detection.train import check_training, windows_of
from sppnet.errors import UserError
from sppnet.models.files import find_model, load, save_model, training_record
from sppnet.models.sppnet import SPPNet

NEVER = -1e4  # a logit whose probability is 0, and that half precision holds


def add_class(
    model: str | Path,
    name: str,
    data: DetectionData,
    output: Path,
    work: Path,
    *,
    old_negatives: bool = True,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> dict[str, Any]:
    """Train one more class of a detector with SVMs, and write it as a new model file.

    Args:
        model: the file of a detector with SVMs, or a shipped name.
        name: of the new class; one of ``data``'s.
        data: images with objects of the class, all of them marked, and if possible without. Other classes are not looked at.
        output: the new model's file, .safetensors; may be the old one's.
        work: proposals and maps are kept below it. If it is the folder that the model was trained in, the negatives and positives
            that its SVMs ended with are negatives of the new class.
        old_negatives: whether they are; leave them out where the old images show the new class.
        device: where to compute.
        report: told of each stage's progress: its name, done, total.

    Returns:
        The model's record, with one entry more under ``added``: the class, its data, how many old negatives, seconds.

    Raises:
        UserError: a model without SVMs, a class that it has or that the data has not, no object of it, nothing to tell it from.
    """
    report = report or (lambda stage, done, total: None)
    check_training(data, output)
    net = load(model, device)
    record = training_record(find_model(model))
    _check(net, str(model), name, data)
    started = time.perf_counter()
    files, cache, maps = windows_of(net, data, work, report)
    prepared = time.perf_counter()

    label = data.class_names.index(name) + 1
    windows = MappedWindows(net, cache, data.images, files, maps, classes=1, label=label)
    settings = SVMSettings(**record.get("svm", {}))
    old: list[ImageWindows] = []
    for name_of_state in record.get("svm_states", ()) if old_negatives else ():
        with suppress(UserError):  # trained elsewhere, or damaged: the record says how many windows there were
            old += cached_windows(work / name_of_state)
    state = svm_file(work / f"{output.stem}-{_as_file_name(name)}", windows, settings)
    if old:  # of another kind, so by another name
        state = state.with_name(state.name.replace("-svms-", f"-svms-{sum(len(group.labels) for group in old)}-"))
    svms = add_svm(stored_svms(net), _Both(windows, old), name, settings, state=state, progress=partial(report, "SVM"))
    regression = None
    if net.architecture.regression != "network":
        pooled = net.architecture.regression == "ridge-pooled"
        told = BoxRegressionSettings(**record.get("box_regression", {}))
        of_regression = MappedWindows(net, cache, data.images, files, maps, classes=1, label=label, pooled=pooled)
        regression = add_regressor(
            stored_regression(net),
            of_regression,
            told,
            state=ridge_file(work / f"{output.stem}-{_as_file_name(name)}", of_regression, told),
            progress=partial(report, "box regression"),
        )
    grown = grow(net, name, svms)
    if regression is not None:
        store_regression(grown, regression, net.architecture.regression)

    added = {
        "class": name,
        "split": data.split,
        "images": len(data),
        "objects": sum(int((image.gt_labels == label).sum()) for image in data.images),
        "old_negatives": sum(len(group.labels) for group in old),
        "seconds": {
            "proposals and maps": round(prepared - started, 1),
            "SVM and box regression": round(time.perf_counter() - prepared, 1),
        },
    }
    record = {
        **record,
        "added": [*record.get("added", ()), added],
        "svm_states": [*record.get("svm_states", ()), state.name],
    }
    save_model(grown, output, record)
    return record


def grow(model: SPPNet, name: str, svms: LinearSVMs) -> SPPNet:
    """A copy of a detector with SVMs that has room for one more class, the last; all other numbers are the same.

    Args:
        model: of K classes.
        name: of the new class.
        svms: of K + 1 classes.
    """
    grown = copy.deepcopy(model)
    with torch.no_grad():
        weight, bias = (svms.weights[-1:] * svms.scale).to(model.device), svms.biases[-1:].to(model.device)
        grown.image_classifier = _longer(model.image_classifier, weight, bias)
        grown.window_classifier = _longer(
            model.window_classifier, torch.zeros_like(weight), torch.full_like(bias, NEVER)
        )
        grown.class_deltas = _longer(model.class_deltas, weight.new_zeros(4, weight.shape[1]), bias.new_zeros(4))
    grown.architecture = dataclasses.replace(model.architecture, names=(*model.class_names, name))
    store_svms(grown, svms)
    return grown.eval()


class _Both(Sequence[ImageWindows]):
    """The images of the new class, then groups of old windows; none is asked for before its turn."""

    def __init__(self, windows: MappedWindows, old: list[ImageWindows]) -> None:
        self.windows, self.old = windows, old

    def __len__(self) -> int:
        return len(self.windows) + len(self.old)

    def __getitem__(self, index: Any) -> Any:
        return self.windows[index] if index < len(self.windows) else self.old[index - len(self.windows)]


def _longer(linear: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    longer = nn.Linear(linear.in_features, linear.out_features + len(bias), device=weight.device)
    longer.weight.copy_(torch.cat([linear.weight, weight]))
    longer.bias.copy_(torch.cat([linear.bias, bias]))
    return longer


def _check(net: SPPNet, model: str, name: str, data: DetectionData) -> None:
    if not net.architecture.detects or net.architecture.classifier != "svm":
        raise UserError(
            f"{model} has no SVMs, and a class can only be added to them: train them on the data of its training first, with "
            f"'sppnet train detector DATA --model {model} --classifier svm --output NEW', then add the class to NEW"
        )
    if name in net.class_names:
        raise UserError(f"{model} has the class {name!r} already")
    if name not in data.class_names:
        raise UserError(f"the data has no class {name!r}, only {', '.join(data.class_names[:20])}")
    label = data.class_names.index(name) + 1
    if not any(((image.gt_labels == label) & ~image.difficult).any() for image in data.images):
        raise UserError(f"split {data.split!r} holds no object of class {name!r} ({len(data)} images)")


def _as_file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
