"""The convolutional parts of the paper's networks: images [N, 3, H, W] -> features [N, C, h, w].

They are the columns of arXiv:1406.4729, table 1, without the last pooling, which the pyramid replaces (section 2.2);
behind the pyramid come two fully connected layers of 4096. The paper gives kernels, strides, channels and the sizes of
maps for 224 pixels, and says that paddings were set to give those sizes, not which. ZF-5's paddings, its normalisation's
constants and all first weights are those of the authors' release (ShaoqingRen/SPP_net, model-defs/Zeiler_conv5.prototxt);
the paddings of the others are the smallest that give the sizes. Pooling rounds sizes up, as in Caffe and cuda-convnet,
except Overfeat's first, where even without padding that would give 37 cells for the paper's 36.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from sppnet.models.sppnet import SPPNet

HIDDEN = (4096, 4096)  # widths of the fully connected layers
# The release's pixels, 0..255 minus 128, as `sppnet.models.preprocess.Preprocess` states them. The first weights are made
# for these: pixels of variance 1 would start with maps that vary some 60 times less, next to biases of 1.
PIXEL_MEAN = (128 / 255, 128 / 255, 128 / 255)
PIXEL_STD = (1 / 255, 1 / 255, 1 / 255)
# Every weight is drawn from N(0, 0.01); the release has these biases. Conv6 and conv7 (Overfeat-7) are taken as the 1 of
# every layer from conv4 on.
WEIGHT_STD = 0.01
BIASES = {"conv1": 0.0, "conv2": 1.0, "conv3": 0.0, "conv4": 1.0, "conv5": 1.0, "conv6": 1.0, "conv7": 1.0}
FULLY_CONNECTED_BIAS = 1.0


class WithinChannelLRN(nn.Module):
    """Local response normalisation within each channel: x / (1 + alpha * mean of x*x over size x size cells)^beta.

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

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}"


def zf5() -> nn.Sequential:
    """ZF-5, the net of most of the paper's tables: 256 channels, a cell every 16 pixels, 13 x 13 cells for 224 x 224.

    The map for sides of 180 to 190 pixels has 10 cells, to 206 11, to 222 12, then 13; the smallest side is 31. Table 1's
    27 x 27 for conv2, before its pooling, is 26 x 26 with the release's paddings; 13 x 13 comes behind either.

    Example:
        >>> zf5()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 256, 13, 10])
    """
    return _with_first_weights(
        conv1=nn.Conv2d(3, 96, 7, stride=2, padding=1),
        relu1=nn.ReLU(),
        norm1=WithinChannelLRN(),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(96, 256, 5, stride=2),
        relu2=nn.ReLU(),
        norm2=WithinChannelLRN(),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 384, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1),
        relu5=nn.ReLU(),
    )


def convnet5() -> nn.Sequential:
    """Convnet*-5, AlexNet with its first pooling moved behind conv3: 256 channels, a cell every 16 pixels, 13 x 13 at 224.

    Example:
        >>> convnet5()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 256, 13, 11])
    """
    return _with_first_weights(
        conv1=nn.Conv2d(3, 96, 11, stride=4, padding=2),
        relu1=nn.ReLU(),
        norm1=WithinChannelLRN(),
        conv2=nn.Conv2d(96, 256, 5, padding=2),
        relu2=nn.ReLU(),
        norm2=WithinChannelLRN(),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(),
        pool3=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv4=nn.Conv2d(384, 384, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1),
        relu5=nn.ReLU(),
    )


def overfeat5() -> nn.Sequential:
    """Overfeat-5: 512 channels, a cell every 12 pixels, 18 x 18 cells for 224 x 224.

    Example:
        >>> overfeat5()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 512, 18, 15])
    """
    return _overfeat(5)


def overfeat7() -> nn.Sequential:
    """Overfeat-7, the paper's most accurate net: Overfeat-5 with two more convolutions, the maps of the same size.

    Example:
        >>> overfeat7()(torch.zeros(1, 3, 224, 180)).shape
        torch.Size([1, 512, 18, 15])
    """
    return _overfeat(7)


def _overfeat(convolutions: int) -> nn.Sequential:
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 96, 7, stride=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(3, 3),  # rounds down: see above
        "norm1": WithinChannelLRN(),
        "conv2": nn.Conv2d(96, 256, 5, padding=2),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2, 2, ceil_mode=True),
    }
    channels = 256
    for number in range(3, convolutions + 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, 512, 3, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        channels = 512
    return _with_first_weights(**layers)


def _with_first_weights(**layers: nn.Module) -> nn.Sequential:
    net = nn.Sequential()
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.weight, std=WEIGHT_STD)
            nn.init.constant_(layer.bias, BIASES[name])
        net.add_module(name, layer)
    return net


def initialize_as_paper(model: SPPNet) -> None:
    """Give a network's fully connected layers, in place, the weights that the paper's nets start with.

    Weights from N(0, 0.01), biases 1, in the layers behind the pyramid and in the class scores of images and of windows. A
    multi-label model's image scores have biases 0: its sigmoids, which the paper's softmax is not, would tell 1 from 0.
    What moves boxes, and the backbone, stay as they are: `zf5` and the others come with their first weights.

    Args:
        model: such as ``build_model(Architecture(class_names, "zf5", hidden=HIDDEN), Preprocess(mean=PIXEL_MEAN, std=PIXEL_STD))``.

    Source: the authors' release, model-defs/Zeiler_conv5.prototxt; for the scores of windows, arXiv:1406.4729, section 4.1.

    Example:
        >>> from sppnet.models.sppnet import Architecture, build_model
        >>> net = build_model(Architecture(("cat", "dog"), "zf5", hidden=(8,), multi_label=False))
        >>> initialize_as_paper(net)
        >>> net.image_classifier.bias.detach()
        tensor([1., 1.])
    """
    scores = [model.image_classifier, *([model.window_classifier] if model.window_classifier is not None else [])]
    for linear in (*model.fully_connected.modules(), *scores):
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=WEIGHT_STD)
            nn.init.constant_(linear.bias, FULLY_CONNECTED_BIAS)
    if model.architecture.multi_label:
        nn.init.zeros_(model.image_classifier.bias)
