"""A photo in, labeled boxes out: propose, map, pool, score, suppress.

image [H, W, 3] -> proposals [R, 4] -> feature maps [1, C, h, w] of one scale or several -> windows [R, 5] -> scores [R, 1 + K] and
boxes [R, K, 4] -> suppression and votes -> `Detections`. The convolutions run once for each scale, whatever the number of proposals:
arXiv:1406.4729, section 4.

Several models answer as one: the boxes of all, each scored by its own, then one round of suppression. What makes the union better
than each is that models err differently: in the paper two fine-tunings of one backbone gained nothing, two backbones 1.7 points
(section 4.4 and table 12).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppnet.boxes import clip_boxes, decode_boxes
from sppnet.data.images import read_ahead, read_image
from sppnet.detection.feature_maps import FeatureMaps, compute_feature_maps
from sppnet.detection.network_proposals import propose_boxes
from sppnet.detection.suppression import DetectSettings, select
from sppnet.errors import ModelError, SettingsError
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.proposals.compute import propose
from sppnet.results import Detections, ScoreKind

SAMPLED_WINDOWS = 6000  # in all; each [M, C] in half precision


def detect(
    source: Any,
    model: SPPNet | Sequence[SPPNet],
    *,
    proposals: np.ndarray | str | None = None,
    settings: DetectSettings | None = None,
    **options: Any,
) -> Detections:
    """Find objects in one image of any size.

    Args:
        source: what `sppnet.data.images.read_image` takes: a path, bytes, an open file, a PIL image, an array, a tensor. EXIF rotation
            is applied.
        model: a detector, such as ``load("voc")``; or several of the same classes, in any order, whose answers are combined.
        proposals: boxes [R, 4] in pixels of the upright image; or a proposal method; the model's own where not given.
        settings, options: the fields of `DetectSettings`: score_threshold, nms_iou, vote_iou, max_detections.

    Returns:
        `Detections`, by falling score; boxes in pixels of the upright image, inside it.

    Raises:
        ImageError: no such file, or not an image.
        ModelError: a model that only classifies, or models that cannot be combined.
        SettingsError: a setting out of its range, or proposals of a wrong shape.

    Source: arXiv:1406.4729, sections 4.1, 4.2 and 4.4.

    Example:
        >>> from skimage.data import astronaut
        >>> found = detect(astronaut(), sppnet.load("voc"))
        >>> "person" in found.class_names
        True
    """
    models = (model,) if isinstance(model, SPPNet) else tuple(model)
    check_combination(models)
    settings = replace(settings or DetectSettings(), **options)
    image = read_image(source)
    by_method = cache(partial(propose, image))  # made once where models share a method
    answers = []
    if proposals is not None and not isinstance(proposals, str):
        proposals = np.asarray(proposals, dtype=np.float32)
        if proposals.ndim != 2 or proposals.shape[1] != 4 or not len(proposals):
            raise SettingsError(f"proposals must be [R, 4] boxes, at least one: got shape {list(proposals.shape)}")
    for net in models:
        maps, boxes = compute_feature_maps(net, image), proposals
        if not isinstance(boxes, np.ndarray):
            boxes = propose_boxes(net, maps, boxes or net.detection.proposals, by_method)
        answers.append(score_windows(net, maps, boxes))
    return select(*union(models, answers), models[0].class_names, settings, score_kind(models[0]))


def detect_each(sources: Iterable[Any], model: SPPNet | Sequence[SPPNet], **options: Any) -> Iterator[Detections]:
    """`detect` for many images, in order, in bounded memory: threads decode a few ahead, whatever the iterator's length."""
    for image in read_ahead(sources, read_image):
        yield detect(image, model, **options)


