"""The paper's detector after fine-tuning, or without any: one SVM a class scores the windows, ridge regressions move the boxes.

Both are trained on cached feature maps and take the place of the network's own heads (`sppnet.models.heads`). They take what the
fully connected layers give; of a model without such layers, the pooled windows themselves, as the paper's regression does.
Source: arXiv:1406.4729, sections 4.1 and 4.2.

To such a detector a class can be added in seconds, every other number as it was. A classifier by softmax shares its probability
among its classes, so that a new one changes all; SVMs are trained each by itself:

    data with objects of the new class -> proposals, feature maps (cached) -> SVM, ridge -> K + 1 classes

Whole images: the class's SVM looks at the whole map as at any window, and its decision score is the logit. Source: the merit
claimed for SVMs on fixed features in arXiv:1311.2524, section 2.3, here for arXiv:1406.4729.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from sppnet.cache import fingerprint
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.detection.box_regression import BoxRegressionSettings, train_box_regression
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.network_proposals import other_proposals, proposals_of_images
from sppnet.detection.svm import SVMSettings, cached_windows, train_svms
from sppnet.detection.windows_of_images import ImageWindows, ManyWindows, WindowsOfImages, feature_scale
from sppnet.errors import ModelError, UserError
from sppnet.linear.selection import SVMChoice, train_calibrated_svms
from sppnet.models.files import check_model_path, save_model
from sppnet.models.heads import BoxRegressor, RidgeRegressor, SVMClassifier
from sppnet.models.precision import to_half
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress, timed

MAX_IMAGES = 20_000  # that SVMs of whole images learn from; of more, so many are drawn: their products take 1.6 GB
RENAMED = {"hard_margin": "hard_score", "easy_margin": "easy_score", "overlap": "min_iou"}  # in records of before
Settings = TypeVar("Settings", SVMSettings, BoxRegressionSettings)
Head = TypeVar("Head", SVMClassifier, RidgeRegressor)


def train_linear_heads(
    model: SPPNet,
    windows: WindowsOfImages,
    folder: Path,
    *,
    svm: SVMSettings | None = SVMSettings(),
    ridge: BoxRegressionSettings | None = BoxRegressionSettings(),
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train SVMs, ridge regressions or both, and put them into the model, in place.

    Args:
        model: a detector whose layers hold what a model file will hold of them (`sppnet.models.files.round_to_stored`).
        windows: of the images to learn from.
        folder: where the trainings keep their states. One that was killed goes on from there; a damaged file is found by its
            checksum, and that training begins anew.
        svm, ridge: how; None: the head that the model has stays.
        progress: the stages are "SVMs" and "box regression".

    Returns:
        For the model's record: settings, seconds of each stage, and the SVMs' state, from which a class can be added.

    Raises:
        UserError: a class without objects, or without windows to tell it from.
    """
    record: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    scale: float | None = None
    if svm is not None:
        with timed(seconds, "SVMs"):
            state = _state_file(folder, "svms", windows, model.class_names, **svm.key())
            svms = train_svms(windows, model.class_names, svm, state=state, progress=progress)
            model.window_classifier = svms.eval().to(model.device)
            model.architecture = replace(model.architecture, window_classifier="svm")
            scale = float(svms.scale)  # of the same features: the sample is looked at once
            record |= {"svm": dataclasses.asdict(svm), "svm_states": [state.name]}
    if ridge is not None:
        with timed(seconds, "box regression"):
            scale = feature_scale(windows) if scale is None else scale
            model.box_regressor = _train_ridge(windows, ridge, scale, folder, progress).eval().to(model.device)
            model.architecture = replace(model.architecture, box_regressor="ridge")
            record["box_regression"] = dataclasses.asdict(ridge)
    return {**record, "seconds": {stage: round(value) for stage, value in seconds.items()}}


