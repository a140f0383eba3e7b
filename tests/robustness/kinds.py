"""What is read: for each kind of file, sound ones, and what must be true of whatever is read in their place.

A `UserError` is a clean refusal; `OtherAnswer` says that something was read, and otherwise than it stands in the file.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as tensors_of
from safetensors.torch import save

from sppnet.cache import read_tensors, write_tensors
from sppnet.data import ANNOTATED
from sppnet.data.check import check_folder
from sppnet.data.images import image_size, read_image
from sppnet.errors import ImageError, UserError
from sppnet.models import files as model_files
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, build_model
from sppnet.proposals.files import read_boxes, save_proposals


class OtherAnswer(Exception):
    """Something was read otherwise than it was meant."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Args:
        sound: fills a folder, and gives the files in it of which mutants are made.
        read: reads the mutant that stands in place of one of these files, and raises what is wrong.
        words: of the format, for `Mutator`.
        wrap: makes the file of what was mutated.
    """

    sound: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], None]
    words: tuple[bytes, ...] = ()
    wrap: Callable[[bytes], bytes] = bytes


# Images


def _write_images(folder: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (23, 37, 4), dtype=np.uint8)
    color, gray, alpha = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0]), Image.fromarray(noise)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    real = Image.fromarray(noise[..., 0].astype(np.float32) / 255)
    made = {
        "color.jpg": (color, {}), "progressive.jpg": (color, {"progressive": True}), "turned.jpg": (color, {"exif": turned}),
        "cmyk.jpg": (color.convert("CMYK"), {}), "gray.jpeg": (gray, {}), "color.png": (color, {}), "alpha.png": (alpha, {}),
        "palette.png": (color.quantize(7), {"transparency": 2}), "deep.png": (deep, {}), "bits.png": (gray.convert("1"), {}),
        "films.gif": (gray, {"save_all": True, "append_images": [color.convert("L")]}), "color.webp": (color, {}),
        "exact.webp": (alpha, {"lossless": True}), "color.tif": (color, {"compression": "tiff_lzw"}), "deep.tif": (deep, {}),
        "real.tif": (real, {"compression": "tiff_adobe_deflate"}), "turned.tif": (color, {"exif": turned}), "color.bmp": (color, {}),
        "gray.pgm": (gray, {}), "color.ppm": (color, {}), "alpha.tga": (alpha, {"compression": "tga_rle"}), "color.jp2": (color, {}),
        "color.avif": (color, {}), "two.mpo": (color, {"save_all": True, "append_images": [color]}),
    }  # fmt: skip
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]


def _read_image(path: Path, folder: Path) -> None:
    try:
        pixels = read_image(path)
    except ImageError:
        pixels = None
    try:
        again = read_image(path.read_bytes())
    except ImageError:
        again = None
    if (pixels is None) != (again is None) or (pixels is not None and not np.array_equal(pixels, again)):
        raise OtherAnswer("the file is read, and its bytes otherwise")
    if pixels is None:
        read_image(path)
    if pixels.dtype != np.uint8 or pixels.shape != (*image_size(path), 3):
        raise OtherAnswer(f"{pixels.shape} {pixels.dtype} where {image_size(path)} was measured")


# Annotations


def _write_set(files: dict[str, str], folder: Path) -> list[Path]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (100, 80), (90, 120, 40)).save(path)
        else:
            path.write_text(text)
    return [folder / name for name in files if not name.endswith(".png")]


def _read_set(format_name: str, objects: Callable[[Path], int], path: Path, folder: Path) -> None:
    """What passes the check is read, and nothing that stands in the files is lost."""
    checked = check_folder(folder, layout=format_name)
    try:
        data = ANNOTATED[format_name].read(folder, "train")
    except UserError as error:
        if not checked.errors and "no such split" not in str(error):
            raise OtherAnswer(f"it passes the check, and reading says: {error}") from error
        raise
    read, counted = sum(len(image.gt_labels) for image in data.images), sum(checked.classes.values())
    if read != objects(folder) or (counted != read and checked.images == len(data.images)):
        raise OtherAnswer(f"{read} objects read, {counted} counted, {objects(folder)} in the files")
    for image in data.images:
        height, width = image.size
        inside = (image.gt_boxes >= 0) & (image.gt_boxes <= [width, height, width, height])
        if not inside.all() or not (image.gt_boxes[:, :2] < image.gt_boxes[:, 2:]).all():
            raise OtherAnswer(f"boxes {image.gt_boxes.tolist()} of an image of {width} x {height}")


def _xml(name: str, *boxes: str) -> str:
    objects = "".join(
        f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>\n"
        for kind, hard, x0, y0, x1, y1 in map(str.split, boxes)
    )
    size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
    return f'<?xml version="1.0"?>\n<annotation>\n<filename>{name}</filename>\n{size}\n{objects}</annotation>\n'


VOC = {
    "Annotations/a.xml": _xml("a.png", "cup 0 1 2 30 40", "dog 1 11 12.5 100 80"),
    "Annotations/b.xml": _xml("b.png", "cup 0 40 40 60 60"),
    "ImageSets/Main/train.txt": "a\nb\n",
    "JPEGImages/a.png": "",
    "JPEGImages/b.png": "",
}
_VOC_WORDS = b"annotation object name bndbox xmin ymin xmax ymax difficult size width height filename part <object> </object> <!--  --> <![CDATA[ ]]> &lt; &x; xmlns='u' a"  # fmt: skip


def _objects_of_voc(folder: Path) -> int:
    listed = (folder / "ImageSets/Main/train.txt").read_text(encoding="utf-8-sig").splitlines()
    names = dict.fromkeys(line.split()[0] for line in listed if line.strip())
    roots = [ET.parse(folder / "Annotations" / f"{name}.xml").getroot() for name in names]
    return sum(element.tag.rpartition("}")[2].casefold() == "object" for root in roots for element in root.iter())


YOLO = {
    "data.yaml": "path: .\ntrain: images/train\nval: images/train\nnc: 3\nnames: [cup, 'no', 010]\n",
    "labels/train/a.txt": "0 0.5 0.5 0.2 0.25\n2 0.25 0.5 0.5 0.5\n",
    "labels/train/b.txt": "1 0.1 0.1 0.9 0.1 0.9 0.9\n",
    "images/train/a.png": "",
    "images/train/b.png": "",
}
_YOLO_WORDS = (
    b"path train val test nc names kpt_shape null no 1.10 0: 1: &a *a !!python/object:os.system {a: [ ] [17,3] ~ . .. /"
)


def _objects_of_yolo(folder: Path) -> int:
    texts = [(folder / f"labels/train/{name}.txt").read_text(encoding="utf-8-sig") for name in "ab"]
    return sum(bool(line.strip()) for text in texts for line in text.splitlines())


COCO = {
    "annotations/instances_train.json": json.dumps(
        {
            "images": [{"id": n, "file_name": f"{name}.png", "width": 100, "height": 80} for n, name in enumerate("ab")],
            "categories": [{"id": 1, "name": "cup"}, {"id": 7, "name": "dog"}],
            "annotations": [
                {"id": n, "image_id": n // 2, "category_id": (1, 7)[n % 2], "bbox": [1 + n, 2, 30, 40.5], "area": 9, "iscrowd": n % 2}
                for n in range(3)
            ],
        },
        indent=0,
    ),
    "images/a.png": "",
    "images/b.png": "",
}  # fmt: skip
_COCO_WORDS = b'id image_id category_id bbox iscrowd ignore segmentation file_name name width height images annotations categories supercategory "\\u0000" ../a.png'  # fmt: skip


def _objects_of_coco(folder: Path) -> int:
    return len(json.loads((folder / "annotations/instances_train.json").read_text(encoding="utf-8-sig"))["annotations"])


# Models


@cache
def _model_bytes() -> bytes:
    architecture = Architecture(("cup", "dog"), backbone="squeezenet1_1", levels=(1,), hidden=(4,), backbone_stride=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_model(architecture, Preprocess(64, 128), DetectionSettings("grid"))
    with tempfile.TemporaryDirectory() as folder:
        model_files.save_model(net, Path(folder, "model.safetensors"))
        return Path(folder, "model.safetensors").read_bytes()


def _write_model(folder: Path) -> list[Path]:
    (folder / "model.safetensors").write_bytes(_model_bytes())
    return [folder / "model.safetensors"]


def _read_model(path: Path, folder: Path) -> None:
    net, sound = model_files.load(path), tensors_of(_model_bytes())
    if any(not torch.equal(value, sound[name].to(value.dtype)) for name, value in net.state_dict().items()):
        raise OtherAnswer("a damaged model is loaded, with other weights")


def _metadata(content: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", content[:8])
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])


def _write_description(folder: Path) -> list[Path]:
    text = {name: json.loads(_metadata(_model_bytes())[name]) for name in model_files.SETTINGS}
    (folder / "model.safetensors").write_text(json.dumps(text, indent=0))
    return [folder / "model.safetensors"]


def _wrap_description(content: bytes) -> bytes:
    """A model file whose description is another, under a checksum that fits: hostile, not damaged."""
    tensors, metadata = tensors_of(_model_bytes()), _metadata(_model_bytes())
    metadata.pop("checksum")
    text = content.decode("utf-8", "replace")
    try:
        parts = json.loads(text)
        metadata |= {name: json.dumps(part) for name, part in parts.items()}
    except (ValueError, AttributeError, RecursionError):
        metadata["architecture"] = text
    return save(tensors, {**metadata, "checksum": model_files._checksum(tensors, metadata)})


def _read_description(path: Path, folder: Path) -> None:
    net = model_files.load(path)
    if not all(value.isfinite().all() for value in net.state_dict().values()):
        raise OtherAnswer("a model with weights that are not finite is loaded")
    with torch.inference_mode():
        net(net.preprocess(np.zeros((70, 90, 3), np.uint8))[0])


_MODEL_WORDS = b"class_names backbone levels hidden ranks compact squeezenet1_1 resnet18 timm: svm ridge true short_side mean std scales proposals grid stride 1000000000 1e-320 [1000000000] [] "  # fmt: skip


# What is computed once, and boxes made elsewhere


def _write_cached(folder: Path) -> list[Path]:
    write_tensors(folder / "maps.safetensors", {"map": torch.arange(60.0).reshape(3, 4, 5)}, {"of": "a"})
    return [folder / "maps.safetensors"]


def _read_cached(path: Path, folder: Path) -> None:
    read = read_tensors(path)
    if read is not None and (
        read[1] != {"of": "a"} or not torch.equal(read[0]["map"], torch.arange(60.0).reshape(3, 4, 5))
    ):
        raise OtherAnswer("a damaged file of the cache is read, with other numbers")


def _write_boxes(folder: Path) -> list[Path]:
    boxes = np.array([[0, 0, 50, 40], [10.5, 5, 99, 80]], np.float32)
    save_proposals(folder / "a.npz", boxes, {"method": "grid"})
    np.savez(folder / "many.npz", a=boxes, b=boxes[:1].astype(np.int64))
    return [folder / "a.npz", folder / "many.npz"]


def _read_boxes(path: Path, folder: Path) -> None:
    for name, boxes in read_boxes(path).items():
        if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != np.float32 or not np.isfinite(boxes).all():
            raise OtherAnswer(f"boxes of {name!r} are {boxes.shape} {boxes.dtype}")


# What the watcher is tried on


def _write_trap(folder: Path) -> list[Path]:
    (folder / "trap.py").write_text("pass")
    return [folder / "trap.py"]


def _read_trap(path: Path, folder: Path) -> None:
    exec(path.read_text(), {"os": os, "UserError": UserError, "OtherAnswer": OtherAnswer})


TRAP = Kind(_write_trap, _read_trap)
KINDS = {
    "image": Kind(_write_images, _read_image),
    "voc": Kind(partial(_write_set, VOC), partial(_read_set, "voc", _objects_of_voc), tuple(_VOC_WORDS.split())),
    "yolo": Kind(partial(_write_set, YOLO), partial(_read_set, "yolo", _objects_of_yolo), tuple(_YOLO_WORDS.split())),
    "coco": Kind(partial(_write_set, COCO), partial(_read_set, "coco", _objects_of_coco), tuple(_COCO_WORDS.split())),
    "model": Kind(_write_model, _read_model),
    "description": Kind(_write_description, _read_description, tuple(_MODEL_WORDS.split()), _wrap_description),
    "cache": Kind(_write_cached, _read_cached),
    "proposals": Kind(_write_boxes, _read_boxes),
}
