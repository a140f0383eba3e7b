"""How an image becomes the input of a network: native, squashed, cropped, padded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.fit import FITS, fit_image, fitted_size

FILL = (1, 2, 3)


def stripes() -> np.ndarray:
    """30 x 90: red, green, blue thirds, left to right."""
    image = np.zeros((30, 90, 3), dtype=np.uint8)
    for third in range(3):
        image[:, 30 * third : 30 * third + 30, third] = 255
    return image


def test_the_picture() -> None:
    native = fit_image(stripes(), "native", 60, 1000, fill=FILL)
    assert native.shape == (60, 180, 3)
    squashed = fit_image(stripes(), "squash", 30, 1000, fill=FILL)
    assert squashed.shape == (30, 30, 3)
    assert squashed[15, [3, 15, 27]].argmax(1).tolist() == [0, 1, 2]  # all there, a third as wide
    cropped = fit_image(stripes(), "crop", 30, 1000, fill=FILL)
    assert (cropped.argmax(2) == 1).all()  # the green middle alone
    padded = fit_image(stripes(), "pad", 90, 1000, fill=FILL)
    assert (padded[30:60] == stripes()).all()
    assert (padded[:30] == FILL).all()
    assert (padded[60:] == FILL).all()


@given(
    st.sampled_from(FITS),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 80),
    st.integers(1, 9),
)
def test_the_size_is_as_foretold(fit: str, height: int, width: int, short: int, long: int, minimum: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    fitted = fit_image(image, fit, short, long, minimum=minimum, fill=FILL)
    assert fitted.shape[:2] == fitted_size((height, width), fit, short, long, minimum)
    assert fit == "native" or fitted.shape[:2] == (short, short)


def test_a_crop_of_a_long_image_is_its_middle_and_takes_little_memory() -> None:
    """Resized whole, 3 x 200000 would be 18 GB on the way."""
    image = np.zeros((3, 200_000, 3), dtype=np.uint8)
    image[:, 99_995:100_005] = (0, 255, 0)
    cropped = fit_image(image, "crop", 300, 1000, fill=FILL)
    assert cropped.shape == (300, 300, 3)
    assert (cropped == (0, 255, 0)).all()
    turned = fit_image(np.ascontiguousarray(image.transpose(1, 0, 2)), "crop", 300, 1000, fill=FILL)
    assert (turned == cropped).all()


def test_no_such_fit() -> None:
    with pytest.raises(ValueError, match="fit must be one of native, squash, crop, pad: got 'stretch'"):
        fit_image(stripes(), "stretch", 30, 30, fill=FILL)
