"""Batches of images of different sizes, each image as if alone: how exact, and how fast.

    uv run python -m benchmarks.mixed_batches --photos FOLDER --json benchmarks/results/mixed_batches.json \
        --markdown docs/mixed-batches.md --picture docs/mixed-batches.png [--weights mobilenet_v2=FILE ...] [--quick]

Exactness: random combinations of 2 to 6 images, every side drawn from 96 to 320 pixels; for each image the largest
difference between its map from the mixed batch and its map alone, divided by the largest value of the latter. Beside it
the same for a plain zero-padded batch; and, for some of the combinations, in double precision, with what single precision
alone costs an image that is by itself: what remains between mixed and alone is rounding, of convolutions that add up in
another order for another shape. Speed: the photos at short side 224 (long side at most 448), without --photos
noise of the shapes that cameras give, through each network in four ways that take turns: one by one;
in mixed batches drawn at random; in mixed batches by size (`SizeBuckets`); and all squashed to one square with as many
pixels as a photo has on average. Resizing is not timed. BatchNorm is folded, as in use. Networks without
--weights have random ones, biases and statistics too, since zeros there would hide what padding does.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.environment import environment
from benchmarks.results_file import read_results, write_results, write_text
from sppnet.data.find import find_images
from sppnet.data.images import image_size, read_image, resize_image, scaled_size
from sppnet.data.samplers import SizeBuckets
from sppnet.models.backbones import RANDOM, build_backbone
from sppnet.models.cut import fold_batch_norm
from sppnet.models.mixed_batch import mixed_features
from sppnet.models.preprocess import Preprocess

NETS = ("squeezenet1_0", "mobilenet_v2", "resnet18", "zf5", "mobilenet_v3_small", "efficientnet_b0")
SIDES = (96, 320)  # pixels, of the random combinations
SHORT_SIDE, LONG_SIDE = 224, 448  # pixels, of the timed photos
COMMON_SIZES = ((3, 4), (4, 3), (2, 3), (3, 2), (1, 1), (9, 16), (16, 9))  # height : width, where no photos are given
WAYS = {"alone": "one by one", "random": "mixed, at random", "buckets": "mixed, by size", "squashed": "squashed"}

Size = tuple[int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NET=FILE", help="weights for some of the networks")
    parser.add_argument("--photos", help="a folder to take photos for the timing from")
    parser.add_argument("--count", type=int, default=96, help="how many photos are timed")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="images in a batch")
    parser.add_argument("--combinations", type=int, default=200, help="of sizes, for the exactness")
    parser.add_argument("--doubles", type=int, default=20, help="of these, how many in double precision too: slow")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("exactness", "speed"),
        default=("exactness", "speed"),
        help="one alone: the other stays as the JSON file has it",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how many times each way takes its turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch; its own choice by default")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the page made from them")
    parser.add_argument("--picture", type=Path, help="draw the picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.count, arguments.combinations, arguments.rounds, arguments.batches = 12, 5, 1, [4]
        arguments.doubles = 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    weights = dict(pair.split("=", 1) for pair in arguments.weights)
    images = timed_images(arguments.photos, arguments.count, torch.device(arguments.device))
    kept = read_results(arguments.json) if set(arguments.parts) < {"exactness", "speed"} else {}
    figures = kept or {"parts": {}, "rows": {}}
    for name in arguments.nets:
        net = network(name, weights.get(name)).to(arguments.device, memory_format=torch.channels_last)
        row = figures["rows"].setdefault(name, {})
        row["weights"] = Path(weights[name]).name if name in weights else "random"
        if "exactness" in arguments.parts:
            row["exactness"] = exactness(net, arguments.combinations, arguments.doubles, torch.device(arguments.device))
            print(name, {key: f"{max(values):.1e}" for key, values in row["exactness"].items()}, flush=True)
        if "speed" in arguments.parts:
            row["speed"] = [speed(net, images, batch, arguments.rounds) for batch in arguments.batches]
        for each in row["speed"] if "speed" in arguments.parts else []:
            rates = {way: round(each["images_per_s"][way], 1) for way in WAYS}
            print(name, f"batch {each['batch']}", rates, flush=True)
    made = {"environment": environment(), "device": arguments.device}
    if "exactness" in arguments.parts:
        figures["parts"]["exactness"] = made | {"combinations": arguments.combinations, "doubles": arguments.doubles}
    if "speed" in arguments.parts:
        figures["parts"]["speed"] = made | {
            "images": len(images),
            "sizes": sorted({(image.shape[1], image.shape[2]) for image in images}),
            "from": Path(arguments.photos).name if arguments.photos else "made up",
            "rounds": arguments.rounds,
        }
    if arguments.json:
        write_results(arguments.json, figures)
    if arguments.picture:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(figures, network("squeezenet1_0", weights.get("squeezenet1_0")), arguments.picture)
    text = page(figures, arguments.picture)
    print(text)
    if arguments.markdown:
        write_text(arguments.markdown, text)


def network(name: str, weights: str | None) -> nn.Module:
    """A backbone as it is used, its BatchNorms folded; random biases and statistics where it has no weights of its own."""
    torch.manual_seed(0)
    net = build_backbone(name, weights or RANDOM, fold=False)
    if weights is None:
        for parameter_name, parameter in net.named_parameters():
            if parameter_name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
    fold_batch_norm(net.eval())
    return net


def pixels(photo: np.ndarray, size: Size) -> Tensor:
    """[3, h, w] float32, normalized, channels last in memory."""
    return Preprocess().normalize(resize_image(photo, size))[0]


def timed_images(folder: str | None, count: int, device: torch.device) -> list[Tensor]:
    """Photos drawn at random, at the size at which they would be classified."""
    if folder is None:
        shapes = random.Random(0).choices(COMMON_SIZES, k=count)
        sizes = [scaled_size((100 * height, 100 * width), SHORT_SIDE, LONG_SIDE) for height, width in shapes]
        noise = torch.Generator().manual_seed(0)
        images = [torch.randn(*size, 3, generator=noise).permute(2, 0, 1) for size in sizes]
    else:
        paths = random.Random(0).sample(find_images([folder]), count)
        images = [pixels(read_image(path), scaled_size(image_size(path), SHORT_SIDE, LONG_SIDE)) for path in paths]
    return [image.to(device) for image in images]


# Exactness


@torch.no_grad()
def exactness(net: nn.Module, combinations: int, doubles: int, device: torch.device) -> dict[str, list[float]]:
    """For every image of every combination, relative differences: `mixed` and `padded` (a plain padded batch) to alone; for
    the first `doubles` combinations, `double`: the same of mixed in double precision, and `rounding`: of alone, between
    single and double precision."""
    differences: dict[str, list[float]] = {"mixed": [], "padded": [], "double": [], "rounding": []}
    precise = copy.deepcopy(net).double()
    draw_sides, noise = random.Random(0), torch.Generator().manual_seed(0)
    for number in range(combinations):
        sizes = [(draw_sides.randint(*SIDES), draw_sides.randint(*SIDES)) for _ in range(draw_sides.randint(2, 6))]
        images = [torch.randn(*size, 3, generator=noise).permute(2, 0, 1).to(device) for size in sizes]
        mixed, own_sizes = mixed_features(net, images)
        padded = net(pad(images))
        alone = [net(image[None])[0] for image in images]
        assert [each.shape[1:] for each in alone] == [torch.Size(size) for size in own_sizes]
        differences["mixed"] += _differences(mixed, alone)
        differences["padded"] += _differences(padded, alone)
        if number < doubles:
            exact = [precise(image[None].double())[0] for image in images]
            differences["double"] += _differences(mixed_features(precise, [each.double() for each in images])[0], exact)
            differences["rounding"] += _differences(alone, exact)
    return differences


def _differences(batch: Tensor | list[Tensor], alone: list[Tensor]) -> list[float]:
    """For each image, the largest difference over its own map, divided by the largest value."""
    return [
        float((features[:, : own.shape[1], : own.shape[2]] - own).abs().max() / own.abs().max())
        for features, own in zip(batch, alone, strict=True)
    ]


def pad(images: Sequence[Tensor]) -> Tensor:
    """A plain padded batch."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


