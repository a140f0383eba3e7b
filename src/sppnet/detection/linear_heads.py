"""The paper's detector after fine-tuning, or without any: one SVM a class scores the windows, ridge regressions move the boxes.

Both are trained on cached feature maps and take the place of the network's own heads (`sppnet.models.heads`). They take what the
fully connected layers give; of a model without such layers, the pooled windows themselves, as the paper's regression does.

Source: arXiv:1406.4729, sections 4.1 and 4.2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sppnet.cache import fingerprint
from sppnet.detection.box_regression import BoxRegressionSettings, train_box_regression
from sppnet.detection.svm import SVMSettings, train_svms
from sppnet.detection.windows_of_images import WindowsOfImages, feature_scale
from sppnet.errors import ModelError
from sppnet.linear.selection import SVMChoice, train_calibrated_svms
from sppnet.models.heads import RidgeRegressor, SVMClassifier
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress, timed

MAX_IMAGES = 20_000  # that SVMs of whole images learn from; of more, so many are drawn: their products take 1.6 GB


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
        ModelError: a model that only classifies.
        UserError: a class without objects, or without windows to tell it from.
    """
    if not model.architecture.detects:
        raise ModelError("SVMs and box regression want a detector, and this model classifies only: give a detector")
    record: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    scale: float | None = None
    if svm is not None:
        with timed(seconds, "SVMs"):
            state = state_file(folder, "svms", windows, svm.key(), model.class_names)
            svms = train_svms(windows, model.class_names, svm, state=state, progress=progress)
            put_svms(model, svms)
            scale = float(svms.scale)  # of the same features: the sample is looked at once
            record |= {"svm": dataclasses.asdict(svm), "svm_states": [state.name]}
    if ridge is not None:
        with timed(seconds, "box regression"):
            scale = feature_scale(windows) if scale is None else scale
            state = state_file(folder, "ridge", windows, {"scale": scale, **ridge.key()})
            regressor = train_box_regression(
                windows, windows.num_classes, ridge, scale=scale, state=state, progress=progress
            )
            put_ridge(model, regressor)
            record["box_regression"] = dataclasses.asdict(ridge)
    return {**record, "seconds": {stage: round(value) for stage, value in seconds.items()}}


def train_image_svms(
    model: SPPNet, head_features: np.ndarray, present: npt.ArrayLike, *, seed: int = 0, progress: Progress = no_progress
) -> SVMChoice:
    """Have the image classifier say by SVMs which classes are in a whole image: for a detector with nothing fine-tuned.

    Args:
        model: multi-label; its image classifier is changed in place.
        head_features: [N, D] of whole images, any floating-point type.
        present: [N, K]: +1 where an object of the class is in the image, -1 where there is none, 0 where it does not count, as
            where there are difficult ones only.
        seed: of the folds that cost and calibration are chosen on, and of the images that are drawn.
        progress: the stage is "SVMs".

    Returns:
        The cost, and the scale that makes decision scores logits, whose sigmoid is the probability.

    Raises:
        ModelError: a model of one class an image.
    """
    if not model.image_classifier.multi_label:
        raise ModelError("expected a model of several classes an image: Architecture(multi_label=True)")
    targets = np.asarray(present, np.int8)
    if len(targets) > MAX_IMAGES:
        drawn = np.sort(np.random.default_rng([seed, 2]).permutation(len(targets))[:MAX_IMAGES])
        head_features, targets = head_features[drawn], targets[drawn]
    svms, choice = train_calibrated_svms(head_features, targets, multi_label=True, seed=seed, progress=progress)
    with torch.no_grad():
        model.image_classifier.weight.copy_(torch.from_numpy(svms.weights))
        model.image_classifier.bias.copy_(torch.from_numpy(svms.biases))
    return choice


def put_svms(model: SPPNet, svms: SVMClassifier) -> None:
    """Have the model score windows by these SVMs."""
    model.window_classifier = svms.eval().to(model.device)
    model.architecture = dataclasses.replace(model.architecture, window_classifier="svm")


def put_ridge(model: SPPNet, regressor: RidgeRegressor) -> None:
    """Have the model move boxes by these regressions."""
    model.box_regressor = regressor.eval().to(model.device)
    model.architecture = dataclasses.replace(model.architecture, box_regressor="ridge")


def state_file(
    folder: Path, stage: str, windows: WindowsOfImages, key: Mapping[str, Any], class_names: tuple[str, ...] = ()
) -> Path:
    """Where a training keeps its state; named for all that it starts from."""
    fields = json.dumps({"class_names": class_names, **key}, sort_keys=True)
    return folder / f"{stage}-{fingerprint([windows.fingerprint, fields], size=8)}.safetensors"
