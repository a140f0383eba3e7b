"""Batches of images of different sizes: each image gets the features that it gets alone.

It sits before the pyramid: images [3, h_i, w_i] of any sizes -> one zero-padded batch [N, 3, H, W] -> features
[N, C, H', W'], and for every image the size (rows, columns) of its own part of the map, the upper left one.

What lies beyond an image's own edge fills up on the way: a bias makes it other than zero, a convolution smears the image
into it. So, operation by operation:

==========================================  ==========================================================================
one that works element by element           runs as it is
one that looks sideways (convolution,       first, what it can reach beyond each image's own edge is set back to that
pooling)                                    operation's padding: 0 for a convolution, -inf for a maximum
global pooling, squeeze-and-excite          is given each image's own cells, and divides by their number
a BatchNorm in training                     takes its statistics over the own cells of all images, and no others
any other                                   runs on each image's own part by itself, or is refused by name
==========================================  ==========================================================================

`sppnet.models.mixed_batch.rules` holds that table as code, `padded_batch` the batch on its way and the setting back. The backbone
runs as it is; every operation in it is followed (`sppnet.models.geometry.Follow`), and with each map go the sizes of its images'
own parts. Beyond the edges all stays finite, so that nothing of it reaches a result or a gradient, not even as infinity times zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.geometry import LostMap, Size, without_data
from sppnet.models.mixed_batch.padded_batch import put_together
from sppnet.models.mixed_batch.rules import Rules

NOT_A_MAP = "the backbone must end in one feature map [N, C, h, w]: leave its pooling and classifier out"
# Pixels of two images to look at a backbone with; the larger 11 and 17 times 32, so rows are never as many as columns.
SAMPLES = [(352, 544), (320, 480)]


def mixed_features(backbone: nn.Module, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Features of images of different sizes, computed in one batch, each as if it were alone.

    Alone means ``backbone(image[None])``; only the order in which sums are taken may differ. A BatchNorm in training mode,
    which is never about one image, takes its statistics over the cells of all the images and no others.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]. Each of its operations must be one whose padding can be set back:
            convolutions, poolings, normalizations, linear layers over channels, squeeze-and-excite, whatever works element by
            element, shortcuts, branches, channel shuffles. In training or evaluation mode, on any device, under autocast or not.
        images: N tensors [3, h_i, w_i], floating point, of one type and on one device; at least one. Not modified.
            Images of one size cost nothing extra; very different sizes waste time on padding.

    Returns:
        features: [N, C, H', W'], where H' and W' are the largest of the sizes. Beyond an image's own size it is 0.
        sizes: for each image its (rows, columns) of the map, in cells; see `own_windows`.

    Raises:
        UserError: an operation that cannot be made exact (the message names its layer), or an image too small for the backbone.
        ValueError, TypeError: something else than such images.

    Gradient: exact, the sum of those of the images alone; none from what lies beyond an image's edge.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()
        >>> images = [torch.rand(3, 20, 30), torch.rand(3, 40, 10)]
        >>> features, sizes = mixed_features(backbone, images)
        >>> sizes
        [(10, 15), (20, 5)]
        >>> torch.allclose(features[0, :, :10, :15], backbone(images[0][None])[0], atol=1e-6)
        True
    """
    _check_images(images)
    if len({image.shape for image in images}) == 1:
        features = backbone(torch.stack(list(images)))
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise UserError(NOT_A_MAP)
        return features, [(features.shape[2], features.shape[3])] * len(images)
    padded = put_together(images)
    if all(image.stride(0) == 1 for image in images):
        padded = padded.contiguous(memory_format=torch.channels_last)
    return _run(backbone, padded, [(image.shape[1], image.shape[2]) for image in images])


class MixedBatch(nn.Module):
    """`mixed_features` as a module: for an optimizer, `DistributedDataParallel`, or ``nn.Sequential``.

    Args:
        backbone: see `mixed_features`. It is held, not copied: the same weights, named ``backbone.*`` here.

    Raises:
        UserError: as `mixed_features`, here already, before there are images.

    Example:
        >>> mixed = MixedBatch(nn.Conv2d(3, 8, 3, stride=2))
        >>> features, sizes = mixed([torch.rand(3, 20, 30), torch.rand(3, 40, 10)])
        >>> features.shape, sizes
        (torch.Size([2, 8, 19, 14]), [(9, 14), (19, 4)])
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad(), torch.device("meta"):
            _run(without_data(backbone), torch.empty(2, 3, *SAMPLES[0]), SAMPLES)

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        return mixed_features(self.backbone, images)


def own_windows(sizes: Sequence[Size], device: torch.device | str | None = None) -> Tensor:
    """One window per image, the whole of its own part of the map: [N, 5] int64, as `region_pyramid_pool` takes them.

    Args:
        sizes: (rows, columns) of each image, in cells, from `mixed_features`.
        device: where the windows are wanted: that of the features.

    Example:
        >>> own_windows([(10, 15), (20, 5)])
        tensor([[ 0,  0,  0, 15, 10],
                [ 1,  0,  0,  5, 20]])
    """
    windows = [(index, 0, 0, columns, rows) for index, (rows, columns) in enumerate(sizes)]
    return torch.tensor(windows, dtype=torch.int64, device=device).reshape(-1, 5)


def _run(backbone: nn.Module, padded: Tensor, sizes: list[Size]) -> tuple[Tensor, list[Size]]:
    """A batch [N, 3, H, W] through the backbone, and the sizes of the images' own parts of its map."""
    batch = Rules(padded, sizes)
    try:
        with batch:
            features = backbone(padded)
    except LostMap as error:
        problem = f"cannot be made exact for images of different sizes in one batch: {error}"
        remedy = "use images of one size, or one at a time"
        raise UserError(f"{batch.where(error, backbone)} {problem}; {remedy}") from error
    except Exception as error:
        if isinstance(error, UserError) or not padded.is_meta:
            raise
        height, width = padded.shape[2:]
        reason = f"{(str(error).splitlines() or [type(error).__name__])[0]} (in {batch.where(error, backbone)})"
        raise UserError(f"the backbone cannot take an image of {height} x {width} pixels: {reason}") from error
    own = batch.maps.get(features) if isinstance(features, Tensor) else None
    if own is None or own.rows != -2 or features.ndim != 4:
        raise UserError(NOT_A_MAP)
    return batch.reset(features, 0.0), own.sizes


def _check_images(images: Sequence[Tensor]) -> None:
    if len(images) == 0:
        raise ValueError("images must hold at least one tensor [3, h, w]: got none")
    first = images[0]
    for index, image in enumerate(images):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            what = getattr(image, "dtype", type(image).__name__)
            raise TypeError(f"images must be floating point tensors [3, h, w]: image {index} is {what}")
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"images must be [3, h, w]: image {index} has shape {list(image.shape)}")
        if (image.dtype, image.device) != (first.dtype, first.device):
            found = f"image {index} is {image.dtype} on {image.device}, image 0 {first.dtype} on {first.device}"
            raise ValueError(f"images must be of one type and on one device: {found}")
