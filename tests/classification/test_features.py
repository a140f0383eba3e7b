"""Features of whole images: pooled by the definition, layer by layer, and kept on disk through anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sppnet.data.fit import fit_image
from torch import nn

from sppnet.classification import features as module
from sppnet.classification.feature_cache import FeatureCache, net_digest
from sppnet.classification.features import (
    Look,
    Pooling,
    fill_features,
    image_features,
    layer_names,
    pooled_features,
)
from sppnet.classification.vectors import take_levels, to_vectors, unit_length
from sppnet.errors import UserError
from sppnet.models.sppnet import IMAGENET_MEAN, IMAGENET_STD, SPPNet
from sppnet.ops.pyramid_pool import pyramid_pool

LAYERS = ["0", "1", "3"]
POOLINGS = [Pooling((2, 1)), Pooling((3, 1), "mean")]


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3)).eval()


@pytest.fixture(scope="module", autouse=True)
def single_precision() -> object:
    """So that what is compared does not depend on whether this processor is fast at bfloat16."""
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "autocast", lambda device: torch.autocast(device.type, enabled=False))
    yield
    patch.undo()


def photo(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PHOTOS = [photo(0, 60, 90), photo(1, 100, 40), photo(2, 64, 64)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for place, pixels in enumerate(PHOTOS):
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    return [tmp_path / f"{place}.png" for place in range(len(PHOTOS))]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass sent through the backbone."""
    counts: list[int] = []
    original: Callable[..., object] = module._compute

    def compute(images: list[Path], *arguments: object) -> object:
        counts.append(len(images))
        return original(images, *arguments)

    monkeypatch.setattr(module, "_compute", compute)
    return counts


@pytest.mark.parametrize("fit", ["native", "crop", "squash", "pad"])
def test_each_layer_is_what_the_truncated_net_says(backbone: nn.Module, fit: str) -> None:
    """All layers come from one pass, though the second works in place on the first's output."""
    look = Look(fit, 48)
    pooled = pooled_features(PHOTOS, backbone, layers=LAYERS, poolings=POOLINGS, look=look)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    fill = tuple(round(255 * value) for value in IMAGENET_MEAN)
    for layer in LAYERS:
        truncated = backbone[: int(layer) + 1]
        for place, pixels in enumerate(PHOTOS):
            shown = fit_image(pixels, fit, 48, 4 * 48, minimum=4, fill=fill)
            images = (torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255 - mean) / std
            with torch.inference_mode():
                features = truncated(images)
            for pooling in POOLINGS:
                expected = pyramid_pool(features, pooling.levels, reduce=pooling.reduce)[0].half().numpy()
                np.testing.assert_allclose(pooled[layer, pooling][place], expected, rtol=2e-3, atol=2e-3)


def test_the_shape_is_the_same_for_every_size_and_the_length_is_one(backbone: nn.Module) -> None:
    vectors = image_features(PHOTOS, backbone, layers=["0", "3"], levels=(3, 2, 1), short_side=40)
    assert {layer: each.shape for layer, each in vectors.items()} == {"0": (3, 14 * 8), "3": (3, 14 * 12)}
    for each in vectors.values():
        np.testing.assert_allclose(np.linalg.norm(each, axis=1), 1, rtol=1e-6)
        assert each.dtype == np.float32


def test_the_last_layer_is_the_default_and_hooks_do_not_stay(backbone: nn.Module) -> None:
    assert layer_names(backbone) == ["0", "1", "2", "3"]
    vectors = image_features(PHOTOS[:1], backbone, levels=(1,), short_side=40)
    assert list(vectors) == ["3"]
    assert not any(each._forward_hooks for each in backbone.modules())
    with pytest.raises(UserError):
        image_features(["no/such/photo.jpg"], backbone, levels=(1,))
    assert not any(each._forward_hooks for each in backbone.modules())


def test_a_strip_is_enlarged_until_the_layers_have_a_cell_of_it() -> None:
    """Layers without padding need more pixels for one cell than lie between two: here 15, of cells every 4."""
    layers = nn.Sequential(nn.Conv2d(3, 32, 7, 2), nn.ReLU(), nn.Conv2d(32, 32, 5, 2)).eval()
    vectors = image_features([photo(0, 10, 800), photo(1, 800, 10)], layers, levels=(1,), short_side=20)["2"]
    assert vectors.shape == (2, 32)
    assert np.isfinite(vectors).all()


def test_an_sppnet_gives_its_backbone_and_its_pixel_normalisation(tiny_detector: SPPNet) -> None:
    own = image_features(PHOTOS[:1], tiny_detector, levels=(2, 1), short_side=64)
    bare = image_features(PHOTOS[:1], tiny_detector.backbone, levels=(2, 1), short_side=64)
    for layer in own:
        np.testing.assert_array_equal(own[layer], bare[layer])  # its normalisation is ImageNet's, too


