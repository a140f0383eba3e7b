"""The networks of this project: images [N, 3, H, W] -> features [N, C, h, w].

``zf5``, ``convnet5``, ``overfeat5`` and ``overfeat7`` are the columns of arXiv:1406.4729, table 1, without the last pooling, which
the pyramid replaces (section 2.2); behind the pyramid come two fully connected layers of 4096. The paper gives kernels, strides,
channels and the sizes of maps for 224 pixels, and says that paddings were set to give those sizes, not which. ZF-5's paddings, its
normalization's constants and all first weights are those of the authors' release (ShaoqingRen/SPP_net,
model-defs/Zeiler_conv5.prototxt); the paddings of the others are the smallest that give the sizes. Pooling rounds sizes up, as in
Caffe and cuda-convnet, except Overfeat's first, where even without padding that would give 37 cells for the paper's 36.

`compact_resnet` is the backbone of the shipped model: plain 3x3 convolutions (no depthwise, no squeeze-and-excite), because those are
what bfloat16 runs fast on CPUs. In training a BatchNorm follows every convolution; `sppnet.models.cut.fold_batch_norm` writes its
statistics into the convolutions, and the folded net is what ships.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from sppnet.models.sppnet import SPPNet

WIDTHS = (32, 48, 96, 192, 384)  # compact: channels at stride 2, 4, 8, 16, 32: most weights sit where the map is small
BLOCKS = (1, 2, 2, 2)  # residual blocks at stride 4, 8, 16, 32
# Every weight is drawn from N(0, 0.01); the release has these biases. Conv6 and conv7 (Overfeat-7) are taken as the 1 of
# every layer from conv4 on.
WEIGHT_STD = 0.01
BIASES = {1: 0.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 1.0, 6: 1.0, 7: 1.0}  # by convolution


class WithinChannelLRN(nn.Module):
    """Local response normalization within each channel: x / (1 + alpha * mean of x*x over size x size cells)^beta.

    The mean divides by ``size * size`` at the borders too, where cells outside the map count as zeros. PyTorch's
    ``nn.LocalResponseNorm`` is another layer: its neighbours are channels, not cells.

    Args:
        size: side of the neighbourhood in cells, odd.
        alpha: weight of the mean square.
        beta: exponent.

    Raises:
        ValueError: an even size.

    Source: Caffe's LRNLayer with ``norm_region: WITHIN_CHANNEL`` (src/caffe/layers/lrn_layer.cpp: average pooling
    of squares with padding (size - 1) / 2, then (1 + alpha * pooled)^-beta); the constants from the authors' release.

    Example:
        >>> WithinChannelLRN(alpha=1.0, beta=1.0)(torch.ones(1, 1, 3, 3))[0, 0]
        tensor([[0.6923, 0.6000, 0.6923],
                [0.6000, 0.5000, 0.6000],
                [0.6923, 0.6000, 0.6923]])
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size % 2 != 1:
            raise ValueError(f"size must be odd, so that a cell is the middle of its neighbourhood: got {size}")
        self.alpha, self.beta = alpha, beta
        self.mean = nn.AvgPool2d(size, stride=1, padding=size // 2)

    def forward(self, features: Tensor) -> Tensor:
        return features * (1 + self.alpha * self.mean(features.square())).pow(-self.beta)


def zf5() -> nn.Sequential:
    """ZF-5, the net of most of the paper's tables: 256 channels, a cell every 16 pixels, 13 x 13 cells for 224 x 224.

    The map for sides of 180 to 190 pixels has 10 cells, to 206 11, to 222 12, then 13; the smallest side is 31. Table 1's
    27 x 27 for conv2, before its pooling, is 26 x 26 with the release's paddings; 13 x 13 comes behind either.

    Example:
        >>> zf5()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 256, 13, 10])
    """
    return _net(
        nn.Conv2d(3, 96, 7, stride=2, padding=1), WithinChannelLRN(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 256, 5, stride=2), WithinChannelLRN(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.Conv2d(384, 256, 3, padding=1),
    )  # fmt: skip


def convnet5() -> nn.Sequential:
    """Convnet*-5, AlexNet with its first pooling moved behind conv3: 256 channels, a cell every 16 pixels, 13 x 13 at 224.

    Example:
        >>> convnet5()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 256, 13, 11])
    """
    return _net(
        nn.Conv2d(3, 96, 11, stride=4, padding=2), WithinChannelLRN(),
        nn.Conv2d(96, 256, 5, padding=2), WithinChannelLRN(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(256, 384, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.Conv2d(384, 256, 3, padding=1),
    )  # fmt: skip


def overfeat5(convolutions: int = 5) -> nn.Sequential:
    """Overfeat-5: 512 channels, a cell every 12 pixels, 18 x 18 cells for 224 x 224.

    Example:
        >>> overfeat5()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 512, 18, 15])
    """
    return _net(
        nn.Conv2d(3, 96, 7, stride=2), nn.MaxPool2d(3, 3), WithinChannelLRN(),  # rounds down: see above
        nn.Conv2d(96, 256, 5, padding=2), nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.Conv2d(256, 512, 3, padding=1),
        *(nn.Conv2d(512, 512, 3, padding=1) for _ in range(convolutions - 3)),
    )  # fmt: skip


def overfeat7() -> nn.Sequential:
    """Overfeat-7, the paper's most accurate net: Overfeat-5 with two more convolutions, the maps of the same size.

    Example:
        >>> overfeat7()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 512, 18, 15])
    """
    return overfeat5(convolutions=7)


def _net(*layers: nn.Conv2d | nn.MaxPool2d | WithinChannelLRN) -> nn.Sequential:
    """The layers in a row, a ReLU behind each convolution: conv1, relu1, norm1, pool1, conv2, ...; with the first weights."""
    net, number = nn.Sequential(), 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            number += 1
            net.add_module(f"conv{number}", layer)
            net.add_module(f"relu{number}", nn.ReLU())
            _draw(layer, BIASES[number])
        else:
            net.add_module(f"{'pool' if isinstance(layer, nn.MaxPool2d) else 'norm'}{number}", layer)
    return net


def _draw(layer: nn.Conv2d | nn.Linear, bias: float) -> None:
    draw_normal(layer.weight, WEIGHT_STD)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


def initialize_as_paper(model: SPPNet) -> None:
    """Give fully connected layers, in place, the weights that the paper's nets start with; `build_model` does, with such a net.

    Weights from N(0, 0.01), biases 1, in the layers behind the pyramid and in the class scores of images and of windows. A
    multi-label model's image scores have biases 0: its sigmoids, which the paper's softmax is not, would tell 1 from 0.
    What moves boxes, and the backbone, stay as they are: `zf5` and the others come with theirs.

    Source: the authors' release, model-defs/Zeiler_conv5.prototxt; for the scores of windows, arXiv:1406.4729, section 4.1.

    Example:
        >>> from sppnet.models.sppnet import Architecture, build_model
        >>> build_model(Architecture(("cat", "dog"), "zf5", hidden=(8,), multi_label=False)).image_classifier.bias.detach()
        tensor([1., 1.])
    """
    for linear in (*model.fully_connected.modules(), model.image_classifier, model.window_classifier):
        if isinstance(linear, nn.Linear):
            _draw(linear, 1.0)
    if model.architecture.multi_label:
        nn.init.zeros_(model.image_classifier.bias)


def draw_normal(weight: Tensor, std: float) -> None:
    """Normal random weights, in place; none for an outline without numbers, as that would import torch's tracing."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int, folded: bool) -> nn.Sequential:
    """Convolution without bias, then BatchNorm; or, folded, one convolution with bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=folded)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.Identity() if folded else nn.BatchNorm2d(out_channels)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, folded: bool) -> None:
        super().__init__()
        self.conv1 = _conv_norm(in_channels, out_channels, 3, stride, folded)
        self.conv2 = _conv_norm(out_channels, out_channels, 3, 1, folded)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Sequential() if same else _conv_norm(in_channels, out_channels, 1, stride, folded)

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
    layers: list[nn.Module] = [_conv_norm(3, widths[0], 3, 2, folded), nn.ReLU()]
    for in_channels, out_channels, count in zip(widths[:-1], widths[1:], blocks, strict=True):
        layers.append(ResidualBlock(in_channels, out_channels, 2, folded=folded))
        layers += [ResidualBlock(out_channels, out_channels, 1, folded=folded) for _ in range(count - 1)]
    return nn.Sequential(*layers)
