"""Teach the shipped models' backbone, from random weights, the dense features of a pretrained MobileNetV2.

The student sees random crops of many sizes; a 1x1 projection of its map is pulled towards the teacher's 1280-channel map
of the same crop (cosine distance plus smooth L1). Only the student's own weights are written; projection and teacher
are dropped. The learning rate is constant after a short warm-up and falls linearly over the last fifth, so that a run
can be prolonged: resume it with a larger ``--images``.

    uv run python scripts/distill_backbone.py --teacher mobilenet_v2.safetensors --voc VOCdevkit/VOC2007 \
        --folders caltech101/train --output backbone.safetensors
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.models.backbones import fold_batch_norm
from sppnet.models.compact import WIDTHS, compact_resnet
from sppnet.whole_file import whole_file

CROP_SIZES = (128, 160, 192, 224, 256, 320)
PIXELS_PER_BATCH = 64 * 160 * 160
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def read_images(paths: list[Path], longest_side: int = 640) -> list[np.ndarray]:
    """Each file as [H, W, 3] uint8 RGB, its longer side at most ``longest_side``."""
    images = []
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        scale = longest_side / max(image.shape[:2])
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        images.append(image)
    return images


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random region of between a quarter and the whole of the short side, resized to [size, size, 3] float32."""
    height, width = image.shape[:2]
    side = min(height, width) * rng.uniform(0.3, 1.0)
    aspect = np.exp(rng.uniform(-0.25, 0.25))
    crop_height, crop_width = min(height, round(side * aspect) or 1), min(width, round(side / aspect) or 1)
    y, x = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
    crop = image[y : y + crop_height, x : x + crop_width]
    shrinks = crop_height > size
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    pixels = crop.astype(np.float32) * np.float32(rng.uniform(0.7, 1.3) / 255)
    grey = pixels.mean(2, keepdims=True)
    pixels = grey + (pixels - grey) * np.float32(rng.uniform(0.5, 1.5))
    return (np.clip(pixels, 0, 1) - MEAN) / STD


def batches(images: list[np.ndarray], seed: int, seen: int) -> queue.Queue[Tensor]:
    """A queue that a background thread keeps filled: [B, 3, S, S], the size S drawn for every batch."""
    ready: queue.Queue[Tensor] = queue.Queue(maxsize=4)

    def fill() -> None:
        cv2.setNumThreads(1)
        rng = np.random.default_rng([seed, seen])
        order: list[int] = []
        while True:
            size = int(rng.choice(CROP_SIZES))
            count = PIXELS_PER_BATCH // size**2
            while len(order) < count:
                order += rng.permutation(len(images)).tolist()
            chosen, order = order[:count], order[count:]
            crops = np.stack([random_crop(images[index], size, rng) for index in chosen])
            ready.put(torch.from_numpy(crops).permute(0, 3, 1, 2))  # channels last in memory

    threading.Thread(target=fill, daemon=True).start()
    return ready


def learning_rate(seen: int, total: int, peak: float) -> float:
    """Warm-up over the first 1 %, constant, then linear to 0 over the last fifth."""
    return peak * min(1.0, (seen + 1) / (0.01 * total), max(0.0, (total - seen) / (0.2 * total)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teacher", type=Path, required=True, help="state dict of torchvision's mobilenet_v2")
    parser.add_argument("--voc", type=Path, required=True, help="a VOC folder; only its train split is read")
    parser.add_argument("--folders", type=Path, nargs="*", default=[], help="more folders of JPEGs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400_000, help="crops to learn from")
    parser.add_argument("--peak", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    teacher = torchvision.models.mobilenet_v2(weights=None)
    teacher.load_state_dict(load_file(arguments.teacher))
    teacher = teacher.features.eval().to(memory_format=torch.channels_last)
    student = compact_resnet(folded=False).to(memory_format=torch.channels_last)
    projection = nn.Conv2d(WIDTHS[-1], 1280, 1)
    parameters = [*student.parameters(), *projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.peak, weight_decay=0.02, fused=True)

    checkpoint = arguments.output.with_suffix(".checkpoint.pt")
    seen, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        seen, seconds = state["seen"], state["seconds"]
        student.load_state_dict(state["student"])
        projection.load_state_dict(state["projection"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"resumed after {seen} crops", flush=True)

    ids = (arguments.voc / "ImageSets/Main/train.txt").read_text().split()
    paths = [arguments.voc / "JPEGImages" / f"{image_id}.jpg" for image_id in ids]
    paths += sorted(path for folder in arguments.folders for path in folder.rglob("*.jpg"))
    images = read_images(paths)
    print(f"{len(images)} images", flush=True)
    queue_of_batches = batches(images, arguments.seed, seen)
    started, steps, running = time.perf_counter(), 0, np.zeros(2)
    saved = started
    while seen < arguments.images:
        crops = queue_of_batches.get()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seen, arguments.images, arguments.peak)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = teacher(crops).float()
            answer = projection(student(crops)).float()
        cosine = 1 - F.cosine_similarity(answer, target, dim=1).mean()
        smooth = F.smooth_l1_loss(answer, target)
        optimizer.zero_grad(set_to_none=True)
        (cosine + smooth).backward()
        optimizer.step()
        seen, steps, running = seen + len(crops), steps + 1, running + (cosine.item(), smooth.item())
        now = time.perf_counter()
        if steps % 50 == 0:
            print(
                f"{seen}/{arguments.images} cosine {running[0] / 50:.4f} smooth {running[1] / 50:.4f} "
                f"{seconds + now - started:.0f} s",
                flush=True,
            )
            running = np.zeros(2)
        if now - saved > 120 or seen >= arguments.images:
            state = {
                "seen": seen,
                "seconds": seconds + now - started,
                "student": student.state_dict(),
                "projection": projection.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            with whole_file(checkpoint) as unfinished:
                torch.save(state, unfinished)
            saved = now

    student.eval()
    fold_batch_norm(student)
    metadata = {
        "teacher": "MobileNetV2, ImageNet",
        "images": len(images),
        "crops": seen,
        "seed": arguments.seed,
        "final_cosine_distance": round(cosine.item(), 4),
        "seconds": round(seconds + time.perf_counter() - started),
    }
    tensors = {name: value.half().contiguous() for name, value in student.state_dict().items()}
    # `save_file` would leave it readable by the owner alone
    with whole_file(arguments.output) as unfinished:
        unfinished.write_bytes(save(tensors, {"sppnet_backbone": json.dumps(metadata)}))
    print(f"wrote {arguments.output}: {metadata}", flush=True)


if __name__ == "__main__":
    main()
