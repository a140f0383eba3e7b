"""What users may rely on: the public names, and that asking for nothing costs nothing."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
import types

import pytest

import sppnet

resource = pytest.importorskip("resource", reason="needs Unix: measures processor time")

PUBLIC = {
    "Classification",
    "Detections",
    "PyramidPool",
    "RegionPyramidPool",
    "SPPNet",
    "UserError",
    "__version__",
    "classify",
    "detect",
    "load",
    "pyramid_pool",
    "region_pyramid_pool",
}

# Each takes from a quarter of a second to many seconds to import.
HEAVY = {"torch", "torchvision", "lightning", "cv2", "numba", "matplotlib", "skimage", "scipy"}


def test_the_public_names() -> None:
    assert set(sppnet.__all__) == PUBLIC
    assert len(sppnet.__all__) == len(PUBLIC)
    assert set(dir(sppnet)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(sppnet, name)
    assert not isinstance(value, types.ModuleType)
    assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"sppnet.*no attribute 'pool'"):
        sppnet.pool  # noqa: B018


def test_the_version_is_that_of_the_installed_package() -> None:
    assert importlib.metadata.version("sppnet") == sppnet.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", sppnet.__version__)


@pytest.mark.parametrize("module", ["sppnet", "sppnet.cli"])
def test_importing_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY.intersection(loaded)


def test_help_answers_in_under_half_a_second() -> None:
    """By processor time, which other programs on the machine do not change; the best of three."""
    assert min(_help_seconds() for _ in range(3)) < 0.5


def _help_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys; from sppnet.cli import main; sys.argv = ['sppnet', '--help']; sys.exit(main())"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "detect" in shown
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
