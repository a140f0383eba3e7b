"""Where a classifier is cut so that a map remains: images [N, 3, H, W] -> features [N, C, h, w].

`convolutional_part` leaves out what comes after the last map, global pooling and classifier. It goes by what a module does, not by
which net it is: a *chain* only hands its input from one child to the next, and can be cut between any two children.
`dilate_to_stride` brings the cells of the map closer together. `fold_batch_norm` writes BatchNorm into the convolutions before it:
the same features from fewer layers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sppnet.errors import ModelError
from sppnet.models.geometry import layer_strides, pair

# What torchvision and timm call the layers behind the last map, and what both do to it without a layer.
BEHIND = {"avgpool", "global_pool", "pre_logits", "classifier", "fc", "head", "heads"}
POOLING_LAYERS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)
POOLS: set[Any] = {"mean", torch.mean, functional.adaptive_avg_pool2d}
RELUS: set[Any] = {functional.relu, torch.relu, "relu", "relu_"}


def convolutional_part(model: nn.Module) -> nn.Sequential | None:
    """The layers of a classifier before its global pooling, in a row.

    A max pooling at the very end is left out too: the pyramid replaces it (arXiv:1406.4729, section 2.2).

    Args:
        model: a classifier, in evaluation mode. Its layers are shared, not copied.

    Returns:
        The layers under the names that they have in the model; None where the model does something else with the image
        or a map than to hand it on to a layer.

    Example:
        >>> import torchvision
        >>> [name for name, _ in convolutional_part(torchvision.models.resnet18()).named_children()]
        ['conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    steps, users = _steps(model)
    backbone = nn.Sequential()
    for name, layer in steps:
        if _is_behind(name) or isinstance(layer, POOLING_LAYERS):
            break
        if name == "features" and type(layer) is nn.Sequential:  # AlexNet, VGG, SqueezeNet, MobileNet, ...
            for inner_name, inner in layer.named_children():
                backbone.add_module(inner_name, inner)
        else:
            backbone.add_module(name.replace(".", "_"), layer)
    else:
        if len(users) == 1 and users[0].target in RELUS:  # DenseNet
            backbone.add_module("relu", nn.ReLU())
            users = list(users[0].users)
        if len(users) != 1 or not (users[0].target in POOLS or _is_behind(str(users[0].target))):
            return None
    if len(backbone) and isinstance(backbone[-1], nn.MaxPool2d):
        backbone = backbone[:-1]
    return backbone if len(backbone) else None


def _is_behind(name: str) -> bool:
    return name.partition(".")[0] in BEHIND


def dilate_to_stride(
    backbone: nn.Module, stride: int, name: str, strides: tuple[list[tuple[str, int]], int] | None = None
) -> None:
    """Bring the cells of a backbone's map closer together, in place, and keep all its layers ("a trous").

    A layer that would stride further than ``stride`` no longer does, and those behind it look at cells as many times as far apart
    (dilation). So each sees what it was taught on, and every n-th cell of the map is a cell of the map before, away from the
    image's right and lower edges. What lies behind the layer takes n * n times as long.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w].
        stride: pixels from one cell's centre to the next.
        name: what to call the backbone in messages.
        strides: of its layers, where they are known; else the net is run to find out, see `layer_strides`.

    Raises:
        ModelError: a net that has no such stride, or a layer that cannot be dilated.

    Source: arXiv:1412.7062, section 3.1.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1))
        >>> dilate_to_stride(net, 2, "net")
        >>> net[2], net[3]
        (Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)), Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(2, 2), dilation=(2, 2)))
    """
    try:
        of_layers, own = strides or layer_strides(backbone)
    except ValueError as error:
        raise ModelError(f"backbone {name!r} cannot be used: {error}") from error
    known = sorted({*(before for _, before in of_layers), own})
    if stride not in known:
        expected = f"expected one of the strides {', '.join(map(str, known))}"
        raise ModelError(f"{name} has no map with a cell every {stride} pixels: {expected}")
    layers: list[tuple[Any, int]] = [(backbone.get_submodule(path), before) for path, before in of_layers]
    if len({id(layer) for layer, _ in layers}) < len(layers):
        raise ModelError(f"{name} cannot be brought to a stride of {stride}: it calls a layer twice")
    for (layer, before), (following, _) in zip(layers, [*layers[1:], (None, 0)], strict=True):
        apart = max(1, before // stride)
        if isinstance(layer, nn.ZeroPad2d):  # TensorFlow's, before a strided convolution
            if _stride_left(following, before, stride) < following.stride[0]:  # evenly, and no longer more behind
                layer.padding = tuple(apart * (following.kernel_size[0] // 2) for _ in range(4))
            continue
        if before * pair(layer.stride)[0] <= stride:
            continue
        too_wide = isinstance(layer, nn.MaxPool2d) and apart * pair(layer.padding)[0] > pair(layer.kernel_size)[0] // 2
        if type(layer) not in (nn.Conv2d, nn.MaxPool2d) or isinstance(layer.padding, str) or too_wide:
            raise ModelError(f"{name} cannot be brought to a stride of {stride}: it has a {type(layer).__name__}")
        layer.padding, layer.dilation = (
            tuple(apart * side for side in pair(value)) for value in (layer.padding, layer.dilation)
        )
        layer.stride = (_stride_left(layer, before, stride),) * 2


def _stride_left(layer: Any, before: int, stride: int) -> int:
    """What remains of a layer's stride on a map whose cells were ``before`` pixels apart."""
    return int(min(pair(layer.stride)[0], max(1, stride // before)))


class _Tracer(fx.Tracer):
    def __init__(self, whole: type[nn.Module]) -> None:
        super().__init__()
        self.whole = whole  # a kind of module that is not looked into

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.whole) or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module, whole: type[nn.Module]) -> fx.Graph | None:
    try:
        return _Tracer(whole).trace(module)
    except Exception:  # whatever makes a net untraceable
        return None


def _steps(module: nn.Module) -> tuple[list[tuple[str, nn.Module]], list[fx.Node]]:
    """The children that ``module`` hands its input through, as far as it does only that; and what uses the result."""
    graph = _trace(module, nn.Module) if list(module.children()) else None
    if graph is None:  # what cannot be traced is not known to be a chain
        return [], []
    steps: dict[str, nn.Module] = {}
    users = list(next(iter(graph.nodes)).users)
    while len(users) == 1 and users[0].op == "call_module" and len(users[0].args) == 1 and not users[0].kwargs:
        name = str(users[0].target)
        if name in steps:  # called twice: not to be cut in between
            return [], []
        steps[name] = module.get_submodule(name)
        users = list(users[0].users)
    return list(steps.items()), users


def fold_batch_norm(backbone: nn.Module) -> None:
    """Write each BatchNorm's running statistics into the convolution before it, in place; the outputs stay the same.

    A BatchNorm stays as it is where it does not follow a convolution, where another layer reads that convolution, too, or where
    either is called more than once. Of timm's, which apply an activation too, the activation stays.

    Args:
        backbone: a module that `torch.fx` can trace; others are left as they are.

    Raises:
        ValueError: a BatchNorm in training mode, whose statistics are still changing.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batch_norm(block)
        >>> block[1]
        Identity()
    """
    training = [name for name, each in backbone.named_modules() if isinstance(each, nn.BatchNorm2d) and each.training]
    if training:
        raise ValueError(f"BatchNorm {training[0]!r} is in training mode: call eval() before folding")
    if not any(isinstance(each, nn.BatchNorm2d) for each in backbone.modules()):
        return  # tracing takes time
    graph = _trace(backbone, nn.BatchNorm2d)
    if graph is None:  # folding is only a matter of speed
        return
    modules = dict(backbone.named_modules())
    calls = Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        norm = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        rest = _without_norm(norm)
        once = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
        if type(convolution) is nn.Conv2d and once and rest is not None:
            backbone.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            backbone.set_submodule(str(node.target), rest)


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a layer does beside normalizing; None where that is not known."""
    if norm.running_mean is not None and type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if norm.running_mean is not None and type(norm).__name__ == "BatchNormAct2d":  # timm's
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return None
