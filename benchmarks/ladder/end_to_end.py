"""The steps of end-to-end training: from a fine-tuned SPP-net, layers of the backbone learn as well; then what may follow.

Source: arXiv:1504.08083, sections 2.3 (training), 3.1 (truncated layers), 4.5 (which layers learn).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

from sppnet.detection.fast_rcnn import FastRcnnSettings
from sppnet.detection.learning_layers import ALL, FC_ONLY, FROM
from sppnet.detection.map_cache import MapCache
from sppnet.detection.window_sample import sample_windows

from benchmarks.ladder.settings import Ladder
from benchmarks.ladder.spp import finetune_step, leaves_of, model_file, start_file, svm_step
from benchmarks.ladder.steps import Report, Step
from sppnet.detection.end_to_end import train_end_to_end
from sppnet.models.backbones import build_backbone
from sppnet.models.compress import truncate_layers
from sppnet.models.files import load, save_model, training_record

SVD_PHOTOS = 32  # to learn from; of their windows the truncated layers should say the same
LAYERS = {"fc": "fully connected layers learn", "from": "later convolutions learn too", "all": "all layers learn"}


def learn_of(ladder: Ladder, layers: str) -> str:
    """ "fc", "from" or "all" as `sppnet.detection.learning_layers.choose_layers` takes it."""
    if layers == "from":
        return f"{FROM}{ladder.settings.from_layer or _middle(ladder.settings.backbone)}"
    return {"fc": FC_ONLY, "all": ALL}[layers]


@cache
def _middle(backbone: str) -> int:
    """The index of the middle one of a backbone's top-level layers."""
    return len(list(build_backbone(backbone).children())) // 2


def end_to_end_step(ladder: Ladder, layers: str, seed: int) -> Step:
    """Train on from the fine-tuned network of one scale; ``layers`` as of `learn_of`."""
    start, epochs = finetune_step(ladder, "spp1", seed), ladder.settings.epochs
    learn = learn_of(ladder, layers)
    name = f"e2e-{learn.replace(':', '-')}-{epochs}-seed{seed}"
    output = model_file(ladder, name)

    def run(report: Report) -> None:
        settings = FastRcnnSettings(learn=learn, epochs=epochs, mirrored=ladder.settings.mirrored, seed=seed)
        train_end_to_end(
            ladder.train, start_file(start), output, ladder.work, settings=settings, device=ladder.settings.device,
            report=report,
        )  # fmt: skip

    return Step(name, output, run, leaves_of(ladder, name), (start,), ("proposals",))


def end_to_end_svm_step(ladder: Ladder, seed: int) -> Step:
    """SVMs on a network of which all layers have learned: its maps are its own."""
    start = end_to_end_step(ladder, "all", seed)
    name = f"e2e-svm-{ladder.settings.epochs}-seed{seed}"
    step = svm_step(ladder, start, name, seed, paid=("proposals",))

    def leaves() -> dict[str, Iterable[Path]]:
        cache = MapCache.of(load(start_file(start)), ladder.work / "maps")
        return {**step.leaves(), "maps": [cache.path(image.path) for image in ladder.train.images]}

    return Step(step.name, step.makes, step.run, leaves, step.needs, step.paid)


def svd_step(ladder: Ladder, seed: int) -> Step:
    """The fully connected layers of such a network as products of two thin ones; nothing is learned anew."""
    start, energy = end_to_end_step(ladder, "all", seed), ladder.settings.svd_energy
    name = f"e2e-svd-{energy:g}-{ladder.settings.epochs}-seed{seed}"
    output = model_file(ladder, name)

    def run(report: Report) -> None:
        model = load(start_file(start), ladder.settings.device)
        photos = [image.path for image in ladder.train.images[:SVD_PHOTOS]]
        pooled = sample_windows(model, photos, seed=seed, progress=partial(report, "truncation"))
        small, kept = truncate_layers(model, energy=energy, pooled=pooled)
        record = {
            **training_record(start_file(start)),
            "compressed": {"ranks": small.architecture.ranks, "energy": kept},
        }
        save_model(small, output, record)

    return Step(name, output, run, leaves_of(ladder, name), (start,))
