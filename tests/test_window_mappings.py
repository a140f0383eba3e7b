"""The four mappings on worked cases, where they differ and where they cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.window_mappings import MAPPINGS, use_mapping, windows_by
from sppnet.models.geometry import Geometry
from sppnet.models.sppnet import SPPNet

ZF5 = Geometry(16, 20.5)  # of the release, with the pads that it was trained with: its offset0 is 21, counted from 1
PADDED = Geometry(16, 15.5)  # the paper's x = S x', with pixels and cells counted from 1


def columns(mapping: str, first: int, last: int, geometry: Geometry) -> tuple[int, int]:
    """First and last cell of the pixels ``first`` to ``last``, all counted from 1, on a map of 60 cells."""
    box = torch.tensor([[first - 1.0, 0, last, 100]])
    x0, _, x1, _ = windows_by(mapping, box, geometry, (60, 60), (1.0, 1.0))[0].tolist()
    return x0 + 1, x1


@pytest.mark.parametrize(
    ("first", "last", "release", "paper"),
    [(17, 120, (1, 7), (2, 7)), (100, 140, (6, 8), (7, 8)), (50, 66, (3, 3), (4, 4))],  # by hand, by both formulas
)
def test_worked_windows(first: int, last: int, release: tuple[int, int], paper: tuple[int, int]) -> None:
    assert columns("release", first, last, ZF5) == release
    assert columns("paper", first, last, PADDED) == paper


@given(st.integers(1, 900), st.integers(0, 400))
def test_the_releases_ends_as_another_formula(first: int, length: int) -> None:
    """left = floor((x - 6.5) / 16) + 1 and right = ceil((x - 19.5) / 16), with ZF-5's offset put in."""
    last = first + length
    left, right = (2 * first - 13) // 32 + 1, -((39 - 2 * last) // 32)
    if left > right:
        left = right = (left + right) // 2
    assert columns("release", first, last, ZF5) == (min(max(left, 1), 60), min(max(right, 1), 60))


@pytest.mark.parametrize(
    ("box", "window"), [((50, 66), (3, 5)), ((0, 15), (0, 2)), ((8, 23.9), (1, 2)), ((31, 33), (2, 3))]
)
def test_roi_pool_rounds_and_takes_both_ends(box: tuple[float, float], window: tuple[int, int]) -> None:
    found = windows_by("roi_pool", torch.tensor([[box[0], 0.0, box[1], 9]]), ZF5, (60, 60), (1.0, 1.0))[0].tolist()
    assert (found[0], found[2]) == window


def test_roi_pool_is_torchvisions() -> None:
    """On a map whose cells hold their own index, its largest and smallest answers are the window's ends."""
    from torchvision.ops import roi_pool

    features = torch.stack([torch.arange(40.0), -torch.arange(40.0)])[None, :, None].expand(1, 2, 40, 40).contiguous()
    boxes = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 500
    boxes = torch.cat([boxes, boxes + 1 + torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 100], 1)
    theirs = roi_pool(features, [boxes], output_size=1, spatial_scale=1 / 16)[:, :, 0, 0]
    ours = windows_by("roi_pool", boxes, Geometry(16, 8.0), (40, 40), (1.0, 1.0))
    assert ours[:, 2].tolist() == (theirs[:, 0] + 1).long().tolist()
    assert ours[:, 0].tolist() == (-theirs[:, 1]).long().tolist()


@given(st.integers(0, 900), st.integers(40, 400), st.sampled_from([8, 12, 16, 32]), st.integers(0, 40))
def test_centre_and_paper_differ_by_centres_on_the_edge_alone(
    start: int, length: int, stride: int, offset: int
) -> None:
    """Between a box's first and last pixel lie the same centres but for one on either; the last counts half a pixel more."""
    geometry = Geometry(stride, offset + 0.5)
    box = torch.tensor([[float(start), 0, start + length, 100]])
    own, paper = (windows_by(name, box, geometry, (200, 200), (1.0, 1.0))[0].tolist() for name in ("centre", "paper"))
    on_first = (start - offset) % stride == 0 and start >= offset
    on_last = (start + length - 1 - offset) % stride == 0
    if own[2] - own[0] > 2:
        assert paper[0] - own[0] == on_first
        assert own[2] - paper[2] == on_last


@given(
    st.sampled_from(list(MAPPINGS)),
    st.lists(st.floats(-500, 1500), min_size=4, max_size=4),
    st.sampled_from([Geometry(16, 20.5), Geometry(32, 0.5), Geometry(8, 3.5)]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_no_window_is_empty_or_outside(
    mapping: str, sides: list[float], geometry: Geometry, size: tuple[int, int]
) -> None:
    (xa, xb), (ya, yb) = sorted(sides[:2]), sorted(sides[2:])
    x0, y0, x1, y1 = windows_by(mapping, torch.tensor([[xa, ya, xb, yb]]), geometry, size, (0.8, 1.2))[0].tolist()
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]


def test_scale_is_vertical_then_horizontal() -> None:
    box = torch.tensor([[0.0, 0, 80, 80]])
    for mapping in MAPPINGS:
        x0, y0, x1, y1 = windows_by(mapping, box, Geometry(16, 8.0), (40, 40), (1.0, 2.0))[0].tolist()
        assert x1 - x0 > y1 - y0


def test_no_such_mapping() -> None:
    with pytest.raises(ValueError, match="mapping must be one of centre, paper, release, roi_pool: got 'align'"):
        windows_by("align", torch.zeros(1, 4), ZF5, (4, 4), (1.0, 1.0))


def test_a_model_may_use_another_mapping(tiny_detector: SPPNet) -> None:
    model, boxes = copy.deepcopy(tiny_detector), torch.tensor([[5.0, 5, 60, 70]])
    use_mapping(model, "roi_pool")
    windows, residuals = model.windows(boxes, (4, 4), (1.0, 1.0))
    assert torch.equal(windows, windows_by("roi_pool", boxes, model.geometry, (4, 4), (1.0, 1.0)))
    assert residuals.shape == (1, 4)
    assert not torch.equal(windows, tiny_detector.windows(boxes, (4, 4), (1.0, 1.0))[0])
