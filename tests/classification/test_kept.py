"""Pooled vectors kept on disk: what they hold, and that a stale one is never used."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sppnet.classification import kept
from sppnet.classification.kept import KeptFeatures, Vectors
from sppnet.data.images import read_image
from sppnet.errors import UserError
from sppnet.models.sppnet import Architecture, SPPNet


def tiny_model(**changes: object) -> SPPNet:
    """32 channels, a cell every 4 pixels; the same weights every time."""
    settings = {
        "levels": (2, 1),
        "hidden": (),
        "detects": False,
        "multi_label": False,
        "short_side": 32,
        "long_side": 64,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU())
        return SPPNet(Architecture(("a", "b"), **{**settings, **changes}), backbone).eval()  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        height, width = rng.integers(30, 60, 2)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def test_a_file_holds_the_image_and_its_mirror_image(photos: list[Path], tmp_path: Path) -> None:
    model = tiny_model()
    files = KeptFeatures.of(model, tmp_path / "kept").fill(model, photos)
    vectors = Vectors(files)
    for place, path in enumerate(photos):
        for mirrored in (False, True):
            prepared, _ = model.prepare(read_image(path))
            with torch.inference_mode():
                features = model.features(prepared.flip(3) if mirrored else prepared)
                expected = model.pool(features, torch.tensor([[0, 0, 0, features.shape[3], features.shape[2]]]))[0]
            got = vectors.read(place, mirrored=mirrored)
            assert (got.dtype, got.shape) == (torch.float16, (5, 32))
            assert torch.allclose(got.float(), expected, atol=0.02)  # half precision, and bfloat16 where that is fast


def test_without_mirror_images_a_file_holds_half(photos: list[Path], tmp_path: Path) -> None:
    model = tiny_model()
    files = KeptFeatures.of(model, tmp_path / "kept").fill(model, photos, mirrored=False)
    both = KeptFeatures.of(model, tmp_path / "both").fill(model, photos)
    assert {np.load(file).shape for file in files} == {(1, 5, 32)}
    own, pairs = Vectors(files, mirrored=False), Vectors(both)
    for place in range(5):
        assert torch.allclose(
            own.read(place, mirrored=False).float(), pairs.read(place, mirrored=False).float(), atol=0.02
        )


def test_vectors_of_both_kinds_serve_those_who_want_no_mirror_images(photos: list[Path], tmp_path: Path) -> None:
    model, folder = tiny_model(), tmp_path / "kept"
    pairs = KeptFeatures.of(model, folder).fill(model, photos[:2])
    told: list[tuple[str, int, int]] = []
    files = KeptFeatures.of(model, folder).fill(model, photos, lambda *words: told.append(words), mirrored=False)
    assert told == [("features", 5, 5)]
    assert files[:2] == pairs
    assert len(list(folder.rglob("*.npy"))) == 5  # none twice
    vectors = Vectors(files, mirrored=False)
    assert vectors.held is not None
    assert vectors.held.shape == (5, 1, 5, 32)
    KeptFeatures.of(model, folder).fill(model, photos, lambda *words: told.append(words), mirrored=False)
    assert len(told) == 1
    again = KeptFeatures.of(model, folder).fill(model, photos)  # and those who do get them
    assert {np.load(file).shape for file in again} == {(2, 5, 32)}


def test_only_what_is_missing_is_computed(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = tiny_model(), tmp_path / "kept"
    first = KeptFeatures.of(model, folder).fill(model, photos[:2])
    read: list[Path] = []

    def noting(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(kept, "read_image", noting)
    told: list[tuple[str, int, int]] = []
    files = KeptFeatures.of(model, folder).fill(model, photos, lambda *words: told.append(words))
    assert read == photos[2:]
    assert told == [("features", 5, 5)]
    assert files[:2] == first
    KeptFeatures.of(model, folder).fill(model, photos)
    assert read == photos[2:]


def test_an_image_that_changed_is_computed_anew(photos: list[Path], tmp_path: Path) -> None:
    model, folder = tiny_model(), tmp_path / "kept"
    (before,) = KeptFeatures.of(model, folder).fill(model, photos[:1])
    shutil.copy(photos[1], photos[0])
    (after,) = KeptFeatures.of(model, folder).fill(model, photos[:1])
    assert before != after
    assert not np.array_equal(np.load(before), np.load(after))


def test_all_that_a_vector_depends_on_names_its_folder(tmp_path: Path) -> None:
    models = [
        tiny_model(),
        tiny_model(levels=(3, 1)),
        tiny_model(short_side=40),
        tiny_model(long_side=48),
        tiny_model(fit="crop"),
        tiny_model(mean=(0.5, 0.5, 0.5)),
        tiny_model(),
        tiny_model(),
    ]
    models[-1].feature_scale.fill_(2.0)
    with torch.no_grad():
        next(models[-2].backbone.parameters()).mul_(1.01)
    folders = {KeptFeatures.of(model, tmp_path).cache.folder for model in models}
    assert len(folders) == len(models)
    head = tiny_model(hidden=(7,))  # the head makes no difference
    assert KeptFeatures.of(head, tmp_path) == KeptFeatures.of(models[0], tmp_path)


def test_vectors_of_two_precisions_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may lie on a disk that machines share, of which only some are fast at bfloat16."""
    folders = set()
    for precision in ("bfloat16", "float32"):
        monkeypatch.setattr(kept, "precision_of", lambda _, precision=precision: precision)
        folders.add(KeptFeatures.of(tiny_model(), tmp_path).cache.folder)
    assert len(folders) == 2


def test_equal_images_are_one_file(photos: list[Path], tmp_path: Path) -> None:
    shutil.copy(photos[0], photos[1])
    files = KeptFeatures.of(tiny_model(), tmp_path / "kept").fill(tiny_model(), photos)
    assert files[0] == files[1]
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 4
    assert len(Vectors(files).files) == 5


def test_all_bad_files_are_named_and_the_rest_is_kept(photos: list[Path], tmp_path: Path) -> None:
    model, folder = tiny_model(), tmp_path / "kept"
    photos[1].write_text("no image")
    photos[3].write_text("no image")  # equal bytes, and yet two files to mend
    with pytest.raises(UserError, match=r"2 of 5 images cannot be read: .*1\.png.*3\.png"):
        KeptFeatures.of(model, folder).fill(model, photos)
    assert len(list(folder.rglob("*.npy"))) == 3


def test_a_full_disk_is_known_before_anything_is_computed(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="make room, or take fewer or coarser levels"):
        KeptFeatures.of(model, tmp_path / "kept").fill(model, photos)
    assert not list((tmp_path / "kept").rglob("*.npy"))


def test_vectors_come_the_same_from_memory_and_from_disk(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    files = KeptFeatures.of(model, tmp_path / "kept").fill(model, photos)
    held = Vectors(files)
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    mapped = Vectors(files)
    assert held.held is not None
    assert mapped.held is None
    for place in range(5):
        assert torch.equal(held.read(place, mirrored=True), mapped.read(place, mirrored=True))
