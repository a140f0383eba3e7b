"""What pooling does to the process around it: what it imports, threads, forks, memory, files. Each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sppnet.layers import bound_cpu_caches


def run(code: str, **environment: str) -> str:
    """What the code prints, run by a fresh interpreter."""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


LIFE = """
import json, os, sys, torch, sppnet, sppnet.layers
from pathlib import Path

facts = {"at import": list(sys.modules)}
torch.set_num_threads(2)
features, windows = torch.rand(1, 64, 32, 33), torch.tensor([[0, 1, 2, 7, 9]])
with torch.no_grad():
    whole = sppnet.pyramid_pool(features.requires_grad_(), (3, 2, 1))
features = features.detach()
regions = sppnet.region_pyramid_pool(features, windows, (3, 2, 1))
facts["after pooling"], facts["threads"] = list(sys.modules), torch.get_num_threads()

if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        same = torch.equal(sppnet.pyramid_pool(features, (3, 2, 1)), whole)
        large = sppnet.region_pyramid_pool(features, windows.repeat(200, 1), (3, 2, 1))
        os._exit(0 if same and torch.equal(large[:1], regions) else 1)
    facts["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

if sys.platform == "linux":
    status = lambda name: int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024
    many = windows.repeat(100_000, 1)
    before = status("VmRSS")
    pooled = sppnet.region_pyramid_pool(features, many, (3, 2, 1))
    facts["grown"], facts["output"] = status("VmHWM") - before, pooled.nbytes / 2**20

sppnet.layers.bound_cpu_caches()  # PyTorch has been imported and used, but for convolutions
convolution = torch.nn.Conv2d(8, 8, 3)
with torch.no_grad():
    for height in [*range(60, 260), 60]:
        print("height", height, flush=True)
        convolution(torch.rand(1, 8, height, 60))
print("facts", json.dumps(facts), sep="\\n")
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    printed, found = run(LIFE, ONEDNN_VERBOSE="profile_create").split("facts\n")
    return {**json.loads(found), "first size again": printed.split("height 60\n")[-1]}


def test_nothing_is_imported_before_it_is_needed(facts: dict[str, Any]) -> None:
    assert not {"numba", "triton", "torchvision"} & set(facts["at import"])


def test_pooling_without_a_gradient_imports_neither_compiler_nor_torchvision(facts: dict[str, Any]) -> None:
    assert "numba" in facts["after pooling"]
    assert not {"torch._dynamo", "torchvision", "triton"} & set(facts["after pooling"])


def test_the_compiled_kernel_keeps_pytorchs_number_of_threads(facts: dict[str, Any]) -> None:
    assert facts["threads"] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_pools(facts: dict[str, Any]) -> None:
    """Where the parent has used OpenMP's threads, which the child does not have."""
    assert facts["child"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory where Linux writes it")
def test_memory_for_many_windows_is_that_of_input_and_output(facts: dict[str, Any]) -> None:
    """100,000 windows of a small map: nothing but the output grows with their number."""
    assert facts["output"] > 300
    assert 0.9 * facts["output"] < facts["grown"] < 1.1 * facts["output"]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_many_python_threads_may_pool_at_once(layer: str) -> None:
    """Whatever pool of threads numba has: its own ends the process where two use it at once."""
    code = """
import torch; from concurrent.futures import ThreadPoolExecutor; from sppnet import pyramid_pool
torch.set_num_threads(2)
features = torch.rand(3, 256, 10, 10); expected = pyramid_pool(features, (3, 1), implementation="torch")
with ThreadPoolExecutor(4) as pool:
    for found in pool.map(lambda _: pyramid_pool(features, (3, 1)), range(200)):
        assert torch.equal(found, expected)
import numba; print(numba.threading_layer())
"""
    assert run(code, NUMBA_THREADING_LAYER=layer) == f"{layer}\n"


@pytest.mark.slow
def test_a_read_only_installation_still_works() -> None:
    """Neither the package's folder nor the user's cache can be written to: compiled for this process only."""
    code = """
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda *_: None)
import torch; from sppnet import pyramid_pool
print(pyramid_pool(torch.ones(1, 2, 3, 4), (1,), implementation="numba").sum().item())
"""
    assert run(code) == "2.0\n"


# Memory of PyTorch's CPU library


def test_old_image_sizes_are_forgotten(facts: dict[str, Any]) -> None:
    """After 200 sizes, of two entries each, the first is prepared anew."""
    if "onednn_verbose" not in facts["first size again"]:
        pytest.skip("this build of PyTorch has no oneDNN")
    (made,) = [line for line in facts["first size again"].splitlines() if ",convolution," in line]
    assert "create:cache_miss" in made


def test_a_bound_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    bound_cpu_caches()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == "8"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory where Linux writes it")
def test_memory_does_not_grow_with_the_number_of_image_sizes() -> None:
    code = """
import torch; from pathlib import Path; from torch import nn; from sppnet.layers import bound_cpu_caches
bound_cpu_caches(); torch.set_num_threads(1)
layers = [nn.Conv2d(c, c + 16, 3, stride=1 + (c % 32 == 3), padding=1) for c in range(3, 147, 16)]
network, random, grown = nn.Sequential(*layers), torch.Generator().manual_seed(0), []
with torch.no_grad():
    for count in range(240):
        network(torch.rand(1, 3, *torch.randint(60, 200, (2,), generator=random).tolist()))
        if count in (39, 239):
            print(int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]))
"""
    few, many = map(int, run(code).split())
    assert many < 1.05 * few
