"""Pooled features of whole images: what they hold, that each is computed once, and that a stale one is never used."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import cache as cache_module
from sppnet.classification import features as module
from sppnet.classification.features import pooled_features, readable_images, scale_features
from sppnet.data.images import read_image
from sppnet.data.labelled import LabelledImages
from sppnet.errors import ImageError, ModelError, OutputError
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import SPPNet

from .conftest import tiny_model

# Which images can be read


@pytest.fixture
def mixed(tmp_path: Path) -> LabelledImages:
    """Six images; number 1 is no image, number 4 ends too early."""
    paths = [tmp_path / f"{i}.bmp" for i in range(6)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + i, 30)).save(path)
    paths[1].write_text("this is text")
    paths[4].write_bytes(paths[4].read_bytes()[:-1000])
    return LabelledImages(tuple(paths), np.array([0, 0, 0, 1, 1, 1]), ("cat", "dog"))


def test_sizes_are_upright_and_in_order(mixed: LabelledImages, tmp_path: Path) -> None:
    turned = Image.new("RGB", (50, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    good = LabelledImages((tmp_path / "turned.jpg", mixed.paths[3]), np.array([1, 0]), mixed.class_names)
    readable = readable_images(good)
    assert readable.images.paths == good.paths
    assert readable.sizes.tolist() == [[50, 20], [30, 43]]
    assert readable.broken == ()
    assert readable_images(good.subset([])).sizes.shape == (0, 2)


def test_a_bad_file_ends_it_by_name(mixed: LabelledImages) -> None:
    with pytest.raises(ImageError, match=r"1 of 6 images cannot be read: .*1\.bmp.*'sppnet check'") as error:
        readable_images(mixed)
    assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match="1 of 1 images cannot be read"):  # nothing would be left
        readable_images(mixed.subset([1]), skip_bad=True)


def test_skipped_files_are_listed_with_their_reason(mixed: LabelledImages) -> None:
    calls: list[tuple[str, int, int]] = []
    readable = readable_images(mixed, skip_bad=True, progress=lambda *call: calls.append(call), stage="looking")
    assert [path.name for path, _ in readable.broken] == ["1.bmp", "4.bmp"]  # also the one that is bad at its end
    assert all(str(path) in reason for path, reason in readable.broken)
    assert [path.name for path in readable.images.paths] == ["0.bmp", "2.bmp", "3.bmp", "5.bmp"]
    assert readable.images.labels.tolist() == [0, 0, 1, 1]
    assert readable.sizes.tolist() == [[30, 40], [30, 42], [30, 43], [30, 45]]
    assert calls == [("looking", done, 6) for done in range(1, 7)]


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{i}.jpg" for i in range(8))
    with pytest.raises(ImageError, match=r"8 of 8 .*0\.jpg.*4\.jpg.*; and 3 more\.") as error:
        readable_images(LabelledImages(paths, np.zeros(8, np.int64), ("cat",)))
    assert "5.jpg" not in str(error.value)


# What they hold


@pytest.fixture
def files(photos: LabelledImages, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(path, tmp_path / f"{index}.png")) for index, path in enumerate(photos.paths[:5])]


@pytest.fixture
def model() -> SPPNet:
    return tiny_model()


def passes(model: SPPNet) -> list[int]:
    """How many images each pass of the backbone takes, from now on."""
    counts: list[int] = []
    model.backbone.register_forward_hook(lambda _, inputs, output: counts.append(len(inputs[0])))
    return counts


def cached(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("in_memory", [0, module.IN_MEMORY])
def test_a_file_holds_the_image_and_its_flip(
    model: SPPNet, files: list[Path], tmp_path: Path, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", in_memory)
    features = pooled_features(model, files, tmp_path / "cache", flip=True)
    for index, path in enumerate(files):
        for flip in (False, True):
            prepared, _ = model.preprocess(read_image(path))
            with torch.inference_mode():
                maps = model.features(prepared.flip(3) if flip else prepared)
                expected = model.pool(maps, torch.tensor([[0, 0, 0, maps.shape[3], maps.shape[2]]]))[0]
            pooled = features.read(index, flip=flip)
            assert (pooled.dtype, pooled.shape) == (torch.float16, (5, 32))
            torch.testing.assert_close(pooled.float(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(features[2:4].read(1), features.read(3))


def test_rows_for_svms_have_length_1(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    features = pooled_features(model, files, tmp_path / "cache")
    rows = features.unit_rows()
    assert (rows.shape, rows.dtype) == ((5, 160), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    first = features.read(0).numpy().astype(np.float32).ravel()
    np.testing.assert_allclose(rows[0], first / np.linalg.norm(first), rtol=1e-5)


def test_features_are_scaled_once(model: SPPNet, files: list[Path]) -> None:
    scale_features(model, files)
    scale = float(model.feature_scale)
    squares = []
    for path in files:
        with model.inference():
            squares.append(float(model.features(model.preprocess(read_image(path))[0]).float().square().mean()))
    assert scale != 1
    assert np.mean(squares) == pytest.approx(1, abs=0.02)
    scale_features(model, files[:1])
    assert float(model.feature_scale) == scale


# Computed once


def test_only_what_is_missing_is_computed(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    counts, cache, calls = passes(model), tmp_path / "cache", []
    first = pooled_features(model, files[:2], cache)
    features = pooled_features(model, files, cache, progress=lambda *call: calls.append(call))
    assert counts == [1] * 5
    assert calls == [("features", 3, 5), ("features", 4, 5), ("features", 5, 5)]
    assert torch.equal(first.read(1), features.read(1))
    pooled_features(model, files[::-1], cache, progress=lambda *call: calls.append(call))
    assert (len(counts), len(calls)) == (5, 3)


def test_with_flips_serves_without_and_not_the_other_way(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    counts, cache = passes(model), tmp_path / "cache"
    pooled_features(model, files[:2], cache, flip=True)
    features = pooled_features(model, files, cache)
    assert counts == [2, 2, 1, 1, 1]
    assert len(cached(cache)) == 5
    again = pooled_features(model, files, cache, flip=True)
    assert counts[5:] == [2, 2, 2]
    torch.testing.assert_close(again.read(4), features.read(4), atol=0.02, rtol=0.02)


def test_an_interrupted_run_goes_on(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    counts, cache = passes(model), tmp_path / "cache"

    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pooled_features(model, files, cache, progress=stop)
    assert len(cached(cache)) == 3
    pooled_features(model, files, cache)
    assert len(counts) == 5


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_made_anew(model: SPPNet, files: list[Path], tmp_path: Path, damage: object) -> None:
    cache = tmp_path / "cache"
    before = pooled_features(model, files, cache).read(0)
    for path in cached(cache):
        path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    counts = passes(model)
    assert torch.equal(pooled_features(model, files, cache).read(0), before)
    assert len(counts) == 5


def test_an_image_that_changed_is_computed_anew_and_equal_images_once(
    model: SPPNet, files: list[Path], tmp_path: Path
) -> None:
    counts, cache = passes(model), tmp_path / "cache"
    before = pooled_features(model, files[:1], cache).read(0)
    shutil.copy(files[1], files[0])
    features = pooled_features(model, files, cache)
    assert len(counts) == 5
    assert torch.equal(features.read(0), features.read(1))
    assert not torch.equal(features.read(0), before)


def test_all_that_features_depend_on_names_their_folder(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache may lie on a disk that machines share, of which only some are fast at bfloat16."""
    weights, scale = tiny_model(), tiny_model()
    with torch.no_grad():
        next(weights.backbone.parameters()).mul_(1.01)
    scale.feature_scale.fill_(2.0)
    models = [
        tiny_model(), weights, scale, tiny_model(levels=(3, 1)), tiny_model(Preprocess(40, 64)), tiny_model(Preprocess(32, 48)),
        tiny_model(Preprocess(32, 64, "crop")), tiny_model(Preprocess(32, 64, mean=(0.5, 0.5, 0.5))),
    ]  # fmt: skip
    monkeypatch.setattr(module, "precision_of", lambda device: "float32")
    for model in models:
        pooled_features(model, files[:1], tmp_path / "cache")
    pooled_features(tiny_model(hidden=(7,)), files[:1], tmp_path / "cache")  # the head makes no difference
    assert len(cached(tmp_path / "cache")) == len(models)
    monkeypatch.setattr(module, "precision_of", lambda device: "bfloat16")
    pooled_features(models[0], files[:1], tmp_path / "cache")
    assert len(cached(tmp_path / "cache")) == len(models) + 1


# Mistakes


def test_all_bad_files_are_named_and_the_rest_is_cached(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    files[1].write_text("no image")
    files[3].write_text("no image")  # equal bytes, and yet two files to repair
    with pytest.raises(ImageError, match=r"2 of 5 images cannot be read: .*1\.png.*3\.png"):
        pooled_features(model, files, tmp_path / "cache")
    assert len(cached(tmp_path / "cache")) == 3


def test_a_full_disk_is_known_before_anything_is_computed(
    model: SPPNet, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    counts = passes(model)
    with pytest.raises(OutputError, match=r"the features need .*make room"):
        pooled_features(model, files, tmp_path / "cache")
    assert not counts


def test_a_cache_that_cannot_be_written_is_named(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cache"):
        pooled_features(model, files, tmp_path / "cache")


def test_features_that_are_not_finite(model: SPPNet, files: list[Path], tmp_path: Path) -> None:
    with torch.no_grad():
        model.backbone[0].bias.fill_(torch.nan)  # type: ignore[index, union-attr]
    with pytest.raises(ModelError, match="not finite: its weights are damaged"):
        pooled_features(model, files, tmp_path / "cache")
