"""Pooling as ONNX graphs: the same output in ONNX Runtime, whatever the sizes; the formulas behind them against the definition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sppnet.layers import PyramidPool, RegionPyramidPool
from sppnet.ops.bins import whole_windows
from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool
from tests.ops.maps import LEVELS, random_maps, random_windows

DYNAMIC = {"images": {0: "n", 2: "h", 3: "w"}, "features": {0: "n", 2: "h", 3: "w"}, "windows": {0: "r"}}
EXAMPLE = torch.rand(2, 3, 13, 17)  # of features; another's sizes do not end up in the graph
EXAMPLE_WINDOWS = torch.tensor([[0, 1, 2, 9, 11], [1, 0, 0, 17, 13], [0, 5, 5, 6, 6]])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Thousands of small pools: on a busy machine, starting threads for each costs far more than the pooling."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class InOnnxRuntime:
    """A module, exported once and run there."""

    def __init__(self, module: nn.Module, **example: Tensor) -> None:
        program = torch.onnx.export(
            module.eval(),
            kwargs=example,
            dynamo=True,
            dynamic_shapes={name: DYNAMIC[name] for name in example},
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # tests make it fail on purpose
        options.intra_op_num_threads = 1  # small maps
        self.session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)

    def __call__(self, **tensors: Tensor) -> Tensor:
        (result,) = self.session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        return torch.from_numpy(result)


def broken_maps() -> tuple[Tensor, Tensor]:
    """Every channel has something in it that is not finite, or a huge number."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 12, 9, generator=random)
    nan, inf = float("nan"), float("inf")
    for channel, (first, second) in enumerate(
        [(nan, nan), (inf, inf), (-inf, -inf), (inf, -inf), (nan, inf), (1e6, 1)]
    ):
        features[0, channel, 2, 3], features[1, channel, 7, 7] = first, second
        features[0, channel, 10, 5] = second
    return features, random_windows(60, features, random)


