"""The cache of feature maps: found again only for the same content, backbone and sizes; whole or not there; never damaged."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import cache as disk
from sppnet.data.images import image_size, read_image
from sppnet.detection import feature_map_cache
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import FeatureMaps, compute_feature_maps
from sppnet.errors import OutputError
from sppnet.models.sppnet import SPPNet, build_model


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (60 + 30 * index, 150, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def cache(tiny_detector: SPPNet, tmp_path: Path) -> FeatureMapCache:
    return FeatureMapCache(tiny_detector, tmp_path / "maps")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Heights of the images whose maps were computed."""
    heights: list[int] = []

    def counting(model: SPPNet, image: np.ndarray) -> FeatureMaps:
        heights.append(image.shape[0])
        return compute_feature_maps(model, image)

    monkeypatch.setattr(feature_map_cache, "compute_feature_maps", counting)
    return heights


def same(stored: FeatureMaps, computed: FeatureMaps) -> None:
    assert (stored.scales, stored.size, stored.whole) == (computed.scales, computed.size, computed.whole)
    for ours, theirs in zip(stored.features, computed.features, strict=True):
        assert torch.equal(ours, theirs)


def test_a_map_comes_back_as_it_was_computed(
    tiny_detector: SPPNet, cache: FeatureMapCache, images: list[Path], computed: list[int]
) -> None:
    cache.fill(images[:2])
    for image in images:  # the last is computed when it is asked for
        stored = cache.read(image)
        same(stored, compute_feature_maps(tiny_detector, read_image(image)))
        assert stored.whole_map.dtype == torch.float16
        assert stored.whole_map.is_contiguous(memory_format=torch.channels_last)
    assert computed == [60, 90, 120]


def test_the_flipped_map_is_the_map_of_the_flipped_image(
    tiny_detector: SPPNet, cache: FeatureMapCache, images: list[Path]
) -> None:
    expected = compute_feature_maps(tiny_detector, np.ascontiguousarray(read_image(images[0])[:, ::-1]))
    same(cache.read(images[0], flip=True), expected)
    assert not torch.equal(cache.read(images[0]).whole_map, expected.whole_map)


def test_maps_of_several_scales_lie_in_one_file(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], tmp_path: Path, images: list[Path]
) -> None:
    model = variant(tiny_detector, scales=(48, 64, 96))
    cache = FeatureMapCache(model, tmp_path / "maps")
    stored = cache.read(images[0])
    same(stored, compute_feature_maps(model, read_image(images[0])))
    assert (len(stored.features), stored.whole) == (3, 1)
    assert len(list(cache.folder.iterdir())) == 1


def test_maps_are_keyed_by_content(cache: FeatureMapCache, images: list[Path]) -> None:
    copy = images[0].with_name("copy.png")
    shutil.copy(images[0], copy)
    assert cache.path(copy) == cache.path(images[0])
    assert cache.path(copy) != cache.path(images[1])
    assert cache.path(copy) != cache.path(copy, flip=True)
    shutil.copy(images[1], copy)  # the photo changes, its name does not
    assert cache.path(copy) == cache.path(images[1])


def test_maps_are_keyed_by_backbone_sizes_and_pixels(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], tmp_path: Path
) -> None:
    rescaled = variant(tiny_detector)
    rescaled.set_feature_scale(4.0)
    models = [
        tiny_detector,
        build_model(tiny_detector.architecture, tiny_detector.preprocess),
        rescaled,
        variant(tiny_detector, short_side=65),
        variant(tiny_detector, long_side=129),
        variant(tiny_detector, scales=(48, 64)),
        variant(tiny_detector, mean=(0.5, 0.5, 0.5)),
        variant(tiny_detector, resize_mode="warp"),
    ]
    assert len({FeatureMapCache(model, tmp_path).folder for model in models}) == len(models)
    for other in (variant(tiny_detector), variant(tiny_detector, levels=(3,), hidden=(8,), class_names=("x",))):
        assert FeatureMapCache(other, tmp_path).folder == FeatureMapCache(tiny_detector, tmp_path).folder


def test_the_bytes_are_known_beforehand(
    tiny_detector: SPPNet, variant: Callable[..., SPPNet], cache: FeatureMapCache, images: list[Path], tmp_path: Path
) -> None:
    sizes = [image_size(image) for image in images]
    assert cache.bytes_needed(sizes) == sum(cache.read(image).whole_map.nbytes for image in images)
    several = FeatureMapCache(variant(tiny_detector, scales=(48, 64, 96)), tmp_path / "maps")
    several.fill(images)
    on_disk = sum(path.stat().st_size for path in several.folder.iterdir())
    assert 0 <= on_disk - several.bytes_needed(sizes) < 1000 * len(images)


