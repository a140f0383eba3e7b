"""The steps of SPP-net, proposals -> maps -> fully connected layers -> SVMs -> box regression; and of training end to end.

A family is "spp1", maps of one scale, or "spp5", of several. Maps are the same for every seed; what is trained is not.
Source: arXiv:1406.4729, section 4; end to end: arXiv:1504.08083, sections 2.3, 3.1 (truncated layers), 4.5 (which layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.steps import Step, measured
from sppnet.data.annotations import AnnotatedImage
from sppnet.data.images import read_image
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.end_to_end import EndToEndSettings, train_end_to_end
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.finetune import FinetuneSettings, finetune
from sppnet.detection.linear_heads import train_linear_heads
from sppnet.detection.predict import sample_windows
from sppnet.detection.svm import SVMSettings
from sppnet.detection.targets import TrainingImage, training_images
from sppnet.detection.windows_of_images import WindowsOfImages
from sppnet.models.backbones import build_backbone
from sppnet.models.compress import truncate_layers
from sppnet.models.files import load, round_to_stored, save_model
from sppnet.models.sppnet import SPPNet
from sppnet.progress import Progress
from sppnet.proposals.compute import proposals_of
from sppnet.proposals.files import proposals_path

SCALE_IMAGES = 32  # maps whose mean square sets the scale of the features
SVD_PHOTOS = 32  # of their windows the truncated layers should say the same
Train = Callable[
    [SPPNet, Path, Progress], SPPNet | None
]  # in place, or into a new model; its own folder; told of progress
LAYERS = {"fc": "fully connected layers learn", "from": "later convolutions learn too", "all": "all layers learn"}


def proposals_step(ladder: Ladder) -> Step:
    """The proposals of the images to train on; every rung needs them."""
    settings, images = ladder.settings, ladder.train.images
    folder = ladder.cache / "proposals" / settings.proposals

    def run(progress: Progress) -> None:
        ladder.proposals(ladder.train, progress)

    def compute(some: Sequence[AnnotatedImage]) -> None:
        with TemporaryDirectory() as scratch:
            proposals_of(replace(ladder.train, images=tuple(some)), settings.proposals, Path(scratch))

    return Step(
        "proposals",
        ladder.folder / "proposals",
        run,
        makes_model=False,
        shares=lambda: {"proposals": [proposals_path(folder, image.image_id) for image in images]},
        sample=lambda: {"proposals": measured(compute, images)},
    )


def untrained_step(ladder: Ladder, family: str, seed: int, hidden: tuple[int, ...] | None = None) -> Step:
    """A network on the pretrained backbone, nothing else of which is trained; with no ``hidden`` layers, pooled windows alone."""
    name = f"{family}-{'pooled' if hidden == () else 'untrained'}-seed{seed}"

    def run(progress: Progress) -> None:
        torch.manual_seed(seed)
        model = ladder.network(family, build_backbone(ladder.settings.backbone, ladder.weights), hidden)
        round_to_stored(model.backbone)
        model.eval().to(ladder.settings.device)
        model.backbone.to(memory_format=torch.channels_last)
        some = [read_image(image.path) for image in ladder.train.images[:SCALE_IMAGES]]
        squares = [compute_feature_maps(model, each).whole_map.float().square().mean().cpu() for each in some]
        model.set_feature_scale(float(torch.stack(squares).mean()))
        save_model(model, step.model)

    step = Step(name, ladder.folder / name, run, (proposals_step(ladder),))
    return step


def maps_step(ladder: Ladder, family: str, seed: int, *, flip: bool) -> Step:
    """The maps of the images to train on, or of the flipped images. Of a backbone without weights, of one seed."""
    start = untrained_step(ladder, family, seed)
    name = f"{family}-{'flipped-' if flip else ''}maps{f'-seed{seed}' if ladder.of_one_seed else ''}"
    paths = [image.path for image in ladder.train.images]

    def cache_of() -> FeatureMapCache:
        return FeatureMapCache(load(start.model, ladder.settings.device), ladder.maps)

    def compute(some: Sequence[Path]) -> None:
        with TemporaryDirectory(dir=ladder.cache) as scratch:  # a flipped image takes the same
            FeatureMapCache(load(start.model, ladder.settings.device), Path(scratch)).fill(some)

    def shares() -> dict[str, Iterable[Path]]:
        cache = cache_of()
        return {"maps": [cache.path(path, flip=flip) for path in paths]}

    return Step(
        name, ladder.folder / name, lambda progress: cache_of().fill(paths, flip=flip, progress=progress),
        (start, maps_step(ladder, family, seed, flip=False)) if flip else (start,), makes_model=False,
        shares=shares, sample=lambda: {"maps": measured(compute, paths)},
    )  # fmt: skip


def images_to_train(ladder: Ladder) -> list[TrainingImage]:
    return training_images(ladder.train.images, ladder.proposals(ladder.train), len(ladder.train.class_names))


def finetune_settings(ladder: Ladder, seed: int) -> FinetuneSettings:
    """As the ladder's settings say; the same for R-CNN."""
    settings = ladder.settings
    return FinetuneSettings(
        windows_per_image=settings.windows_per_image, flip=settings.flip, learning_rate=settings.learning_rate,
        seed=seed, steps=settings.steps, images_per_step=settings.images_per_step,
    )  # fmt: skip


