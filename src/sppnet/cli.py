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
    Parameter(help="What proposes boxes: selective-search, edge-boxes, grid, or several joined by +."),
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
    model: Model = "voc",
    output: Annotated[Path | None, Parameter(help="Folder for annotated pictures and detections.json.")] = None,
    score_threshold: Annotated[float, Parameter(help="Leave out boxes that score less (0 to 1).")] = 0.3,
    nms_iou: Annotated[
        float, Parameter(help="Of boxes of one class that overlap more than this, keep the best.")
    ] = NMS_IOU,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Find objects: boxes, labels and scores for every image."""
    from sppnet.detection.predict import detect as detect_one
    from sppnet.visualize import draw_detections

    _check_share("--score-threshold", score_threshold)
    _check_share("--nms-iou", nms_iou)
    net = _load(model, device)

    def one(image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        found = detect_one(image, net, score_threshold=score_threshold, nms_iou=nms_iou)
        lines = [f"{d.name} {d.score:.2f} at {' '.join(f'{side:.0f}' for side in d.box)}" for d in found]
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
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Say what is in every image."""
    from sppnet.classification.views import classify_views
    from sppnet.visualize import draw_classification

    net = _load(model, device)

    def one(image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        answer = classify_views(image, net, views)
        lines = [", ".join(f"{name} {score:.2f}" for name, score in answer.top(3))]
        return answer.to_dict(), lines, lambda: draw_classification(image, answer)

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
    limit: Limit = None,
    work: Work = None,
    seed: int = 0,
    device: Device = "auto",
) -> int:
    """Train a detector on a frozen backbone: proposals, maps, fully connected layers. A stopped run goes on."""
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.finetune import FinetuneSettings
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
    settings = FinetuneSettings(steps=steps, learning_rate=learning_rate, seed=seed)
    with progress() as report:
        record = train_detector(
            annotated,
            architecture,
            output,
            work or _work_folder(output),
            weights=SHIPPED["voc"] if backbone == OWN and weights is None else weights,
            settings=settings,
            mirrored=mirrored,
            device=_device(device),
            report=report,
        )
    took = ", ".join(f"{stage} {seconds} s" for stage, seconds in record["seconds"].items())
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB; {took})")
    return 0


@app.command
def evaluate(
    model: Model,
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
    from sppnet.detection.evaluate import evaluate_detector
    from sppnet.visualize import plot_precision_recall

    net = _load(model, device)
    if not net.architecture.detects and annotated_layout(data) is None:
        return _evaluate_classifier(net, str(model), data, split, limit, views, output, as_json)
    if views != "single":
        raise UserError("--views is for classifiers: a detector looks at each image once; leave it out")
    annotated = read_annotated(data, split, _checked_limit(limit))
    with progress() as report, _work_or_temporary(work) as folder:
        evaluation = evaluate_detector(net, annotated, folder, report)
    document = {"model": str(model), "data": str(data), "split": split, **evaluation.to_dict()}
    if output is not None:
        write_json(output / "evaluation.json", document)
        plot_precision_recall(evaluation.result, output / "precision-recall.png")
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print(evaluation.result.table())
        whole = evaluation.whole_images
        print(f"\nwhole images, is the class in the photo: {whole.map07:.3f} (11-point), {whole.map_area:.3f} (area)")
        seconds = evaluation.seconds_per_image
        parts = ", ".join(f"{stage} {value:.3f}" for stage, value in seconds.items())
        print(f"\n{evaluation.images} images, {sum(seconds.values()):.3f} s each: {parts}")
    return 0


def _evaluate_classifier(
    net: SPPNet, model: str, data: Path, split: str, limit: int | None, views: str, output: Path | None, as_json: bool
) -> int:
    import numpy as np

    from sppnet.classification.evaluate import evaluate_classifier
    from sppnet.data.folder import read_folder
    from sppnet.visualize.classification import plot_confusion

    images = read_folder(data / split if (data / split).is_dir() else data, classes=net.architecture.names)
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
    limit: Limit = None,
    work: Work = None,
    as_json: AsJson = False,
) -> int:
    """Propose boxes for every image of a data set, and say how many of its objects they find."""
    from sppnet.data.annotated import read_annotated
    from sppnet.detection.train import proposals_of
    from sppnet.proposals.files import load_proposals
    from sppnet.proposals.recall import format_recall, recall_report

    _check_proposer(proposer)
    annotated = read_annotated(data, split, _checked_limit(limit))
    with progress() as report, _work_or_temporary(work) as folder:
        files = proposals_of(annotated, proposer, folder, lambda done, total: report("proposals", done, total))
        boxes = {image.image_id: load_proposals(file)[0] for image, file in zip(annotated.images, files, strict=True)}
    answer = recall_report(annotated, boxes)
    print(json.dumps(answer, indent=1) if as_json else format_recall(answer))
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
    one: Callable[[np.ndarray], tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]],
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
                answer, lines, draw = one(image)
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
    from sppnet.data.images import ImageError, find_images

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


def _load(model: str, device: str) -> SPPNet:
    for name, size in CACHES.items():
        os.environ.setdefault(name, size)
    from sppnet.models.files import load

    return load(model, _device(device))


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
