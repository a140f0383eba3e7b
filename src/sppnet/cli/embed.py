"""`sppnet embed`: a vector of one length for every image, whatever its size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from sppnet.classification.predict import embed as embed_one
from sppnet.cli import complain
from sppnet.cli.each_image import find_each
from sppnet.cli.options import Device, Images, Model, chosen_device
from sppnet.errors import ImageError, SettingsError
from sppnet.files import MADE_BY, atomic_write, check_replaceable
from sppnet.models.files import load
from sppnet.progress import progress_bars


def embed(
    images: Images,
    /,
    *,
    output: Annotated[Path, Parameter(help="The file to write, .npz: 'files' [N], 'vectors' [N, D] float32.")],
    model: Model = "voc",
    device: Device = "auto",
) -> int:
    """Turn every image into a vector of one length: what stands before the model's last layer."""
    if output.suffix != ".npz":
        raise SettingsError(f"--output must end in .npz: got {output}")
    check_replaceable(output)
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
