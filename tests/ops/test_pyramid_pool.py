"""Pyramid pooling. A worked picture; every implementation against the definition; laws; errors; gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sppnet.layers import PyramidPool, RegionPyramidPool
from sppnet.ops.pyramid_pool import choose, pyramid_pool, region_pyramid_pool
from tests.ops.maps import DTYPES, LEVELS, random_maps, random_windows

IMPLEMENTATIONS = ("torch", "numba", "export")  # on the CPU; for "triton" see test_triton.py
MEAN_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative
LAYOUTS = (torch.contiguous_format, torch.channels_last)


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


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_implementation_is_bit_equal_to_the_definition(dtype: torch.dtype, levels: tuple[int, ...]) -> None:
    features, windows = random_maps(sum(levels), dtype)
    expected = region_pyramid_pool(features, windows, levels, implementation="reference")
    for layout in LAYOUTS:
        arranged = features.contiguous(memory_format=layout)
        for implementation in IMPLEMENTATIONS:
            pooled = region_pyramid_pool(arranged, windows, levels, implementation=implementation)
            assert pooled.dtype == dtype
            assert torch.equal(pooled, expected), implementation


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_mean_is_the_mean_but_for_rounding(dtype: torch.dtype, levels: tuple[int, ...]) -> None:
    features, windows = random_maps(sum(levels), dtype)
    expected = region_pyramid_pool(features.double(), windows, levels, reduce="mean", implementation="reference")
    rounding = {"rtol": MEAN_TOLERANCE[dtype], "atol": 1e-2 * MEAN_TOLERANCE[dtype]}
    for layout in LAYOUTS:
        arranged = features.contiguous(memory_format=layout)
        for implementation in IMPLEMENTATIONS:
            pooled = region_pyramid_pool(arranged, windows, levels, reduce="mean", implementation=implementation)
            assert pooled.dtype == dtype
            torch.testing.assert_close(pooled.double(), expected, **rounding)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_a_map_is_one_window(implementation: str, reduce: str) -> None:
    features, _ = random_maps(5, torch.float64)
    maps, _, height, width = features.shape
    windows = torch.tensor([[n, 0, 0, width, height] for n in range(maps)])
    pooled = pyramid_pool(features, (4, 3, 1), reduce=reduce, implementation=implementation)
    expected = region_pyramid_pool(features, windows, (4, 3, 1), reduce=reduce, implementation="reference")
    torch.testing.assert_close(pooled, expected, rtol=0 if reduce == "max" else 1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 15, 17, 2048])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_any_number_of_channels(channels: int, reduce: str) -> None:
    features, windows = random_maps(7, channels=channels)
    features.requires_grad_()
    results = {}
    for implementation in ("numba", "torch"):
        pooled = region_pyramid_pool(features, windows, (3, 2, 1), reduce=reduce, implementation=implementation)
        (gradient,) = torch.autograd.grad((pooled * pooled.detach().cos()).sum(), features)
        results[implementation] = pooled, gradient
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_nan_and_infinity(implementation: str, dtype: torch.dtype, nan: float) -> None:
    features = torch.tensor([[nan, -1.0, float("inf")], [-2, -3, -float("inf")]], dtype=dtype)[None, None]
    windows = torch.tensor([[0, 0, 0, 3, 2], [0, 1, 0, 2, 2], [0, 1, 0, 3, 2], [0, 2, 1, 3, 2]])
    pooled = region_pyramid_pool(features, windows, (1,), implementation=implementation).flatten()
    assert pooled[0].isnan()
    assert pooled[1:].tolist() == [-1.0, float("inf"), -float("inf")]


def test_the_compiled_maximum_of_a_nan_is_a_quiet_one() -> None:
    signalling = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32).reshape(1, 1, 1, 1)
    assert pyramid_pool(signalling, (1,), implementation="numba").view(torch.int32).item() == 0x7FC00000


def test_equal_zeros() -> None:
    features = torch.tensor([[-0.0, 0.0], [0.0, -0.0]])[None, None].requires_grad_()
    pyramid_pool(features, (1,)).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [1, 0, 0, 0]  # neither zero is the larger: the first takes it


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
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


@given(st.integers(0, 10_000), st.sampled_from(LEVELS))
def test_a_window_pools_as_its_crop(seed: int, levels: tuple[int, ...]) -> None:
    features, windows = random_maps(seed)
    pooled = region_pyramid_pool(features, windows[:5], levels)
    for row, (n, x0, y0, x1, y1) in zip(pooled, windows.tolist(), strict=False):
        assert torch.equal(row, pyramid_pool(features[n : n + 1, :, y0:y1, x0:x1], levels)[0])


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_a_coarse_level_is_the_maximum_over_a_finer(seed: int, level: int, ratio: int) -> None:
    features, _ = random_maps(seed)
    coarse, fine = pyramid_pool(features, (level,)), pyramid_pool(features, (level * ratio,))
    fine = fine.unflatten(1, (level, ratio, level, ratio))
    assert torch.equal(coarse, fine.amax((2, 4)).flatten(1, 2))


@given(st.integers(0, 10_000))
def test_channels_do_not_mix(seed: int) -> None:
    features, windows = random_maps(seed)
    order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(seed))
    pooled = region_pyramid_pool(features, windows, (3, 2, 1))
    assert torch.equal(region_pyramid_pool(features[:, order], windows, (3, 2, 1)), pooled[..., order])


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
    assert torch.equal(PyramidPool([3], "mean")(features), pyramid_pool(features, [3], reduce="mean"))
    assert repr(PyramidPool([3, 1])) == "PyramidPool(levels=(3, 1))"
    assert repr(RegionPyramidPool([3, 1], "mean")) == "RegionPyramidPool(levels=(3, 1), reduce='mean')"


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


def test_arrays_are_refused_by_name() -> None:
    features = torch.zeros(1, 2, 3, 3)
    with pytest.raises(TypeError, match=r"features must be a tensor \[N, C, H, W\]: got ndarray"):
        pyramid_pool(features.numpy(), (1,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"windows must be a tensor \[R, 5\] int64: got list"):
        region_pyramid_pool(features, [[0, 0, 0, 1, 1]], (1,))  # type: ignore[arg-type]


def test_implementations_by_name() -> None:
    features, windows = torch.rand(1, 3, 5, 6), torch.tensor([[0, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"implementation must be one of auto, reference, .*: got 'cuda'"):
        region_pyramid_pool(features, windows, (1,), implementation="cuda")
    with pytest.raises(ValueError, match=r"'numba' takes CPU maps of 16, 32 or 64 bit floats: got torch.float8_e5m2"):
        pyramid_pool(features.to(torch.float8_e5m2), (1,), implementation="numba")
    with pytest.raises(ValueError, match=r"'triton' (takes CUDA maps|needs Triton)"):
        region_pyramid_pool(features, windows, (1,), implementation="triton")
    with pytest.raises(ValueError, match="reduce must be 'max' or 'mean': got 'sum'"):
        pyramid_pool(features, (1,), reduce="sum")


@pytest.mark.parametrize(
    ("device", "dtype", "to_onnx", "has_triton", "expected"),
    [
        ("cpu", torch.float32, False, False, "numba"),
        ("cpu", torch.float16, False, True, "numba"),
        ("cpu", torch.float8_e5m2, False, True, "torch"),
        ("cuda", torch.bfloat16, False, True, "triton"),
        ("cuda", torch.float64, False, False, "torch"),
        ("mps", torch.float32, False, False, "torch"),
        ("cpu", torch.float32, True, False, "export"),
        ("cuda", torch.float16, True, True, "export"),
    ],
)
def test_what_auto_takes(device: str, dtype: torch.dtype, to_onnx: bool, has_triton: bool, expected: str) -> None:
    assert choose(device, dtype, to_onnx=to_onnx, has_triton=has_triton) == expected


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


@pytest.mark.parametrize("implementation", ["numba", "torch"])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_gradcheck(implementation: str, reduce: str) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randperm(2 * 2 * 5 * 4, generator=random).double().reshape(2, 2, 5, 4).requires_grad_()
    windows = random_windows(4, features, random)
    settings = {"reduce": reduce, "implementation": implementation}
    assert torch.autograd.gradcheck(lambda x: region_pyramid_pool(x, windows, (3, 2), **settings), features, eps=1e-3)
    assert torch.autograd.gradcheck(lambda x: pyramid_pool(x, (3, 2), **settings), features, eps=1e-3)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_compiled_gradient_of_maxima_goes_where_the_definition_says(
    dtype: torch.dtype, levels: tuple[int, ...]
) -> None:
    features, windows = random_maps(31 + sum(levels), dtype, channels=19)
    in_doubles = features.double().requires_grad_()
    expected = region_pyramid_pool(in_doubles, windows, levels, implementation="torch")
    given = torch.randint(0, 3, expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)  # sums are exact
    (expected_gradient,) = torch.autograd.grad(expected, in_doubles, given.double())
    for layout in LAYOUTS:
        arranged = features.contiguous(memory_format=layout).requires_grad_()
        pooled = region_pyramid_pool(arranged, windows, levels, implementation="numba")
        (gradient,) = torch.autograd.grad(pooled, arranged, given)
        assert gradient.dtype == dtype
        assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_the_same_bits_on_any_number_of_threads(dtype: torch.dtype, reduce: str) -> None:
    random = torch.Generator().manual_seed(2)
    features = torch.rand(2, 100, 19, 21, generator=random).to(dtype).requires_grad_()
    windows = random_windows(100, features, random)
    given = torch.rand(100, 14, 100, generator=random).to(dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            pooled = region_pyramid_pool(features, windows, (3, 2, 1), reduce=reduce, implementation="numba")
            found.append((pooled, *torch.autograd.grad(pooled, features, given)))
    finally:
        torch.set_num_threads(threads)
    (one, gradient), (two, its_gradient) = found
    assert torch.equal(one, two)
    assert torch.equal(gradient, its_gradient)


def test_no_windows_still_have_a_gradient() -> None:
    features = torch.rand(1, 2, 3, 4, requires_grad=True)
    region_pyramid_pool(features, torch.empty(0, 5, dtype=torch.int64), (2,)).sum().backward()
    assert torch.equal(features.grad, torch.zeros(1, 2, 3, 4))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_random_windows_bit_for_bit() -> None:
    count = 0
    for seed in range(90):
        for levels in LEVELS:
            features, windows = random_maps(seed, DTYPES[seed % 4])
            expected = region_pyramid_pool(features, windows, levels, implementation="reference")
            for implementation in IMPLEMENTATIONS:
                assert torch.equal(
                    region_pyramid_pool(features, windows, levels, implementation=implementation), expected
                )
            count += len(windows)
    assert count >= 10_000