def test_the_mirror_image_and_several_sides_are_averaged(backbone: nn.Module) -> None:
    def one(images: list[np.ndarray], side: int) -> np.ndarray:
        return image_features(images, backbone, short_side=side)["3"]

    turned = [np.ascontiguousarray(pixels[:, ::-1]) for pixels in PHOTOS]
    parts = [one(images, side) for side in (40, 56) for images in (PHOTOS, turned)]
    both = image_features(PHOTOS, backbone, short_side=(40, 56), mirrored=True)["3"]
    np.testing.assert_allclose(both, unit_length(sum(parts) / 4), atol=1e-6)
    assert np.abs(both - parts[0]).max() > 1e-3


def test_max_and_mean_together(backbone: nn.Module) -> None:
    largest, mean, both = (
        image_features(PHOTOS, backbone, reduce=reduce)["3"] for reduce in ("max", "mean", "max+mean")
    )
    np.testing.assert_allclose(both, np.concatenate([largest, mean], 1) / np.sqrt(2), atol=1e-6)


def test_powers_and_the_normalisation_of_levels() -> None:
    pooled = np.array([[[4.0, -9.0], [0, 0], [0, 0], [0, 0], [16.0, 0]]], np.float16)
    rooted = to_vectors(pooled, (2, 1), power=0.5, normalise="none")
    assert rooted[0].tolist() == [2, -3, 0, 0, 0, 0, 0, 0, 4, 0]
    by_level = to_vectors(pooled, (2, 1), normalise="level").reshape(5, 2)
    np.testing.assert_allclose([np.linalg.norm(by_level[:4]), np.linalg.norm(by_level[4:])], 0.5**0.5, rtol=1e-6)
    assert to_vectors(np.zeros((1, 5, 2)), (2, 1)).tolist() == [[0] * 10]  # nothing to divide by


def test_levels_are_taken_from_a_larger_pyramid(backbone: nn.Module) -> None:
    large, small = Pooling((3, 2, 1)), Pooling((3, 1))
    pooled = pooled_features(PHOTOS, backbone, layers=["3"], poolings=[large, small], look=Look(short_side=40))
    np.testing.assert_array_equal(take_levels(pooled["3", large], (3, 2, 1), (3, 1)), pooled["3", small])
    with pytest.raises(ValueError, match=r"some of the levels \(3, 2, 1\).*\(4,\)"):
        take_levels(pooled["3", large], (3, 2, 1), (4,))


# The cache


def fill(files: list[Path], backbone: nn.Module, cache: Path, **changed: object) -> list[str]:
    arguments = {"layers": LAYERS, "poolings": POOLINGS, "look": Look(short_side=40)} | changed
    return fill_features(files, backbone, cache=cache, **arguments)  # type: ignore[arg-type]


def test_what_is_cached_is_not_computed_again(
    backbone: nn.Module, files: list[Path], tmp_path: Path, computed: list[int]
) -> None:
    arguments = {"layers": LAYERS, "poolings": POOLINGS, "look": Look(short_side=40)}
    bare = pooled_features(files, backbone, **arguments)
    first = pooled_features(files, backbone, cache=tmp_path / "maps", **arguments)
    again = pooled_features(files[::-1], backbone, cache=tmp_path / "maps", **arguments)
    assert computed == [3, 3, 0]
    for which, values in bare.items():
        np.testing.assert_array_equal(first[which], values)
        np.testing.assert_array_equal(again[which], values[::-1])
        assert values.dtype == np.float16


def test_whatever_changes_the_features_misses_the_cache(
    backbone: nn.Module, files: list[Path], tmp_path: Path, computed: list[int]
) -> None:
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3)).eval()
    fill(files, backbone, tmp_path)
    fill(files, other, tmp_path)
    for look in (Look("crop", 40), Look(short_side=41), Look(short_side=40, mirrored=True)):
        fill(files, backbone, tmp_path, look=look)
    fill(files, backbone, tmp_path, layers=["2"])
    fill(files, backbone, tmp_path, poolings=[Pooling((1,))])
    assert computed == [3] * 7
    Image.fromarray(photo(9, 50, 50)).save(files[1])
    fill(files, backbone, tmp_path)
    assert computed[-1] == 1  # the image that changed