def train_image_classifier(
    maps: FeatureMapCache, images: Sequence[AnnotatedImage], seed: int, *, progress: Progress = no_progress
) -> SVMChoice:
    """Have SVMs say which classes are in a whole image, where no fully connected layers learned it with the windows.

    Args:
        maps: of the model, multi-label, whose image classifier is changed in place.
        images: to learn from. A class of which an image shows difficult objects only does not count there.
        seed: of the folds that cost and calibration are chosen on, and of the images that are drawn where there are very many.
        progress: the stage is "image classifier".

    Returns:
        The cost, and the scale that makes decision scores logits, whose sigmoid is the probability.
    """
    model = maps.model
    if len(images) > MAX_IMAGES:
        drawn = np.random.default_rng([seed, 2]).permutation(len(images))[:MAX_IMAGES]
        images = [images[index] for index in np.sort(drawn)]
    head_features = np.empty((len(images), model.image_classifier.in_features), np.float16)
    present = np.full((len(images), len(model.class_names)), -1, np.int8)
    for row, image in enumerate(images):
        of_image = maps.read(image.path).to(model.device)
        with model.inference():
            pooled = of_image.pool(model, of_image.whole_window())
            head_features[row] = to_half(model.fully_connected(pooled)).cpu()
        present[row, image.gt_labels[image.difficult] - 1] = 0
        present[row, image.gt_labels[~image.difficult] - 1] = 1
        progress("image classifier", row + 1, len(images))
    svms, choice = train_calibrated_svms(head_features, present, multi_label=True, seed=seed)
    with torch.no_grad():
        model.image_classifier.weight.copy_(torch.from_numpy(svms.weights))
        model.image_classifier.bias.copy_(torch.from_numpy(svms.biases))
    return choice


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
    if not isinstance(model.window_classifier, SVMClassifier):
        raise ModelError("this model has no SVMs: first 'sppnet train svm MODEL DATA --output NEW', then add to NEW")
    if name in model.class_names:
        raise ModelError(f"the model has the class {name!r} already")
    if name not in data.class_names:
        raise UserError(f"the data has no class {name!r}, only {', '.join(data.class_names[:20])}")
    label = data.class_names.index(name) + 1
    if not any(((image.gt_labels == label) & ~image.difficult).any() for image in data.images):
        raise UserError(f"split {data.split!r} holds no object of class {name!r} ({len(data)} images)")
    if output is not None:
        check_model_path(output)
    seconds: dict[str, float] = {}
    with timed(seconds, "proposals and maps"):
        method = model.detection.proposals
        others = other_proposals(data, method, cache, progress)
        maps = FeatureMapCache(model, cache / "feature-maps")
        maps.fill([image.path for image in data.images], progress=progress)
        proposals = proposals_of_images(model, maps.read, data, method, others, progress)
    windows = WindowsOfImages(maps, data.images, proposals, label=label)
    states = model.record.get("svm_states", ())
    old = [group for each in states for group in cached_windows(cache / each)] if old_negatives else []
    grown = copy.deepcopy(model).eval()
    grown.architecture = replace(model.architecture, class_names=(*model.class_names, name))
    with timed(seconds, "SVM and box regression"):
        state = _add_svm(grown, windows, old, cache, progress)
        _add_regressor(grown, windows, cache, progress)
    added = {
        "class": name,
        "split": data.split,
        "images": len(data),
        "objects": sum(int((image.gt_labels == label).sum()) for image in data.images),
        "old_negatives": sum(len(group.labels) for group in old),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }
    grown.record |= {"added": [*model.record.get("added", ()), added], "svm_states": [*states, state.name]}
    if output is not None:
        save_model(grown, output)
    return grown


def _add_svm(model: SPPNet, windows: WindowsOfImages, old: list[ImageWindows], cache: Path, progress: Progress) -> Path:
    """Train the SVM of the model's last class, for windows and whole images; where its training keeps its state."""
    before, names = model.window_classifier, model.class_names[-1:]
    assert isinstance(before, SVMClassifier)
    settings, scale = _recorded(model, "svm", SVMSettings), float(before.scale)
    counts = [len(group.labels) for group in old]
    state = _state_file(cache, "svms", windows, names, scale=scale, old_windows=counts, **settings.key())
    both: ManyWindows = ConcatDataset([windows, old])  # type: ignore[list-item]
    svm = train_svms(both, names, settings, state=state, scale=scale, progress=progress)
    model.window_classifier = _joined(before, svm)
    _grow(model.image_classifier, svm.weights * scale, svm.biases)
    return state


def _add_regressor(model: SPPNet, windows: WindowsOfImages, cache: Path, progress: Progress) -> None:
    """A ridge regression of the class; of the network's own box regression, what all classes share."""
    before = model.box_regressor
    if isinstance(before, BoxRegressor):
        _grow(before.per_class, before.per_class.weight.new_zeros(4, before.per_class.in_features), torch.zeros(4))
    elif before is not None:
        settings = _recorded(model, "box_regression", BoxRegressionSettings)
        model.box_regressor = _joined(before, _train_ridge(windows, settings, float(before.scale), cache, progress))


def _joined(before: Head, new: Head) -> Head:
    """The outputs of both, on the device of the first."""
    new = new.to(before.scale.device)
    weights, biases = torch.cat([before.weights, new.weights]), torch.cat([before.biases, new.biases])
    return type(before)(weights, biases, float(before.scale)).eval().to(before.scale.device)


def _train_ridge(
    windows: WindowsOfImages, settings: BoxRegressionSettings, scale: float, folder: Path, progress: Progress
) -> RidgeRegressor:
    state = _state_file(folder, "ridge", windows, (), scale=scale, **settings.key())
    return train_box_regression(windows, windows.num_classes, settings, scale=scale, state=state, progress=progress)


def _state_file(folder: Path, stage: str, windows: WindowsOfImages, class_names: Sequence[str], **key: Any) -> Path:
    """Where a training keeps its state; named for all that it starts from."""
    fields = json.dumps({"class_names": class_names, **key}, sort_keys=True)
    return folder / f"{stage}-{fingerprint([windows.fingerprint, fields], size=8)}.safetensors"


def _grow(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give a layer further outputs, in place; those that it has stay."""
    linear.weight = nn.Parameter(torch.cat([linear.weight.detach(), weight.to(linear.weight)]))
    linear.bias = nn.Parameter(torch.cat([linear.bias.detach(), bias.to(linear.bias)]))
    linear.out_features = len(linear.bias)


def _recorded(model: SPPNet, entry: str, kind: type[Settings]) -> Settings:
    """Settings from a model's record, also one of an earlier version: what is no longer a setting is passed over."""
    known = {field.name for field in dataclasses.fields(kind)}
    named = {RENAMED.get(name, name): value for name, value in model.record.get(entry, {}).items()}
    return kind(**{name: value for name, value in named.items() if name in known})
