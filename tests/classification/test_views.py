"""How an image is looked at: where the views lie, and that windows of a map are the crops wherever padding plays no part."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sppnet.classification import views as module
from sppnet.classification.predict import classify
from sppnet.classification.views import (
    CENTER,
    CORNERS,
    SIDE_MIDDLES,
    VIEW_NAMES,
    Views,
    view_scores,
    view_set,
    view_windows,
    views_for,
)
from sppnet.errors import SettingsError, UserError
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, SPPNet, build_model

EVERYWHERE = CENTER + CORNERS + SIDE_MIDDLES


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@cache
def pointwise_net(*, stride: int = 1, multi_label: bool = False) -> SPPNet:
    """A network whose cells see `stride` x `stride` pixels and nothing beyond: no layer pads."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AvgPool2d(stride), nn.Conv2d(8, 6, 1), nn.ReLU())
    architecture = Architecture(("a", "b", "c"), "", (3, 2, 1), (16,), detects=False, multi_label=multi_label)
    return build_model(architecture, Preprocess(32, 64), backbone=backbone).eval()


def padded(resize_mode: str = "keep-aspect") -> SPPNet:
    """A network like any other: its layers pad, so a crop's edge is not what lies in the photo's middle."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
    architecture = Architecture(("a", "b", "c"), "", (2, 1), (16,), detects=False, multi_label=False)
    return build_model(architecture, Preprocess(64, 1000, resize_mode), backbone=nn.Sequential(*layers)).eval()


@pytest.fixture(scope="module")
def padded_net() -> SPPNet:
    return padded()


# Where the views lie


def test_the_nine_windows_of_a_scale() -> None:
    assert view_windows((256, 340), EVERYWHERE).tolist() == [
        [58, 16, 282, 240],
        [0, 0, 224, 224],
        [116, 0, 340, 224],
        [0, 32, 224, 256],
        [116, 32, 340, 256],
        [58, 0, 282, 224],
        [0, 16, 224, 240],
        [116, 16, 340, 240],
        [58, 32, 282, 256],
    ]


@pytest.mark.parametrize(("size", "count"), [((224, 300), 3), ((300, 224), 3), ((224, 224), 1), ((224, 225), 2), ((225, 226), 6)])  # fmt: skip
def test_windows_on_the_same_pixels_are_there_once(size: tuple[int, int], count: int) -> None:
    assert len(view_windows(size, EVERYWHERE)) == count


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60))
def test_windows_lie_inside_are_square_and_all_different(window: int, more_down: int, more_across: int) -> None:
    height, width = window + more_down, window + more_across
    x0, y0, x1, y1 = view_windows((height, width), EVERYWHERE, window).T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= width).all()
    assert (y1 <= height).all()
    assert ((x1 - x0 == window) & (y1 - y0 == window)).all()
    assert len(set(zip(x0, y0, strict=True))) == len(x0)
    assert {x0.min(), x0.max(), y0.min(), y0.max()} == {0, more_across, more_down}  # they reach every edge
    if not more_across % 2 and not more_down % 2:  # the pattern is its own mirror image
        assert {(width - b, d) for b, d in zip(x1, y0, strict=True)} == set(zip(x0, y0, strict=True))


@pytest.mark.parametrize(("size", "count"), [((375, 500), 96), ((500, 375), 96), ((400, 400), 92), ((90, 300), 96)])
def test_the_papers_96_views(padded_net: SPPNet, size: tuple[int, int], count: int) -> None:
    assert len(view_scores(photo(*size), padded_net, view_set("multi-view", 32))) == count
    assert len(view_scores(photo(*size), padded_net, view_set("multi-view+full", 32))) == count + 2


@pytest.mark.parametrize(("name", "count"), [("single", 1), ("center-crop", 1), ("10-view", 10), ("full", 1)])
def test_the_usual_sets_by_name(padded_net: SPPNet, name: str, count: int) -> None:
    scores = view_scores(photo(60, 90), padded_net, view_set(name, 56))
    assert scores.shape == (count, 3)
    torch.testing.assert_close(scores.sum(1), torch.ones(count), atol=1e-5, rtol=0)


def test_sets_by_name_have_the_papers_lengths_or_others_in_proportion() -> None:
    assert view_set("10-view") == Views((256,), CENTER + CORNERS, 224, flip=True)
    assert view_set("full") == Views(full=(256,))
    multi = view_set("multi-view+full", 112)
    assert (multi.short_sides, multi.window, multi.full) == ((112, 128, 150, 180, 224, 280), 112, (128,))
    assert view_set("center-crop").crops


def test_views_by_name_are_as_large_as_the_model_is_used_to(padded_net: SPPNet, tiny_detector: SPPNet) -> None:
    assert views_for(padded_net, "10-view") == view_set("10-view", 64)
    mine = Views(full=(40,))
    assert views_for(tiny_detector, mine) is mine


# What they give


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("resize_mode", ["keep-aspect", "warp", "crop", "letterbox"])
def test_the_single_view_is_the_whole_image_as_the_model_preprocesses_it(resize_mode: str) -> None:
    net, image = padded(resize_mode), photo(50, 90)
    with torch.inference_mode():
        expected = net(net.preprocess(image)[0]).softmax(1)
    torch.testing.assert_close(view_scores(image, net, view_set("single")), expected, atol=1e-5, rtol=1e-5)
    assert len(view_scores(image, net, Views(full=(None,), flip=True))) == 2


@pytest.mark.usefixtures("single_precision")
@settings(max_examples=15)
@given(st.integers(12, 50), st.integers(12, 50), st.lists(st.integers(12, 40), min_size=1, max_size=3), st.booleans())
def test_windows_of_the_map_are_the_crops_where_no_layer_pads(
    height: int, width: int, short_sides: list[int], flip: bool
) -> None:
    net, image = pointwise_net(), photo(height, width)
    both = [Views(tuple(short_sides), EVERYWHERE, 12, full=(20,), flip=flip, crops=crops) for crops in (False, True)]
    windows, crops = (view_scores(image, net, views) for views in both)
    assert windows.shape == crops.shape
    order, crop_order = (torch.sort(scores[:, 0]).indices for scores in (windows, crops))  # full views come elsewhere
    torch.testing.assert_close(windows[order], crops[crop_order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(windows.mean(0), crops.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("single_precision")
def test_likewise_with_a_stride_where_windows_begin_at_whole_cells() -> None:
    net, image = pointwise_net(stride=4), photo(24, 24)
    assert (net.geometry.stride, net.geometry.offset) == (4, 2.0)
    views = [Views((16, 24, 32), EVERYWHERE, 16, flip=True, crops=crops) for crops in (False, True)]
    windows, crops = (view_scores(image, net, each) for each in views)
    assert len(windows) == 2 + 18 + 18
    torch.testing.assert_close(windows, crops)


@pytest.mark.usefixtures("single_precision")
def test_each_view_sees_its_own_window() -> None:
    """A white square in the upper right corner changes the views that hold it, and no other."""
    net, dark = pointwise_net(), np.zeros((40, 60, 3), np.uint8)
    bright = dark.copy()
    bright[2:6, 52:56] = 255
    views = Views((40,), EVERYWHERE, 20, flip=True)
    changed = (view_scores(bright, net, views) != view_scores(dark, net, views)).any(1)
    windows = view_windows((40, 60), EVERYWHERE, 20)
    assert (
        changed.tolist() == (windows == [40, 0, 60, 20]).all(1).tolist() + (windows == [0, 0, 20, 20]).all(1).tolist()
    )
    assert changed.sum() == 2


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("crops", [False, True])
def test_with_flip_views_an_image_and_its_mirror_image_are_one(padded_net: SPPNet, crops: bool) -> None:
    image = photo(64, 96)  # not resized, so that nothing else differs
    views = Views((64,), EVERYWHERE, 40, full=(64,), flip=True, crops=crops)
    scores, mirror_scores = view_scores(image, padded_net, views), view_scores(image[:, ::-1], padded_net, views)
    assert not torch.allclose(scores, mirror_scores)
    torch.testing.assert_close(scores.mean(0), mirror_scores.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_answer_is_the_mean_of_probabilities(multi_label: bool) -> None:
    net, image, views = pointwise_net(multi_label=multi_label), photo(30, 44), Views((24, 30), CORNERS, 16)
    answer = classify(image, net, views=views)
    assert answer.multi_label == multi_label
    np.testing.assert_allclose(answer.scores, view_scores(image, net, views).mean(0).numpy(), rtol=1e-6)
    if not multi_label:
        assert answer.scores.sum() == pytest.approx(1, abs=1e-5)


def test_each_scale_is_convolved_once(padded_net: SPPNet) -> None:
    seen = []
    hook = padded_net.backbone.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
    pools = []
    pool_hook = padded_net.pool.register_forward_hook(lambda _, inputs, output: pools.append(len(inputs[1])))
    try:
        view_scores(photo(100, 150), padded_net, Views((64, 96), EVERYWHERE, 64, full=(64,), flip=True))
    finally:
        hook.remove()
        pool_hook.remove()
    assert seen == [(2, 3, 64, 96), (2, 3, 96, 144)]  # the full view shares the map of its scale
    assert pools == [8, 18]


@pytest.mark.usefixtures("single_precision")
def test_few_at_once_or_many_is_the_same(padded_net: SPPNet, monkeypatch: pytest.MonkeyPatch) -> None:
    image, views = photo(80, 120), view_set("10-view", 64)
    crops = replace(views, crops=True)
    whole = view_scores(image, padded_net, views)
    torch.testing.assert_close(view_scores(image, padded_net, crops, chunk_size=3), view_scores(image, padded_net, crops))  # fmt: skip
    monkeypatch.setattr(module, "WINDOW_CHUNK", 3)
    torch.testing.assert_close(view_scores(image, padded_net, views), whole)


@pytest.mark.parametrize("name", VIEW_NAMES)
@pytest.mark.parametrize("size", [(1, 1), (500, 3), (20_000, 20)], ids=str)
def test_images_of_any_size(padded_net: SPPNet, name: str, size: tuple[int, int]) -> None:
    image = photo(*size)
    before = image.copy()
    answer = classify(image, padded_net, views=view_set(name, 32))
    assert np.isfinite(answer.scores).all()
    assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
    assert (image == before).all()


def test_what_cannot_be_used_is_said(tiny_detector: SPPNet) -> None:
    with pytest.raises(SettingsError, match=r"no views named '12-view': expected one of single, center-crop, 10-view"):
        classify(photo(40, 40), tiny_detector, views="12-view")
    with pytest.raises(SettingsError, match="nothing to look at"):
        Views()
    with pytest.raises(SettingsError, match="window of 224 pixels does not fit an image with a short side of 200"):
        Views(short_sides=(300, 200))
    with pytest.raises(SettingsError, match="at least 1 pixel, got 0"):
        Views(full=(0,))
    with pytest.raises(SettingsError, match="at least 1 pixel, got -3"):
        view_set("multi-view", -3)
    with pytest.raises(SettingsError, match=r"shares of the free room, each in 0\.\.1"):
        Views(short_sides=(300,), positions=((0.5, 1.5),))
    with pytest.raises(UserError, match=r"nothing\.jpg: no such file"):
        classify("nothing.jpg", tiny_detector, views="10-view")
