"""The region proposal head: it looks at every cell of a feature map and says where an object of whatever class may be.

features [1, C, h, w] -> logits [P] and box deltas [P, 4] of P = h * w * A anchors: boxes of five sizes and three aspects around each
cell. The detector's own convolutions do nearly all of the work, so proposals cost next to nothing: Faster R-CNN, arXiv:1506.01497,
section 3.1. What the logits are taught differs from there: not whether there is an object, but how well the moved anchor
will fit it (its IoU), so that the best placed boxes come first, as in OLN (arXiv:2108.06753).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sppnet.models.geometry import Geometry, Size
from sppnet.models.heads import in_dtype_of
from sppnet.models.networks import draw_normal

WIDTH = 256
ANCHOR_SIZES = (24, 48, 96, 192, 384)  # pixels of what the backbone sees: the root of an anchor's area
ANCHOR_ASPECTS = (0.5, 1.0, 2.0)  # width / height
RARE = 0.01  # the score that every anchor starts with: few are objects


class ProposalHead(nn.Module):
    """Scores and moves anchors.

    Args:
        geometry: of the backbone.

    Example:
        >>> head = ProposalHead(Geometry(16, 8.0, channels=4))
        >>> logits, deltas = head(torch.zeros(1, 4, 10, 20))
        >>> logits.shape, deltas.shape
        (torch.Size([3000]), torch.Size([3000, 4]))
        >>> head.anchors((10, 20)).shape
        torch.Size([3000, 4])
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry, count = geometry, len(ANCHOR_SIZES) * len(ANCHOR_ASPECTS)
        self.conv = nn.Conv2d(geometry.channels, WIDTH, 3, padding=1)
        self.scores, self.deltas = nn.Conv2d(WIDTH, count, 1), nn.Conv2d(WIDTH, 4 * count, 1)
        for layer in (self.conv, self.scores, self.deltas):
            draw_normal(layer.weight, 0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, math.log(RARE / (1 - RARE)) if layer is self.scores else 0.0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [1, C, h, w] -> logits [P] and deltas [P, 4] (`sppnet.boxes.encode_boxes`), float32, cell by cell."""
        hidden = self.conv(in_dtype_of(self.conv.weight, features)).relu()  # [1, 256, h, w]
        logits, deltas = self.scores(hidden), self.deltas(hidden)
        return logits[0].permute(1, 2, 0).reshape(-1).float(), deltas[0].permute(1, 2, 0).reshape(-1, 4).float()

    def anchors(self, map_size: Size) -> Tensor:
        """The anchors [P, 4] of a map of (height, width) cells, in pixels of what the backbone saw."""
        sizes, aspects = torch.tensor(ANCHOR_SIZES)[:, None], torch.tensor(ANCHOR_ASPECTS).sqrt()
        halves = torch.stack([sizes * aspects, sizes / aspects], dim=-1).reshape(-1, 2) / 2  # [A, 2]
        rows, columns = (self.geometry.offset + self.geometry.stride * torch.arange(count) for count in map_size)
        centres = torch.cartesian_prod(rows, columns).flip(1)[:, None]  # [h * w, 1, 2]
        return torch.cat([centres - halves, centres + halves], dim=-1).reshape(-1, 4)
