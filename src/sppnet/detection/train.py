"""Train a detector from annotated images: proposals -> feature maps -> the stages that a preset names -> a model file.

    quick      SVMs with hard negatives and ridge regression on a frozen backbone, nothing fine-tuned: minutes
    standard   the fully connected layers are fine-tuned on cached feature maps, then all layers end to end
    paper      the fully connected layers are fine-tuned on cached feature maps, then SVMs and ridge regression

Every stage leaves its state in the cache directory and goes on where it was stopped. Source: arXiv:1406.4729, section 4; end to
end: arXiv:1504.08083.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch

from sppnet.cache import Part, cache_directory, fingerprint, read_tensors, write_tensors
from sppnet.data.annotations import AnnotatedImage, DetectionData
from sppnet.data.images import content_key, read_image
from sppnet.detection.box_regression import BoxRegressionSettings
from sppnet.detection.end_to_end import EndToEndSettings, train_end_to_end, trainable_layers
from sppnet.detection.feature_map_cache import FeatureMapCache
from sppnet.detection.feature_maps import compute_feature_maps
from sppnet.detection.finetune import FinetuneSettings, finetune
from sppnet.detection.linear_heads import train_image_classifier, train_linear_heads
from sppnet.detection.network_proposals import (
    ProposalSettings,
    other_proposals,
    proposals_of_images,
    train_proposal_head,
)
from sppnet.detection.svm import SVMSettings
from sppnet.detection.targets import training_images
from sppnet.detection.windows_of_images import WindowsOfImages
from sppnet.errors import ModelError, SettingsError, UserError
from sppnet.files import check_outputs
from sppnet.models.backbones import LITE, RANDOM, build_backbone, check_not_random, pretrained_weights
from sppnet.models.files import check_model_path, load, round_to_stored, save_model, trained_by
from sppnet.models.precision import choose_device
from sppnet.models.preprocess import Preprocess
from sppnet.models.sppnet import Architecture, DetectionSettings, SPPNet, build_model
from sppnet.progress import Progress, no_progress, timed
from sppnet.proposals.compute import NETWORK, check_method
from sppnet.training import IN_PYTHON

Preset = Literal["quick", "standard", "paper"]
Stage = Literal["proposal head", "fine-tuning", "end to end", "linear heads"]
HIDDEN = (1024, 1024)
LEVELS = (3, 2, 1)  # bins per side: at a stride of 32 a window seldom has six cells a side
LONG_SIDE = 5 / 3  # the long side's limit, in short sides: 1000 for 600 (arXiv:1504.08083)
LITE_STRIDE = 16  # of efficientnet_lite0, by dilation: of its own 32 pixels a small object has no cell to itself
LITE_TRAINED = "block3"  # edges and colours are the same everywhere, and the largest maps take the longest to train
SCALE_IMAGES = 32  # maps whose mean square sets the scale of the features
UNUSED = {
    "quick": (("hidden", "train_layers", "epochs", "learning_rate", "flip"), "preset quick, which fine-tunes nothing"),
    "standard": (("ridge",), "preset standard, whose network moves boxes itself"),
    "paper": (("train_layers",), "preset paper, which freezes the backbone"),
}
OF_MODEL = (
    ("backbone", "weights", "backbone_stride", "levels", "hidden", "short_side"),
    "a training that starts from a model, which brings its own",
)


@dataclass(frozen=True)
class DetectorSettings:
    """How a detector is trained. What is left out is chosen by the preset; what the preset does not use is refused.

    Args:
        preset: quick (minutes, backbone frozen), standard (end to end), or paper (the paper's stages).
        backbone: efficientnet_lite0 where not given, or a model of torchvision or timm.
        weights: of the backbone: a file, a name that its package knows, or random; left out: its pretrained ones.
        levels: bins per side of the pyramid; (3, 2, 1) where not given.
        hidden: widths of the fully connected layers; (1024, 1024) where not given. quick has none.
        short_side: of an image, in pixels, unless its long side would be above 5/3 of this; 600 where not given.
        scales: several short sides, such as 480 576 688 864 1200: a window is pooled where its object looks the usual size.
        proposals: network, selective-search, edge-boxes, grid, or several joined by +; left out: network for standard, whose
            convolutions are trained with it, else selective-search; or the model's.
        train_layers: standard: all, none, or the first layer of the backbone that is trained, by name or index; left out: all,
            of efficientnet_lite0 from block3 on.
        epochs: how often each stage sees every image; left out: 6 end to end, and 2500 steps of fully connected layers.
        learning_rate: peak of the schedule; 0.001 where not given.
        flip: train on flipped images too; twice the feature maps. True where not given; quick has no use for them.
        ridge: quick, paper: move boxes by ridge regression, and not by what moves them already. True where not given.
        checkpoint_interval: steps, or images of linear heads, after which a stopped stage can go on.
        seed: of all that is drawn.
        backbone_stride: pixels from one cell of the map to the next, by dilation; left out: 16 for efficientnet_lite0, and
            the backbone's own for others.

    Raises:
        SettingsError: a setting out of its range, or that the preset does not use.

    Example:
        >>> DetectorSettings("quick", epochs=3)
        Traceback (most recent call last):
        sppnet.errors.SettingsError: epochs is not used by preset quick, which fine-tunes nothing: leave it out
    """

    preset: Preset = "standard"
    backbone: str | None = None
    weights: str | None = None
    levels: Annotated[tuple[int, ...] | None, IN_PYTHON] = None
    hidden: Annotated[tuple[int, ...] | None, IN_PYTHON] = None
    short_side: int | None = None
    scales: tuple[int, ...] = ()
    proposals: str | None = None
    train_layers: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    flip: Annotated[bool | None, IN_PYTHON] = None
    ridge: Annotated[bool | None, IN_PYTHON] = None
    checkpoint_interval: Annotated[int | None, IN_PYTHON] = None
    seed: Annotated[int, IN_PYTHON] = 0
    backbone_stride: Annotated[int | None, IN_PYTHON] = None

    def __post_init__(self) -> None:
        if self.preset not in get_args(Preset):
            raise SettingsError(f"preset must be one of {', '.join(get_args(Preset))}: got {self.preset!r}")
        for name in ("short_side", "epochs", "checkpoint_interval", "backbone_stride"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise SettingsError(f"learning_rate must be above 0 and at most 1: got {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed must be a whole number from 0 to {2**32 - 1}: got {self.seed}")
        self.refuse(*UNUSED[self.preset])

    def refuse(self, names: Sequence[str], user: str) -> None:
        """Raise a SettingsError where one of these settings was given, which ``user`` does not use."""
        for name in names:
            if getattr(self, name) is not None:
                raise SettingsError(f"{name} is not used by {user}: leave it out")

    def stages(self, starts: bool, proposes: bool) -> tuple[Stage, ...]:
        """What is trained, in order; ``starts``: from a model; ``proposes``: with a proposal head."""
        head: tuple[Stage, ...] = ("proposal head",) if proposes and not starts else ()
        if self.preset == "quick":
            return (*head, "linear heads")
        if self.preset == "paper":
            return (*head, "fine-tuning", "linear heads")
        if self.train_layers == "none":
            return (*head, "fine-tuning")
        return ("end to end",) if starts or proposes or self.weights == RANDOM else ("fine-tuning", "end to end")

    def given(self, *names: str) -> dict[str, Any]:
        """Those of these settings that are not left out."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def train_detector(
    data: DetectionData,
    *,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    settings: DetectorSettings | None = None,
    model: SPPNet | str | Path | None = None,
    device: str | torch.device = "auto",
    progress: Progress = no_progress,
    **options: Any,
) -> SPPNet:
    """Train a detector.

    Args:
        data: the images to train on, all of them; keep a split back to evaluate on.
        output: the model file to write, .safetensors; None: only the model is returned.
        cache: proposals, feature maps and checkpoints go below this folder, which several trainings may share; None: they are
            gone afterwards, and a stopped training begins anew.
        settings, options: how; options are fields of `DetectorSettings`, and come before it.
        model: start from this detector, whose classes are those of the data in any order: a model, a file, or a shipped name.
            It stays as it is. With standard, training then goes on end to end.
        device: where to compute; auto: on a GPU if there is one.
        progress: called with a stage, done, total.

    Returns:
        The detector, in evaluation mode, with the numbers that its file holds; its ``record`` says how it was trained.

    Raises:
        UserError: no images or no objects, unreadable images (all are named), no room for the maps, an output that cannot be
            written, a setting that is not used, or a model that cannot be trained further.
        KeyboardInterrupt: at Ctrl-C; the next call goes on from the last checkpoint.

    Source: arXiv:1406.4729, section 4; arXiv:1504.08083.
    """
    settings = replace(settings or DetectorSettings(), **options)
    output = None if output is None else Path(output)
    if not any((~image.difficult).any() for image in data.images):
        raise UserError(f"split {data.split!r} holds no object to train on ({len(data)} images)")
    if output is not None:
        check_outputs(check_model_path(output))  # before hours of work
    net = _new_model(settings, data.class_names) if model is None else _start(model, settings)
    train_layers = settings.train_layers or (LITE_TRAINED if net.architecture.backbone == LITE else "all")
    if settings.preset == "standard":
        trainable_layers(net.backbone, train_layers)  # a mistake in it is said before the work
    data = data.relabelled(net.class_names)
    net.eval().to(choose_device(str(device)))
    net.backbone.to(memory_format=torch.channels_last)
    method = net.detection.proposals
    by_network = NETWORK in check_method(method)
    stages = settings.stages(model is not None, by_network)
    if "end to end" in stages and by_network and method != NETWORK:
        remedy = "train with network alone, and add others in detect and evaluate"
        raise SettingsError(
            f"proposals {method}: end to end, a network learns from its own or from others, not both; {remedy}"
        )
    if "end to end" in stages and not by_network:  # the head would be left behind by the map that it reads
        net.proposal_head, net.architecture = None, replace(net.architecture, proposes=False)
    shared = settings.given("flip", "learning_rate", "checkpoint_interval", "seed")
    seconds: dict[str, float] = {}
    record: dict[str, Any] = {}
    with cache_directory(cache) as folder:
        with timed(seconds, "proposals"):
            proposals = other_proposals(data, method, folder, progress)
        if model is None:
            _set_feature_scale(net, data.images, folder)
        maps = FeatureMapCache(net, folder / "feature-maps")
        if stages[0] != "end to end":
            with timed(seconds, "feature maps"):
                flip = stages[0] != "linear heads" and settings.flip is not False
                maps.fill([image.path for image in data.images], flip=flip, progress=progress)
        if "proposal head" in stages:
            with timed(seconds, "proposal head"):
                alone = ProposalSettings(**shared)
                train_proposal_head(net, data.images, maps, alone, folder, progress=progress)
            round_to_stored(net)
        if stages[0] != "end to end":  # which proposes while it is trained
            with timed(seconds, "proposals"):
                proposals = proposals_of_images(net, maps.read, data, method, proposals, progress)
        images = training_images(data.images, proposals, len(net.class_names))
        if "fine-tuning" in stages:
            with timed(seconds, "fine-tuning"):
                finetuning = FinetuneSettings(**shared)
                if settings.epochs is not None:
                    steps = math.ceil(settings.epochs * len(images) / finetuning.images_per_step)
                    finetuning = replace(finetuning, steps=steps)
                finetune(net, images, maps, finetuning, folder, progress=progress)
            round_to_stored(net)  # what comes next is trained on what the model file holds
        if "end to end" in stages:
            with timed(seconds, "end to end"):
                whole = EndToEndSettings(**shared, **settings.given("epochs"), train_layers=train_layers)
                train_end_to_end(net, images, whole, folder, progress=progress)
            round_to_stored(net)
        if "linear heads" in stages:
            svm = SVMSettings(**settings.given("checkpoint_interval", "seed"))
            ridge = None if settings.ridge is False else BoxRegressionSettings(**settings.given("checkpoint_interval"))
            windows = WindowsOfImages(maps, data.images, proposals)
            record |= train_linear_heads(net, windows, folder, svm=svm, ridge=ridge, progress=progress)
            if settings.preset == "quick" and model is None:
                with timed(seconds, "image classifier"):
                    choice = train_image_classifier(maps, data.images, settings.seed, progress=progress)
                    record["image_classifier"] = choice.to_dict()
            round_to_stored(net)
    net.requires_grad_(True)
    net.record = {
        **trained_by(),
        "data": {"split": data.split, "images": len(data), "objects": sum(len(i.gt_labels) for i in data.images)},
        "settings": dataclasses.asdict(settings) | {"weights": settings.weights and Path(settings.weights).name},
        "stages": list(stages),
        "started_from": None if model is None else net.record,
        **record,
        "seconds": {stage: round(value) for stage, value in seconds.items()} | record.get("seconds", {}),
    }
    if output is not None:
        save_model(net, output)
    return net


