"""The region proposal head: anchors around the cells of a map, in the order of its answers."""

from __future__ import annotations

import torch

from sppnet.models.geometry import Geometry
from sppnet.models.proposal_head import ANCHOR_ASPECTS, ANCHOR_SIZES, RARE, ProposalHead

GEOMETRY = Geometry(16, 8.0, channels=6)


def test_anchors_lie_around_the_cells_in_every_size_and_aspect() -> None:
    anchors = ProposalHead(GEOMETRY).anchors((2, 3)).reshape(2, 3, -1, 4)
    centres, sides = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
    assert centres[1, 2].unique(dim=0).tolist() == [[40.0, 24.0]]  # x, y
    torch.testing.assert_close(
        sides[0, 0].prod(1).sqrt(), torch.tensor(ANCHOR_SIZES, dtype=torch.float32).repeat_interleave(3)
    )
    torch.testing.assert_close(sides[0, 0, :, 0] / sides[0, 0, :, 1], torch.tensor(ANCHOR_ASPECTS * len(ANCHOR_SIZES)))


def test_answers_come_in_the_order_of_the_anchors() -> None:
    """What one cell says is at that cell's place, whatever the map's shape."""
    torch.manual_seed(0)
    head, features = ProposalHead(GEOMETRY), torch.zeros(1, 6, 5, 7)
    with torch.no_grad():
        plain, _ = head(features)
        features[0, :, 3, 2] = 100
        lit, deltas = head(features)
    changed = (lit != plain).reshape(5, 7, -1).any(2).nonzero()
    assert changed.amin(0).tolist() == [2, 1]  # a 3 x 3 convolution looks one cell around
    assert changed.amax(0).tolist() == [4, 3]
    assert deltas.shape == (5 * 7 * 15, 4)


def test_it_starts_with_few_objects() -> None:
    logits, deltas = ProposalHead(GEOMETRY)(torch.zeros(1, 6, 4, 4))
    torch.testing.assert_close(logits.sigmoid(), torch.full((240,), RARE))
    assert not deltas.any()


def test_any_precision() -> None:
    head = ProposalHead(GEOMETRY)
    logits, deltas = head.half()(torch.rand(1, 6, 3, 3))
    assert (logits.dtype, deltas.dtype) == (torch.float32, torch.float32)
