"""`sppnet classify` and `sppnet embed`: what is in every image, or a vector of one length for each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from sppnet.classification.predict import bin_contributions
from sppnet.classification.predict import classify as classify_one
from sppnet.classification.predict import embed as embed_one
from sppnet.cli import complain
from sppnet.cli.each_image import Answer, each_image, find_each
from sppnet.cli.options import AsJson, Device, Images, Model, Views, chosen_device
from sppnet.errors import ImageError, SettingsError
from sppnet.files import MADE_BY, atomic_write, check_outputs
from sppnet.models.files import load
from sppnet.progress import progress_bars


def classify(
    images: Images,
    /,
    *,
    model: Model = "voc",
    views: Views = "single",
    pyramid: Annotated[bool, Parameter(negative=())] = False,
    output: Path | None = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> int:
    """Say what is in every image.

    Args:
        pyramid: Show over each photo what every bin of the pyramid adds to the answer.
        output: Folder for annotated pictures and classes.json.
    """
    if pyramid and (output is None or views != "single"):
        raise SettingsError("--pyramid draws pictures of a single view: give --output FOLDER, and leave --views out")
    net = load(model, chosen_device(device))

    def one(_: Path, image: np.ndarray) -> Answer:
        answer = classify_one(image, net, views=views)
        lines = [", ".join(f"{name} {score:.2f}" for name, score in answer.top(3))]
        if not pyramid:
            return answer.to_dict(), lines, lambda: np.asarray(answer.draw(image))
        added = bin_contributions(net, image, answer.label)
        return {**answer.to_dict(), "pyramid": added.to_dict()}, lines, added.draw

    return each_image(images, one, output, "classes.json", as_json)


def embed(images: Images, /, *, output: Path, model: Model = "voc", device: Device = "auto") -> int:
    """Turn every image into a vector of one length: what stands before the model's last layer.

    Args:
        output: The file to write, .npz: 'files' [N], 'vectors' [N, D] float32.
    """
    if output.suffix != ".npz":
        raise SettingsError(f"--output must end in .npz: got {output}")
    check_outputs(output)
    status, files, vectors = 0, [], []
    bad: list[str] = []
    found = find_each(images, lambda _, reason: bad.append(reason))
    net = load(model, chosen_device(device))
    with progress_bars() as progress:
        for done, file in enumerate(found):
            try:
                vectors.append(embed_one(file, net)[0])
                files.append(str(file))
            except ImageError as error:
                bad.append(str(error))
            progress("images", done + 1, len(found))
    for reason in bad:
        status = complain(reason)
    if not files:
        return status
    with atomic_write(output) as unfinished, open(unfinished, "wb") as file_:
        np.savez(file_, made_by=np.bytes_(MADE_BY), files=np.array(files), vectors=np.stack(vectors))
    print(f"{len(files)} vectors of length {len(vectors[0])} in {output}", file=sys.stderr)
    return status
