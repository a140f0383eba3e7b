"""The command line: parse, make one call, print. Heavy libraries are imported inside the command that needs them.

Results go to standard output (with ``--json``, one JSON document and nothing else), messages and progress to standard
error. A mistake of the user's is one line and exit status 2; an interrupted run ends with 130.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from sppnet import __version__
from sppnet.detection import NMS_IOU
from sppnet.errors import UserError
from sppnet.terminal import complain, print_table, progress, write_json

if TYPE_CHECKING:
    import numpy as np

    from sppnet.detection.linear_stages import LinearStages
    from sppnet.models.sppnet import SPPNet

# PyTorch's CPU library keeps what it prepared for the last 1024 shapes of each kind, for shapes that come again. Maps and
# windows of other images seldom have the same: memory would grow by 60 % over some hundred photos, and be no faster for it.
# It reads these once, before its first convolution. 64: one pass of the shipped model needs 30, two image sizes 47.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "8"}

app = App(
    name="sppnet",
    help="Vision models that take your images at their own size: classify, detect, train.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `run` says what becomes of the work
)
train = App(name="train", help="Train a model on your own images.")
app.command(train)

Images = Annotated[list[Path], Parameter(help="Image files, folders (searched through) or patterns such as '*.jpg'.")]
Model = Annotated[str, Parameter(help="A shipped model's name, or the path of a model file.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document and nothing else.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute; auto takes a GPU if there is one.")
]
Limit = Annotated[int | None, Parameter(help="Only the first so many images.")]
ViewSet = Annotated[
    Literal["single", "centre-crop", "10-view", "full", "multi-view", "multi-view+full"],
    Parameter(help="How each image is looked at: at once, or many times over, which is slower and may be better."),
]
Proposals = Annotated[
    str,
    Parameter(
        help="What proposes boxes: selective-search, edge-boxes, grid, or several joined by +; or 'imported', which "
        "'sppnet proposals --import' brought in."
    ),
]
Work = Annotated[Path | None, Parameter(help="Folder for proposals and maps, kept for the next time.")]
Data = Annotated[Path, Parameter(help="Annotated images: a VOC folder, COCO JSON with its images, or a YOLO folder.")]


@app.command
def demo(output: Annotated[Path, Parameter(help="Folder for pictures and results.")] = Path("sppnet-demo")) -> int:
    """Try it out: sample photos in, annotated pictures and JSON out. Works offline."""
    from sppnet.demo import run_demo

    with progress() as report:
        rows, written = run_demo(output, report)
    table = [("photo", "size", "what is in it", "where")] + rows
    print_table(table)
    print(
        f"\n{len(written)} files in {output}: look at {written[0].name} first; everything as JSON in {written[-1].name}"
    )
    return 0


@app.command
def detect(
    images: Images,
    /,
    *,
    model: Annotated[
        list[str], Parameter(consume_multiple=True, help="A shipped model's name, a model file, or several to combine.")
    ] = ["voc"],  # noqa: B006 -- read only
    output: Annotated[Path | None, Parameter(help="Folder for annotated pictures and detections.json.")] = None,
    score_threshold: Annotated[
        float | None,
        Parameter(
            help="Leave out boxes that score less. Scores are probabilities, 0 to 1; of a model with SVMs they are margins, "
            "of any size: above 0 surely, about -1 hardly. Left out: 0.3 of probabilities, -0.75 of margins."
        ),
    ] = None,
    nms_iou: Annotated[
        float, Parameter(help="Of boxes of one class that overlap more than this, keep the best.")
    ] = NMS_IOU,
    proposals: Annotated[
        Path | None,
        Parameter(help="Boxes made elsewhere, by the images' names: .mat, .pkl, .npz or a folder of .npz."),
    ] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Find objects: boxes, labels and scores for every image."""
    from sppnet.data.images import ImageError
    from sppnet.detection.combine import check_combination, detect_with_several
    from sppnet.detection.predict import detect as detect_one
    from sppnet.proposals.importers import read_boxes
    from sppnet.visualize import draw_detections

    _check_share("--nms-iou", nms_iou)
    nets = [_load(name, device) for name in model]
    check_combination(nets)
    if score_threshold is not None and nets[0].architecture.classifier != "svm":
        _check_share("--score-threshold", score_threshold)
    given = None if proposals is None else read_boxes(proposals)

    def one(file: Path, image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        boxes = None if given is None else given.get(file.stem, given.get(file.name))
        if given is not None and (boxes is None or not len(boxes)):
            raise ImageError(f"{file}: no boxes of {file.stem!r} in {proposals}")
        if len(nets) == 1:
            found = detect_one(image, nets[0], score_threshold=score_threshold, nms_iou=nms_iou, proposals=boxes)
        else:
            found = detect_with_several(image, nets, score_threshold=score_threshold, nms_iou=nms_iou, proposals=boxes)
        kind = "margin " if found.score_kind == "margin" else ""
        lines = [f"{d.name} {kind}{d.score:.2f} at {' '.join(f'{side:.0f}' for side in d.box)}" for d in found]
        return found.to_dict(), lines or ["nothing found"], lambda: draw_detections(image, found)

    return _each_image(images, one, output, "detections.json", as_json)


@app.command
def classify(
    images: Images,
    /,
    *,
    model: Model = "voc",
    views: ViewSet = "single",
    output: Annotated[Path | None, Parameter(help="Folder for annotated pictures and classes.json.")] = None,
    pyramid: Annotated[
        bool, Parameter(negative=(), help="Show over each photo what every bin of the pyramid adds to the answer.")
    ] = False,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Say what is in every image."""
    from sppnet.classification.explain import bin_contributions
    from sppnet.classification.views import classify_views
    from sppnet.visualize import draw_classification, draw_contributions

    if pyramid and (output is None or views != "single"):
        raise UserError("--pyramid draws pictures, of a single view: say where to with --output, and leave --views out")
    net = _load(model, device)

    def one(_: Path, image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        answer = classify_views(image, net, views)
        lines = [", ".join(f"{name} {score:.2f}" for name, score in answer.top(3))]
        if not pyramid:
            return answer.to_dict(), lines, lambda: draw_classification(image, answer)
        added = bin_contributions(net, image, answer.label)
        return {**answer.to_dict(), "pyramid": added.to_dict()}, lines, lambda: draw_contributions(added)

    return _each_image(images, one, output, "classes.json", as_json)


@train.command
def detector(
    data: Data,
    /,
    *,
    output: Annotated[Path, Parameter(help="The model file to write, .safetensors.")],
    split: Annotated[str, Parameter(help="Learn from the images of this split.")] = "train",
    backbone: Annotated[str, Parameter(help="'compact', or a torchvision model such as mobilenet_v2.")] = "compact",
    weights: Annotated[
        str | None,
        Parameter(help="The backbone's: a file, or a name torchvision knows, such as DEFAULT. compact: as in 'voc'."),
    ] = None,
    levels: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, help="Bins per side of each pyramid level.")
    ] = (3, 2, 1),
    hidden: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, help="Widths of the fully connected layers.")
    ] = (1024, 1024),
    short_side: Annotated[int, Parameter(help="Images are resized to this short side, in pixels,")] = 600,
    long_side: Annotated[int, Parameter(help="unless their long side would become longer than this.")] = 1000,
    steps: Annotated[int, Parameter(help="Of training; each sees 8 images, 64 windows of each.")] = 2500,
    learning_rate: Annotated[float, Parameter(help="Peak of the schedule.")] = 1e-3,
    proposer: Proposals = "selective-search",
    mirrored: Annotated[bool, Parameter(help="Learn from mirror images too: better, but twice the maps.")] = True,
    end_to_end: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Learn in one stage in which the convolutions learn too (Fast R-CNN): several times longer, and better. "
            "Goes on from --model if that is given. For --steps and --mirrored there are the next four.",
        ),
    ] = False,
    learn: Annotated[
        str,
        Parameter(help="End to end, the layers that learn: 'all', 'from:LAYER' (a name or an index), or 'fc_only'."),
    ] = "all",
    epochs: Annotated[int, Parameter(help="End to end: how often every image is seen, mirrored half of the time.")] = 6,
    sides: Annotated[
        tuple[int, ...],
        Parameter(
            consume_multiple=True,
            help="End to end: short sides, one of which is drawn whenever an image is seen; left out: as in use.",
        ),
    ] = (),
    devices: Annotated[int, Parameter(help="End to end: processes, each on a device or a share of the CPU.")] = 1,
    classifier: Annotated[
        Literal["softmax", "svm"],
        Parameter(
            help="What scores boxes: the network's own probabilities; or, trained after it with hard negatives, one "
            "linear SVM for each class, whose score is a margin and to which classes can be added."
        ),
    ] = "softmax",
    regression: Annotated[
        Literal["network", "ridge", "ridge-pooled"],
        Parameter(
            help="What moves boxes: the network's own output; a ridge regression for each class on what its fully "
            "connected layers say; or, as in the paper, on the pooled windows."
        ),
    ] = "network",
    model: Annotated[
        str | None,
        Parameter(
            help="A trained detector to go on from, with one of --end-to-end, --classifier, --regression, --add-class."
        ),
    ] = None,
    add_class: Annotated[
        str | None,
        Parameter(help="Add this class of DATA to --model, which has SVMs; its other classes stay as they are."),
    ] = None,
    old_negatives: Annotated[
        bool,
        Parameter(
            help="Learn an added class also from windows of the model's own training, if --work is its folder; not where "
            "those images show the class."
        ),
    ] = True,
    limit: Limit = None,
    work: Work = None,
    seed: int = 0,
    device: Device = "auto",
) -> int:
    """Train a detector on a frozen backbone: proposals, maps, fully connected layers; then, if asked for, SVMs and box regressors.

    A stopped run goes on where it was. With --model, a trained detector gets SVMs or box regressors, or a class more. With
    --end-to-end, the backbone learns as well, from --model or from its weights.
    """
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.finetune import FinetuneSettings
    from sppnet.detection.linear_stages import LinearStages
    from sppnet.detection.train import train_detector
    from sppnet.models.backbones import OWN
    from sppnet.models.files import SHIPPED
    from sppnet.models.sppnet import Architecture

    for name, number in {"--steps": steps, "--short-side": short_side, "--long-side": long_side}.items():
        if number < 1:
            raise UserError(f"{name} must be at least 1: got {number}")
    if not 0 < learning_rate < 1:
        raise UserError(f"--learning-rate must be between 0 and 1: got {learning_rate}")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be a whole number from 0 to {2**32 - 1}: got {seed}")
    _check_proposer(proposer)
    stages = LinearStages(classifier, regression)
    if (model is not None or add_class is not None) and (backbone != OWN or weights is not None):
        raise UserError("--backbone and --weights are for a new detector: --model brings its own; leave them out")
    if end_to_end and (add_class is not None or stages != LinearStages()):
        raise UserError(
            "--end-to-end comes first: give its model to --classifier, --regression or --add-class afterwards"
        )
    if not end_to_end and (model is not None or add_class is not None):
        return _train_further(model, add_class, stages, data, split, limit, output, work, old_negatives, device)
    annotated = read_annotated(data, split, _checked_limit(limit))
    architecture = Architecture(
        annotated.names,
        backbone,
        _positive("--levels", levels),
        _positive("--hidden", hidden),
        short_side=short_side,
        long_side=long_side,
        proposer=proposer,
    )
    learned = SHIPPED["voc"] if backbone == OWN and weights is None and model is None else weights
    work = work or _work_folder(output)
    if end_to_end:
        from sppnet.detection.end_to_end import train_end_to_end
        from sppnet.detection.fast_rcnn import FastRcnnSettings

        if devices < 1:
            raise UserError(f"--devices must be at least 1: got {devices}")
        whole = FastRcnnSettings(learn=learn, epochs=epochs, short_sides=sides, learning_rate=learning_rate, seed=seed)
        start = architecture if model is None else model
        with progress() as report:
            record = train_end_to_end(
                annotated, start, output, work, weights=learned, settings=whole, devices=devices, device=_device(device),
                report=report,
            )  # fmt: skip
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several processes; another one writes
            return 0
        return _wrote(output, record["seconds"])
    settings = FinetuneSettings(steps=steps, learning_rate=learning_rate, seed=seed)
    with progress() as report:
        record = train_detector(
            annotated,
            architecture,
            output,
            work,
            weights=learned,
            settings=settings,
            stages=stages,
            mirrored=mirrored,
            device=_device(device),
            report=report,
        )
    return _wrote(output, record["seconds"])


def _train_further(
    model: str | None,
    name: str | None,
    stages: LinearStages,
    data: Path,
    split: str,
    limit: int | None,
    output: Path,
    work: Path | None,
    old_negatives: bool,
    device: str,
) -> int:
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.add_class import add_class
    from sppnet.detection.linear_stages import LinearStages
    from sppnet.detection.train import train_stages_of

    if model is None:
        raise UserError("--add-class needs --model: a trained detector with SVMs that gets the class")
    if (name is None) == (stages == LinearStages()):
        raise UserError(
            "--model needs one of: --add-class NAME; or --classifier svm, --regression ridge or ridge-pooled, or both, "
            "to be trained on its own data"
        )
    annotated = read_annotated(data, split, _checked_limit(limit))
    own = _work_folder(Path(model))  # where it was trained, if nothing else was said
    work = work or (own if own.is_dir() else _work_folder(output))
    with progress() as report:
        if name is None:
            record = train_stages_of(model, annotated, output, work, stages, device=_device(device), report=report)
            return _wrote(output, record["seconds"])
        record = add_class(
            model, name, annotated, output, work, old_negatives=old_negatives, device=_device(device), report=report
        )
    added = record["added"][-1]
    told_apart = f"{added['images']} images" + (
        f" and {added['old_negatives']} windows of the model's own training" if added["old_negatives"] else ""
    )
    print(f"learned {name!r} from {added['objects']} objects, told apart from what else is in {told_apart}")
    return _wrote(output, added["seconds"])


def _wrote(output: Path, seconds: dict[str, float]) -> int:
    took = ", ".join(f"{stage} {value} s" for stage, value in seconds.items())
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB; {took})")
    return 0


@train.command
def classifier(
    folder: Annotated[
        Path, Parameter(help="A folder of class folders; or of 'train' and perhaps 'val', each of class folders.")
    ],
    /,
    *,
    output: Annotated[Path, Parameter(help="The model file to write, .safetensors; a report comes beside it.")],
    learn: Annotated[
        Literal["head", "all"],
        Parameter(
            help="The layers behind the backbone, in minutes; or the whole network, which wants a GPU or patience."
        ),
    ] = "head",
    backbone: Annotated[str, Parameter(help="'compact', or a torchvision model such as mobilenet_v2.")] = "compact",
    weights: Annotated[
        str | None,
        Parameter(
            help="The backbone's: a file, a name torchvision knows, or 'random'. Left out: compact's as in 'voc', or DEFAULT."
        ),
    ] = None,
    stride: Annotated[
        int | None, Parameter(help="Cut the backbone where a cell of its map has so many pixels, such as 16.")
    ] = None,
    levels: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, help="Bins per side of each pyramid level.")
    ] = (3, 2, 1),
    hidden: Annotated[
        tuple[int, ...],
        Parameter(consume_multiple=True, help="Widths of fully connected layers before the last (paper: 4096 4096)."),
    ] = (),
    fit: Annotated[
        Literal["native", "squash", "crop", "pad"],
        Parameter(help="Images at their own shape, or how they become square."),
    ] = "native",
    short_side: Annotated[int, Parameter(help="Images are resized to this short side, in pixels,")] = 224,
    long_side: Annotated[
        int | None, Parameter(help="unless their long side would become longer than this; left out: 4 short sides.")
    ] = None,
    sizes: Annotated[
        Literal["native", "single", "multi", "random", "random-batch"],
        Parameter(
            help="With --learn all, at which sizes it sees the images: as in use; or squares of one of --sides, of each in "
            "turn by epoch, or of any between them by epoch or by batch."
        ),
    ] = "native",
    sides: Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="Of those squares, in pixels.")] = (
        224,
        180,
    ),
    epochs: Annotated[int, Parameter(help="How often every image is learned from.")] = 30,
    batch_size: Annotated[int, Parameter(help="Images learned from at once, on each device.")] = 32,
    learning_rate: Annotated[
        float | None,
        Parameter(help="Peak; left out: 0.001, and 0.01 with sgd. A trained backbone learns at a tenth of it."),
    ] = None,
    optimiser: Annotated[
        Literal["adamw", "sgd"], Parameter(help="adamw, along a cosine; sgd, in steps, as the paper.")
    ] = "adamw",
    held_out: Annotated[
        float, Parameter(help="Share of each class that is held out to choose the epoch, where the folder holds none.")
    ] = 0.15,
    precision: Annotated[
        Literal["auto", "bfloat16", "float32"], Parameter(help="auto: bfloat16 where the processor is fast at it.")
    ] = "auto",
    devices: Annotated[
        int, Parameter(help="Processes that share the work of --learn all, each with its own device.")
    ] = 1,
    workers: Annotated[int, Parameter(help="Further processes that read images for --learn all.")] = 0,
    skip_bad: Annotated[
        bool, Parameter(negative=(), help="Leave out files that cannot be read, and name them.")
    ] = False,
    work: Annotated[
        Path | None, Parameter(help="Folder for features and checkpoints; left out: beside the model.")
    ] = None,
    seed: int = 0,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Train a classifier on a folder of class folders. A stopped run goes on, if given the same words again."""
    for name, number in {"--short-side": short_side, "--long-side": long_side, "--stride": stride}.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1: got {number}")
    if workers < 0:
        raise UserError(f"--workers must be at least 0: got {workers}")
    _positive("--levels", levels)
    if hidden:
        _positive("--hidden", hidden)

    from sppnet.classification.schedule import TrainingSizes
    from sppnet.classification.settings import RANDOM, ClassifierSettings
    from sppnet.data.folder import split_folder
    from sppnet.data.folder_survey import split_parts

    settings = ClassifierSettings(
        learn=learn,
        epochs=epochs,
        batch_size=batch_size,
        optimiser=optimiser,
        learning_rate={"adamw": 1e-3, "sgd": 1e-2}[optimiser] if learning_rate is None else learning_rate,
        backbone_rate=1.0 if weights == RANDOM else 0.1,
        weight_decay={"adamw": 1e-2, "sgd": 5e-4}[optimiser],
        sizes=TrainingSizes(sizes, sides),
        held_out_share=held_out,
        precision=precision,
        seed=seed,
    )
    images, given = split_folder(folder)
    if list(split_parts(folder)) == ["train", "test"]:  # test images choose nothing
        given = None

    from sppnet.classification.train_to_file import report_folder, train_to_file
    from sppnet.models.sppnet import Architecture

    architecture = Architecture(
        images.names,
        backbone,
        levels,
        hidden,
        detects=False,
        multi_label=False,
        short_side=short_side,
        long_side=long_side or 4 * short_side,
        fit=fit,
        backbone_stride=stride or 0,
    )
    with progress() as report:
        record = train_to_file(
            images,
            given,
            architecture,
            output,
            work or _work_folder(output),
            weights=weights,
            settings=settings,
            devices=devices,
            workers=workers,
            skip_bad=skip_bad,
            device=_device(device),
            report=report,
        )
    if record is None:  # one of several processes, and not the one that answers
        return 0
    for bad in record["skipped"]:
        complain(f"left out: {bad['error']}")
    if as_json:
        print(json.dumps({"model": str(output), "report": str(report_folder(output)), **record}, indent=1))
        return 0
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {record['seconds']} s)")
    if record["evaluation"] is not None:
        right, (low, high) = record["evaluation"]["top1"], record["evaluation"]["top1_interval"]
        print(
            f"{100 * right:.1f} % of {record['evaluation']['images']} held-out images are answered right "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f}); curves, confusions and mistakes in {report_folder(output)}"
        )
    return 0


