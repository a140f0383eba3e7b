"""`sppnet compress`: a smaller file that still detects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_compress(sppnet: Callable[..., Any], tiny_model_file: Path, photo: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    out = sppnet("compress", tiny_model_file, "--output", small, "--ranks", 4).fine()
    assert "layer 1: rank 4" in out
    assert small.stat().st_size < tiny_model_file.stat().st_size
    sppnet("detect", photo, "--model", small).fine()
    assert "layer 1: rank " in sppnet("compress", tiny_model_file, "--output", small, "--energy", 0.3).fine()
    told = sppnet("compress", tiny_model_file, "--output", small, "--ranks", 4, "--photos", photo).fine()
    assert told != out
    assert "layer 1: rank 4" in told
    sppnet("compress", small, "--output", small, "--ranks", 2).refused("was truncated before")
    sppnet("compress", tiny_model_file, "--output", small, "--ranks", 99).refused("from 1 to 16")
    sppnet("compress", tiny_model_file, "--output", "small", "--ranks", 2).refused("name ends in .safetensors")
    sppnet("compress", tiny_model_file, "--output", small).refused("expected either ranks")
