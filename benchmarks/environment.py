"""What a benchmark ran on: commit, hardware, versions. For every script in this folder."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch
import torchvision

import sppnet


def environment() -> dict[str, object]:
    """Commit (with + where the tree differs from it), processor, threads and versions; as ``text``, one line of it."""
    found: dict[str, object] = {
        "commit": _commit(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "sppnet": sppnet.__version__,
    }
    found["text"] = (
        f"Commit {found['commit']}; {found['processor']}, {found['threads']} threads"
        + (f", {found['gpu']}" if found["gpu"] else "")
        + f"; Python {found['python']}, torch {found['torch']}, torchvision {found['torchvision']}"
    )
    return found


def _commit() -> str:
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
