"""Pyramid pooling. A worked picture; every implementation against the definition; laws; errors; gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet.layers import PyramidPool, RegionPyramidPool
from sppnet.ops.pyramid_pool import IMPLEMENTATIONS, pyramid_pool, region_pyramid_pool

FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LEVELS = ((6, 3, 2, 1), (6, 4, 3, 2, 1), (5, 1), (7, 3), (1, 2, 3, 6), (3, 3), (1,))


def test_the_picture() -> None:
    """A 4 x 5 map: level 2 halves it with the middle column shared, level 1 takes it whole."""
    features = torch.tensor(
        [
            [1.0, 2, 3, 0, 0],
            [0, 0, 9, 0, 4],
            [0, 5, 0, 0, 0],
            [7, 0, 0, 0, 6],
        ]
    )[None, None]
    expected = torch.tensor([9.0, 9, 7, 6, 9])  # columns 0..2 and 2..4 share column 2: the 9 counts in both
    assert torch.equal(pyramid_pool(features, (2, 1)).flatten(), expected)


def random_maps(seed: int, dtype: torch.dtype = torch.float32, channels: int = 5) -> tuple[Tensor, Tensor]:
    """Two odd-sized maps with ties and negatives, and windows of all sizes down to one cell."""
    random = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 24, (2,), generator=random).tolist()
    features = torch.randint(-9, 9, (2, channels, height, width), generator=random).to(dtype)
    return features, random_windows(40, features, random)


def random_windows(count: int, features: Tensor, random: torch.Generator) -> Tensor:
    maps, _, height, width = features.shape
    corners = []
    for side in (width, height):
        start = torch.randint(0, side, (count,), generator=random)
        stop = start + 1 + (torch.rand(count, generator=random) * (side - start)).long()
        corners.append((start, stop.clamp(max=side)))
    (x0, x1), (y0, y1) = corners
    return torch.stack([torch.randint(0, maps, (count,), generator=random), x0, y0, x1, y1], dim=1)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_implementation_is_bit_equal_to_the_definition(
    implementation: str, dtype: torch.dtype, levels: tuple[int, ...], layout: torch.memory_format
) -> None:
    features, windows = random_maps(sum(levels), dtype)
    features = features.contiguous(memory_format=layout)
    expected = region_pyramid_pool(features, windows, levels, implementation="reference")
    pooled = region_pyramid_pool(features, windows, levels, implementation=implementation)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("seed", range(8))
def test_more_random_windows(implementation: str, seed: int) -> None:
    features, windows = random_maps(seed)
    expected = region_pyramid_pool(features, windows, (6, 3, 2, 1), implementation="reference")
    assert torch.equal(region_pyramid_pool(features, windows, (6, 3, 2, 1), implementation=implementation), expected)


@pytest.mark.parametrize("implementation", [*FAST, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_nan_and_infinity(implementation: str, dtype: torch.dtype, nan: float) -> None:
    features = torch.tensor([[nan, -1.0, float("inf")], [-2, -3, -float("inf")]], dtype=dtype)[None, None]
    windows = torch.tensor([[0, 0, 0, 3, 2], [0, 1, 0, 2, 2], [0, 1, 0, 3, 2], [0, 2, 1, 3, 2]])
    pooled = region_pyramid_pool(features, windows, (1,), implementation=implementation).flatten()
    assert pooled[0].isnan()
    assert pooled[1:].tolist() == [-1.0, float("inf"), -float("inf")]


@pytest.mark.parametrize("implementation", [*FAST, "reference"])
def test_no_windows(implementation: str) -> None:
    features = torch.rand(1, 4, 5, 6)
    windows = torch.empty(0, 5, dtype=torch.int64)
    assert region_pyramid_pool(features, windows, (3, 1), implementation=implementation).shape == (0, 10, 4)


def test_no_maps() -> None:
    assert pyramid_pool(torch.rand(0, 4, 5, 6), (3, 1)).shape == (0, 10, 4)


def test_strided_features_and_windows() -> None:
    features = torch.rand(1, 6, 20, 30)[:, ::2, 1::2, ::3]
    windows = torch.tensor([[0, 1, 2, 7, 9]] * 3).repeat_interleave(2, 1)[::2, ::2]
    expected = region_pyramid_pool(features.contiguous(), windows.contiguous(), (3, 1), implementation="reference")
    assert torch.equal(region_pyramid_pool(features, windows, (3, 1)), expected)


# Laws


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(LEVELS))
def test_a_window_pools_as_its_crop(seed: int, levels: tuple[int, ...]) -> None:
    features, windows = random_maps(seed)
    pooled = region_pyramid_pool(features, windows[:5], levels)
    for row, (n, x0, y0, x1, y1) in zip(pooled, windows.tolist(), strict=False):
        assert torch.equal(row, pyramid_pool(features[n : n + 1, :, y0:y1, x0:x1], levels)[0])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_a_coarse_level_is_the_maximum_over_a_finer(seed: int, level: int, ratio: int) -> None:
    features, _ = random_maps(seed)
    coarse, fine = pyramid_pool(features, (level,)), pyramid_pool(features, (level * ratio,))
    fine = fine.unflatten(1, (level, ratio, level, ratio))
    assert torch.equal(coarse, fine.amax((2, 4)).flatten(1, 2))


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_channels_do_not_mix(seed: int) -> None:
    features, windows = random_maps(seed)
    order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(seed))
    pooled = region_pyramid_pool(features, windows, (3, 2, 1))
    assert torch.equal(region_pyramid_pool(features[:, order], windows, (3, 2, 1)), pooled[..., order])


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 4))
def test_enlarging_a_map_keeps_the_vector(level: int, cells_per_bin: int, factor: int) -> None:
    features = torch.rand(1, 3, level * cells_per_bin, level * cells_per_bin)
    larger = features.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert torch.equal(pyramid_pool(features, (level,)), pyramid_pool(larger, (level,)))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (13, 17)])
def test_the_length_does_not_depend_on_the_map(size: tuple[int, int]) -> None:
    assert PyramidPool((6, 3, 2, 1))(torch.rand(2, 7, *size)).shape == (2, 50, 7)


def test_modules_are_the_functions() -> None:
    features, windows = random_maps(3)
    assert torch.equal(PyramidPool([3, 1])(features), pyramid_pool(features, [3, 1]))
    assert torch.equal(RegionPyramidPool([3, 1])(features, windows), region_pyramid_pool(features, windows, [3, 1]))
    assert "levels=(3, 1)" in repr(PyramidPool([3, 1]))


def test_arguments_are_not_modified() -> None:
    features, windows = random_maps(4)
    before = features.clone(), windows.clone()
    region_pyramid_pool(features, windows, (3, 1))
    assert torch.equal(features, before[0])
    assert torch.equal(windows, before[1])


# Errors


@pytest.mark.parametrize(
    ("features", "kind", "message"),
    [
        (torch.rand(3, 4, 5), ValueError, r"must be \[N, C, H, W\]: got shape \[3, 4, 5\]"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int32), TypeError, "floating point: got torch.int32"),
        (torch.rand(1, 3, 0, 5), ValueError, r"at least one channel, row and column: got \[1, 3, 0, 5\]"),
        (torch.rand(1, 0, 4, 5), ValueError, "at least one channel"),
    ],
)
def test_wrong_features(features: Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pyramid_pool(features, (1,))
    with pytest.raises(kind, match=message):
        region_pyramid_pool(features, torch.tensor([[0, 0, 0, 1, 1]]), (1,))


@pytest.mark.parametrize(
    "window", [[0, 0, 0, 0, 1], [0, 2, 0, 1, 1], [1, 0, 0, 1, 1], [-1, 0, 0, 1, 1], [0, 0, 0, 7, 1], [0, 0, -1, 1, 1]]
)
def test_a_window_that_is_empty_or_outside_is_named(window: list[int]) -> None:
    windows = torch.tensor([[0, 0, 0, 1, 1], window])
    with pytest.raises(ValueError, match="window 1 is empty or outside the maps") as error:
        region_pyramid_pool(torch.rand(1, 3, 5, 6), windows, (1,))
    assert str(tuple(window)) in str(error.value)
    assert "5 x 6 cells" in str(error.value)


def test_wrong_windows() -> None:
    features = torch.rand(1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"windows must be \[R, 5\]"):
        region_pyramid_pool(features, torch.tensor([[0, 0, 1, 1]]), (1,))
    with pytest.raises(TypeError, match="windows must be int64"):
        region_pyramid_pool(features, torch.tensor([[0.0, 0, 0, 1, 1]]), (1,))


def test_implementations_by_name() -> None:
    features, windows = torch.rand(1, 3, 5, 6, requires_grad=True), torch.tensor([[0, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match="implementation must be one of auto, reference, torch, numba: got 'cuda'"):
        region_pyramid_pool(features, windows, (1,), implementation="cuda")
    with pytest.raises(ValueError, match=r"'numba' takes CPU maps .* need no gradient"):
        region_pyramid_pool(features, windows, (1,), implementation="numba")


# Gradients


def test_a_tie_goes_to_the_first_cell_in_row_order() -> None:
    features = torch.tensor([[1.0, 5, 5], [5, 0, 5]])[None, None].requires_grad_()
    pyramid_pool(features, (1,)).sum().backward()
    assert torch.equal(features.grad, torch.tensor([[0.0, 1, 0], [0, 0, 0]])[None, None])


def test_a_cell_that_wins_twice_gets_the_sum() -> None:
    features = torch.tensor([[1.0, 5, 2]])[None, None].requires_grad_()
    windows = torch.tensor([[0, 0, 0, 3, 1], [0, 1, 0, 2, 1]])
    region_pyramid_pool(features, windows, (2, 1)).sum().backward()
    # The first window's level 2 shares the 5 between its 2 x 2 bins (one row: each twice), level 1 adds one; so does
    # the second window, one cell: 4 bins and 1.
    assert torch.equal(features.grad, torch.tensor([[0.0, 10, 0]])[None, None])


def test_gradcheck() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randperm(2 * 3 * 7 * 5, generator=random).double().reshape(2, 3, 7, 5).requires_grad_()
    windows = random_windows(6, features, random)
    assert torch.autograd.gradcheck(lambda x: region_pyramid_pool(x, windows, (3, 2)), features, eps=1e-3)
    assert torch.autograd.gradcheck(lambda x: pyramid_pool(x, (3, 2)), features, eps=1e-3)


def test_no_windows_still_have_a_gradient() -> None:
    features = torch.rand(1, 2, 3, 4, requires_grad=True)
    region_pyramid_pool(features, torch.empty(0, 5, dtype=torch.int64), (2,)).sum().backward()
    assert torch.equal(features.grad, torch.zeros(1, 2, 3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    features, windows = random_maps(1, dtype)
    expected = region_pyramid_pool(features, windows, (6, 3, 2, 1), implementation="reference")
    pooled = region_pyramid_pool(features.cuda(), windows.cuda(), (6, 3, 2, 1))
    assert torch.equal(pooled.cpu(), expected)


def test_the_compiled_kernel_keeps_pytorchs_number_of_threads() -> None:
    code = (
        "import torch; torch.set_num_threads(1); from sppnet import region_pyramid_pool as pool;"
        "pool(torch.zeros(1, 8, 4, 4), torch.tensor([[0, 0, 0, 4, 4]] * 9), (2, 1), implementation='numba');"
        "print(torch.get_num_threads())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"
