"""`sppnet classify`: what is in every image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from sppnet.classification.explain import bin_contributions
from sppnet.classification.predict import classify as classify_one
from sppnet.cli.each_image import each_image
from sppnet.cli.options import AsJson, Device, Images, Model, Views, chosen_device
from sppnet.errors import SettingsError
from sppnet.models.files import load


def classify(
    images: Images,
    /,
    *,
    model: Model = "voc",
    views: Views = "single",
    pyramid: Annotated[
        bool, Parameter(negative=(), help="Show over each photo what every bin of the pyramid adds to the answer.")
    ] = False,
    output: Annotated[Path | None, Parameter(help="Folder for annotated pictures and classes.json.")] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Say what is in every image."""
    if pyramid and (output is None or views != "single"):
        raise SettingsError("--pyramid draws pictures of a single view: give --output FOLDER, and leave --views out")
    net = load(model, chosen_device(device))

    def one(_: Path, image: np.ndarray) -> tuple[dict[str, Any], list[str], Callable[[], np.ndarray]]:
        answer = classify_one(image, net, views=views)
        lines = [", ".join(f"{name} {score:.2f}" for name, score in answer.top(3))]
        if not pyramid:
            return answer.to_dict(), lines, lambda: np.asarray(answer.draw(image))
        added = bin_contributions(net, image, answer.label)
        return {**answer.to_dict(), "pyramid": added.to_dict()}, lines, added.draw

    return each_image(images, one, output, "classes.json", as_json)
