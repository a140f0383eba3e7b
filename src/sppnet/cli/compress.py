"""`sppnet compress`: a smaller and faster model."""

from __future__ import annotations

from pathlib import Path

from sppnet.cli.options import Model, NewModel
from sppnet.data.find import find_images
from sppnet.detection.feature_maps import sample_windows
from sppnet.files import check_replaceable
from sppnet.models.compress import truncate_layers
from sppnet.models.files import check_model_path, find_model, load, save_model
from sppnet.progress import progress_bars


def compress(
    model: Model,
    /,
    *,
    output: NewModel,
    ranks: tuple[int, ...] | None = None,
    energy: float | None = None,
    photos: list[Path] | None = None,
) -> int:
    """Make a model smaller and faster: its fully connected layers as products of two thin ones. See what 'evaluate' says then.

    Args:
        ranks: Of each fully connected layer; 0 leaves one as it is. Smaller is faster.
        energy: Instead: the share to keep of each layer's squared weights, or of the variance of its outputs on --photos.
        photos: Photos like those that the model is for, some dozens: far more of the outputs on these is kept.
    """
    check_replaceable(check_model_path(output))
    net = load(model)
    pooled = None
    if photos:
        with progress_bars() as progress:
            pooled = sample_windows(net, find_images(photos), progress=progress)
    small, kept = truncate_layers(net, ranks, energy=energy, pooled=pooled)
    ranks = small.architecture.ranks or (0,) * len(kept)
    small.record = {**net.record, "compressed": {"ranks": ranks, "energy": kept}}
    before = find_model(model).stat().st_size  # before writing: the output may be the same file
    save_model(small, output)
    for number, (rank, share) in enumerate(zip(ranks, kept, strict=True), start=1):
        print(f"fully connected layer {number}: " + (f"rank {rank}, {share:.1%} of it kept" if rank else "whole"))
    print(f"wrote {output} ({before / 1e6:.1f} MB before, {output.stat().st_size / 1e6:.1f} MB now)")
    return 0