@app.command
def evaluate(
    model: Annotated[
        str, Parameter(help="A shipped model's name, the path of a model file, or several detectors to combine: A+B.")
    ],
    data: Data,
    /,
    *,
    split: Annotated[str, Parameter(help="A split that the model was not trained on.")] = "val",
    limit: Limit = None,
    views: ViewSet = "single",
    output: Annotated[Path | None, Parameter(help="Folder for evaluation.json and plots.")] = None,
    work: Work = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Score a model: a detector on a VOC folder (average precision), a classifier on a folder of class folders (accuracy)."""
    from sppnet.data.annotated import annotated_layout, read_annotated
    from sppnet.detection.evaluate import NO_COCO, evaluate_detector
    from sppnet.visualize import plot_errors, plot_precision_recall

    nets = _load_each(model, device)
    net = nets[0]
    if len(nets) == 1 and not net.architecture.detects and annotated_layout(data) is None:
        return _evaluate_classifier(net, str(model), data, split, limit, views, output, as_json)
    if views != "single":
        raise UserError("--views is for classifiers: a detector looks at each image once; leave it out")
    annotated = read_annotated(data, split, _checked_limit(limit))
    with progress() as report, _work_or_temporary(work) as folder:
        evaluation = evaluate_detector(nets, annotated, folder, report)
    document = {"model": str(model), "data": str(data), "split": split, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_precision_recall(evaluation.result, output / "precision-recall.png")
        plot_errors(evaluation.errors, output / "errors.png")
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print(evaluation.result.table())
        whole = evaluation.whole_images
        print(f"\nwhole images, is the class in the photo: {whole.map07:.3f} (11-point), {whole.map_area:.3f} (area)")
        print(f"\n{evaluation.errors.sentence()}")
        coco = evaluation.coco
        print(f"\nby COCO's rules:\n{coco.table()}" if coco else f"\n{NO_COCO}")
        seconds = evaluation.seconds_per_image
        parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
        print(f"\n{evaluation.images} images, {sum(seconds.values()):.3f} s each: {parts}")
    return 0


@app.command
def compress(
    model: Model,
    /,
    *,
    output: Annotated[Path, Parameter(help="The model file to write, .safetensors.")],
    ranks: Annotated[
        tuple[int, ...] | None,
        Parameter(
            consume_multiple=True, help="Of each fully connected layer; 0 leaves one as it is. Smaller is faster."
        ),
    ] = None,
    energy: Annotated[
        float | None,
        Parameter(help="Instead: the share to keep of each layer's squared weights, or of what it says of --photos."),
    ] = None,
    photos: Annotated[
        list[Path] | None,
        Parameter(
            consume_multiple=True,
            help="Photos like those that the model is for, some dozens: much more is kept of what it says of these.",
        ),
    ] = None,
) -> int:
    """Make a model smaller and faster: its fully connected layers as products of two thin ones. See what 'evaluate' says then."""
    from sppnet.data.image_files import find_images
    from sppnet.detection.window_sample import sample_windows
    from sppnet.models.compress import truncate_layers
    from sppnet.models.files import find_model, save_model, training_record

    if output.suffix != ".safetensors":
        raise UserError(f"the model's file name must end in .safetensors: got {output}")
    source = find_model(model)
    net = _load(model, "cpu")
    pooled = None
    if photos:
        with progress() as report:
            pooled = sample_windows(net, find_images(photos), progress=partial(report, "photos"))
    small, kept = truncate_layers(net, ranks, energy=energy, pooled=pooled)
    record = {**training_record(source), "compressed": {"ranks": small.architecture.ranks, "energy": kept}}
    before = source.stat().st_size  # before writing: the output may be the same file
    save_model(small, output, record)
    for number, (rank, share) in enumerate(
        zip(small.architecture.ranks or (0,) * len(kept), kept, strict=True), start=1
    ):
        print(f"fully connected layer {number}: " + (f"rank {rank}, {share:.1%} of it kept" if rank else "whole"))
    print(f"wrote {output} ({before / 1e6:.1f} MB before, {output.stat().st_size / 1e6:.1f} MB now)")
    return 0


def _evaluate_classifier(
    net: SPPNet, model: str, data: Path, split: str, limit: int | None, views: str, output: Path | None, as_json: bool
) -> int:
    import numpy as np

    from sppnet.classification.evaluate import evaluate_classifier
    from sppnet.data.folder import read_folder
    from sppnet.data.folder_survey import split_parts
    from sppnet.visualize import plot_confusion

    folder = data / split
    if not folder.is_dir():
        parts = split_parts(data)
        if parts and split not in parts:
            raise UserError(f"{data} has no split {split!r}, but {' and '.join(parts)}: give --split {[*parts][-1]}")
        folder = parts.get(split, data)
    images = read_folder(folder, classes=net.architecture.names)
    if _checked_limit(limit) is not None:  # some of every class, and not the first class alone
        chosen = np.random.default_rng(0).permutation(len(images))[:limit]
        images = images.subset(np.sort(chosen))
    with progress() as report:
        evaluation = evaluate_classifier(net, images, views=views, report=report)
    document = {"model": model, "data": str(data), "views": views, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_confusion(evaluation.confusion, images.names, output / "confusion.png")
    print(json.dumps(document, indent=1) if as_json else evaluation.table())
    return 2 if evaluation.broken else 0


@app.command
def compare(
    folder: Annotated[Path, Parameter(help="A folder of class folders; of one that is split, its 'train' is used.")],
    /,
    *,
    backbone: Annotated[str, Parameter(help="'compact', or a torchvision model such as mobilenet_v2.")] = "compact",
    weights: Annotated[
        str | None,
        Parameter(
            help="The backbone's: a file, or a name torchvision knows. Left out: compact's as in 'voc', or DEFAULT."
        ),
    ] = None,
    side: Annotated[
        int, Parameter(help="Of the squares, in pixels; native images have as many pixels on average.")
    ] = 224,
    folds: Annotated[
        int, Parameter(help="Parts of the images; each is asked about by what learned from the others.")
    ] = 5,
    repeats: Annotated[int, Parameter(help="How often that is done, with other parts.")] = 3,
    at_most: Annotated[int, Parameter(help="Of more images, so many are drawn at random.")] = 2000,
    seed: int = 0,
    skip_bad: Annotated[
        bool, Parameter(negative=(), help="Leave out files that cannot be read, and name them.")
    ] = False,
    output: Annotated[Path, Parameter(help="The bar chart to write: .png, .jpg, .pdf or .svg.")] = Path(
        "comparison.png"
    ),
    work: Annotated[
        Path | None, Parameter(help="Folder for features; left out: beside the chart. A stopped run goes on.")
    ] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Squash, crop, pad, or native: which serves your images? A table, a bar chart and a sentence."""
    from sppnet.classification.compare import compare_fits
    from sppnet.data.folder import split_folder
    from sppnet.visualize import plot_comparison
    from sppnet.visualize.canvas import plot_format

    for name, number, least in (("side", side, 1), ("folds", folds, 2), ("repeats", repeats, 1), ("seed", seed, 0)):
        if number < least:
            raise UserError(f"--{name} must be at least {least}: got {number}")
    if at_most < 2 * folds:
        raise UserError(f"--at-most must be at least {2 * folds} with {folds} folds: got {at_most}")
    plot_format(output)
    images, _ = split_folder(folder)
    work = work or _work_folder(output)
    with progress() as report:
        comparison = compare_fits(
            images,
            _pretrained(backbone, weights, images.names, device),
            side=side,
            folds=folds,
            repeats=repeats,
            at_most=at_most,
            seed=seed,
            skip_bad=skip_bad,
            cache=work,
            report=report,
        )
    for _, reason in comparison.broken:
        complain(f"left out: {reason}")
    plot_comparison(comparison, output)
    document = {"data": str(folder), "backbone": backbone, "weights": weights, "seed": seed, **comparison.to_dict()}
    print(json.dumps(document, indent=1) if as_json else f"{comparison.table()}\n\n{comparison.advice}")
    print(f"chart in {output}; features, for the next time, in {work}", file=sys.stderr)
    return 0


@app.command
def check(
    data: Annotated[Path, Parameter(help="A folder of class folders, a folder of images, or an annotated data set.")],
    /,
    *,
    as_json: AsJson = False,
) -> int:
    """Name every bad file and box of a data set, and why; exit status 2 if there are any."""
    from sppnet.data.check import check_folder

    with progress() as report:
        found = check_folder(data, report=report)
    print(json.dumps(found.to_dict(), indent=1) if as_json else "\n".join(found.lines()))
    return found.exit_status


@app.command
def proposals(
    data: Data,
    /,
    *,
    split: Annotated[str, Parameter(help="Of the data set.")] = "train",
    proposer: Proposals = "selective-search",
    source: Annotated[
        Path | None,
        Parameter(name="--import", help="Bring in boxes made elsewhere: R-CNN's .mat, detectron2's .pkl, or .npz."),
    ] = None,
    order: Annotated[Literal["yxyx", "xyxy"], Parameter(help="Of the corners in a .mat.")] = "yxyx",
    limit: Limit = None,
    work: Work = None,
    as_json: AsJson = False,
) -> int:
    """Propose boxes for every image of a data set, or bring in others', and say how many of its objects they find."""
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.train import proposals_of
    from sppnet.proposals.compute import IMPORTED
    from sppnet.proposals.files import load_proposals
    from sppnet.proposals.importers import import_proposals
    from sppnet.proposals.recall import format_recall, recall_report

    _check_proposer(proposer)
    if source is not None and work is None:
        raise UserError("--import brings boxes to where training looks for them: give the same --work FOLDER as there")
    annotated = read_annotated(data, split, _checked_limit(limit))
    missing: tuple[str, ...] = ()
    with progress() as report, _work_or_temporary(work) as folder:
        if source is None:
            files = proposals_of(annotated, proposer, folder, partial(report, "proposals"))
            file_of = {image.image_id: file for image, file in zip(annotated.images, files, strict=True)}
        else:
            kept = folder / "proposals" / IMPORTED
            imported = import_proposals(source, annotated, kept, order=order, progress=partial(report, "import"))
            file_of, missing = dict(imported.files), imported.missing
        boxes = {image_id: load_proposals(file)[0] for image_id, file in file_of.items()}
    answer = recall_report(annotated, boxes)
    print(json.dumps(answer, indent=1) if as_json else format_recall(answer))
    if source is not None:
        print(
            f"{imported.boxes} boxes of {len(file_of)} images in {kept}; {imported.dropped} empty or outside their image",
            file=sys.stderr,
        )
    if missing:
        some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        return complain(f"{source} has no boxes of {len(missing)} of {len(annotated)} images, which need some: {some}")
    return 0


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes; they come out as they are
    sys.exit(run(sys.argv[1:] if words is None else words))


def run(words: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    try:
        status = app(list(words), exit_on_error=False, print_error=False, result_action="return_value")
    except UserError as error:
        return complain(str(error))
    except CycloptsError as error:
        return complain(f"{error}; see 'sppnet --help'")
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        sys.stderr.close()
        return 0
    return int(status or 0)


def _each_image(
    sources: Sequence[Path],
    one: Callable[[Path, np.ndarray], tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]],
    output: Path | None,
    document_name: str,
    as_json: bool,
) -> int:
    """Answer about every image; name the bad and the missing ones, do the rest, and then end with status 2."""
    from sppnet.data.images import ImageError, read_image
    from sppnet.visualize import save_image

    document: dict[str, Any] = {"images": [], "errors": []}

    def name_bad(file: Path, reason: str) -> None:
        document["errors"].append({"file": str(file), "error": reason})
        complain(reason)

    files = _find_each(sources, name_bad)
    taken: set[str] = set()
    with progress() as report:
        for done, file in enumerate(files):
            try:
                image = read_image(file)
                answer, lines, draw = one(file, image)
            except (ImageError, MemoryError) as error:
                reason = str(error) if isinstance(error, ImageError) else f"{file}: not enough memory for this image"
                name_bad(file, reason)
                continue
            entry = {"file": str(file), "height": image.shape[0], "width": image.shape[1], **answer}
            if output is not None:
                entry["picture"] = _free_name(file, taken)
                save_image(draw(), output / entry["picture"])
            document["images"].append(entry)
            if not as_json:
                for line in lines:
                    print(f"{file}: {line}", flush=True)
            if len(files) > 1:
                report("images", done + 1, len(files))
    if output is not None and files:
        write_json(output / document_name, document)
        print(f"{len(document['images'])} annotated pictures and {document_name} in {output}", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=1))
    return 2 if document["errors"] else 0