def agree(pooled: Tensor, expected: Tensor, reduce: str) -> None:
    assert pooled.shape == expected.shape
    assert pooled.dtype == expected.dtype
    tolerance = 0 if reduce == "max" else 2e-6
    torch.testing.assert_close(pooled, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def definition(features: Tensor, windows: Tensor | None, levels: Sequence[int], reduce: str) -> Tensor:
    windows = whole_windows(features) if windows is None else windows
    return region_pyramid_pool(features, windows, levels, reduce=reduce, implementation="reference")


def formula(features: Tensor, windows: Tensor | None, levels: Sequence[int], reduce: str = "max") -> Tensor:
    if windows is None:
        return pyramid_pool(features, levels, reduce=reduce, implementation="export")
    return region_pyramid_pool(features, windows, levels, reduce=reduce, implementation="export")


# The formulas, run by PyTorch


@given(st.integers(0, 10_000), st.sampled_from(LEVELS), st.sampled_from(["max", "mean"]))
def test_the_formulas_are_the_definition(seed: int, levels: tuple[int, ...], reduce: str) -> None:
    features, windows = random_maps(seed, count=3, largest=13)
    for which in (windows, None):
        agree(formula(features, which, levels, reduce), definition(features, which, levels, reduce), reduce)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_what_is_not_finite_stays_in_its_bins(reduce: str) -> None:
    features, windows = broken_maps()
    for which in (windows, None):
        agree(formula(features, which, (3, 2, 1), reduce), definition(features, which, (3, 2, 1), reduce), reduce)


def test_a_bin_of_too_many_cells_is_refused() -> None:
    features, windows = torch.rand(1, 1, 4096, 1), torch.tensor([[0, 0, 0, 1, 4095], [0, 0, 0, 1, 4096]])
    assert formula(features, windows[:1], (1,)).item() == features[:, :, :4095].max()
    assert formula(features, windows, (2,)).shape == (2, 4, 1)
    with pytest.raises(IndexError, match="out of bounds"):
        formula(features, windows, (1,))


# The graphs, run by ONNX Runtime


class SmallNetwork(nn.Module):
    """Convolutions of stride 8 in all, the pyramid, an output: images of any size -> [N, 10]."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()
        )
        self.pool = PyramidPool(levels)
        self.output = nn.Linear(16 * self.pool.bins, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.pool(self.convolutions(images)).flatten(1))


def largest_difference(network: nn.Module, exported: InOnnxRuntime, sizes: Sequence[tuple[int, int, int]]) -> float:
    random = torch.Generator().manual_seed(0)
    differences = []
    for count, height, width in sizes:
        images = torch.rand(count, 3, height, width, generator=random)
        with torch.no_grad():
            expected = network(images)
        result = exported(images=images)
        assert result.shape == expected.shape
        differences.append((result - expected).abs().max().item())
    return max(differences)


def test_a_network_takes_images_of_any_size_there() -> None:
    torch.manual_seed(0)
    network = SmallNetwork((3, 2, 1))
    exported = InOnnxRuntime(network, images=torch.rand(2, 3, 64, 96))
    sizes = [(1, 64, 96), (1, 8, 8), (3, 40, 200), (2, 224, 224), (1, 301, 77), (5, 9, 130)]
    assert largest_difference(network, exported, sizes) <= 1e-5


@pytest.mark.slow
def test_twenty_image_sizes() -> None:
    torch.manual_seed(0)
    network = SmallNetwork((6, 3, 2, 1))
    exported = InOnnxRuntime(network, images=torch.rand(1, 3, 64, 96))
    sizes = [(1 + i % 3, 16 + 29 * i, 16 + (i * 173) % 600) for i in range(20)]
    difference = largest_difference(network, exported, sizes)
    print(f"largest difference over {len(set(sizes))} image sizes: {difference:.1e}")
    assert difference <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_every_map_from_1x1_to_75x75(reduce: str) -> None:
    pool = InOnnxRuntime(PyramidPool((6, 3, 2, 1), reduce=reduce), features=EXAMPLE)
    random = torch.Generator().manual_seed(0)
    for height in range(1, 76):
        for width in range(1, 76):
            features = torch.randn(1, 3, height, width, generator=random)
            # PyTorch's adaptive pooling has the definition's bins, and is quicker than loops over them.
            adaptive = {"max": nn.functional.adaptive_max_pool2d, "mean": nn.functional.adaptive_avg_pool2d}[reduce]
            expected = torch.cat([adaptive(features, n).flatten(2) for n in (6, 3, 2, 1)], dim=2).transpose(1, 2)
            agree(pool(features=features), expected, reduce)


@pytest.fixture(scope="module", params=["max", "mean"])
def exported_regions(request: pytest.FixtureRequest) -> tuple[InOnnxRuntime, tuple[int, ...], str]:
    levels = (6, 4, 3, 1)
    module = RegionPyramidPool(levels, reduce=request.param)
    return InOnnxRuntime(module, features=EXAMPLE, windows=EXAMPLE_WINDOWS), levels, request.param


@pytest.mark.slow
def test_windows_of_any_number_and_maps_of_any_size(
    exported_regions: tuple[InOnnxRuntime, tuple[int, ...], str],
) -> None:
    pool, levels, reduce = exported_regions
    random = torch.Generator().manual_seed(0)
    for maps, height, width, count in [(1, 1, 1, 2), (3, 13, 17, 1), (1, 75, 75, 200), (2, 300, 4, 50), (1, 5, 6, 0)]:
        features = torch.randn(maps, 3, height, width, generator=random)
        windows = random_windows(count, features, random)
        expected = definition(features, windows, levels, reduce)
        agree(pool(features=features, windows=windows), expected, reduce)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.timeout(900)
def test_ten_thousand_random_windows(exported_regions: tuple[InOnnxRuntime, tuple[int, ...], str]) -> None:
    pool, levels, reduce = exported_regions
    for seed in range(500):
        features, windows = random_maps(seed, channels=3, count=20, largest=60)
        expected = definition(features, windows, levels, reduce)
        agree(pool(features=features, windows=windows), expected, reduce)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_other_dtypes_and_what_is_not_finite(reduce: str, dtype: torch.dtype) -> None:
    features, windows = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in broken_maps())
    pooled = InOnnxRuntime(RegionPyramidPool((3, 2, 1), reduce=reduce), features=features, windows=windows)
    expected = definition(features, windows, (3, 2, 1), reduce)
    torch.testing.assert_close(
        pooled(features=features, windows=windows), expected, rtol=1e-3, atol=1e-3, equal_nan=True
    )
    whole = InOnnxRuntime(PyramidPool((3, 2, 1), reduce=reduce), features=features)
    expected = definition(features, None, (3, 2, 1), reduce)
    torch.testing.assert_close(whole(features=features), expected, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.slow
def test_a_bin_of_too_many_cells_is_refused_there(exported_regions: tuple[InOnnxRuntime, tuple[int, ...], str]) -> None:
    pool, _, reduce = exported_regions
    features, windows = torch.rand(1, 3, 4 * 4096, 1), torch.tensor([[0, 0, 0, 1, 4 * 4096]])  # 4: its coarsest table
    if reduce == "mean":  # needs no tables of blocks, so has no such limit
        assert pool(features=features, windows=windows).isfinite().all()
    else:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="index"):
            pool(features=features, windows=windows)


@pytest.mark.slow
def test_the_file_keeps_its_names_and_symbols(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    network = SmallNetwork((2, 1)).eval()
    example = {"images": torch.rand(1, 3, 64, 64)}
    torch.onnx.export(network, (), path, kwargs=example, dynamo=True, dynamic_shapes={"images": DYNAMIC["images"]})
    (images,) = onnxruntime.InferenceSession(path).get_inputs()
    assert images.name == "images"
    assert images.shape == ["n", 3, "h", "w"]


@pytest.mark.filterwarnings("ignore")  # the old exporter warns of itself, and of shapes that it reads as numbers
def test_the_old_exporter_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass dynamo=True"):
        torch.onnx.export(PyramidPool((2, 1)), (torch.rand(1, 3, 9, 9),), tmp_path / "old.onnx", dynamo=False)
