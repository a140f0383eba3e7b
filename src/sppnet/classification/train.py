"""Train a classifier on labelled images of any size: linear SVMs or layers on a frozen backbone, or the whole network.

Files that can be read -> their pooled features, once (`sppnet.classification.features`) -> SVMs, the paper's way, or layers trained in
epochs; or batches of like sizes -> the whole network in epochs (`sppnet.classification.epochs`). Validation images choose the best
epoch, and nothing of SVMs. A run that was stopped, by whatever means, goes on with what is cached, and ends with the same weights,
bit for bit on a CPU, as if never stopped. Source: arXiv:1406.4729, section 3.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from sppnet.cache import cache_directory
from sppnet.classification.batches import TrainingSizes
from sppnet.classification.epochs import EpochSettings, TrainedEpochs, has_batch_norm, train_epochs
from sppnet.classification.evaluate import ClassifierEvaluation, evaluate_classifier, evaluate_features
from sppnet.classification.features import LARGEST_ASPECT, pooled_features, readable_images, scale_features
from sppnet.data.images import read_image
from sppnet.data.labelled import LabelledImages, split_off
from sppnet.errors import ModelError, SettingsError, UserError
from sppnet.files import check_outputs, check_replaceable, write_json
from sppnet.linear.selection import SVMChoice, train_calibrated_svms
from sppnet.linear.svm import label_targets
from sppnet.models.backbones import LITE, RANDOM, build_backbone, check_not_random, pretrained_weights
from sppnet.models.files import check_model_path, round_to_stored, save_model, trained_by
from sppnet.models.precision import choose_device
from sppnet.models.preprocess import Preprocess, ResizeMode
from sppnet.models.sppnet import Architecture, SPPNet, build_model
from sppnet.progress import Progress, no_progress
from sppnet.training import IN_PYTHON
from sppnet.training.checkpoints import write_log
from sppnet.visualize.draw import draw_mistakes, save_image
from sppnet.visualize.plots import plot_confusion, plot_training

VALIDATION_SHARE = 0.15  # of every class
MAX_IMAGES = 20_000  # that SVMs learn from: their products take 1.6 GB, and twice that while they are solved
RECORDED = ("top1", "top1_interval", "top5", "mean_class", "images")
PICTURES = ("evaluation.json", "confusion.png", "mistakes.jpg", "curves.png")  # of a report


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is built and trained.

    Args:
        train_layers: "head": the layers behind the frozen backbone, in minutes; "all": the whole network, which wants a GPU or patience.
        classifier: "svm": linear SVMs on the pooled pyramid, as in the paper, their decision scores made probabilities; "softmax":
            layers trained in epochs. Left out: svm, but softmax with hidden layers or with all layers trained.
        backbone: the network before the pyramid: a name of this project, of torchvision or, if installed, of timm.
        weights: the backbone's: a file, a name that torchvision or timm knows, or, where all layers are trained, "random".
            Left out: the pretrained ones.
        levels: bins per side of the pyramid.
        hidden: with softmax, widths of fully connected layers before the last (paper: 4096 4096).
        resize_mode: images at their own shape ("keep-aspect"), or how they become square.
        short_side: pixels; the long side is at most four times as long.
        sides: where all layers are trained, sides of squares, in pixels, that are shown in turn, an epoch each (paper: 224 180).
            Left out: images as they are in use.
        epochs: with softmax, how often every image is seen; left out: 30.
        batch_size: with softmax, images in one step, on each device; left out: 32.
        learning_rate: with softmax, the peak; a pretrained backbone has a tenth of it. Left out: 0.001.
        validation_share: of every class, where the data holds no validation images; left out: 0.15.
        seed: of all that is drawn.

    Raises:
        SettingsError: a setting out of its range, or one that the chosen way of training has no use for.

    Example:
        >>> ClassifierSettings().svm, ClassifierSettings(hidden=(256,), epochs=10).svm
        (True, False)
    """

    train_layers: Literal["head", "all"] = "head"
    classifier: Literal["svm", "softmax"] | None = None
    backbone: str = LITE
    weights: str | None = None
    levels: Annotated[tuple[int, ...], IN_PYTHON] = (3, 2, 1)
    hidden: Annotated[tuple[int, ...], IN_PYTHON] = ()
    resize_mode: ResizeMode = "keep-aspect"
    short_side: int = 224
    sides: tuple[int, ...] = ()
    epochs: int | None = None
    batch_size: Annotated[int | None, IN_PYTHON] = None
    learning_rate: Annotated[float | None, IN_PYTHON] = None
    validation_share: float | None = None
    seed: Annotated[int, IN_PYTHON] = 0

    def __post_init__(self) -> None:
        if self.train_layers not in ("head", "all"):
            raise SettingsError(f"train_layers must be one of head, all: got {self.train_layers!r}")
        if self.classifier not in (None, "svm", "softmax"):
            raise SettingsError(f"classifier must be one of svm, softmax: got {self.classifier!r}")
        if not 0 < (self.validation_share or VALIDATION_SHARE) < 1 or self.validation_share == 0:
            raise SettingsError(f"validation_share must be between 0 and 1: got {self.validation_share}")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed must be a whole number from 0 to {2**32 - 1}: got {self.seed}")
        if self.train_layers == "head" and self.sides:
            raise SettingsError("sides: only where all layers are trained; add train_layers all, or leave it out")
        if self.svm and self.train_layers == "all":
            raise SettingsError("SVMs are trained on a frozen backbone: leave train_layers out, or take softmax")
        unused = [name for name in ("hidden", "epochs", "batch_size", "learning_rate") if getattr(self, name)]
        if self.svm and unused:
            epochs = "only for layers that are trained in epochs; add classifier softmax, or leave it out"
            raise SettingsError(f"{', '.join(unused)}: {epochs}")

    @property
    def svm(self) -> bool:
        """Whether SVMs are trained, and nothing in epochs."""
        return self.classifier == "svm" or (self.classifier is None and self.train_layers == "head" and not self.hidden)

    def for_epochs(self, devices: int, workers: int) -> EpochSettings:
        """What `sppnet.classification.epochs.train_epochs` needs of them."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate")}
        given = {name: value for name, value in given.items() if value is not None}
        if self.sides:
            given["sizes"] = TrainingSizes("multi" if len(self.sides) > 1 else "single", self.sides)
        if self.weights == RANDOM:
            given["backbone_rate"] = 1.0
        everything = self.train_layers == "all"
        return EpochSettings(everything, seed=self.seed, devices=devices, workers=workers, **given)


def train_classifier(
    data: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    output: str | Path | None = None,
    cache: Path | None = None,
    settings: ClassifierSettings | None = None,
    skip_bad: bool = False,
    devices: int = 1,
    workers: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
    **options: Any,
) -> SPPNet:
    """Train a single-label classifier.

    Args:
        data: images to train on, of two classes at least.
        validation: images that choose the best epoch, or show what SVMs are worth; never test data. None: a share of ``data``.
        output: the model file to write, .safetensors; a report on the validation images comes beside it: see `report_folder`.
        cache: a folder for features and checkpoints, which trainings may share; None: nothing is kept.
        settings, options: the fields of `ClassifierSettings`.
        skip_bad: leave out files that cannot be read, and list them, instead of refusing to start.
        devices: processes, one on each device (on a CPU: gloo), where all layers are trained; the others are started by running
            the very same command again.
        workers: processes that read images, where all layers are trained; 0: the training itself does.
        device: where to compute; "auto" takes a GPU if there is one.
        progress: told of "checking images", "features", "training" and others.

    Returns:
        The model in evaluation mode, as its file holds it. Its ``record`` says how it was trained and what it answers on the
        validation images (``"evaluation"``; of images that chose the epoch, a little too good), and lists what was left out
        (``"skipped"``).

    Raises:
        SettingsError: settings that do not go together, too few images or classes, or a training that diverged.
        ImageError: files that cannot be read: all are named, before anything is computed, unless the damage is beyond a file's head.
        ModelError: a backbone or weights that cannot be used.
        OutputError: a file that is not ours at ``output``, before the work; or no room.
        KeyboardInterrupt: at Ctrl-C; with a ``cache``, the next call goes on from there.

    Source: arXiv:1406.4729, section 3.

    Example:
        >>> from PIL import Image
        >>> for name, color in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
        ...     Path("photos", name).mkdir(parents=True)
        ...     for i in range(4):
        ...         Image.new("RGB", (40 + i, 50 - i), color).save(f"photos/{name}/{i}.png")
        >>> model = train_classifier(sppnet.read_dataset("photos"), short_side=32, levels=(1,))
        >>> model.record["evaluation"]["top1"], model.classify("photos/red/0.png").label
        (1.0, 'red')
    """
    settings = dataclasses.replace(settings or ClassifierSettings(), **options)
    epochs = None if settings.svm else settings.for_epochs(devices, workers)
    started = time.perf_counter()
    if output is not None:
        output = check_model_path(output)
        check_outputs(output)
        for name in PICTURES:
            check_replaceable(report_folder(output) / name)
    given = validation is not None
    train, validation = _split(data, validation, settings)
    if settings.train_layers == "head" and (devices, workers) != (1, 0):
        raise SettingsError("devices, workers: only where all layers are trained; leave them out")
    if settings.svm and len(train) > MAX_IMAGES:
        few = f"SVMs learn from at most {MAX_IMAGES} images here"
        raise UserError(f"{few}: got {len(train)}; take the softmax classifier")
    model = _start(settings, data.class_names).to(choose_device(device))
    seen = readable_images(train, skip_bad=skip_bad, progress=progress)
    held = readable_images(validation, skip_bad=skip_bad, progress=progress, stage="checking validation images")
    _check_classes(seen.images)
    with cache_directory(cache) as folder:
        if not has_batch_norm(model):  # which scales features itself
            scale_features(model, seen.images.paths)
        if epochs is None:
            images = [*seen.images.paths, *held.images.paths]
            pooled = pooled_features(model, images, folder / "features", progress=progress)
            rows, labels = pooled[: len(seen.images)].unit_rows(), seen.images.labels
            choice = train_svm_head(model, rows, labels, seed=settings.seed, progress=progress)
            trained = TrainedEpochs({"svm": choice.to_dict()}, {}, 0)
        else:
            trained = train_epochs(model, seen, held, epochs, folder, progress=progress)
        round_to_stored(model)
        evaluation = None
        if len(held.images) and not trained.rank and settings.train_layers == "all":
            evaluation = evaluate_classifier(model, held.images, progress=progress)
        elif len(held.images) and not trained.rank:
            pooled = pooled_features(model, held.images.paths, folder / "features")  # they are cached
            evaluation = evaluate_features(model, held.images, pooled)
    skipped = [{"path": str(path), "error": error} for path, error in (*seen.broken, *held.broken)]
    counts = {"train": len(seen.images), "validation": len(held.images), "skipped": len(skipped)}
    record = {
        **trained_by(),
        "data": counts | {"classes": len(data.class_names), "validation_images": "given" if given else "split off"},
        "classifier": "svm" if settings.svm else "softmax",
        "settings": _recorded(settings),
        **trained.figures,
        "evaluation": evaluation and _figures(evaluation),
        "seconds": round(time.perf_counter() - started),
    }
    model.record = record
    if output is not None and not trained.rank:
        save_model(model, output)  # without the paths of what was skipped, which are nobody else's business
        _write_report(report_folder(output), trained.log, evaluation, {"training": record, "skipped": skipped})
    model.record = {**record, "skipped": skipped}
    return model


def report_folder(output: Path) -> Path:
    """Where the report on a model file is.

    It holds curves.png and log.csv of a training in epochs, and of the validation images evaluation.json, confusion.png and, if
    there are any, mistakes.jpg.

    Example:
        >>> report_folder(Path("models/pets.safetensors")).as_posix()
        'models/pets.report'
    """
    return output.with_name(f"{output.stem}.report")


def train_svm_head(
    model: SPPNet, embeddings: np.ndarray, labels: npt.ArrayLike, *, seed: int = 0, progress: Progress = no_progress
) -> SVMChoice:
    """Train the image classifier of a model, in place, on the head features of images.

    Args:
        model: of one class an image; best with ``Architecture(unit_length=True)``: SVMs do better on vectors of length 1.
        embeddings: [N, D] head features, any floating-point type; a memory map will do.
        labels: [N] integers in 0..K-1, of two classes at least. A class without images is answered no, whatever is seen.
        seed: of the folds.
        progress: the stage is "SVMs".

    Returns:
        What cross-validation chose; `SVMChoice.to_dict` for the model's record. The same embeddings and seed give the same model,
        bit for bit, on one machine with one thread count.

    Raises:
        ModelError: features that are not finite.
    """
    targets = label_targets(labels, len(model.class_names))
    try:
        svms, choice = train_calibrated_svms(embeddings, targets, multi_label=False, seed=seed, progress=progress)
    except ValueError as error:
        raise ModelError(f"the backbone's {error}: its weights are damaged; get them again") from error
    with torch.no_grad():
        model.image_classifier.weight.copy_(torch.from_numpy(svms.weights))
        model.image_classifier.bias.copy_(torch.from_numpy(svms.biases))
    return choice


def _start(settings: ClassifierSettings, class_names: tuple[str, ...]) -> SPPNet:
    """The network that training begins with: frozen layers as a file holds them, BatchNorm only where it is trained from scratch."""
    weights = settings.weights or pretrained_weights(settings.backbone)
    if settings.train_layers == "head":
        check_not_random(settings.backbone, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        backbone = build_backbone(settings.backbone, weights, fold=weights != RANDOM)
        preprocess = Preprocess(settings.short_side, LARGEST_ASPECT * settings.short_side, settings.resize_mode)
        layers = class_names, settings.backbone, settings.levels, settings.hidden
        architecture = Architecture(*layers, detects=False, multi_label=False, unit_length=settings.svm)
        model = build_model(architecture, preprocess, backbone=backbone)
    least = model.preprocess.smallest_side
    smallest = min(settings.sides, default=least)
    if smallest < least:
        raise SettingsError(f"sides must be at least {least} pixels with {settings.backbone}: got {smallest}")
    if settings.train_layers == "head":
        round_to_stored(model.backbone)  # so that cached features are those of the model file
    model.eval().backbone.to(memory_format=torch.channels_last)
    return model


def _split(
    data: LabelledImages, validation: LabelledImages | None, settings: ClassifierSettings
) -> tuple[LabelledImages, LabelledImages]:
    _check_classes(data)
    if validation is None:
        return split_off(data, settings.validation_share or VALIDATION_SHARE, seed=settings.seed)
    if settings.validation_share is not None:
        raise SettingsError("validation_share: the data holds validation images already; leave it out")
    if validation.class_names != data.class_names:
        both = f"{_some(validation.class_names)} against {_some(data.class_names)}"
        raise SettingsError(f"the validation images' classes are not those of the data: {both}")
    return data, validation


def _check_classes(train: LabelledImages) -> None:
    present = [name for name, count in zip(train.class_names, train.counts(), strict=True) if count]
    if len(present) < 2:
        raise SettingsError(f"expected images of at least two classes to train on, got {_some(present) or 'none'}")


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" ... ({len(names)})" if len(names) > 3 else "")


def _recorded(settings: ClassifierSettings) -> dict[str, Any]:
    """What was set, or has a value anyway; of a weights file its name alone."""
    weights = None if settings.weights is None else Path(settings.weights).name
    fields = dataclasses.asdict(settings) | {"weights": weights}
    return {name: value for name, value in fields.items() if value not in (None, ())}


def _figures(evaluation: ClassifierEvaluation) -> dict[str, Any]:
    """What a model file holds of an evaluation."""
    figures = evaluation.to_dict()
    return {name: figures[name] for name in RECORDED} | {"loss": round(evaluation.loss, 4)}


def _write_report(
    folder: Path, log: dict[str, list[float]], evaluation: ClassifierEvaluation | None, document: dict[str, Any]
) -> None:
    for path in (folder / name for name in (*PICTURES, "log.csv")):  # of an earlier model
        check_replaceable(path)
        path.unlink(missing_ok=True)
    if log:
        write_log(log, folder / "log.csv")
        plot_training(log, folder / "curves.png")
    if evaluation is None:
        return
    write_json(folder / "evaluation.json", {**evaluation.to_dict(), **document})
    plot_confusion(evaluation.confusion, evaluation.class_names, folder / "confusion.png")
    mistakes = evaluation.mistakes()
    if mistakes:
        wrong = int(np.count_nonzero(evaluation.ranks))
        title = f"the most confident of {wrong} mistakes in {len(evaluation.paths)} validation images"
        photos = [(read_image(path), truth, answer, score) for path, truth, answer, score in mistakes]
        save_image(draw_mistakes(photos, title), folder / "mistakes.jpg")
