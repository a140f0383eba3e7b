"""Images to inputs and back: sizes, the four ways to resize, pixels, boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.errors import SettingsError
from sppnet.models.preprocess import RESIZE_MODES, Preprocess

sides = st.integers(1, 300)
sizes = st.tuples(sides, sides)
preprocesses = st.builds(
    Preprocess,
    short_side=st.integers(8, 200),
    long_side=st.integers(200, 400),
    resize_mode=st.sampled_from(RESIZE_MODES),
    smallest_side=st.integers(1, 40),
)


@given(preprocesses, sizes, st.sampled_from([None, 16, 100]))
def test_an_image_gets_the_size_that_was_said(preprocess: Preprocess, size: tuple[int, int], side: int | None) -> None:
    resized = preprocess.resize(np.zeros((*size, 3), np.uint8), side)
    assert resized.shape[:2] == preprocess.input_size(size, side)
    if preprocess.resize_mode == "keep-aspect":
        assert min(resized.shape[:2]) >= preprocess.smallest_side
    else:
        assert resized.shape[:2] == ((side or preprocess.short_side),) * 2


@given(preprocesses, sizes, st.lists(st.tuples(sides, sides, sides, sides), max_size=4), st.sampled_from([None, 100]))
def test_boxes_there_and_back(
    preprocess: Preprocess, size: tuple[int, int], boxes: list[tuple[int, ...]], side: int | None
) -> None:
    given_boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    there = preprocess.to_input(given_boxes, size, side)
    torch.testing.assert_close(preprocess.to_image(there, size, side), given_boxes)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_drawn_box_lands_where_it_was_said_to(mode: str) -> None:
    """A white box in a black image is white in the input exactly where `to_input` puts it."""
    preprocess = Preprocess(200, 400, mode, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = np.zeros((150, 300, 3), np.uint8)
    image[40:100, 100:200] = 255
    prepared, _ = preprocess(image)
    x0, y0, x1, y1 = preprocess.to_input(torch.tensor([[100.0, 40, 200, 100]]), (150, 300))[0].tolist()
    white = (prepared[0, 0] > 0.5).nonzero()
    found = [*white.min(0).values.flip(0).tolist(), *(white.max(0).values + 1).flip(0).tolist()]
    assert found == pytest.approx([x0, y0, x1, y1], abs=1.0)


@given(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), st.floats(0.1, 1), st.integers(0, 9))
def test_pixels_are_the_way_back_of_normalize(mean: tuple[float, float, float], std: float, seed: int) -> None:
    preprocess = Preprocess(mean=mean, std=(std, std, std))
    image = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    normalized = preprocess.normalize(image)
    assert normalized.shape == (1, 3, 5, 7)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(preprocess.pixels(normalized), image)
    assert torch.equal(preprocess.normalize(torch.from_numpy(image)), normalized)


def test_called_it_resizes_normalizes_and_says_by_how_much() -> None:
    preprocess = Preprocess(128, 400)
    prepared, scale = preprocess(np.zeros((64, 96, 3), np.uint8))
    assert (prepared.shape, prepared.dtype, scale) == ((1, 3, 128, 192), torch.float32, (2.0, 2.0))
    torch.testing.assert_close(prepared[0, :, 5, 5], -torch.tensor(preprocess.mean) / torch.tensor(preprocess.std))


def test_a_letterbox_is_filled_with_the_mean_and_a_crop_is_the_middle() -> None:
    image = np.zeros((50, 200, 3), np.uint8)
    image[:, 70:130] = 200
    boxed = Preprocess(80, 80, "letterbox", mean=(1.0, 0.0, 1.0)).resize(image)
    assert boxed[0, 0].tolist() == [255, 0, 255]
    assert boxed[:, 0, 0].tolist().count(0) == 20
    assert (Preprocess(80, 80, "crop").resize(image) == 200).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"short_side": 0}, "sides must be 1 to 20000 pixels: got 0 and 1000"),
        ({"resize_mode": "squash"}, "resize mode must be one of keep-aspect, warp, crop, letterbox: got 'squash'"),
        (
            {"fixed_size": True},
            "a network of one fixed input size needs square images: resize by crop, warp or letterbox",
        ),
    ],
)
def test_what_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Preprocess(**fields)  # type: ignore[arg-type]
