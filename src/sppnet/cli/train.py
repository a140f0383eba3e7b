"""`sppnet train`: a detector, a classifier; SVMs for a detector; a class more for one with SVMs. And `compare`, `compress`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sppnet.classification.compare import CompareSettings, compare_resize_modes
from sppnet.classification.train import ClassifierSettings, report_folder, train_classifier
from sppnet.cli import complain
from sppnet.cli.options import AsJson, Data, Device, Limit, Model, Split, checked_limit, chosen_device
from sppnet.data import read_annotated
from sppnet.data.find import find_images
from sppnet.data.formats.folder import training_images
from sppnet.detection.linear_heads import add_class as add_one_class
from sppnet.detection.predict import sample_windows
from sppnet.detection.train import DetectorSettings, train_detector, train_svms_of
from sppnet.files import check_outputs, to_json
from sppnet.models.compress import truncate_layers
from sppnet.models.files import check_model_path, find_model, load, save_model
from sppnet.progress import progress_bars
from sppnet.visualize.plots import plot_format

Detector = Annotated[str, Parameter(help="A trained detector: the path of a model file, or a shipped name.")]
NewModel = Annotated[Path, Parameter(help="The model file to write, .safetensors.")]
SkipBad = Annotated[bool, Parameter(negative=(), help="Leave out files that cannot be read, and name them.")]
Cache = Annotated[Path | None, Parameter(help="Folder for what is computed on the way; left out: beside the output.")]


def detector(
    data: Data,
    /,
    *,
    output: NewModel,
    split: Split = "train",
    model: str | None = None,
    settings: Annotated[DetectorSettings, Parameter(name="*")] = DetectorSettings(),
    cache: Cache = None,
    device: Device = "auto",
) -> int:
    """Train a detector: in minutes on a frozen backbone (quick), end to end (standard), or in the paper's stages (paper).

    A stopped run goes on where it was when the same words are given again.

    Args:
        model: A trained detector to go on from; left out: a new one.
    """
    annotated = read_annotated(data, split)
    with progress_bars() as progress:
        net = train_detector(
            annotated, output=output, cache=cache or cache_folder(output), settings=settings, model=model,
            device=device, progress=progress,
        )  # fmt: skip
    return _wrote(output, net.record["seconds"])


def svm(
    model: Detector,
    data: Data,
    /,
    *,
    output: NewModel,
    split: Split = "train",
    ridge: bool = True,
    limit: Limit = None,
    cache: Cache = None,
    device: Device = "auto",
) -> int:
    """Train the paper's last stages on a detector: linear SVMs with hard negatives, and box regression.

    Scores are then decision scores, and classes can be added in seconds.

    Args:
        ridge: Fit box regression anew, too: one ridge regression for each class.
    """
    annotated = read_annotated(data, split, checked_limit(limit))
    with progress_bars() as progress:
        net = train_svms_of(
            load(model, chosen_device(device)), annotated, output=output, cache=cache or _cache_of(model, output), ridge=ridge,
            progress=progress,
        )  # fmt: skip
    return _wrote(output, net.record["seconds"])


def add_class(
    model: Detector,
    name: str,
    data: Data,
    /,
    *,
    output: NewModel,
    split: Split = "train",
    old_negatives: bool = True,
    limit: Limit = None,
    cache: Cache = None,
    device: Device = "auto",
) -> int:
    """Add a class to a detector with SVMs; the other classes stay as they are, bit for bit.

    Args:
        name: A class of DATA.
        old_negatives: Take windows of the model's own training for negatives, if --cache is its folder; not where those images show the class.
    """
    annotated = read_annotated(data, split, checked_limit(limit))
    with progress_bars() as progress:
        net = add_one_class(
            load(model, chosen_device(device)), name, annotated, output=output, cache=cache or _cache_of(model, output),
            old_negatives=old_negatives, progress=progress,
        )  # fmt: skip
    added = net.record["added"][-1]
    old = f" and {added['old_negatives']} windows of the model's own training" if added["old_negatives"] else ""
    print(f"trained {name!r} on {added['objects']} objects, against what else is in {added['images']} images{old}")
    return _wrote(output, added["seconds"])


def classifier(
    data: Path,
    /,
    *,
    output: Path,
    settings: Annotated[ClassifierSettings, Parameter(name="*")] = ClassifierSettings(),
    skip_bad: SkipBad = False,
    cache: Cache = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Train a classifier on a folder of class folders. A stopped run goes on, if given the same words again.

    Args:
        data: A folder of class folders; or of 'train' and perhaps 'val', each of class folders.
        output: The model file to write, .safetensors; a report comes beside it.
    """
    images, validation = training_images(data)
    with progress_bars() as progress:
        net = train_classifier(
            images, validation=validation, output=output, cache=cache or cache_folder(output), settings=settings, skip_bad=skip_bad,
            device=chosen_device(device), progress=progress,
        )  # fmt: skip
    record = net.record
    for bad in record["skipped"]:
        complain(f"left out: {bad['error']}")
    if as_json:
        print(to_json({"model": str(output), "report": str(report_folder(output)), **record}))
        return 0
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {record['seconds']} s)")
    if record["evaluation"] is not None:
        right, (low, high) = record["evaluation"]["top1"], record["evaluation"]["top1_interval"]
        print(
            f"{100 * right:.1f} % of {record['evaluation']['images']} validation images are answered right "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f}); confusions and mistakes in {report_folder(output)}"
        )
    return 0