# Speed


@torch.no_grad()
def speed(net: nn.Module, images: list[Tensor], batch: int, rounds: int) -> dict[str, Any]:
    """Images a second, medians over turns that the four ways take one after another."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    side = round(statistics.mean(height * width for height, width in sizes) ** 0.5)
    squashed = [F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0] for image in images]
    shuffled = random.Random(1).sample(range(len(images)), len(images))
    groups = {
        "random": [shuffled[start : start + batch] for start in range(0, len(images), batch)],
        "buckets": SizeBuckets(sizes, batch, shuffle=False).batches(0),
    }
    at_once = [list(range(start, min(start + batch, len(images)))) for start in range(0, len(images), batch)]
    stacked = [torch.stack([squashed[index] for index in group]) for group in at_once]
    stacked = [each.contiguous(memory_format=torch.channels_last) for each in stacked]

    def alone() -> None:
        for image in images:
            net(image[None])

    def mixed(way: str) -> None:
        for group in groups[way]:
            mixed_features(net, [images[index] for index in group])

    def square_batches() -> None:
        for each in stacked:
            net(each)

    ways: dict[str, Callable[[], None]] = {
        "alone": alone,
        "random": partial(mixed, "random"),
        "buckets": partial(mixed, "buckets"),
        "squashed": square_batches,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            started, started_processor = time.perf_counter(), time.process_time()
            run()
            if images[0].is_cuda:
                torch.cuda.synchronize()
            if turn:  # the first is the warm-up
                seconds[way].append(time.perf_counter() - started)
                processor[way].append(time.process_time() - started_processor)
    return {
        "batch": batch,
        "square": side,
        "images_per_s": {way: len(images) / statistics.median(values) for way, values in seconds.items()},
        "padding": {way: padding_share(sizes, each) for way, each in groups.items()},
        "seconds": seconds,
        "processor_seconds": processor,  # of all threads: what a busy machine spoils less
    }


def padding_share(sizes: Sequence[Size], groups: Sequence[Sequence[int]]) -> float:
    """Share of all pixels of the batches that are padding."""
    own = sum(sizes[index][0] * sizes[index][1] for group in groups for index in group)
    padded = sum(
        len(group) * max(sizes[index][0] for index in group) * max(sizes[index][1] for index in group)
        for group in groups
    )
    return 1 - own / padded


# The page and the picture


def page(figures: dict[str, Any], picture: Path | None) -> str:
    exact, fast = figures["parts"]["exactness"], figures["parts"]["speed"]
    lines = [
        "# Batches of mixed sizes",
        "",
        "Images of different sizes go through a network in one zero-padded batch, and every one gets the same features as "
        "alone: before each layer that looks sideways, what lies beyond an image's own edge is set back to what the layer "
        "itself would have padded with.",
        "",
        *([f"![What a padded batch changes, and a mixed batch does not]({picture.name})", ""] if picture else []),
        "Made by `python -m benchmarks.mixed_batches`.",
        "",
        "## Exactness",
        "",
        f"{exact['combinations']} random combinations of 2 to 6 images, sides of {SIDES[0]} to {SIDES[1]} pixels. Relative difference to "
        "the image alone: largest difference over an image's map, divided by its largest value; the largest over all images. In "
        f"double precision, {exact['doubles']} of the combinations; there also by how much single precision changes an image that is "
        f"alone. {exact['environment']['text']}; device {exact['device']}.",
        "",
        "| network | weights | images | mixed batch | median | in double precision | alone, single to double | plain padded batch |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in figures["rows"].items():
        found = row["exactness"]
        double, rounding = (f"{max(found[key]):.1e}" if found.get(key) else "-" for key in ("double", "rounding"))
        lines.append(
            f"| {name} | {row['weights']} | {len(found['mixed'])} | **{max(found['mixed']):.1e}** "
            f"| {statistics.median(found['mixed']):.1e} | {double} | {rounding} | {max(found['padded']):.1e} |"
        )
    lines += [
        "",
        "## Speed",
        "",
        f"{fast['images']} images ({fast['from']}) of {len(fast['sizes'])} sizes, short side {SHORT_SIDE}, long side at most "
        f"{LONG_SIDE}; evaluation, channels last, float32; medians of {fast['rounds']} turns. Images a second; in brackets the share "
        "of pixels that are padding. Squashed: all at one square size of as many pixels as an image has on average. "
        f"{fast['environment']['text']}; device {fast['device']}.",
        "",
        f"| network | batch | {' | '.join(WAYS.values())} |",
        "|---|---:|" + "---:|" * len(WAYS),
    ]
    for name, row in figures["rows"].items():
        for each in row["speed"]:
            cells = [
                f"{each['images_per_s'][way]:.1f}"
                + (f" ({each['padding'][way]:.0%})" if way in each["padding"] else "")
                for way in WAYS
            ]
            lines.append(f"| {name} | {each['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(figures: dict[str, Any], net: nn.Module, path: Path) -> None:
    """Photos in one padded batch, their maps alone, what a plain padded batch and a mixed batch change; all networks below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    photos = {"chelsea": (200, 300), "coffee": (300, 200), "astronaut": (260, 260)}  # skimage's, free to show
    images = [pixels(getattr(skimage.data, name)(), size) for name, size in photos.items()]
    with torch.no_grad():
        mixed, sizes = mixed_features(net, images)
        padded = net(pad(images))
        alone = [net(image[None])[0] for image in images]
    height, width = (max(size[axis] for size in photos.values()) for axis in (0, 1))
    rows, columns = mixed.shape[2:]
    figure = plt.figure(figsize=(11, 10.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.1, 1))
    axes = upper.subplots(len(images), 4)
    titles = (
        "one padded batch",
        "the map of each photo alone",
        "a plain padded batch\nchanges it by",
        "a mixed batch\nchanges it by",
    )
    for index, (name, size) in enumerate(photos.items()):
        own_rows, own_columns = sizes[index]
        canvas = np.full((height, width, 3), 40, np.uint8)
        canvas[: size[0], : size[1]] = resize_image(getattr(skimage.data, name)(), size)
        own = alone[index]
        changes = [
            (features[index, :, :own_rows, :own_columns] - own).abs().amax(0) / own.abs().max()
            for features in (padded, mixed)
        ]
        shown = np.full((3, rows, columns), np.nan)
        for layer, values in enumerate((own.norm(dim=0) / own.norm(dim=0).max(), *changes)):
            shown[layer, :own_rows, :own_columns] = values.numpy()
        axes[index, 0].imshow(canvas)
        axes[index, 1].imshow(shown[0], cmap="viridis", vmin=0, vmax=1)
        for column, values in ((2, shown[1]), (3, shown[2])):
            last = axes[index, column].imshow(values, cmap="inferno", vmin=0, vmax=0.5)
            axes[index, column].set_xlabel(
                f"at most {np.nanmax(values):.0e}" if column == 3 else f"at most {np.nanmax(values):.0%}"
            )
        for column in range(4):
            axes[index, column].set_facecolor("0.85")
            axes[index, column].set_xticks([])
            axes[index, column].set_yticks([])
            side = (size[1], size[0]) if column == 0 else (own_columns, own_rows)
            frame = Rectangle((-0.5, -0.5), *side, fill=False, edgecolor="tab:cyan", linewidth=1.5, clip_on=False)
            axes[index, column].add_patch(frame)
        axes[index, 0].set_ylabel(f"{size[0]} x {size[1]} px", fontsize=9)
        axes[index, 1].set_xlabel(f"{own_rows} x {own_columns} cells")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=11)
    upper.colorbar(
        last, ax=axes[:, 2:], label="largest difference over channels / largest value of the map", shrink=0.7
    )
    strip = lower.subplots()
    for place, row in enumerate(figures["rows"].values()):
        for way, color in (("padded", "tab:red"), ("mixed", "tab:blue")):
            values = np.maximum(row["exactness"][way], 1e-9)
            spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
            strip.scatter(values, place + spread, s=4, color=color, alpha=0.3, linewidths=0)
    strip.axvline(1e-5, color="0.4", linewidth=1, linestyle="--")
    strip.annotate("1e-5", (1e-5, -0.7), color="0.3", fontsize=9, ha="left", va="bottom")
    strip.set_xscale("log")
    strip.set_yticks(range(len(figures["rows"])), list(figures["rows"]))
    strip.set_ylim(len(figures["rows"]) - 0.4, -0.8)
    strip.set_xlabel(
        "relative difference to the image alone, one dot an image, "
        f"{figures['parts']['exactness']['combinations']} random combinations of sizes "
        "(0 drawn at 1e-9)"
    )
    strip.text(0.02, 1.03, "mixed batch", color="tab:blue", transform=strip.transAxes)
    strip.text(0.98, 1.03, "plain padded batch", color="tab:red", transform=strip.transAxes, ha="right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
