"""What PyTorch does with the layers: compile, export, trace, differentiate, vectorize, copy, convert. Right, or refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sppnet.layers import PyramidPool, RegionPyramidPool
from sppnet.ops.pyramid_pool import pyramid_pool, region_pyramid_pool
from tests.ops.maps import random_maps

# PyTorch's own doing, where forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
of_each_kind = pytest.mark.parametrize("reduce", ["max", "mean"])


class Network(nn.Module):
    """Both layers after a convolution: images [N, 3, H, W] and windows of its maps -> [R, M, C + 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.whole, self.regions = PyramidPool((2, 1)), RegionPyramidPool((2, 1), "mean")

    def forward(self, images: Tensor, windows: Tensor) -> Tensor:
        features = self.convolution(images)
        return self.regions(features, windows) + self.whole(features).sum(0)


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    images = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(seed))
    return images, torch.tensor([[0, 0, 0, 5, 6], [1, 2, 2, 9, 7], [1, 8, 0, 9, 1]])


# One operator for autograd, torch.compile and torch.export


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
@of_each_kind
@pytest.mark.parametrize("whole", [False, True], ids=["windows", "whole maps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(reduce: str, whole: bool, dtype: torch.dtype) -> None:
    features, windows = random_maps(8, dtype)
    arguments = (features.requires_grad_(), None if whole else windows, (3, 2), reduce, True)
    assert set(torch.library.opcheck(torch.ops.sppnet.region_pyramid_pool.default, arguments).values()) == {"SUCCESS"}


def test_a_gradient_that_nobody_announced() -> None:
    features, windows = random_maps(6)
    pooled, winners = torch.ops.sppnet.region_pyramid_pool(features, windows, (3, 1), "max", False)
    assert winners.numel() == 0
    arguments = torch.ones_like(pooled), features, windows, pooled, winners, (3, 1), "max"
    found = torch.ops.sppnet.region_pyramid_pool_backward(*arguments)
    features.requires_grad_()
    region_pyramid_pool(features, windows, (3, 1)).sum().backward()
    assert features.grad is not None
    assert torch.equal(found, features.grad)


def test_compiled_and_exported_it_is_one_operator() -> None:
    pool = RegionPyramidPool((3, 1))
    features, windows = random_maps(9)
    dynamic = torch.export.Dim.DYNAMIC
    exported = torch.export.export(pool, (features, windows), dynamic_shapes=({2: dynamic, 3: dynamic}, {0: dynamic}))
    operators = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert operators[0] == "sppnet.region_pyramid_pool.default"
    assert set(operators[1:]) <= {"<built-in function getitem>"}
    compiled = torch.compile(pool, backend="aot_eager", fullgraph=True, dynamic=True)
    for seed in (9, 10, 11):
        features, windows = random_maps(seed)
        features = nn.functional.pad(features, (1, 1, 1, 1)).requires_grad_()  # at least 3 x 3: not specialized
        expected = pool(features, windows[seed:])
        assert torch.equal(exported.module()(features.detach(), windows[seed:]), expected)
        assert torch.equal(compiled(features, windows[seed:]), expected)
        with torch.no_grad():
            assert torch.equal(compiled(features, windows[seed:]), expected)
        (gradient,) = torch.autograd.grad(compiled(features, windows[seed:]).square().sum(), features)
        assert torch.equal(gradient, *torch.autograd.grad(expected.square().sum(), features))


# torch.fx


def test_traced_by_fx_it_is_one_call() -> None:
    network = Network()
    traced = torch.fx.symbolic_trace(network)
    calls = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert {pyramid_pool, region_pyramid_pool} <= calls
    for module in (traced, pickle.loads(pickle.dumps(traced))):
        assert torch.equal(module(*example(1)), network(*example(1)))


def test_a_tensor_subclass_stays_one() -> None:
    class Named(Tensor):
        pass

    features, windows = random_maps(2)
    assert type(pyramid_pool(features.as_subclass(Named), (2, 1))) is Named
    assert type(region_pyramid_pool(features.as_subclass(Named), windows, (2, 1))) is Named


# Forward-mode derivatives, and torch.func


@of_each_kind
def test_forward_mode_gives_the_derivative(reduce: str) -> None:
    """Also without a gradient wanted, and compiled: never a zero for a derivative that got lost."""
    features, tangent = example()[0].double(), example(1)[0].double()

    def pool(features: Tensor) -> Tensor:
        whole = pyramid_pool(features, (2, 1), reduce=reduce)
        return whole.sum(0) + region_pyramid_pool(features, example()[1], (2, 1), reduce=reduce)

    def derivative(features: Tensor, tangent: Tensor) -> Tensor:
        return torch.func.jvp(pool, (features,), (tangent,))[1]

    expected = (pool(features + 1e-6 * tangent) - pool(features - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(derivative(features, tangent), expected, rtol=1e-6, atol=1e-8)
    compiled = torch.compile(derivative, backend="eager")(features, tangent)
    torch.testing.assert_close(compiled, expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.unpack_dual(pool(forward_ad.make_dual(features, tangent)))
        torch.testing.assert_close(dual.tangent, expected, rtol=1e-6, atol=1e-8)


@of_each_kind
def test_under_torch_func(reduce: str) -> None:
    features, windows = random_maps(3)
    leaf = features.clone().requires_grad_()

    def loss(features: Tensor) -> Tensor:
        return region_pyramid_pool(features, windows, (3, 2), reduce=reduce).square().sum()

    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(features), expected)
    both = torch.stack([features, -features])
    torch.testing.assert_close(torch.vmap(loss)(both), torch.stack([loss(features), loss(-features)]))
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(both)[0], expected)


def test_windows_cannot_be_mapped_over() -> None:
    features, windows = random_maps(3)
    with pytest.raises(ValueError, match=r"windows must be the same for all that torch.vmap maps over"):
        torch.vmap(lambda windows: region_pyramid_pool(features, windows, (1,)))(windows[None])


def test_an_implementation_without_these_derivatives_is_refused() -> None:
    features, windows = random_maps(3)
    with pytest.raises(ValueError, match=r"'numba' works neither under .* nor in forward mode"):
        torch.func.grad(lambda x: region_pyramid_pool(x, windows, (1,), implementation="numba").sum())(features)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="'numba' works neither"):
        pyramid_pool(forward_ad.make_dual(features, features), (1,), implementation="numba")


def test_a_second_derivative_is_refused() -> None:
    features = random_maps(3)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(pyramid_pool(features, (2,)).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


# Copies and dtypes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_copied_and_converted(dtype: torch.dtype) -> None:
    images, windows = example()
    network = copy.deepcopy(Network()).to(dtype)
    pooled = network(images.to(dtype), windows)
    assert pooled.dtype == dtype
    assert torch.equal(pickle.loads(pickle.dumps(network))(images.to(dtype), windows), pooled)


def test_in_half_precision_under_autocast() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), PyramidPool((2, 1)))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = net(torch.rand(1, 3, 9, 12))
    assert pooled.dtype == torch.bfloat16
    pooled.float().sum().backward()
    assert net[0].weight.grad is not None
