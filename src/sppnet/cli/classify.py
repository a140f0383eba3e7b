"""`sppnet classify`: what is in every image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sppnet.cli.each_image import each_image
from sppnet.cli.loading import load_model
from sppnet.cli.parameters import AsJson, Device, Images, Model, ViewSet
from sppnet.errors import UserError

if TYPE_CHECKING:
    import numpy as np


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
    from sppnet.visualize import draw_classification, draw_pyramid

    if pyramid and (output is None or views != "single"):
        raise UserError("--pyramid draws pictures, of a single view: say where to with --output, and leave --views out")
    net = load_model(model, device)

    def one(_: Path, image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        answer = classify_views(image, net, views)
        lines = [", ".join(f"{name} {score:.2f}" for name, score in answer.top(3))]
        if not pyramid:
            return answer.to_dict(), lines, lambda: draw_classification(image, answer)
        added = bin_contributions(net, image, answer.label)

        def draw() -> np.ndarray:
            title = f"{added.name} {added.score:.2f} (logit {added.logit:+.2f})"
            return draw_pyramid(
                added.seen, added.levels, added.map_size, added.stride, added.offset,
                contributions=added.bins, together=added.together, title=title,
            )  # fmt: skip

        return {**answer.to_dict(), "pyramid": added.to_dict()}, lines, draw

    return each_image(images, one, output, "classes.json", as_json)
