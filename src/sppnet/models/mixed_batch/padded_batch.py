"""A padded batch on its way through a backbone: where each image's own part ends, and how what lies beyond is set back.

An image's own part of a map is the upper left one. A *map* is a value with the image's rows and columns as two neighboring
axes, so it has a part beyond each image's edges. Everything else (weights, a gate of squeeze-and-excite, a number of
channels) is for each image as it is alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.models.geometry import Follow, LostMap, Size, leaves


@dataclass(frozen=True)
class Own:
    """The images' own parts of a map."""

    rows: int  # the map's axis of rows, from the end; then columns
    sizes: list[Size]  # (rows, columns) of each image


class PaddedBatch(Follow):
    """Follows maps through a backbone, each with its images' own parts.

    Args:
        images: [N, 3, H, W], 0 beyond each image's edges.
        sizes: (height, width) of each image.
    """

    def __init__(self, images: Tensor, sizes: list[Size]) -> None:
        super().__init__()
        self.sizes = sizes
        self.shapes: set[tuple[int, ...]] = set()  # [N, H, W] of all maps so far
        self.masks: dict[tuple[Any, ...], Tensor] = {}
        self.keep(images, Own(-2, sizes))

    def keep(self, result: Any, own: Own | None) -> Any:
        """A value, or several, and the images' own parts of each; None: it is no map."""
        for each in leaves(result):
            if isinstance(each, Tensor):
                self.maps[each] = own
                if own is not None:
                    self.shapes.add((len(each), *each.shape[own.rows :][:2]))
        return result

    def is_map(self, value: Any) -> bool:
        return isinstance(value, Tensor) and self.maps.get(value) is not None

    def is_unknown(self, value: Any) -> bool:
        """Whether this seems to be a map, made by something that cannot be followed."""
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.ndim < 4 or value in self.maps:
            return False
        return value.shape[-2:] != (1, 1) and (len(value), *value.shape[-2:]) in self.shapes

    def reset(self, features: Tensor, value: float) -> Tensor:
        """Set what lies beyond each image's edges to `value`.

        Where no gradient is asked for, the map is changed in place: what lies beyond the edges is nobody's.
        """
        own: Own = self.maps[features]
        height, width = features.shape[own.rows :][:2]
        if all(size == (height, width) for size in own.sizes):
            return features
        if torch.is_grad_enabled():
            return cast(Tensor, self.keep(features.masked_fill(self._beyond(features, own), value), own))
        if not features.is_cpu:  # one kernel over the whole map is faster there than two for every image
            return features.masked_fill_(self._beyond(features, own), value)
        for image, (h, w) in zip(features, own.sizes, strict=True):
            image.narrow(own.rows, h, height - h).fill_(value)
            image.narrow(own.rows + 1, w, width - w).fill_(value)
        return features

    def _beyond(self, features: Tensor, own: Own) -> Tensor:
        """True beyond each image's own edges; with as many axes as the map."""
        height, width = features.shape[own.rows :][:2]
        key = (height, width, *own.sizes)
        if key not in self.masks:
            sizes = torch.tensor(own.sizes, device=features.device)
            down, across = (torch.arange(side, device=features.device) for side in (height, width))
            self.masks[key] = (down >= sizes[:, :1])[:, :, None] | (across >= sizes[:, 1:])[:, None]
        before, after = [1] * (features.ndim + own.rows - 1), [1] * (-2 - own.rows)
        return self.masks[key].reshape(len(own.sizes), *before, height, width, *after)


class Length:
    """The height or width of the padded batch, which a network may hand on to a view, and may not reckon with."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def refuse(self, *_: Any) -> NoReturn:
        raise LostMap("it uses the height or width of the padded batch")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = refuse
    __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = __round__ = refuse
    __bool__ = __int__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __hash__ = refuse


def own_parts(features: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Each image's own part. By way of `unbind`: the gradient of a slice of the batch would be as large as the batch."""
    return [image[..., :rows, :columns] for image, (rows, columns) in zip(features.unbind(), sizes, strict=True)]


def put_together(parts: Sequence[Tensor]) -> Tensor:
    """A batch of the maps [..., h_i, w_i]: 0 beyond the edges."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.stack([F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])) for part in parts])