def test_only_what_is_missing_is_computed(cache: FeatureMapCache, images: list[Path], computed: list[int]) -> None:
    calls: list[tuple[str, int, int]] = []
    cache.fill(images, flip=True, progress=lambda *done: calls.append(done))
    assert computed == [60, 60, 90, 90, 120, 120]
    assert calls == [("feature maps", done, 3) for done in (1, 2, 3)]
    computed.clear()
    cache.fill(images, flip=True)
    assert computed == []
    cache.path(images[1], flip=True).unlink()
    cache.fill(images, flip=True, progress=lambda *done: calls.append(done))
    assert computed == [90]
    assert calls[3:] == calls[:3]


def damages(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    middle = len(content) - 100
    flipped = bytes([content[middle] ^ 4])
    return {
        "empty": b"",
        "cut short": content[:-50],
        "one bit of it": content[:middle] + flipped + content[middle + 1 :],
        "zeros at the end, as after a power failure": content[:-64] + bytes(64),
        "something else": b"a text of whatever sort" * 100,
        "other words": content.replace(b"whole", b"white"),
    }


@pytest.mark.parametrize("again", [True, False], ids=["in another run", "in the run that wrote it"])
def test_what_is_damaged_is_never_read(
    tiny_detector: SPPNet, tmp_path: Path, images: list[Path], computed: list[int], again: bool
) -> None:
    cache = FeatureMapCache(tiny_detector, tmp_path / "maps")
    expected = cache.read(images[1]).whole_map.clone()
    victim = cache.path(images[1])
    sound = victim.read_bytes()
    for damage, content in damages(victim).items():
        assert content != sound, damage
        victim.unlink()  # what is mapped into memory stays
        victim.write_bytes(content)
        computed.clear()
        reader = FeatureMapCache(tiny_detector, tmp_path / "maps") if again else cache
        reader.fill(images)
        assert torch.equal(reader.read(images[1]).whole_map, expected), damage
        assert 90 in computed, damage
        computed.clear()
        FeatureMapCache(tiny_detector, tmp_path / "maps").read(images[1])
        assert computed == [], damage


def test_a_map_is_checked_once_in_a_run(
    cache: FeatureMapCache, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bool] = []
    read = feature_map_cache.read_tensors

    def noting(path: Path, *, verify: bool = True) -> Any:
        checked.append(verify)
        return read(path, verify=verify)

    cache.fill(images[:1])
    monkeypatch.setattr(feature_map_cache, "read_tensors", noting)
    for _ in range(3):
        cache.read(images[0])
    assert checked == [True, False, False]


def test_an_image_is_hashed_once(cache: FeatureMapCache, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    content_key = feature_map_cache.content_key

    def noting(image: Path) -> str:
        hashed.append(image)
        return content_key(image)

    monkeypatch.setattr(feature_map_cache, "content_key", noting)
    cache.fill(images, flip=True)
    cache.read(images[0])
    assert hashed == images


def test_an_interrupted_run_goes_on(cache: FeatureMapCache, images: list[Path], computed: list[int]) -> None:
    def stop_at_two(_: str, done: int, __: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(images, progress=stop_at_two)
    computed.clear()
    cache.fill(images)
    assert computed == [120]


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=str)
def test_a_map_is_there_whole_or_not_at_all(
    cache: FeatureMapCache, images: list[Path], monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def half(parts: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half of it")
        raise trouble

    monkeypatch.setattr(disk, "save_file", half)
    with pytest.raises(OutputError if isinstance(trouble, OSError) else KeyboardInterrupt):
        cache.fill(images)
    assert list(cache.folder.iterdir()) == []


def test_too_little_room_is_said_before_the_first_map(
    cache: FeatureMapCache, images: list[Path], computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 2 * cache.bytes_needed([image_size(image) for image in images])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage(10**9, 0, needed - 1))
    with pytest.raises(OutputError, match=r"the feature maps of 3 images need .* GB below .*make room"):
        cache.fill(images, flip=True)
    assert computed == []
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage(10**9, 0, needed))
    cache.fill(images, flip=True)
    assert len(computed) == 6
