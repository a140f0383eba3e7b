"""The shape of the package: imports run one way, and every file is named for its one idea."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "sppnet"

# A part may import from parts further up and from itself; not from its own line, and never from further down.
ORDER = (
    ("errors",),
    ("files", "progress"),
    ("cache",),
    ("boxes", "results"),
    ("ops",),
    ("layers", "data", "linear", "metrics"),
    ("visualize", "proposals"),  # of what metrics give; of images that data reads
    ("models",),
    ("training",),
    ("classification", "detection"),
    ("evaluation",),
    ("cli",),
)
# Inside a method: what users ask of a result (draw it) and of a model (detect, classify, embed) is one call away, while whoever only
# holds a result or builds a network imports neither pictures nor prediction.
EXCEPTIONS = {("results", "data"), ("results", "visualize"), ("models", "detection"), ("models", "classification")}
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}

# Names that say nothing, and so collect everything.
FORBIDDEN = {"utils", "util", "misc", "common", "core", "engine", "helper", "helpers", "registry"}

# Packages that only come with an extra: imported where they are used, so that the rest works without them.
EXTRAS = {"faster_coco_eval", "onnx", "onnxruntime", "onnxscript", "supervision", "timm", "torchmetrics"}


def module_name(path: Path) -> str:
    """`src/sppnet/ops/bins.py` -> `sppnet.ops.bins`; a package's `__init__.py` -> the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import in a file, also those inside functions and for type checkers only."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def part_of(module: str) -> str | None:
    """`sppnet.ops.bins.bin_edges` -> `ops`; None for other packages and for `sppnet` itself (`from sppnet import x`)."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return part if package == "sppnet" and part else None


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_the_order_names_every_part() -> None:
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert parts - {"__init__", "__main__", "__pycache__"} <= set(RANK), "give the new part its place in ORDER"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    here = part_of(module_name(path))
    assert here is not None
    wrong = []
    for line, name in imports(path):
        there = part_of(name)
        if there == "__version__":
            continue
        if (here, there) in EXCEPTIONS:
            continue
        if there in RANK and there != here and RANK[there] >= RANK[here]:
            wrong.append(f"{path.relative_to(REPOSITORY)}:{line}: {here} imports {there}")
        if name == "sppnet" or (there is not None and there not in RANK):
            wrong.append(f"{path.relative_to(REPOSITORY)}:{line}: import from the module that has the name, not {name}")
    assert not wrong, "\n".join(["imports must run one way (see ORDER):", *wrong])


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_extras_are_imported_where_they_are_used(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    at_import = {
        name.partition(".")[0]
        for node in body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not at_import & EXTRAS


def test_no_file_is_named_for_nothing() -> None:
    named = [path for path in PACKAGE.rglob("*") if path.stem.strip("_") in FORBIDDEN]
    assert not named


def test_tests_mirror_the_package() -> None:
    folders = [path.relative_to(REPOSITORY / "tests") for path in (REPOSITORY / "tests").rglob("*") if path.is_dir()]
    strangers = [folder for folder in folders if "__pycache__" not in folder.parts and not (PACKAGE / folder).is_dir()]
    strangers = [folder for folder in strangers if folder.name != "robustness"]  # of all rooms
    assert not strangers


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_a_relative_import_is_read_as_its_absolute_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser above, on a file made for it: a test that cannot fail would guard nothing."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "sppnet")
    path = tmp_path / "sppnet" / "ops" / "bins.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..cli import main\nfrom . import _torch\n\ndef f():\n    import sppnet.models.files\n")
    assert list(imports(path)) == [(1, "sppnet.cli.main"), (2, "sppnet.ops._torch"), (5, "sppnet.models.files")]
    assert [part_of(name) for _, name in imports(path)] == ["cli", "ops", "models"]


def test_proposals_and_results_do_without_torch() -> None:
    """A first answer must not wait for what it does not compute with."""
    modules = (
        "sppnet.results, sppnet.visualize, sppnet.metrics.errors, sppnet.proposals.compute, sppnet.proposals.recall"
    )
    code = f"import sys, {modules}; print(sorted({{'torch', 'torchvision', 'matplotlib', 'scipy'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