def train_svms_of(model: SPPNet, data: DetectionData, *, ridge: bool = True, **options: Any) -> SPPNet:
    """Train the paper's last stages on a detector: SVMs with hard negatives and, unless ``ridge`` is off, box regression.

    Args:
        model: stays as it is; its classes are those of the data, in any order.
        data: the images that the model was trained on serve.
        options: ``output``, ``cache``, ``progress``, as of `train_detector`.

    Returns:
        The detector with these heads, to which classes can be added (`sppnet.detection.linear_heads.add_class`).

    Raises:
        UserError: as of `train_detector`.
    """
    return train_detector(data, model=model, preset="quick", ridge=ridge, device=model.device, **options)


def _new_model(settings: DetectorSettings, class_names: tuple[str, ...]) -> SPPNet:
    """A detector whose backbone alone has been trained, on something else."""
    name = settings.backbone or LITE
    weights = settings.weights or pretrained_weights(name)
    if (settings.train_layers or "all") != "all" or settings.preset != "standard":
        check_not_random(name, weights)
    if settings.preset == "quick" and settings.ridge is False:
        raise SettingsError("ridge cannot be off for a new detector of preset quick: nothing else would move its boxes")
    hidden = () if settings.preset == "quick" else HIDDEN if settings.hidden is None else settings.hidden
    short_side = settings.short_side or Preprocess.short_side
    stride = settings.backbone_stride or (LITE_STRIDE if name == LITE else 0)
    proposals = settings.proposals or (NETWORK if settings.preset == "standard" else DetectionSettings.proposals)
    proposes = NETWORK in check_method(proposals)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        backbone = build_backbone(name, weights, stride or None)
        net = build_model(
            Architecture(
                class_names, name, settings.levels or LEVELS, hidden, backbone_stride=stride, proposes=proposes
            ),
            Preprocess(short_side, round(LONG_SIDE * short_side)),
            DetectionSettings(proposals, settings.scales),
            backbone=backbone,
        )
    round_to_stored(net.backbone)  # so that the feature maps are those of the model file
    return net


