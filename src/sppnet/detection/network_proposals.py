"""Proposals by the network itself: from the feature map, by the region proposal head, and what that head is taught.

feature maps -> anchors, scored and moved -> the best, without near-duplicates -> boxes [R, 4] in pixels of the image.
The head is taught together with the rest of a detector (`sppnet.detection.end_to_end`), or alone on cached feature maps.
Source: arXiv:1506.01497, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, non_maximum_suppression
from sppnet.cache import Part, fingerprint
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.check import inspect_images
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import FeatureMaps
from sppnet.detection.finetune import checkpoint_folder
from sppnet.detection.targets import flip_objects, image_at
from sppnet.errors import ModelError, UserError
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress, no_progress
from sppnet.proposals.compute import NEAR_DUPLICATE_IOU, NETWORK, check_method, proposals_of
from sppnet.proposals.selective_search import drop_near_duplicates
from sppnet.training.loop import LoopSettings, adamw, fit, parameter_groups

MOST_PROPOSALS = 300
MOST_SCORED = 1000  # boxes of each map that suppression looks at
PROPOSAL_NMS_IOU = 0.7
SMALLEST_SIDE = 4.0  # pixels of the image; narrower boxes are left out
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3  # anchors between the two are not learned from
ANCHORS_PER_IMAGE, POSITIVE_SHARE = 256, 0.5


def propose_boxes(model: SPPNet, maps: FeatureMaps, method: str, other: Callable[[str], np.ndarray]) -> np.ndarray:
    """The proposals [R, 4] of an image by any method: by the network, by what looks at the image, or by both.

    Args:
        model: whose proposal head is asked.
        maps: of the image.
        method: as for `sppnet.proposals.propose`, and ``"network"``, whose boxes stay of near-duplicates.
        other: gives the boxes of the methods that are not the network's, by name.

    Raises:
        ModelError: a model without the head.
    """
    rest = without_network(method)
    if rest == method:
        return other(method)
    found = network_proposals(model, maps).numpy()
    return drop_near_duplicates(np.concatenate([found, other(rest)]), NEAR_DUPLICATE_IOU) if rest else found


def without_network(method: str) -> str:
    """A proposal method's parts that need no network.

    Example:
        >>> without_network("network+grid"), without_network("network")
        ('grid', '')
    """
    return "+".join(part for part in check_method(method) if part != NETWORK)


def other_proposals(
    data: DetectionData, method: str, folder: Path, progress: Progress = no_progress
) -> list[np.ndarray]:
    """Of each image the boxes of a method's parts that need no network; none, [0, 4], where the network alone proposes.

    Every image is read in either case, before hours of work.

    Raises:
        UserError: images that cannot be used; all are named.
    """
    rest = without_network(method)
    if rest:
        return proposals_of(data, rest, folder, progress)
    _, findings = inspect_images(list(dict.fromkeys(image.path for image in data.images)), progress)
    errors = [f"{found.path}: {found.message}" for found in findings if found.severity == "error"]
    if errors:
        raise UserError(f"{len(errors)} of {len(data)} images cannot be used: {'; '.join(errors)}")
    return [np.empty((0, 4), np.float32)] * len(data)


def proposals_of_images(
    model: SPPNet,
    maps_of: Callable[[Path], FeatureMaps],
    data: DetectionData,
    method: str,
    others: Sequence[np.ndarray],
    progress: Progress = no_progress,
) -> list[np.ndarray]:
    """The proposals [R, 4] of each image: by `model` from the maps of its file, and ``others``, as `other_proposals` gives them."""
    rest = without_network(method)
    if rest == method:
        return list(others)
    found = []
    for index, image in enumerate(data.images):
        maps = maps_of(image.path).to(model.device)
        found.append(propose_boxes(model, maps, method, {rest: others[index]}.__getitem__))
        progress("network proposals", index + 1, len(data))
    return found


def network_proposals(model: SPPNet, maps: FeatureMaps, count: int = MOST_PROPOSALS) -> Tensor:
    """The boxes [R, 4] that the proposal head scores highest, float32 on the CPU, by falling score; R from 1 to ``count``.

    Raises:
        ModelError: a model without the head.
    """
    if model.proposal_head is None:
        raise ModelError("this model has no proposal head: choose other proposals, such as selective-search")
    with model.inference():
        answers = [model.proposal_head(features) for features in maps.features]
    anchors = [place_anchors(model, *each) for each in zip(maps.features, maps.scales, strict=True)]
    return best_proposals(answers, anchors, maps.size, count)


def best_proposals(
    answers: Sequence[tuple[Tensor, Tensor]], anchors: Sequence[Tensor], size: tuple[int, int], count: int
) -> Tensor:
    """The best boxes [R, 4], inside an image of ``size``, by what the head says of the anchors of each map; without gradient."""
    parts = [
        _best(logits.detach().cpu(), deltas.detach().cpu(), placed, size)
        for (logits, deltas), placed in zip(answers, anchors, strict=True)
    ]
    scores, boxes = (torch.cat(each) for each in zip(*parts, strict=True))
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return boxes[non_maximum_suppression(boxes, scores, labels, PROPOSAL_NMS_IOU)[:count]]


def proposal_losses(
    answers: tuple[Tensor, Tensor], anchors: Tensor, objects: AnnotatedImage, rng: np.random.Generator
) -> dict[str, Tensor]:
    """What the proposal head gets wrong on one map.

    Of 256 anchors, half positive where there are as many: binary cross-entropy of the score against the IoU of the moved anchor with
    its object, 0 for background; and smooth L1 of the positive ones' deltas.

    Args:
        answers: of the head: logits [P] and deltas [P, 4].
        anchors: [P, 4] in pixels of the image.
        objects: the image's.
        rng: draws the anchors.

    Returns:
        ``objectness`` and ``proposal_boxes``.
    """
    logits, deltas = answers
    positive, negative, matched = _sample(anchors, objects, rng)
    chosen = torch.cat([positive, negative]).to(logits.device)
    moved, targets = deltas[positive.to(deltas.device)], encode_boxes(anchors[positive], matched).to(deltas.device)
    quality = pairwise_iou(decode_boxes(anchors[positive], moved.detach().cpu()), matched)
    wanted = F.pad(quality, (0, len(negative))).to(logits.device)
    objectness = F.binary_cross_entropy_with_logits(logits[chosen], wanted, reduction="sum") / ANCHORS_PER_IMAGE
    boxes = F.smooth_l1_loss(moved, targets, beta=1 / 9, reduction="sum") / ANCHORS_PER_IMAGE
    return {"objectness": objectness, "proposal_boxes": boxes}


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union [N] of boxes [N, 4] and [N, 4], pair by pair."""
    common = (boxes1[:, 2:].minimum(boxes2[:, 2:]) - boxes1[:, :2].maximum(boxes2[:, :2])).clamp(min=0).prod(1)
    areas1, areas2 = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes1, boxes2))
    return torch.nan_to_num(common / (areas1 + areas2 - common), nan=0.0)


