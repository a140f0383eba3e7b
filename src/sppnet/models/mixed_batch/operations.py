"""Which operation each layer is, and which operations are of a kind: layers and functions under the same names.

`nn.Conv2d`, ``functional.conv2d`` and ``torch.conv2d`` are all "conv2d", so that `rules` need to know each operation once.
"""

from __future__ import annotations

from typing import Any

from torch import nn

# fmt: off
# Where a cell of the result depends on that cell alone, or on its neighbours among the channels: nothing is needed.
ELEMENT_BY_ELEMENT = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh",
    "hardsigmoid", "hardtanh", "sigmoid", "logsigmoid", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink",
    "threshold", "exp", "abs", "absolute", "neg", "negative", "square", "sin", "cos", "erf", "add", "iadd", "sub", "isub",
    "subtract", "mul", "imul", "multiply", "clamp", "clamp_min", "clamp_max", "clip", "minimum", "maximum", "where", "lerp",
    "addcmul", "dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "channel_shuffle",
    "local_response_norm", "contiguous", "clone", "detach", "float", "half", "bfloat16", "type_as", "to",
}
# Likewise, but not finite, or without a slope, at some values: what lies beyond the edges is set to 1 first.
FINITE_AT_ONE = {"sqrt", "rsqrt", "log", "log2", "log10", "reciprocal", "div", "divide", "true_divide", "truediv", "pow"}
# Run on each image's own part by itself.
BY_ITSELF = {"own_way", "group_norm", "interpolate", "pixel_shuffle", "pixel_unshuffle", "lp_pool2d"}
# Known as long as they leave images, rows and columns as they are.
REGROUPINGS = {"view", "reshape", "flatten", "unflatten", "unsqueeze"}
# Arithmetic with heights and widths.
OF_NUMBERS = {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg"}
# Questions to a map whose answer is the same for any size.
FREE_OF_SIZE = {"dim", "ndim", "dtype", "device", "requires_grad", "is_cuda", "is_floating_point"}
# fmt: on
MODULES_BY_ELEMENT = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "torch.nn.modules.channelshuffle")


def operation_of_layer(module: nn.Module) -> tuple[str, tuple[Any, ...]]:
    """The operation that a layer is, and its arguments after the map."""
    match module:
        case nn.Conv2d(padding_mode="zeros"):
            return "conv2d", (module.weight, None, module.stride, module.padding, module.dilation)
        case nn.MaxPool2d(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode):
            return "max_pool2d", (kernel, stride, padding, module.dilation, ceil_mode, module.return_indices)
        case nn.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode):
            return "avg_pool2d", (kernel, stride, padding, ceil_mode, module.count_include_pad, module.divisor_override)
        case nn.AdaptiveAvgPool2d():
            return "adaptive_avg_pool2d", (module.output_size,)
        case nn.AdaptiveMaxPool2d():
            return "adaptive_max_pool2d", (module.output_size, module.return_indices)
        case nn.modules.batchnorm._BatchNorm():
            return "batch_norm", (None, None, None, None, module.training or module.running_mean is None)
        case nn.LayerNorm() | nn.RMSNorm():
            return "layer_norm", (module.normalized_shape,)
        case nn.Linear():
            return "linear", ()
        case nn.ConstantPad2d():
            return "pad", (module.padding, "constant", module.value)
        case (
            nn.Conv2d() | nn.GroupNorm() | nn.InstanceNorm2d(track_running_stats=False) | nn.LPPool2d() | nn.Upsample()
        ):
            return "own_way", ()
        case (
            nn.ReflectionPad2d() | nn.ReplicationPad2d() | nn.CircularPad2d() | nn.PixelShuffle() | nn.PixelUnshuffle()
        ):
            return "own_way", ()
        case nn.MultiheadAttention() | nn.Softmax() | nn.Softmin() | nn.LogSoftmax() | nn.GLU():
            return "", ()
        case nn.Identity() | nn.LocalResponseNorm() | nn.CrossMapLRN2d():
            return "relu", ()
    return "relu" if type(module).__module__ in MODULES_BY_ELEMENT else "", ()