def _start(model: SPPNet | str | Path, settings: DetectorSettings) -> SPPNet:
    """The detector to train further, which is not the one that was given."""
    settings.refuse(*OF_MODEL)
    net = copy.deepcopy(model) if isinstance(model, SPPNet) else load(model)
    name = "the model" if isinstance(model, SPPNet) else str(model)
    if net.window_classifier is None:
        raise ModelError(f"{name} classifies only: give a detector, as 'sppnet train detector' writes them")
    own = net.architecture.window_classifier == "softmax" and net.architecture.box_regressor == "network"
    if settings.preset != "quick" and not own:
        raise ModelError(f"{name} has SVMs or box regressors already: give the detector that they were added to")
    net = net.at_scales(settings.scales) if settings.scales else net
    net.detection = replace(net.detection, proposals=settings.proposals or net.detection.proposals)
    if NETWORK in check_method(net.detection.proposals) and net.proposal_head is None:
        raise ModelError(
            f"{name} has no proposal head, so no network proposals: train a new detector with them, or take others"
        )
    return net


def _set_feature_scale(net: SPPNet, images: Sequence[AnnotatedImage], folder: Path) -> None:
    """Scale the features so that their mean square over the first images is 1; found once for a backbone and images."""
    paths = [image.path for image in images[:SCALE_IMAGES]]
    parts: list[Part] = [net.backbone.state_dict(), repr(net.preprocess), *(content_key(path) for path in paths)]
    file = folder / "feature-maps" / f"scale-{fingerprint(parts, size=8)}.safetensors"
    found = read_tensors(file)
    if found is None:
        sides = (net.preprocess.short_side,)
        maps = (compute_feature_maps(net, read_image(path), sides).whole_map for path in paths)
        mean = torch.stack([features.float().square().mean().cpu() for features in maps]).mean()
        found = {"mean_square": mean}, {}
        write_tensors(file, *found)
    net.set_feature_scale(float(found[0]["mean_square"]))
