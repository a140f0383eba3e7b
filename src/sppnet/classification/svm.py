"""The head of a classifier as the paper trains it: linear SVMs on the pooled pyramid, whose decision scores are made probabilities.

head features [N, D] and labels [N] -> cost and scale, chosen by cross-validation on the same images -> SVMs of all of them ->
logits [N, K] = scale x decision scores, by ``model.image_classifier``. A validation split chooses nothing here.

Source: arXiv:1406.4729, sections 3.2 and 3.3; probabilities are this project's addition (`sppnet.linear.selection`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sppnet.errors import ModelError, UserError
from sppnet.linear.selection import SVMChoice, train_calibrated_svms
from sppnet.linear.svm import label_targets
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress

MAX_IMAGES = 20_000  # to learn from: their products take 1.6 GB, and twice that while the SVMs are solved


def train_svm_head(
    model: SPPNet, embeddings: np.ndarray, labels: npt.ArrayLike, *, seed: int = 0, progress: Progress = no_progress
) -> SVMChoice:
    """Train the image classifier of a model, in place, on the head features of images.

    Args:
        model: of one class an image, and best with ``Architecture(unit_length=True)``: SVMs do better on vectors of length 1.
        embeddings: [N, D] head features, any floating-point type; a memory map will do.
        labels: [N] integers in 0..K-1, of two classes at least. A class without images is answered no, whatever is seen.
        seed: of the folds.
        progress: the stage is "SVMs".

    Returns:
        What cross-validation chose; `SVMChoice.to_dict` for the model's record. The same embeddings and seed give the same model,
        bit for bit, on one machine with one thread count.

    Raises:
        ModelError: a model of several classes an image, or one whose features are not finite.
        UserError: more than `MAX_IMAGES`.
    """
    if model.image_classifier.multi_label:
        raise ModelError("expected a model of one class an image: Architecture(multi_label=False)")
    check_image_count(len(embeddings))
    targets = label_targets(labels, len(model.class_names))
    try:
        svms, choice = train_calibrated_svms(embeddings, targets, multi_label=False, seed=seed, progress=progress)
    except ValueError as error:
        raise ModelError(f"the backbone's {error}: its weights are damaged; get them again") from error
    with torch.no_grad():
        model.image_classifier.weight.copy_(torch.from_numpy(svms.weights))
        model.image_classifier.bias.copy_(torch.from_numpy(svms.biases))
    return choice


def check_image_count(images: int) -> None:
    """Refuse more images than SVMs are trained on; called before long work, too.

    Example:
        >>> check_image_count(20_001)
        Traceback (most recent call last):
        sppnet.errors.UserError: SVMs learn from at most 20000 images here: got 20001; take the softmax classifier
    """
    if images > MAX_IMAGES:
        raise UserError(f"SVMs learn from at most {MAX_IMAGES} images here: got {images}; take the softmax classifier")
