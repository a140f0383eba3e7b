"""The backbone of the shipped models: a small residual net of plain 3x3 convolutions.

It sits first in the method: images [N, 3, H, W] -> features [N, 384, ceil(H/32), ceil(W/32)], one cell every 32 pixels.
Plain convolutions (no depthwise, no squeeze-and-excite) because those are what bfloat16 runs fast on CPUs. While it
learns, a BatchNorm follows every convolution; `sppnet.models.fold.fold_batch_norm` writes the learned statistics
into the convolutions, and the folded net is what ships.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (32, 48, 96, 192, 384)  # channels at stride 2, 4, 8, 16, 32: most weights sit where the map is small
BLOCKS = (1, 2, 2, 2)  # residual blocks at stride 4, 8, 16, 32


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm; or, folded, one convolution with bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, *, folded: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=folded)
        self.norm: nn.Module = nn.Identity() if folded else nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.conv(features))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, folded: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride, folded=folded)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, 1, folded=folded)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = (
            ConvNorm(in_channels, out_channels, 1, stride, folded=folded) if changes_shape else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        return (self.conv2(self.conv1(features).relu()) + self.shortcut(features)).relu()


def compact_resnet(
    widths: Sequence[int] = WIDTHS, blocks: Sequence[int] = BLOCKS, *, folded: bool = True
) -> nn.Sequential:
    """Build the net with random weights.

    Args:
        widths: channels of the first convolution, then of each stage; each stage halves the map once more.
        blocks: residual blocks in each stage, one number fewer than ``widths``.
        folded: True for the form that ships (no BatchNorm); False for the form that learns from random weights.

    Returns:
        A module: images [N, 3, H, W] -> features [N, widths[-1], H/32, W/32] (rounded up) with five widths.

    Raises:
        ValueError: ``blocks`` is not one shorter than ``widths``.

    Example:
        >>> compact_resnet()(torch.zeros(1, 3, 97, 200)).shape
        torch.Size([1, 384, 4, 7])
    """
    if len(blocks) != len(widths) - 1:
        raise ValueError(f"blocks must be one shorter than widths: got {len(blocks)} blocks for {len(widths)} widths")
    layers: list[nn.Module] = [ConvNorm(3, widths[0], 3, 2, folded=folded), nn.ReLU()]
    for in_channels, out_channels, count in zip(widths, widths[1:], blocks, strict=False):
        layers.append(ResidualBlock(in_channels, out_channels, 2, folded=folded))
        layers += [ResidualBlock(out_channels, out_channels, 1, folded=folded) for _ in range(count - 1)]
    return nn.Sequential(*layers)