def cache_folder(output: Path) -> Path:
    """The folder beside a command's output, where nothing else was said.

    Example:
        >>> cache_folder(Path("models/birds.safetensors")).as_posix()
        'models/birds.cache'
    """
    return output.with_name(f"{output.stem}.cache")


def _cache_of(model: str, output: Path) -> Path:
    """Where the model was trained, if that is there."""
    own = cache_folder(Path(model))
    return own if own.is_dir() else cache_folder(output)


def _wrote(output: Path, seconds: dict[str, Any]) -> int:
    took = ", ".join(f"{stage} {value} s" for stage, value in seconds.items())
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB; {took})")
    return 0


def compare(
    data: Path,
    /,
    *,
    settings: Annotated[CompareSettings, Parameter(name="*")] = CompareSettings(),
    skip_bad: SkipBad = False,
    output: Path = Path("comparison.png"),
    cache: Cache = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Warp, crop, letterbox, or native shape: which serves your images? A table, a bar chart and a sentence.

    Args:
        data: A folder of class folders; of one that is split, its 'train' is used.
        output: The bar chart to write: .png, .jpg, .pdf or .svg.
    """
    plot_format(output)
    check_outputs(output)
    images, _ = training_images(data)
    cache = cache or cache_folder(output)
    with progress_bars() as progress:
        comparison = compare_resize_modes(
            images, settings, skip_bad=skip_bad, cache=cache, device=chosen_device(device), progress=progress
        )
    for _, reason in comparison.broken:
        complain(f"left out: {reason}")
    comparison.plot(output)
    document = {"data": str(data), **comparison.to_dict()}
    print(to_json(document) if as_json else f"{comparison.table()}\n\n{comparison.advice}")
    print(f"chart in {output}; features, for the next time, in {cache}", file=sys.stderr)
    return 0


def compress(
    model: Model,
    /,
    *,
    output: NewModel,
    ranks: tuple[int, ...] | None = None,
    energy: float | None = None,
    photos: list[Path] | None = None,
) -> int:
    """Make a model smaller and faster: its fully connected layers as products of two thin ones. See what 'evaluate' says then.

    Args:
        ranks: Of each fully connected layer; 0 leaves one as it is. Smaller is faster.
        energy: Instead: the share to keep of each layer's squared weights, or of the variance of its outputs on --photos.
        photos: Photos like those that the model is for, some dozens: far more of the outputs on these is kept.
    """
    check_outputs(check_model_path(output))
    net = load(model)
    pooled = None
    if photos:
        with progress_bars() as progress:
            pooled = sample_windows(net, find_images(photos), progress=progress)
    small, kept = truncate_layers(net, ranks, energy=energy, pooled=pooled)
    ranks = small.architecture.ranks or (0,) * len(kept)
    small.record = {**net.record, "compressed": {"ranks": ranks, "energy": kept}}
    before = find_model(model).stat().st_size  # before writing: the output may be the same file
    save_model(small, output)
    for number, (rank, share) in enumerate(zip(ranks, kept, strict=True), start=1):
        print(f"fully connected layer {number}: " + (f"rank {rank}, {share:.1%} of it kept" if rank else "whole"))
    print(f"wrote {output} ({before / 1e6:.1f} MB before, {output.stat().st_size / 1e6:.1f} MB now)")
    return 0
