"""Proposals from the feature map: which boxes, in what order; what the proposal head is taught; trained alone and end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.boxes import box_iou, encode_boxes
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.formats.voc import read as read_voc
from sppnet.detection.evaluate import evaluate_detector
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.network_proposals import (
    MOST_PROPOSALS,
    network_proposals,
    pairwise_iou,
    place_anchors,
    proposal_losses,
    propose_boxes,
    without_network,
)
from sppnet.detection.train import DetectorSettings, train_detector
from sppnet.errors import ModelError, UserError
from sppnet.models.files import load
from sppnet.models.sppnet import SPPNet
from sppnet.proposals.compute import proposals_of, propose

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8)
SIZE = (90, 130)


@pytest.fixture(scope="module")
def proposer(tiny_detector: SPPNet, variant: Callable[..., SPPNet]) -> SPPNet:
    return variant(tiny_detector, proposes=True, proposals="network")


def annotated(boxes: list[list[float]], difficult: list[bool] | None = None) -> AnnotatedImage:
    count = len(boxes)
    return AnnotatedImage(
        "1", Path("1.jpg"), SIZE, np.array(boxes, np.float32).reshape(-1, 4), np.ones(count, np.int64),
        np.array(difficult or [False] * count, bool),
    )  # fmt: skip


# Which boxes


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150))
def test_boxes_lie_in_the_image_and_apart(proposer: SPPNet, height: int, width: int) -> None:
    maps = compute_feature_maps(proposer, np.zeros((height, width, 3), np.uint8))
    boxes = network_proposals(proposer, maps)
    assert 1 <= len(boxes) <= MOST_PROPOSALS
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.7 + 1e-5


def test_what_the_head_scores_highest_comes_first(proposer: SPPNet) -> None:
    """The head is made to know one object: its anchors score by how far their centre is from it."""
    maps = compute_feature_maps(proposer, IMAGE)
    head, size = proposer.proposal_head, maps.whole_map.shape[2:]
    assert head is not None
    anchors = head.anchors((size[0], size[1]))
    wanted = torch.tensor([[40.0, 20.0, 100.0, 70.0]])
    scale = torch.tensor(maps.scales[0][::-1] * 2)
    best = box_iou(anchors / scale, wanted)[:, 0]

    class Known(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return best, encode_boxes(anchors / scale, wanted.expand(len(anchors), 4))

        def anchors(self, _: tuple[int, int]) -> torch.Tensor:
            return anchors

    other = copy.deepcopy(proposer)
    other.proposal_head = Known()  # type: ignore[assignment]
    found = network_proposals(other, maps)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)  # all anchors moved there: one box stays


def test_all_scales_are_looked_at(proposer: SPPNet) -> None:
    small, both = proposer.at_scales((64,)), proposer.at_scales((64, 128))
    few = network_proposals(small, compute_feature_maps(small, IMAGE), 10_000)
    many = network_proposals(both, compute_feature_maps(both, IMAGE), 10_000)
    assert len(many) > len(few)


def test_a_union_with_what_needs_no_network(proposer: SPPNet) -> None:
    maps = compute_feature_maps(proposer, IMAGE)
    own, grid = network_proposals(proposer, maps).numpy(), propose(IMAGE, "grid")
    both = propose_boxes(proposer, maps, "grid+network", lambda method: propose(IMAGE, method))
    assert np.array_equal(both[: len(own)], own)  # the network's boxes stay of near-duplicates
    assert len(own) < len(both) <= len(own) + len(grid)
    assert np.array_equal(propose_boxes(proposer, maps, "grid", lambda method: propose(IMAGE, method)), grid)


def test_detect_asks_the_network(proposer: SPPNet) -> None:
    found = proposer.detect(IMAGE, score_threshold=0.0)
    given_them = proposer.detect(
        IMAGE, score_threshold=0.0, proposals=network_proposals(proposer, compute_feature_maps(proposer, IMAGE)).numpy()
    )
    assert np.array_equal(found.boxes, given_them.boxes)


def test_a_model_without_the_head(tiny_detector: SPPNet) -> None:
    with pytest.raises(ModelError, match="this model has no proposal head: choose other proposals"):
        tiny_detector.detect(IMAGE, proposals="network")
    with pytest.raises(UserError, match="network proposals come from a detector's feature map"):
        propose(IMAGE, "network")
    with pytest.raises(UserError, match="network proposals come from a detector's feature map"):
        proposals_of(DetectionData(("cat",), (), "train"), "network", Path("cache"))
    assert (without_network("network"), without_network("grid+network+edge-boxes")) == ("", "grid+edge-boxes")


# What the head is taught


@given(
    st.lists(st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(1, 50)] * 2), min_size=1, max_size=5),
)
def test_pair_by_pair_is_the_diagonal_of_all_pairs(corners: list[tuple[float, ...]]) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in corners])
    others = boxes.flip(0)
    torch.testing.assert_close(pairwise_iou(boxes, others), box_iou(boxes, others).diagonal())


def losses_of(model: SPPNet, objects: AnnotatedImage) -> dict[str, float]:
    maps = compute_feature_maps(model, IMAGE, bfloat16=False)
    assert model.proposal_head is not None
    anchors = place_anchors(model, maps.whole_map, maps.scales[0])
    found = proposal_losses(model.proposal_head(maps.whole_map), anchors, objects, np.random.default_rng(0))
    return {name: float(value.detach()) for name, value in found.items()}


def test_an_image_without_objects_teaches_background_alone(proposer: SPPNet) -> None:
    nothing = losses_of(proposer, annotated([]))
    assert nothing["proposal_boxes"] == 0
    assert nothing["objectness"] > 0


def test_each_object_is_taught_however_small(proposer: SPPNet) -> None:
    assert losses_of(proposer, annotated([[3, 3, 9, 9]]))["proposal_boxes"] > 0
    assert losses_of(proposer, annotated([[0, 0, 130, 90]]))["proposal_boxes"] > 0


def test_difficult_objects_are_neither_objects_nor_background(proposer: SPPNet) -> None:
    found = losses_of(proposer, annotated([[0, 0, 130, 90]], [True]))
    assert found["proposal_boxes"] == 0


# Trained


@pytest.fixture(scope="module")
def data(tiny_voc_original: Path) -> DetectionData:
    return read_voc(tiny_voc_original, "train")


def recall(model: SPPNet, data: DetectionData) -> float:
    """Share of the objects that one of 20 proposals finds, at an IoU of .5."""
    found = []
    for image in data.images:
        pixels = data[data.images.index(image)][0]
        boxes = network_proposals(model, compute_feature_maps(model, pixels), 20)
        found += (box_iou(torch.from_numpy(image.gt_boxes), boxes).amax(1) >= 0.5).tolist()
    return float(np.mean(found))


NETWORK: dict[str, Any] = {"proposals": "network", "levels": (2, 1), "short_side": 192}


def test_end_to_end_it_finds_and_names_objects(data: DetectionData, tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    model = train_detector(
        data, output=tmp_path / "m.safetensors", cache=tmp_path / "cache",
        settings=DetectorSettings("standard", hidden=(64,), epochs=25, flip=False, **NETWORK),
        progress=lambda stage, *done: told.__setitem__(stage, done),  # type: ignore[misc]
    )  # fmt: skip
    assert set(told) == {"images", "end to end"}  # no proposals, no cached maps
    assert recall(model, data) > 0.8
    again = load(tmp_path / "m.safetensors")
    assert again.detection.proposals == "network"
    assert evaluate_detector(again, data).result.map07 > 0.4


def test_alone_on_a_frozen_backbone_it_finds_objects(data: DetectionData, tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    options: dict[str, Any] = {"cache": tmp_path, "settings": DetectorSettings("quick", **NETWORK)}
    model = train_detector(data, progress=lambda stage, *done: told.__setitem__(stage, done), **options)  # type: ignore[misc]
    assert list(told) == [
        "images",
        "feature maps",
        "proposal head",
        "network proposals",
        "SVMs",
        "box regression",
        "image classifier",
    ]
    assert all(done == total for done, total in told.values())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = train_detector(data, **options)
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())


SMALL: dict[str, Any] = {"levels": (2, 1), "hidden": (8,), "short_side": 64, "epochs": 1}


def test_the_proposals_that_were_asked_for_are_those_trained_on(data: DetectionData) -> None:
    net = train_detector(data, settings=DetectorSettings(proposals="network", **SMALL))
    told: set[str] = set()
    other = train_detector(data, model=net, proposals="grid", epochs=1, progress=lambda stage, *_: told.add(stage))
    assert told == {"proposals", "end to end"}
    assert (other.detection.proposals, other.proposal_head) == ("grid", None)  # its map has moved on
    assert net.proposal_head is not None


def test_what_cannot_be_trained_with_network_proposals(data: DetectionData) -> None:
    grid = train_detector(data, settings=DetectorSettings(proposals="grid", **SMALL))
    with pytest.raises(ModelError, match="the model has no proposal head, so no network proposals: train a new"):
        train_detector(data, model=grid, proposals="network")
    with pytest.raises(UserError, match="from its own or from others, not both; train with network alone"):
        train_detector(data, settings=DetectorSettings(proposals="network+grid", **SMALL))


def test_photos_that_cannot_be_read_are_named_all_of_them_before_the_work(tiny_voc: Path) -> None:
    data = read_voc(tiny_voc, "train")
    for image in data.images[:2]:
        image.path.write_bytes(image.path.read_bytes()[:300])
    told: set[str] = set()
    with pytest.raises(UserError, match=r"2 of 8 images cannot be used: .*000000\.jpg: .*; .*000001\.jpg: "):
        train_detector(data, proposals="network", progress=lambda stage, *_: told.add(stage))
    assert told == {"images"}