def finetune_step(ladder: Ladder, family: str, seed: int) -> Step:
    """The fully connected layers, with softmax and the network's own box regression in one loss."""
    start = untrained_step(ladder, family, seed)

    def train(model: SPPNet, folder: Path, progress: Progress) -> None:
        maps = FeatureMapCache(model, ladder.maps)
        finetune(model, images_to_train(ladder), maps, finetune_settings(ladder, seed), folder, progress=progress)

    return training_step(
        ladder, f"{family}-finetuned-seed{seed}", start, train, (maps_step(ladder, family, seed, flip=ladder.settings.flip),)
    )  # fmt: skip


def training_step(ladder: Ladder, name: str, start: Step, train: Train, needs: tuple[Step, ...] = ()) -> Step:
    """A step that trains the model of another further: see `Train`."""

    def run(progress: Progress) -> None:
        model = load(start.model, ladder.settings.device)
        model = train(model, step.folder, progress) or model
        round_to_stored(model)
        save_model(model, step.model)

    step = Step(name, ladder.folder / name, run, (start, *needs))
    return step


def linear_step(
    ladder: Ladder,
    start: Step,
    name: str,
    *,
    svm: SVMSettings | None = None,
    ridge: BoxRegressionSettings | None = None,
    needs: tuple[Step, ...] = (),
) -> Step:
    """SVMs or ridge regression in place of a model's own heads, on its head features; without layers, on pooled windows."""

    def train(model: SPPNet, folder: Path, progress: Progress) -> None:
        maps = FeatureMapCache(model, ladder.maps)
        maps.fill([image.path for image in ladder.train.images], progress=progress)
        windows = WindowsOfImages(maps, ladder.train.images, ladder.proposals(ladder.train))
        train_linear_heads(model, windows, folder, svm=svm, ridge=ridge, progress=progress)

    return training_step(ladder, name, start, train, needs)


# End to end


def layers_of(ladder: Ladder, layers: str) -> str:
    """ "fc", "from" or "all" as `sppnet.detection.end_to_end.trainable_layers` takes it."""
    middle = ladder.settings.from_layer or str(_middle(ladder.settings.backbone))
    return {"fc": "none", "from": middle, "all": "all"}[layers]


@cache
def _middle(backbone: str) -> int:
    """The index of the middle one of a backbone's top-level layers."""
    return len(list(build_backbone(backbone).children())) // 2


def end_to_end_step(ladder: Ladder, layers: str, seed: int) -> Step:
    """Train on from the fine-tuned network of one scale; ``layers`` as of `layers_of`."""
    trained, epochs = layers_of(ladder, layers), ladder.settings.epochs

    def train(model: SPPNet, folder: Path, progress: Progress) -> None:
        # As the page's figures were measured: the package's defaults have changed since.
        settings = EndToEndSettings(train_layers=trained, epochs=epochs, flip=ladder.settings.flip, seed=seed,
                                    windows_per_image=64, side_shares=(1.0,), backbone_rate=0.03)  # fmt: skip
        train_end_to_end(model, images_to_train(ladder), settings, folder, progress=progress)

    return training_step(ladder, f"e2e-{trained}-{epochs}-seed{seed}", finetune_step(ladder, "spp1", seed), train)


def end_to_end_svm_step(ladder: Ladder, seed: int) -> Step:
    """SVMs on a network of which all layers are trained: its maps are its own."""
    start = end_to_end_step(ladder, "all", seed)
    return linear_step(ladder, start, f"e2e-svm-{ladder.settings.epochs}-seed{seed}", svm=SVMSettings(seed=seed))


def svd_step(ladder: Ladder, seed: int) -> Step:
    """The fully connected layers of such a network as products of two thin ones; nothing is trained anew."""
    energy = ladder.settings.svd_energy

    def train(model: SPPNet, folder: Path, progress: Progress) -> SPPNet:
        photos = [image.path for image in ladder.train.images[:SVD_PHOTOS]]
        pooled = sample_windows(
            model, photos, seed=seed, progress=lambda _, done, total: progress("truncation", done, total)
        )
        return truncate_layers(model, energy=energy, pooled=pooled)[0]

    name = f"e2e-svd-{energy:g}-{ladder.settings.epochs}-seed{seed}"
    return training_step(ladder, name, end_to_end_step(ladder, "all", seed), train)
