"""What several tests need: the real photos where they are at hand, and a small made-up data set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from sppnet.models.sppnet import SPPNet

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository (VOCdevkit/VOC2007, caltech101); skips where it is missing."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real photos in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tiny_voc_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tiny_voc` copies; for tests that only read it."""
    return write_voc(tmp_path_factory.mktemp("devkit") / "VOC2007", names=("circle", "square"))


@pytest.fixture
def tiny_voc(tiny_voc_original: Path, tmp_path: Path) -> Path:
    """A VOC2007 folder of 12 pictures with coloured circles and squares: 8 train, 4 val; a fresh copy for each test.

    Classes: circle, square. One square of the val split is marked difficult. Pictures are 120 to 200 px, all of different
    sizes; on grey noise, each shape touches the four sides of its box, and no two shapes overlap.
    """
    return shutil.copytree(tiny_voc_original, tmp_path / "VOCdevkit" / "VOC2007")


@pytest.fixture
def tiny_voc_of_voc_classes(tmp_path: Path) -> Path:
    """The folder of `tiny_voc` with circles named "dog" and squares "car", for the shipped model and its 20 classes."""
    return write_voc(tmp_path / "VOCdevkit" / "VOC2007", names=("dog", "car"))


@pytest.fixture(scope="session")
def tiny_detector() -> SPPNet:
    """A detector of circles and squares with random weights, the same every time; small and fast. Not to be changed."""
    import torch

    from sppnet.models.preprocess import Preprocess
    from sppnet.models.sppnet import Architecture, DetectionSettings, build_model

    architecture = Architecture(("circle", "square"), "compact", levels=(2, 1), hidden=(16,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(architecture, Preprocess(64, 128), DetectionSettings("grid")).eval()


@pytest.fixture(scope="session")
def tiny_model_file(tiny_detector: SPPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_detector` as a model file, so that no test depends on the shipped model. Not to be changed."""
    from sppnet.models.files import save_model

    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(tiny_detector, path)
    return path


class Shape(NamedTuple):
    """One shape of a picture; box in continuous pixels, x1 and y1 just past the last one."""

    kind: int  # 0 circle, 1 square
    box: tuple[int, int, int, int]
    difficult: bool = False


def write_voc(root: Path, names: Sequence[str]) -> Path:
    """Write the made-up pictures with the devkit's layout; `names` are those of circles and squares."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for index in range(12):
        split = "val" if index % 3 == 2 else "train"
        image_id = f"{index:06d}"
        width, height = 120 + 7 * index, 200 - 6 * index
        shapes = _place_shapes(rng, width, height)
        if index == 2:
            shapes[-1] = shapes[-1]._replace(kind=1, difficult=True)
        _draw(rng, width, height, shapes).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95, subsampling=0)
        (root / "Annotations" / f"{image_id}.xml").write_text(_annotation(image_id, width, height, shapes, names))
        splits[split].append(image_id)
    for split, ids in {**splits, "trainval": sorted(splits["train"] + splits["val"])}.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    return root


def _place_shapes(rng: np.random.Generator, width: int, height: int) -> list[Shape]:
    """One shape in the left half, one in the right: a circle and a square, or two of a kind."""
    shapes = []
    for left in (0, width // 2):
        side = int(rng.integers(28, 50))
        x0 = left + int(rng.integers(0, width // 2 - side + 1))
        y0 = int(rng.integers(0, height - side + 1))
        shapes.append(Shape(int(rng.integers(0, 2)), (x0, y0, x0 + side, y0 + side)))
    return shapes


def _draw(rng: np.random.Generator, width: int, height: int, shapes: list[Shape]) -> Image.Image:
    picture = Image.fromarray(rng.integers(110, 140, (height, width, 1), dtype=np.uint8).repeat(3, axis=2))
    draw = ImageDraw.Draw(picture)
    for kind, (x0, y0, x1, y1), _ in shapes:
        inclusive = (x0, y0, x1 - 1, y1 - 1)
        if kind == 0:
            draw.ellipse(inclusive, fill=(230, 40, 40))
        else:
            draw.rectangle(inclusive, fill=(40, 70, 230))
    return picture


def _annotation(image_id: str, width: int, height: int, shapes: list[Shape], names: Sequence[str]) -> str:
    """The devkit's XML: corners counted from 1, the last pixel included."""
    objects = "".join(
        f"<object><name>{names[kind]}</name><difficult>{int(difficult)}</difficult><bndbox>"
        f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>\n"
        for kind, (x0, y0, x1, y1), difficult in shapes
    )
    return (
        f"<annotation><filename>{image_id}.jpg</filename>\n"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{objects}</annotation>\n"
    )
