"""Boxes and deltas in mirror images."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.boxes import encode_boxes, flip_boxes, flip_deltas

BOX = st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 50)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(BOX, min_size=1), st.integers(100, 200))
def test_mirrored_twice_is_as_before(found: list[tuple[int, ...]], width: int) -> None:
    boxes = torch.tensor(found, dtype=torch.float32)
    mirrored = flip_boxes(boxes, width)
    assert (mirrored[:, :2] < mirrored[:, 2:]).all()
    assert (mirrored[:, ::2] >= 0).all()
    assert (mirrored[:, ::2] <= width).all()
    assert torch.equal(flip_boxes(mirrored, width), boxes)


@given(BOX, BOX, st.integers(100, 200))
def test_deltas_are_those_of_mirrored_boxes(box: tuple[int, ...], target: tuple[int, ...], width: int) -> None:
    boxes, targets = torch.tensor([box]).float(), torch.tensor([target]).float()
    expected = encode_boxes(flip_boxes(boxes, width), flip_boxes(targets, width))
    assert torch.allclose(flip_deltas(encode_boxes(boxes, targets)), expected, atol=1e-5)