def test_weights_in_half_precision_have_a_digest_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    digests = {net_digest(net.to(dtype), (), "float32") for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert len(digests) == 3


def test_the_same_image_twice_is_computed_once(
    backbone: nn.Module, files: list[Path], tmp_path: Path, computed: list[int]
) -> None:
    keys = fill([files[0], files[1], files[0]], backbone, tmp_path / "maps")
    assert computed == [2]
    assert keys[0] == keys[2] != keys[1]


def test_an_interrupted_run_goes_on(
    backbone: nn.Module, files: list[Path], tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only some files of an image had been written: they are whole, and the others are made."""
    writes, write = [], FeatureCache.write

    def stop_at_the_ninth(self: FeatureCache, part: str, key: str, values: np.ndarray) -> None:
        if len(writes) == 8:
            raise KeyboardInterrupt
        writes.append(key)
        write(self, part, key, values)

    monkeypatch.setattr(FeatureCache, "write", stop_at_the_ninth)
    with pytest.raises(KeyboardInterrupt):
        fill(files, backbone, tmp_path)
    monkeypatch.setattr(FeatureCache, "write", write)
    assert fill(files, backbone, tmp_path)
    assert computed == [3, 2]  # of six files an image, the second had two
    assert len(list(tmp_path.rglob("*.npy"))) == 18


KILLED = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from sppnet.classification.features import Look, Pooling, fill_features
torch.manual_seed(0)
backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True)).eval()
files = [Path(name) for name in sys.argv[2:]]
def progress(done, total):
    print(done, flush=True)
    time.sleep(60 if done == 2 else 0)
fill_features(files, backbone, layers=["0", "1"], poolings=[Pooling((2, 1))], look=Look(short_side=40),
              cache=Path(sys.argv[1]), progress=progress)
"""


@pytest.mark.slow
def test_kill_9_leaves_nothing_half_written(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "maps"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(cache), *map(str, files)], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert [run.stdout.readline().strip() for _ in range(2)] == [b"1", b"2"]
        os.kill(run.pid, signal.SIGKILL)
    written = list(cache.rglob("*.npy"))
    assert len(written) == 4
    assert all(np.load(path).shape == (5, 8) for path in written)


def test_a_cache_that_cannot_be_written_is_named(backbone: nn.Module, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    fill(files[:1], backbone, folder)
    blocked = next(folder.rglob("*-max-2.1"))
    key = module.content_key(files[1])
    (blocked / f".{key}.npy.{os.getpid()}-{threading.get_ident()}.tmp").mkdir()  # where the file would be written first
    with pytest.raises(UserError, match=r"cannot be written"):
        fill(files, backbone, folder)


def test_progress_counts_what_was_there(backbone: nn.Module, files: list[Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fill(files[:1], backbone, tmp_path / "maps")
    fill(files, backbone, tmp_path / "maps", progress=lambda *counts: told.append(counts))
    assert told == [(2, 3), (3, 3)]


# Mistakes


def test_mistakes_are_one_line(backbone: nn.Module) -> None:
    with pytest.raises(UserError, match=r"no layer 'conv9'; its outermost are 0, 1, 2, 3"):
        image_features(PHOTOS, backbone, layers=["conv9"])
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    with pytest.raises((UserError, ValueError)):
        image_features(PHOTOS, flat, layers=["1"])
    with pytest.raises(ValueError, match="at least one image, layer and pooling, got 0, 1 and 1"):
        image_features([], backbone)
    with pytest.raises(ValueError, match="reduce must be 'max' or 'mean': got 'median'"):
        image_features(PHOTOS, backbone, reduce="median")
    with pytest.raises(ValueError, match="fit must be one of native, squash, crop, pad: got 'stretch'"):
        Look("stretch")
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        Look(short_side=0)
    with pytest.raises(ValueError, match="several, got none"):
        image_features(PHOTOS, backbone, short_side=())
    with pytest.raises(ValueError, match=r"'whole', 'level' or 'none', got 1\.0 and 'rows'"):
        image_features(PHOTOS, backbone, normalise="rows")
    with pytest.raises(ValueError, match="power above 0"):
        image_features(PHOTOS, backbone, power=0)


@pytest.mark.slow
def test_real_photos_are_told_apart_by_a_real_backbone(shared_data: Path) -> None:
    """Two photos of one class are closer than those of two: the whole path, on files, with squeezed maps."""
    weights = shared_data.parent / "weights" / "mobilenet_v2.safetensors"
    if not weights.is_file():
        pytest.skip("needs the weights in ../shared/weights")
    from sppnet.models.backbones import build_backbone

    folders = [shared_data / "caltech101" / "train" / name for name in ("Faces", "Motorbikes")]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("needs Caltech-101 in ../shared/data")
    paths = [path for folder in folders for path in sorted(folder.iterdir())[:4]]
    vectors = image_features(paths, build_backbone("mobilenet_v2", weights), levels=(2, 1))["18"]
    products = vectors @ vectors.T
    assert min(products[:4, :4].min(), products[4:, 4:].min()) > products[:4, 4:].max()
