"""The cache of maps: found again only for the same content, backbone and sizes; whole or not there; resumable."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.data.images import image_size, read_image
from sppnet.detection import map_cache
from sppnet.detection.map_cache import MapCache, is_whole
from sppnet.detection.feature_maps import FeatureMaps, compute_feature_maps
from sppnet.errors import UserError
from sppnet.models.sppnet import SPPNet


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (60 + 30 * index, 150, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def cache(tiny_detector: SPPNet, tmp_path: Path) -> MapCache:
    return MapCache.of(tiny_detector, tmp_path / "maps")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images whose maps were computed."""
    shapes: list[tuple[int, ...]] = []

    def counting(model: SPPNet, image: np.ndarray) -> Any:
        shapes.append(image.shape)
        return compute_feature_maps(model, image)

    monkeypatch.setattr(map_cache, "compute_feature_maps", counting)
    return shapes


def variant(model: SPPNet, **changes: Any) -> SPPNet:
    return SPPNet(dataclasses.replace(model.architecture, **changes), model.backbone).eval()


def same(stored: FeatureMaps, computed: FeatureMaps) -> None:
    assert (stored.scales, stored.size, stored.whole) == (computed.scales, computed.size, computed.whole)
    for ours, theirs in zip(stored.features, computed.features, strict=True):
        assert torch.equal(ours, theirs)


def test_a_map_comes_back_as_it_was_computed(tiny_detector: SPPNet, cache: MapCache, images: list[Path]) -> None:
    files = cache.fill(tiny_detector, images)
    assert list(files) == images
    for image in images:
        stored = cache.read(files[image][0])
        same(stored, compute_feature_maps(tiny_detector, read_image(image)))
        assert stored.whole_map.dtype == torch.float16
        assert stored.whole_map.is_contiguous(memory_format=torch.channels_last)


def test_the_mirrored_map_is_the_map_of_the_mirror_image(
    tiny_detector: SPPNet, cache: MapCache, images: list[Path]
) -> None:
    plain, mirrored = cache.fill(tiny_detector, images[:1])[images[0]]
    expected = compute_feature_maps(tiny_detector, np.ascontiguousarray(read_image(images[0])[:, ::-1]))
    same(cache.read(mirrored), expected)
    assert not torch.equal(cache.read(plain).whole_map, expected.whole_map)


def test_maps_of_several_scales_lie_in_one_file(tiny_detector: SPPNet, tmp_path: Path, images: list[Path]) -> None:
    model = variant(tiny_detector, scales=(48, 64, 96))
    cache = MapCache.of(model, tmp_path / "maps")
    (file,) = cache.fill(model, images[:1], mirrored=False)[images[0]]
    stored = cache.read(file)
    same(stored, compute_feature_maps(model, read_image(images[0])))
    assert len(stored.features) == 3
    assert stored.whole == 1
    assert len(list(cache.folder.iterdir())) == 1


def test_maps_are_keyed_by_content(cache: MapCache, images: list[Path]) -> None:
    copy = images[0].with_name("copy.png")
    shutil.copy(images[0], copy)
    assert cache.path(copy) == cache.path(images[0])
    assert cache.path(copy) != cache.path(images[1])
    assert cache.path(copy) != cache.path(copy, mirrored=True)
    shutil.copy(images[1], copy)  # the photo changes, its name does not
    assert cache.path(copy) == cache.path(images[1])


def test_maps_are_keyed_by_backbone_size_and_normalisation(tiny_detector: SPPNet, tmp_path: Path) -> None:
    other_weights = SPPNet(tiny_detector.architecture)
    rescaled = variant(tiny_detector)
    rescaled.calibrate(4.0)
    models = [
        tiny_detector,
        other_weights,
        rescaled,
        variant(tiny_detector, short_side=65),
        variant(tiny_detector, long_side=129),
        variant(tiny_detector, scales=(48, 64)),
        variant(tiny_detector, mean=(0.5, 0.5, 0.5)),
    ]
    assert len({MapCache.of(model, tmp_path).folder for model in models}) == len(models)
    for same in (variant(tiny_detector), variant(tiny_detector, levels=(3,), hidden=(8,), names=("x",))):
        assert MapCache.of(same, tmp_path) == MapCache.of(tiny_detector, tmp_path)


