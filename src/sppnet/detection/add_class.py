"""Add a class to a trained detector in seconds: one SVM and one box regressor more, every other number as it was.

A classifier by softmax shares its probability among its classes, so that a new one changes all. SVMs are trained each by itself:
the new class's learns from its own images and, as further negatives, from what the model's training kept of the old ones.

    data with objects of the new class -> proposals, feature maps (cached) -> SVM, ridge -> K + 1 classes

Whole images: the class's SVM looks at the whole map as at any window, and its decision score is the logit. Source: the merit
claimed for SVMs on fixed features in arXiv:1311.2524, section 2.3, here for arXiv:1406.4729.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sppnet.data.annotations import DetectionData
from sppnet.detection.box_regression import BoxRegressionSettings, train_box_regression
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.linear_heads import put_ridge, put_svms, state_file
from sppnet.detection.svm import SVMSettings, cached_windows, train_svms
from sppnet.detection.windows_of_images import ImageWindows, WindowsOfImages
from sppnet.errors import ModelError, UserError
from sppnet.models.files import check_model_path, save_model
from sppnet.models.heads import BoxRegressor, RidgeRegressor, SVMClassifier
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress, timed
from sppnet.proposals.compute import proposals_of

RENAMED = {"hard_margin": "hard_score", "easy_margin": "easy_score", "overlap": "min_iou"}  # in records of before
Settings = TypeVar("Settings", SVMSettings, BoxRegressionSettings)


def add_class(
    model: SPPNet,
    name: str,
    data: DetectionData,
    *,
    cache: Path,
    output: Path | None = None,
    old_negatives: bool = True,
    progress: Progress = no_progress,
) -> SPPNet:
    """Train one more class of a detector with SVMs.

    Args:
        model: a detector with SVMs; it stays as it is.
        name: of the new class; one of ``data``'s.
        data: images with objects of the class, all of them marked, and if possible without. Other classes are not looked at.
        cache: the cache directory of proposals, feature maps and states. If it is the one that the model was trained with, the
            negatives and positives that its SVMs ended with are negatives of the new class.
        output: the new model's file, .safetensors; may be the old one's. None: it is not written.
        old_negatives: whether they are; leave them out where the old images show the new class.
        progress: the stages are "proposals", "feature maps", "SVMs" and "box regression".

    Returns:
        A model of K + 1 classes, the new one last. Its record has one entry more under ``added``: the class, its data, how many
        old negatives, seconds.

    Raises:
        ModelError: a model without SVMs, or with a class of that name.
        UserError: data without the class or an object of it, images that cannot be read, or nothing to tell the class from.
    """
    _check(model, name, data)
    if output is not None:
        check_model_path(output)
    label = data.class_names.index(name) + 1
    seconds: dict[str, float] = {}
    with timed(seconds, "proposals and maps"):
        proposals = proposals_of(data, model.detection.proposals, cache, progress)
        maps = FeatureMapCache(model, cache / "feature-maps")
        maps.fill([image.path for image in data.images], progress=progress)
    windows = WindowsOfImages(model, maps, data.images, proposals, label=label)
    states = model.record.get("svm_states", ()) if old_negatives else ()
    old = [group for state in states for group in cached_windows(cache / state)]
    grown = copy.deepcopy(model).eval()
    grown.architecture = dataclasses.replace(model.architecture, class_names=(*model.class_names, name))
    with timed(seconds, "SVM and box regression"):
        state = _add_svm(grown, _Both(windows, old), cache, progress)
        _add_regressor(grown, windows, cache, progress)
    added = {
        "class": name,
        "split": data.split,
        "images": len(data),
        "objects": sum(int((image.gt_labels == label).sum()) for image in data.images),
        "old_negatives": sum(len(group.labels) for group in old),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }
    grown.record = {
        **model.record,
        "added": [*model.record.get("added", ()), added],
        "svm_states": [*model.record.get("svm_states", ()), state.name],
    }
    if output is not None:
        save_model(grown, output)
    return grown


class _Both:
    """The images of the new class, then groups of old windows; none is asked for before its turn."""

    def __init__(self, windows: WindowsOfImages, old: list[ImageWindows]) -> None:
        self.windows, self.old = windows, old

    def __len__(self) -> int:
        return len(self.windows) + len(self.old)

    def __getitem__(self, index: int) -> ImageWindows:
        return self.windows[index] if index < len(self.windows) else self.old[index - len(self.windows)]


def _add_svm(model: SPPNet, windows: _Both, cache: Path, progress: Progress) -> Path:
    """Train the SVM of the model's last class, for windows and whole images; where its training keeps its state."""
    before, name = model.window_classifier, model.class_names[-1]
    assert isinstance(before, SVMClassifier)
    settings, scale = _recorded(SVMSettings, model.record.get("svm", {})), float(before.scale)
    key = {"scale": scale, "old_windows": [len(group.labels) for group in windows.old], **settings.key()}
    state = state_file(cache, "svms", windows.windows, key, (name,))
    svm = train_svms(windows, (name,), settings, state=state, scale=scale, progress=progress).to(model.device)
    put_svms(
        model, SVMClassifier(torch.cat([before.weights, svm.weights]), torch.cat([before.biases, svm.biases]), scale)
    )
    _grow(model.image_classifier, svm.weights * scale, svm.biases)
    return state


def _add_regressor(model: SPPNet, windows: WindowsOfImages, cache: Path, progress: Progress) -> None:
    """A ridge regression of the class; of the network's own box regression, what all classes share."""
    before = model.box_regressor
    if isinstance(before, BoxRegressor):
        _grow(before.per_class, before.per_class.weight.new_zeros(4, before.per_class.in_features), torch.zeros(4))
        return
    assert isinstance(before, RidgeRegressor)
    settings = _recorded(BoxRegressionSettings, model.record.get("box_regression", {}))
    scale = float(before.scale)
    state = state_file(cache, "ridge", windows, {"scale": scale, **settings.key()})
    new = train_box_regression(windows, 1, settings, scale=scale, state=state, progress=progress).to(model.device)
    regressor = RidgeRegressor(torch.cat([before.weights, new.weights]), torch.cat([before.biases, new.biases]), scale)
    put_ridge(model, regressor)


def _grow(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give a layer further outputs, in place; those that it has stay."""
    linear.weight = nn.Parameter(torch.cat([linear.weight.detach(), weight.to(linear.weight)]))
    linear.bias = nn.Parameter(torch.cat([linear.bias.detach(), bias.to(linear.bias)]))
    linear.out_features = len(linear.bias)


def _recorded(kind: type[Settings], fields: Mapping[str, Any]) -> Settings:
    """Settings from a model's record, also one of an earlier version: what is no longer a setting is passed over."""
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for old, value in fields.items() if (name := RENAMED.get(old, old)) in known})


def _check(model: SPPNet, name: str, data: DetectionData) -> None:
    if not isinstance(model.window_classifier, SVMClassifier):
        raise ModelError(
            "this model has no SVMs, and a class can only be added to them: train them on the data of its training first, "
            "with 'sppnet train svm MODEL DATA --output NEW', then add the class to NEW"
        )
    if name in model.class_names:
        raise ModelError(f"the model has the class {name!r} already")
    if name not in data.class_names:
        raise UserError(f"the data has no class {name!r}, only {', '.join(data.class_names[:20])}")
    label = data.class_names.index(name) + 1
    if not any(((image.gt_labels == label) & ~image.difficult).any() for image in data.images):
        raise UserError(f"split {data.split!r} holds no object of class {name!r} ({len(data)} images)")
