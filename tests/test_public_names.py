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

PUBLIC = {
    "Architecture",
    "Classification",
    "ClassifierSettings",
    "DetectSettings",
    "DetectionData",
    "DetectionSettings",
    "Detections",
    "DetectorSettings",
    "LabelledImages",
    "Preprocess",
    "PyramidPool",
    "RegionPyramidPool",
    "SPPNet",
    "UserError",
    "__version__",
    "build_model",
    "classify",
    "detect",
    "embed",
    "evaluate",
    "load",
    "propose",
    "pyramid_pool",
    "read_dataset",
    "region_pyramid_pool",
    "sliding_window_bins",
    "train_classifier",
    "train_detector",
}

# Each takes from a quarter of a second to many seconds to import.
HEAVY = {
    "torch",
    "torchvision",
    "lightning",
    "lightning_fabric",
    "cv2",
    "numba",
    "matplotlib",
    "skimage",
    "scipy",
    "sklearn",
}


def test_the_public_names() -> None:
    assert set(sppnet.__all__) == PUBLIC
    assert len(sppnet.__all__) == len(PUBLIC)
    assert set(dir(sppnet)) >= PUBLIC - {"__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(sppnet, name)
    assert not isinstance(value, types.ModuleType)
    assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="sppnet attribute pool"):
        sppnet.pool  # noqa: B018


def test_the_version_is_that_of_the_installed_package() -> None:
    assert importlib.metadata.version("sppnet") == sppnet.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", sppnet.__version__)


@pytest.mark.parametrize("module", ["sppnet", "sppnet.cli"])
def test_importing_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY.intersection(loaded)


def test_help_brings_in_nothing_heavy() -> None:
    code = (
        "import sys; from sppnet.cli import main; sys.argv = ['sppnet', '--help']\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "detect" in shown
    assert not HEAVY.intersection(shown.splitlines()[-1].split())
