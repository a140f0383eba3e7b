"""`sppnet detect`: boxes, labels and scores for every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from sppnet.cli.each_image import Answer, each_image
from sppnet.cli.options import AsJson, Device, Images, Scales, chosen_device
from sppnet.detection.predict import check_combination
from sppnet.detection.predict import detect as detect_one
from sppnet.detection.suppression import DetectSettings
from sppnet.errors import ImageError
from sppnet.models.files import load
from sppnet.proposals.compute import check_method
from sppnet.proposals.files import cut_boxes, read_boxes


def detect(
    images: Images,
    /,
    *,
    model: list[str] = ["voc"],
    settings: Annotated[DetectSettings, Parameter(name="*")] = DetectSettings(),
    proposals: str | None = None,
    scales: Scales = (),
    output: Path | None = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Find objects: boxes, labels and scores for every image.

    Args:
        model: A shipped model's name, a model file, or several to combine.
        proposals: Where to look: network, selective-search, edge-boxes, grid, or several joined by +; or a file or folder of boxes by the images' names. Left out: as the model was trained.
        output: Folder for annotated pictures and detections.json.
    """
    given = None
    if proposals is not None and Path(proposals).exists():
        given = read_boxes(proposals)
    elif proposals is not None:
        check_method(proposals)  # a mistake in it is said before the work
    nets = [load(name, chosen_device(device)) for name in model]
    check_combination(nets)
    nets = [net.at_scales(scales) for net in nets] if scales else nets

    def one(file: Path, image: np.ndarray) -> Answer:
        boxes = proposals if given is None else given.get(file.stem, given.get(file.name))
        if given is not None and (boxes is None or not len(boxes)):
            raise ImageError(f"{file}: no boxes of {file.stem!r} in {proposals}")
        if isinstance(boxes, np.ndarray):
            boxes = cut_boxes(boxes, (image.shape[0], image.shape[1]), f"{proposals}: {file.stem!r}")
        found = detect_one(image, nets, proposals=boxes, settings=settings)
        kind = "decision score " if found.score_kind == "decision" else ""
        lines = [f"{d.class_name} {kind}{d.score:.2f} at {' '.join(f'{side:.0f}' for side in d.box)}" for d in found]
        return found.to_dict(), lines or ["nothing found"], lambda: np.asarray(found.draw(image))

    return each_image(images, one, output, "detections.json", as_json)
