"""`sppnet detect`: boxes, labels and scores for every image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sppnet.cli.each_image import each_image
from sppnet.cli.loading import load_model
from sppnet.cli.parameters import AsJson, Device, Images, OtherProposals, OtherScales, VoteIou
from sppnet.cli.values import check_proposer, check_share, checked_positive
from sppnet.detection import NMS_IOU, VOTE_IOU
from sppnet.errors import UserError

if TYPE_CHECKING:
    import numpy as np


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
    vote_iou: VoteIou = VOTE_IOU,
    proposer: OtherProposals = None,
    scales: OtherScales = (),
    proposals: Annotated[
        Path | None,
        Parameter(help="Boxes made elsewhere, by the images' names: .npz, or a folder of them."),
    ] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Find objects: boxes, labels and scores for every image."""
    from sppnet.data.images import ImageError
    from sppnet.detection.combine import check_combination, detect_with_several
    from sppnet.detection.predict import detect as detect_one
    from sppnet.proposals.compute import propose
    from sppnet.proposals.files import cut_boxes, read_boxes
    from sppnet.visualize import draw_detections

    check_share("--nms-iou", nms_iou)
    check_share("--vote-iou", vote_iou)
    if proposer is not None:
        check_proposer(proposer)
        if proposals is not None:
            raise UserError("--proposer and --proposals both say which boxes to look at: give one of them")
    nets = [load_model(name, device) for name in model]
    check_combination(nets)
    if scales:
        nets = [net.at_scales(checked_positive("--scales", scales)) for net in nets]
    if score_threshold is not None and nets[0].architecture.classifier != "svm":
        check_share("--score-threshold", score_threshold)
    given = None if proposals is None else read_boxes(proposals)

    def one(file: Path, image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        boxes = None if given is None else given.get(file.stem, given.get(file.name))
        if given is not None and (boxes is None or not len(boxes)):
            raise ImageError(f"{file}: no boxes of {file.stem!r} in {proposals}")
        if boxes is not None:
            boxes = cut_boxes(boxes, (image.shape[0], image.shape[1]), f"{proposals}: {file.stem!r}")
        if proposer is not None:
            boxes = propose(image, proposer)
        words: dict[str, Any] = {
            "score_threshold": score_threshold,
            "nms_iou": nms_iou,
            "vote_iou": vote_iou,
            "proposals": boxes,
        }
        found = detect_one(image, nets[0], **words) if len(nets) == 1 else detect_with_several(image, nets, **words)
        kind = "decision score " if found.score_kind == "decision" else ""
        lines = [f"{d.class_name} {kind}{d.score:.2f} at {' '.join(f'{side:.0f}' for side in d.box)}" for d in found]
        return found.to_dict(), lines or ["nothing found"], lambda: draw_detections(image, found)

    return each_image(images, one, output, "detections.json", as_json)
