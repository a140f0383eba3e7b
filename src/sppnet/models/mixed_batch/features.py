"""What is called: images of any sizes -> features, each image's as if it were alone.

images [3, h_i, w_i] -> zero-padded batch [N, 3, H, W] -> features [N, C, H', W'] -> windows [N, 5] for the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sppnet.errors import UserError
from sppnet.models.mixed_batch.graph import NOT_A_MAP
from sppnet.models.mixed_batch.needs import put_together
from sppnet.models.mixed_batch.padded_batch import Size
from sppnet.models.mixed_batch.plan import plan_of


def mixed_features(backbone: nn.Module, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Features of images of different sizes, computed in one batch, each as if it were alone.

    Alone means ``backbone(image[None])``; only the order in which sums are taken may differ. A BatchNorm in training mode,
    which is never about one image, takes its statistics over the cells of all the images and no others.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]. `torch.fx` must be able to trace it, and each of its layers
            be one whose padding can be set back: convolutions, poolings, normalisations, linear layers over channels,
            squeeze-and-excite, whatever works element by element, shortcuts, branches, channel shuffles. In training or
            evaluation mode, on any device, under autocast or not. Where sizes differ, a traced copy of its ``forward`` runs:
            hooks on modules that hold others do not, and plain numbers in it stay as they were at the first call.
        images: N tensors [3, h_i, w_i], floating point, of one type and on one device; at least one. Not modified.
            Images of one size cost nothing extra; very different sizes waste time on padding.

    Returns:
        features: [N, C, H', W'], where H' and W' are the largest of the sizes. Beyond an image's own size it is 0.
        sizes: for each image its (rows, columns) of the map, in cells; see `own_windows`.

    Raises:
        UserError: a layer that cannot be made exact (the message names it), or an image too small for the backbone.
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
    plan = plan_of(backbone)
    batch = plan.batch_of(backbone, [(image.shape[1], image.shape[2]) for image in images])
    output = plan.graph.output
    return batch.reset(batch.run(_pad(images)), output, 0.0), batch.sizes[output]


class MixedBatch(nn.Module):
    """`mixed_features` as a module: for an optimiser, `DistributedDataParallel`, or ``nn.Sequential``.

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
        plan_of(backbone)

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


def _check_images(images: Sequence[Tensor]) -> None:
    if len(images) == 0:
        raise ValueError("images must hold at least one tensor [3, h, w]: got none")
    first = images[0]
    for index, image in enumerate(images):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            what = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"images must be floating point tensors [3, h, w]: image {index} is {what}")
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"images must be [3, h, w]: image {index} has shape {list(image.shape)}")
        if (image.dtype, image.device) != (first.dtype, first.device):
            raise ValueError(
                f"images must be of one type and on one device: image {index} is {image.dtype} on {image.device}, "
                f"image 0 {first.dtype} on {first.device}"
            )


def _pad(images: Sequence[Tensor]) -> Tensor:
    """[N, 3, H, W] with zeros below and to the right of each image; channels last in memory if the images are."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if torch.is_grad_enabled() and any(image.requires_grad for image in images):
        return put_together(images)
    batch = images[0].new_zeros(len(images), 3, height, width)
    if all(image.stride(0) == 1 for image in images):
        batch = batch.to(memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch
