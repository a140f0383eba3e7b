"""`sppnet compress`: a smaller and faster model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sppnet.cli.loading import load_model
from sppnet.cli.parameters import Model, NewModel
from sppnet.errors import UserError
from sppnet.terminal import progress


def compress(
    model: Model,
    /,
    *,
    output: NewModel,
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
    net = load_model(model, "cpu")
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