def test_the_bytes_are_known_beforehand(tiny_detector: SPPNet, cache: MapCache, images: list[Path]) -> None:
    files = cache.fill(tiny_detector, images, mirrored=False)
    written = sum(cache.read(path).whole_map.nbytes for (path,) in files.values())
    assert cache.bytes_needed(tiny_detector, [image_size(image) for image in images]) == written
    model = variant(tiny_detector, scales=(48, 64, 96))
    several = MapCache.of(model, cache.folder.parent)
    on_disk = sum(path.stat().st_size for (path,) in several.fill(model, images, mirrored=False).values())
    assert 0 <= on_disk - several.bytes_needed(model, [image_size(image) for image in images]) < 1000 * len(images)


def test_only_what_is_missing_is_computed(
    tiny_detector: SPPNet, cache: MapCache, images: list[Path], computed: list[tuple[int, ...]]
) -> None:
    calls: list[tuple[int, int]] = []
    files = cache.fill(tiny_detector, images, progress=lambda done, total: calls.append((done, total)))
    assert len(computed) == 6
    assert calls == [(1, 3), (2, 3), (3, 3)]
    computed.clear()
    cache.fill(tiny_detector, images)
    assert computed == []
    files[images[1]][1].unlink()
    cache.fill(tiny_detector, images, progress=lambda done, total: calls.append((done, total)))
    assert computed == [(90, 150, 3)]
    assert calls[3:] == [(1, 3), (2, 3), (3, 3)]


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
        "another model's format": content.replace(b"image_maps", b"imago_mops"),
    }


def test_what_is_damaged_is_found_and_made_anew(
    tiny_detector: SPPNet, cache: MapCache, images: list[Path], computed: list[tuple[int, ...]]
) -> None:
    files = cache.fill(tiny_detector, images)
    victim = files[images[1]][0]
    sound = victim.read_bytes()
    for damage, content in damages(victim).items():
        assert content != sound, damage
        victim.write_bytes(content)
        assert not is_whole(victim), damage
        computed.clear()
        cache.fill(tiny_detector, images)
        assert computed == [(90, 150, 3)], damage
        assert victim.read_bytes() == sound, damage


def test_an_image_is_hashed_once_for_both_sides(
    tiny_detector: SPPNet, cache: MapCache, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    content_key = map_cache.content_key
    monkeypatch.setattr(map_cache, "content_key", lambda image: hashed.append(image) or content_key(image))
    files = cache.fill(tiny_detector, images)
    assert hashed == images
    for image in images:
        assert files[image] == (cache.path(image), cache.path(image, mirrored=True))


def test_an_interrupted_run_goes_on(
    tiny_detector: SPPNet, cache: MapCache, images: list[Path], computed: list[tuple[int, ...]]
) -> None:
    def stop_at_two(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(tiny_detector, images, mirrored=False, progress=stop_at_two)
    computed.clear()
    cache.fill(tiny_detector, images, mirrored=False)
    assert computed == [(120, 150, 3)]


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=str)
def test_a_map_is_there_whole_or_not_at_all(
    tiny_detector: SPPNet,
    cache: MapCache,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException,
) -> None:
    def half(parts: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half of it")
        raise trouble

    monkeypatch.setattr(map_cache, "save_file", half)
    with pytest.raises(UserError if isinstance(trouble, OSError) else KeyboardInterrupt):
        cache.fill(tiny_detector, images)
    assert list(cache.folder.iterdir()) == []


def test_too_little_room_is_said_before_the_first_map(
    tiny_detector: SPPNet,
    cache: MapCache,
    images: list[Path],
    computed: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = 2 * cache.bytes_needed(tiny_detector, [image_size(image) for image in images])
    monkeypatch.setattr(map_cache.shutil, "disk_usage", lambda folder: usage(10**9, 0, needed - 1))
    with pytest.raises(UserError, match=r"the maps of 3 images need .* GB below .*make room"):
        cache.fill(tiny_detector, images)
    assert computed == []
    monkeypatch.setattr(map_cache.shutil, "disk_usage", lambda folder: usage(10**9, 0, needed))
    cache.fill(tiny_detector, images)
    assert len(computed) == 6