def _find_each(sources: Sequence[Path], name_bad: Callable[[Path, str], None]) -> list[Path]:
    """The images of all sources, as `find_images` lists them; a source without any does not stop the others."""
    from sppnet.data.image_files import find_images
    from sppnet.data.images import ImageError

    found: dict[str, Path] = {}
    for source in sources:
        try:
            for file in find_images([source]):
                found.setdefault(os.path.abspath(file), file)
        except ImageError as error:
            name_bad(source, str(error))
    return sorted(found.values())


def _free_name(file: Path, taken: set[str]) -> str:
    name, number = f"{file.stem}.jpg", 2
    while name.lower() in taken:
        name, number = f"{file.stem}-{number}.jpg", number + 1
    taken.add(name.lower())
    return name


def _bound_caches() -> None:
    for name, size in CACHES.items():
        os.environ.setdefault(name, size)


def _load(model: str, device: str) -> SPPNet:
    _bound_caches()
    from sppnet.models.files import load

    return load(model, _device(device))


def _load_each(models: str, device: str) -> list[SPPNet]:
    """The models of ``A+B``; a name or path that has a + itself is one."""
    from sppnet.models.files import SHIPPED

    one = models in SHIPPED or Path(models).exists()
    return [_load(model, device) for model in ([models] if one else models.split("+"))]