def place_anchors(model: SPPNet, features: Tensor, scale: tuple[float, float]) -> Tensor:
    """The anchors [P, 4] of a map, in pixels of the image, on the CPU."""
    assert model.proposal_head is not None
    size = (features.shape[2], features.shape[3])
    return model.proposal_head.anchors(size) / torch.tensor([scale[1], scale[0]] * 2)


def _best(logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The best-scored boxes of a map: scores [N], boxes [N, 4] inside the image."""
    scores, order = logits.topk(min(MOST_SCORED, len(logits)))
    boxes = clip_boxes(decode_boxes(anchors[order], deltas[order]), size)
    smallest = min(SMALLEST_SIDE, *size)
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= smallest).all(1)
    if not wide.any():
        return scores[:1], boxes.new_tensor([[0, 0, size[1], size[0]]])
    return scores[wide], boxes[wide]


def _sample(anchors: Tensor, objects: AnnotatedImage, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of positive and of negative anchors, and the objects' boxes that the positive ones should become."""
    gt_boxes, difficult = torch.from_numpy(objects.gt_boxes), torch.from_numpy(objects.difficult)
    boxes = gt_boxes[~difficult]
    overlaps = box_iou(anchors, boxes)  # [P, G]
    best, which = F.pad(overlaps, (0, 1)).max(1)
    best_difficult = F.pad(box_iou(anchors, gt_boxes[difficult]), (0, 1)).amax(1)
    if len(boxes):  # each object has its best anchors, however little they overlap
        closest = ((overlaps == overlaps.amax(0)) & (overlaps > 0)).nonzero()
        best[closest[:, 0]], which[closest[:, 0]] = 1.0, closest[:, 1]
    positive = (best >= POSITIVE_IOU).nonzero().flatten()
    negative = ((best < NEGATIVE_IOU) & (best_difficult < NEGATIVE_IOU)).nonzero().flatten()
    few = min(len(positive), round(ANCHORS_PER_IMAGE * POSITIVE_SHARE))
    positive = positive[rng.choice(len(positive), few, replace=False)]
    negative = negative[rng.choice(len(negative), min(len(negative), ANCHORS_PER_IMAGE - few), replace=False)]
    return positive, negative, boxes[which[positive]]


@dataclass(frozen=True)
class ProposalSettings:
    """How the proposal head is trained alone."""

    epochs: int = 8  # of all images
    images_per_step: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    flip: bool = True
    seed: int = 0
    checkpoint_interval: int = 100  # steps


class _Batches:
    """Batch number ``n``, always the same for the same seed: cached maps and the objects in them."""

    def __init__(self, images: Sequence[AnnotatedImage], maps: FeatureMapCache, settings: ProposalSettings) -> None:
        self.images, self.maps, self.settings = images, maps, settings

    def __getitem__(self, n: int) -> list[tuple[FeatureMaps, AnnotatedImage]]:
        settings, rng = self.settings, np.random.default_rng([self.settings.seed, 3, n])
        found = []
        for position in range(n * settings.images_per_step, (n + 1) * settings.images_per_step):
            image = self.images[image_at(position, len(self.images), settings.seed)]
            flipped = bool(rng.integers(1 + settings.flip))
            maps = self.maps.read(image.path, flip=flipped)
            found.append((maps, flip_objects(image, maps.size[1]) if flipped else image))
        return found


def train_proposal_head(
    model: SPPNet,
    images: Sequence[AnnotatedImage],
    maps: FeatureMapCache,
    settings: ProposalSettings,
    folder: Path,
    *,
    progress: Progress = no_progress,
) -> None:
    """Train the proposal head alone, in place, on cached feature maps: the rest of the network stays frozen.

    Args:
        model: with the head.
        images: at least one.
        maps: of the model.
        settings: how.
        folder: as of `sppnet.detection.finetune.finetune`.
        progress: called with "proposal head", steps done, all.
    """
    assert model.proposal_head is not None
    head = model.proposal_head
    names: list[Part] = [maps.folder.name, *(maps.path(image.path).name for image in images)]
    for image in images:
        names += [image.gt_boxes, image.difficult]
    told = {name: str(value) for name, value in asdict(settings).items() if name != "checkpoint_interval"}
    key = {"images": fingerprint(names, size=8), "weights": fingerprint([head.state_dict()], size=8), **told}

    def loss(batch: list[tuple[FeatureMaps, AnnotatedImage]], step: int) -> dict[str, Tensor]:
        parts = []
        for number, (its_maps, objects) in enumerate(batch):
            rng = np.random.default_rng([settings.seed, 4, step, number])
            for features, scale in zip(its_maps.to(model.device).features, its_maps.scales, strict=True):
                parts.append(proposal_losses(head(features), place_anchors(model, features, scale), objects, rng))
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return {"loss": losses["objectness"] + losses["proposal_boxes"], **losses}

    steps = math.ceil(settings.epochs * len(images) / settings.images_per_step)
    loop = LoopSettings(steps, settings.checkpoint_interval, seed=settings.seed, stage="proposal head")
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer = adamw(
        parameter_groups(head.parameters(), learning_rate=rate, weight_decay=decay, by_width=False), steps
    )
    head.train()
    batches, where = _Batches(images, maps, settings), checkpoint_folder(folder, loop.stage, key)
    fit(head, batches, loss, *optimizer, where, loop, key=key, device=model.device, progress=progress)
    model.eval()