def score_windows(model: SPPNet, maps: FeatureMaps, proposals: np.ndarray) -> tuple[Tensor, Tensor]:
    """What the network says of each proposal.

    Returns:
        Scores [R, 1 + K], background first: see the model's window classifier. And boxes [R, K, 4] in pixels, clipped to the image.
    """
    classifier, regressor = model.window_classifier, model.box_regressor
    assert classifier is not None  # see `score_kind`
    assert regressor is not None
    boxes = torch.from_numpy(proposals)
    windows, residuals = maps.windows(model, boxes)
    with model.inference():
        head_features = maps.head_features(model, windows)
        logits, deltas = model.heads(head_features, residuals.to(head_features.device))
        scores = classifier.scores(logits).cpu()
    with torch.inference_mode():
        deltas = deltas.float().cpu() * deltas.new_tensor(regressor.delta_scale, dtype=torch.float32, device="cpu")
        return scores, clip_boxes(decode_boxes(boxes, deltas), maps.size)


def score_kind(model: SPPNet) -> ScoreKind:
    """What a detector's scores are; a ModelError where a model only classifies."""
    if model.window_classifier is None:
        raise ModelError("this model classifies only: give a detector, such as 'voc', or use 'sppnet classify'")
    return model.window_classifier.score_kind


def union(models: Sequence[SPPNet], answers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What `score_windows` says of an image by each model, as if one had scored all windows.

    Args:
        models: as checked by `check_combination`.
        answers: of each, scores [R, 1 + K] and boxes [R, K, 4].

    Returns:
        Scores [sum of R, 1 + K] and boxes [sum of R, K, 4], classes in the order of the first model.
    """
    scores, boxes = [], []
    for model, (score, box) in zip(models, answers, strict=True):
        order = torch.tensor([model.class_names.index(name) for name in models[0].class_names])
        scores.append(torch.cat([score[:, :1], score[:, 1 + order]], dim=1))
        boxes.append(box[:, order])
    return torch.cat(scores), torch.cat(boxes)


def check_combination(models: Sequence[SPPNet]) -> None:
    """Raise a ModelError where models cannot answer together."""
    if not models:
        raise ModelError("no model given: expected one, or several to combine")
    kind, names = score_kind(models[0]), set(models[0].class_names)
    for number, model in enumerate(models, start=1):
        its_kind, own = score_kind(model), set(model.class_names)
        if its_kind != kind:
            raise ModelError(f"scores must be of one kind: model {number}'s are {its_kind}, the first's {kind}")
        if own != names:
            first, its = sorted(names - own)[:5], sorted(own - names)[:5]
            raise ModelError(f"classes must be the same: only in the first {first}, only in model {number} {its}")


def sample_windows(model: SPPNet, photos: Sequence[Path], *, seed: int = 0, progress: Progress = no_progress) -> Tensor:
    """Pool some of the windows that a detector would look at in these photos; of a classifier, the whole images.

    It is what `sppnet.models.compress` needs to know of what goes through a model's layers.

    Args:
        model: proposes, computes the feature maps and pools.
        photos: files; some dozens do for a detector, some hundreds for a classifier.
        seed: of the choice among a photo's windows.
        progress: called with "photos", photos done, all.

    Returns:
        [R, M, C] float16, R at most 6000, on the CPU.

    Raises:
        ImageError: a file that is not an image.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (90, 60)).save("photo.png")
        >>> sample_windows(sppnet.load("voc"), [Path("photo.png")])[0].shape
        torch.Size([21, 320])
    """
    each = max(1, SAMPLED_WINDOWS // max(1, len(photos)))
    rng = np.random.default_rng(seed)
    parts = []
    for done, photo in enumerate(photos, start=1):
        image = read_image(photo)
        maps = compute_feature_maps(model, image)
        windows = maps.whole_window()
        if model.architecture.detects:
            boxes = propose_boxes(model, maps, model.detection.proposals, partial(propose, image))
            windows, _ = maps.windows(model, torch.from_numpy(boxes[rng.permutation(len(boxes))[:each]]))
        with torch.inference_mode():
            parts.append(maps.pool(model, windows).half().cpu())
        progress("photos", done, len(photos))
    return torch.cat(parts)
