"""The CUDA kernels: the table against the definition, gradients, and whether they compile.

Without a device, the cases run under Triton's interpreter. It wants ``TRITON_INTERPRET=1`` before Triton is imported, and
turns every kernel of the process into Python, so it gets a process of its own: one test starts it, and fails with its
report. To see the cases one by one: ``TRITON_INTERPRET=1 uv run pytest tests/ops/test_triton.py``; with ``-m slow``, the
whole table. What the interpreter cannot tell is whether a kernel compiles: that is tried with Triton's compiler, which
needs no device.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sppnet.ops.pyramid_pool import region_pyramid_pool
from tests.ops.maps import DTYPES, random_windows

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch's builds for CUDA")

from sppnet.ops import _triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [*(["cpu"] if INTERPRETED else []), pytest.param("cuda", marks=CUDA)]

LEVELS = ((6, 3, 2, 1), (6, 4, 3, 2, 1), (5, 1), (7, 3), (1,))
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda features: features.contiguous(),
    "channels last": lambda features: features.contiguous(memory_format=torch.channels_last),
    "transposed": lambda features: features.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda features: features.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, 1::2],
}

on_each_device = pytest.mark.parametrize("device", DEVICES)
of_each_kind = pytest.mark.parametrize("reduce", ["max", "mean"])


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.timeout(600)  # of one processor, among others' work; alone it takes seconds
@pytest.mark.parametrize(
    "chosen", ["every_dtype and float32 or wins or ties", pytest.param("test", marks=pytest.mark.slow)]
)
def test_under_the_interpreter(chosen: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen, __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def random_maps(seed: int, dtype: torch.dtype, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Two maps of small whole numbers, so with ties, and two windows: of some cells, and of one."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randint(-9, 9, (2, channels, 5, 6), generator=random).to(dtype)
    x, y = torch.randint(0, 2, (2,), generator=random).tolist()
    return features, torch.tensor([[1, x, y, x + 5, y + 3], [0, 3 * x, y, 3 * x + 1, y + 1]])


def random_gradient(pooled: Tensor, seed: int) -> Tensor:
    """Of small whole numbers: their sums are exact in any order."""
    return torch.randint(-4, 5, pooled.shape, generator=torch.Generator().manual_seed(seed)).to(pooled.dtype)


def definition(features: Tensor, windows: Tensor, levels: tuple[int, ...], reduce: str) -> Tensor:
    """Means in float64, then rounded."""
    return region_pyramid_pool(features.double(), windows, levels, reduce=reduce, implementation="reference").to(
        features.dtype
    )


def gradient_of_definition(
    gradient: Tensor, features: Tensor, windows: Tensor, levels: tuple[int, ...], reduce: str
) -> Tensor:
    leaf = features.double().requires_grad_()
    region_pyramid_pool(leaf, windows, levels, reduce=reduce, implementation="torch").backward(gradient.double())
    assert leaf.grad is not None
    return leaf.grad.to(features.dtype)


def check(features: Tensor, windows: Tensor, levels: tuple[int, ...], reduce: str, device: str) -> None:
    """Forward and backward, held against the definition: maxima to the bit, means to rounding."""
    on_device = features.to(device)
    pooled = _triton.forward(on_device, windows.to(device), levels, reduce)
    expected = definition(features, windows, levels, reduce)
    given = random_gradient(expected, seed=len(windows))
    found = _triton.backward(given.to(device), on_device, windows.to(device), pooled, levels, reduce)
    expected_gradient = gradient_of_definition(given, features, windows, levels, reduce)
    exactly = {"rtol": 0, "atol": 0} if reduce == "max" else {}
    assert (pooled.dtype, pooled.device.type) == (features.dtype, device)
    assert pooled.is_contiguous()
    torch.testing.assert_close(pooled.cpu(), expected, **exactly)
    assert (found.dtype, found.device.type) == (features.dtype, device)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.cpu(), expected_gradient, **exactly)


# The table, in slices under the interpreter, which is slow; whole on a device


@on_each_device
@of_each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, reduce: str, device: str) -> None:
    features, windows = random_maps(0, dtype)
    check(features, windows, (2, 1), reduce, device)


@on_each_device
@of_each_kind
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_set_of_levels(levels: tuple[int, ...], reduce: str, device: str) -> None:
    features, windows = random_maps(sum(levels), torch.float32)
    check(features, windows[:1], levels, reduce, device)


@on_each_device
@of_each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, reduce: str, device: str) -> None:
    features, windows = random_maps(1, torch.float32)
    arranged = LAYOUTS[layout](features)
    assert torch.equal(arranged, features)
    check(arranged, windows.repeat_interleave(2, dim=1)[:, ::2], (2,), reduce, device)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), DEVICES[-1]][not INTERPRETED :])
@of_each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_whole_table(dtype: torch.dtype, levels: tuple[int, ...], layout: str, reduce: str, device: str) -> None:
    features, windows = random_maps(sum(levels), dtype)
    check(LAYOUTS[layout](features), windows, levels, reduce, device)


# What is at the edge


@on_each_device
@of_each_kind
def test_no_windows(reduce: str, device: str) -> None:
    features, windows = torch.rand(2, 3, 4, 5, device=device), torch.empty(0, 5, dtype=torch.int64, device=device)
    pooled = _triton.forward(features, windows, (3, 1), reduce)
    assert pooled.shape == (0, 10, 3)
    assert torch.equal(_triton.backward(pooled, features, windows, pooled, (3, 1), reduce), torch.zeros_like(features))
    no_maps = features[:0]
    assert _triton.forward(no_maps, windows, (3, 1), reduce).shape == (0, 10, 3)
    assert _triton.backward(pooled, no_maps, windows, pooled, (3, 1), reduce).shape == (0, 3, 4, 5)


@on_each_device
@of_each_kind
def test_a_map_of_one_cell(reduce: str, device: str) -> None:
    check(torch.tensor([2.0, -3.0]).reshape(1, 2, 1, 1), torch.tensor([[0, 0, 0, 1, 1]]), (2, 1), reduce, device)


@on_each_device
@of_each_kind
@pytest.mark.parametrize("channels", [1, 130, 2048])
def test_one_channel_and_more_than_a_block(channels: int, reduce: str, device: str) -> None:
    features = random_maps(2, torch.float32, channels)[0][:1, :, :1, :2]
    check(features, torch.tensor([[0, 0, 0, 2, 1]]), (1,), reduce, device)


@on_each_device
def test_nan_wins(device: str) -> None:
    nan, infinity = float("nan"), float("inf")
    for dtype in DTYPES:
        features = torch.tensor([[nan, -1, infinity], [-2, -nan, -infinity]], dtype=dtype, device=device)[None, None]
        windows = torch.tensor([[0, 0, 0, 3, 2], [0, 0, 1, 3, 2], [0, 1, 0, 3, 1], [0, 2, 1, 3, 2]], device=device)
        pooled = _triton.forward(features, windows, (1,), "max")
        assert pooled[:2].isnan().all()
        assert pooled[2:].flatten().tolist() == [infinity, -infinity]
        gradient = torch.ones_like(pooled)
        found = _triton.backward(gradient, features, windows, pooled, (1,), "max")
        assert found[0, 0].tolist() == [[1, 0, 1], [0, 1, 1]]  # of two NaNs, the first
        means = _triton.forward(features, windows, (1,), "mean")
        assert means[:2].isnan().all()
        assert means[2:].flatten().tolist() == [infinity, -infinity]


@on_each_device
def test_the_sign_of_zero(device: str) -> None:
    for dtype in DTYPES:
        features = torch.tensor([[-0.0, -0.0, 0.0]], dtype=dtype, device=device)[None, None]
        windows = torch.tensor([[0, 0, 0, 2, 1], [0, 1, 0, 3, 1]], device=device)
        pooled = _triton.forward(features, windows, (1,), "max")
        assert pooled.signbit().flatten().tolist() == [True, False]
        found = _triton.backward(torch.ones_like(pooled), features, windows, pooled, (1,), "max")
        assert found.flatten().tolist() == [1, 1, 0]  # they are equal, so the first one wins


@on_each_device
def test_the_smallest_and_the_largest_numbers_are_told_apart(device: str) -> None:
    for dtype in DTYPES:
        limits = torch.finfo(dtype)
        tiny = limits.smallest_normal * limits.eps  # the smallest number above 0
        row = torch.tensor([[tiny, 2 * tiny, 0.0, limits.min, limits.max, -float("inf")]], dtype=dtype, device=device)
        windows = torch.tensor([[0, 0, 0, 3, 1], [0, 2, 0, 5, 1], [0, 3, 0, 4, 1], [0, 5, 0, 6, 1]], device=device)
        pooled = _triton.forward(row[None, None], windows, (1,), "max")
        assert torch.equal(pooled.flatten(), row[0, [1, 4, 3, 5]])
        found = _triton.backward(torch.ones_like(pooled), row[None, None], windows, pooled, (1,), "max")
        assert found.flatten().tolist() == [0, 1, 0, 1, 1, 1]


@on_each_device
def test_ties_go_to_the_first_cell_in_row_order(device: str) -> None:
    """Across tiles of cells, and across the finer bins that a level is derived from."""
    features = torch.ones(1, 1, 10, 10)
    features[0, 0, :3] = 0
    features[0, 0, 3, :6] = 0  # the first 1 lies at row 3, column 6
    check(features, torch.tensor([[0, 0, 0, 10, 10]]), (2, 1), "max", device)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_means_are_rounded_once(dtype: torch.dtype, device: str) -> None:
    """Sums of these cells are exact in float32, so each result has one right value; of two, some lie in the middle."""
    cells = torch.randint(-256, 257, (1, 64, 1, 7), generator=torch.Generator().manual_seed(3)).to(dtype)
    windows = torch.tensor([[0, 0, 0, 2, 1], [0, 0, 0, 3, 1], [0, 0, 0, 7, 1]])
    pooled = _triton.forward(cells.to(device), windows.to(device), (1,), "mean")
    expected = torch.stack([cells[0, :, 0, :x1].float().sum(1) / x1 for x1 in (2, 3, 7)])[:, None].to(dtype)
    assert torch.equal(pooled.cpu(), expected)


@on_each_device
@of_each_kind
def test_half_precision_is_added_up_in_float32(reduce: str, device: str) -> None:
    features = torch.ones(1, 1, 1, 1, dtype=torch.float16, device=device)
    windows = torch.tensor([[0, 0, 0, 1, 1]], device=device)
    pooled = _triton.forward(features, windows, (1, 1, 1), reduce)
    gradient = torch.tensor([1.0, 2048, 1], dtype=torch.float16, device=device).reshape(1, 3, 1)
    found = _triton.backward(gradient, features, windows, pooled, (1, 1, 1), reduce)
    assert found.item() == 2050  # in float16, 2048 + 1 is 2048


@on_each_device
@of_each_kind
def test_many_windows_are_shared_out_and_held_in_parts(
    reduce: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_triton, "_WINNERS", 8)  # 4 windows of one bin and two channels
    monkeypatch.setattr(_triton, "_shares", lambda programs, windows: 3)
    features = torch.randint(-9, 9, (2, 2, 1, 3), generator=torch.Generator().manual_seed(5)).float()
    windows = torch.tensor([[0, 0, 0, 2, 1], [1, 1, 0, 3, 1], [0, 0, 0, 3, 1]]).repeat(4, 1)
    check(features, windows, (1,), reduce, device)


def test_how_many_share_the_windows() -> None:
    """As many as fill a device, where there are windows enough; nothing but shapes decides."""
    assert _triton._shares(programs=748, windows=2000) == 11
    assert _triton._shares(programs=748, windows=100) == 3
    assert _triton._shares(programs=748, windows=1) == 1
    assert _triton._shares(programs=100_000, windows=2000) == 1


@on_each_device
@of_each_kind
def test_the_same_bits_on_every_run(reduce: str, device: str) -> None:
    random = torch.Generator().manual_seed(4)
    features, windows = torch.randn(1, 2, 1, 3, generator=random).to(device), torch.tensor([[0, 0, 0, 3, 1]] * 9)
    pooled = _triton.forward(features, windows.to(device), (1,), reduce)
    gradient = torch.randn(pooled.shape, generator=random).to(device)
    arguments = gradient, features, windows.to(device), pooled, (1,), reduce
    assert torch.equal(_triton.backward(*arguments), _triton.backward(*arguments))


# Whether it compiles


class Recorder:
    """Stands in for a kernel, and notes with what it would have been launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(1 <= size <= limit for size, limit in zip(grid, (2**31 - 1, 65535, 65535), strict=False))
        return self.launch

    def launch(self, *arguments: Any, enable_fp_fusion: bool, num_warps: int = 4, **constants: Any) -> None:
        launch = inspect.signature(self.kernel.fn).bind(*arguments, **constants).arguments
        self.launches.append({**launch, "num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion})

    def compile(self, launch: dict[str, Any], capability: int) -> Any:
        """What a launch does but for loading the result: types, and what is known of the arguments' values."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.runtime.jit import mangle_type

        signature, constants, known = {}, {}, {}
        for parameter in self.kernel.params:
            value = launch[parameter.name]
            is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
            if parameter.is_constexpr or is_one:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = mangle_type(value)
                address = value.data_ptr() if isinstance(value, Tensor) else value
                if address % 16 == 0 and not parameter.do_not_specialize:
                    known[(parameter.num,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, known)
        options = {name: launch[name] for name in ("num_warps", "enable_fp_fusion")}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no kernels to compile")
@pytest.mark.parametrize(
    ("dtype", "channels", "capability"),
    [
        (torch.bfloat16, 256, 90),
        pytest.param(torch.float64, 1, 80, marks=pytest.mark.slow),
        pytest.param(torch.float16, 256, 80, marks=pytest.mark.slow),
        pytest.param(torch.float32, 256, 90, marks=pytest.mark.slow),
        pytest.param(torch.float32, 256, 120, marks=pytest.mark.slow),
        pytest.param(torch.float32, 7, 75, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_launch_compiles(
    dtype: torch.dtype, channels: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = ["_key_kernel", "_max_kernel", "_mean_kernel", "_winner_kernel", "_gather_kernel"]
    recorders = [Recorder(getattr(_triton, name)) for name in names]
    for name, recorder in zip(names, recorders, strict=True):
        monkeypatch.setattr(_triton, name, recorder)
    features, windows = torch.zeros(1, channels, 5, 6, dtype=dtype), torch.tensor([[0, 0, 0, 6, 5]])
    for reduce in ("max", "mean"):
        pooled = _triton.forward(features, windows, (2, 1), reduce)
        _triton.backward(pooled, features, windows, pooled, (2, 1), reduce)
    compiled = {}
    for recorder in recorders:
        for launch in recorder.launches:
            constants = {key: value for key, value in launch.items() if isinstance(value, bool)}
            if (recorder, *constants.items()) not in compiled:
                compiled[(recorder, *constants.items())] = recorder.compile(launch, capability)
    assert len(compiled) == 9  # keys with one zero or two, maxima and winners of cells or bins, 2 gradients, means
    for kernel in compiled.values():
        assert kernel.asm["cubin"]
        assert ".ftz" not in kernel.asm["ptx"]  # numbers below the smallest normal one are not taken for 0


# On a device only


@pytest.mark.parametrize("device", DEVICES[-1:])
@of_each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_thousand_windows_as_on_the_cpu(dtype: torch.dtype, reduce: str, device: str) -> None:
    random = torch.Generator().manual_seed(6)
    features = torch.randint(-99, 99, (1, 256, 43, 65), generator=random).to(dtype).requires_grad_()
    windows = random_windows(2000, features, random)
    expected = region_pyramid_pool(features, windows, (6, 3, 2, 1), reduce=reduce)
    gradient = random_gradient(expected, seed=7)
    expected.backward(gradient)
    assert features.grad is not None

    on_device = features.detach().to(device)
    pooled = _triton.forward(on_device, windows.to(device), (6, 3, 2, 1), reduce)
    arguments = gradient.to(device), on_device, windows.to(device), pooled, (6, 3, 2, 1), reduce
    found, again = _triton.backward(*arguments), _triton.backward(*arguments)
    exactly = {"rtol": 0, "atol": 0} if reduce == "max" else {}
    torch.testing.assert_close(pooled.cpu(), expected.detach(), **exactly)
    # Shares of a mean's gradient round, and thousands of either sign are added up in another order.
    rounding = exactly or {"rtol": 2e-2 if dtype == torch.bfloat16 else 2e-3, "atol": 1e-3}
    torch.testing.assert_close(found.cpu(), features.grad, **rounding)
    assert torch.equal(found, again)


@pytest.mark.parametrize("device", DEVICES[-1:])
@of_each_kind
def test_a_hundred_thousand_windows(reduce: str, device: str) -> None:
    """More than a grid's second axis could hold."""
    features = torch.arange(30.0).reshape(2, 1, 3, 5)
    windows = torch.tensor([[0, 0, 0, 5, 3], [1, 1, 1, 3, 2]]).repeat(50_000, 1)
    expected = definition(features, windows[:2], (2, 1), reduce).repeat(50_000, 1, 1)
    pooled = _triton.forward(features.to(device), windows.to(device), (2, 1), reduce)
    torch.testing.assert_close(pooled.cpu(), expected)
    ones = torch.ones_like(pooled)
    found = _triton.backward(ones, features.to(device), windows.to(device), pooled, (2, 1), reduce)
    once = gradient_of_definition(torch.ones(2, 5, 1), features, windows[:2], (2, 1), reduce)
    torch.testing.assert_close(found.cpu(), 50_000 * once, rtol=1e-5, atol=0)