def _pretrained(backbone: str, weights: str | None, names: tuple[str, ...], device: str) -> SPPNet:
    """A backbone that has learned, without a head: compact as in the shipped model, or one of torchvision's."""
    _bound_caches()
    from sppnet.models.backbones import OWN, build_backbone
    from sppnet.models.files import SHIPPED
    from sppnet.models.sppnet import Architecture, SPPNet

    learned = weights or (SHIPPED["voc"] if backbone == OWN else "DEFAULT")
    architecture = Architecture(names, backbone, levels=(3, 2, 1), hidden=(), detects=False, multi_label=False)
    return SPPNet(architecture, build_backbone(backbone, learned)).eval().to(_device(device))


def _device(name: str) -> str:
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise UserError(f"device {name!r} is not available here; use --device cpu")
    return name


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1: got {value}")


def _check_proposer(name: str) -> None:
    from sppnet.proposals.compute import Proposer

    try:
        Proposer(name)
    except UserError as error:
        raise UserError(f"--proposer: {error}") from error


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1: got {limit}; leave it out for all images")
    return limit


def _positive(name: str, numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers or min(numbers) < 1:
        raise UserError(f"{name} must be whole numbers of at least 1: got {' '.join(map(str, numbers)) or 'none'}")
    return numbers


def _work_folder(output: Path) -> Path:
    return output.with_name(f"{output.stem}.work")


@contextmanager
def _work_or_temporary(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="sppnet-") as folder:
        yield Path(folder)
