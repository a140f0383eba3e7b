"""Parameters that several commands have, with their help; a command gives them its own default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Images = Annotated[list[Path], Parameter(help="Image files, folders (searched through) or patterns such as '*.jpg'.")]
Data = Annotated[Path, Parameter(help="Annotated images: a VOC folder, COCO JSON with its images, or a YOLO folder.")]
Model = Annotated[str, Parameter(help="A shipped model's name, or the path of a model file.")]
NewModel = Annotated[Path, Parameter(help="The model file to write, .safetensors.")]
Backbone = Annotated[str, Parameter(help="'compact', or a torchvision model such as mobilenet_v2.")]
Levels = Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="Bins per side of each pyramid level.")]
ShortSide = Annotated[int, Parameter(help="Images are resized to this short side, in pixels,")]
ViewSet = Annotated[
    Literal["single", "centre-crop", "10-view", "full", "multi-view", "multi-view+full"],
    Parameter(help="How each image is looked at: at once, or many times over, which is slower and may be better."),
]
Proposals = Annotated[
    str,
    Parameter(
        help="What proposes boxes: selective-search (the default), edge-boxes, grid, or several joined by +; or 'imported', "
        "which 'sppnet proposals --import' brought in."
    ),
]
OtherProposals = Annotated[
    str | None, Parameter(help="Look at boxes of another proposer than the one that the model was trained with.")
]
OtherScales = Annotated[
    tuple[int, ...],
    Parameter(
        consume_multiple=True,
        help="Look at the image at these short sides, such as 480 688 1000, and at each window where its object looks the usual "
        "size; left out: as the model was trained. Several find more, and take longer.",
    ),
]
VoteIou = Annotated[
    float,
    Parameter(
        help="A box that is kept moves to the mean of the boxes of its class that overlap it by this much, weighted by their "
        "scores; 0: it stays, as in the paper."
    ),
]
Limit = Annotated[int | None, Parameter(help="Only the first so many images.")]
SkipBad = Annotated[bool, Parameter(negative=(), help="Leave out files that cannot be read, and name them.")]
Work = Annotated[Path | None, Parameter(help="Folder for proposals and maps, kept for the next time.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document and nothing else.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute; auto takes a GPU if there is one.")
]
