"""Where a classifier is cut so that a map remains: images [N, 3, H, W] -> features [N, C, h, w].

`fold_batch_norm` writes BatchNorm into the convolutions before it: the same features from fewer layers.

Two cuts: `convolutional_part` leaves out what comes after the last map, global pooling and classifier; `cut_at_stride`
leaves out more, so that the cells of the map lie closer together. Both go by what a module does, not by which net it is:
it is a *chain* if it only hands its input from one child to the next, and a chain can be cut between any two children.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sppnet.errors import ModelError
from sppnet.models.geometry import IMAGE_SIZE, map_geometry, without_data

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


def cut_at_stride(backbone: nn.Module, stride: int, name: str) -> nn.Module:
    """Leave out the last layers of a backbone so that its cells lie ``stride`` pixels apart.

    Of all the places with that stride between two layers, it is cut at the one with the most channels; of several such, at
    the last. That is after the last whole stage, or, where the next block begins by widening the map before it strides
    (MobileNet, EfficientNet), after that: MobileNetV2 at stride 16 gives the 576 channels inside its 14th block
    rather than the 96 at the end of its 13th.

    Args:
        backbone: images [N, 3, H, W] -> features [N, C, h, w]. Its layers are shared, not copied.
        stride: pixels from one cell's centre to the next.
        name: what to call the backbone in messages.

    Returns:
        The backbone itself if its stride is the one asked for; else the part before the cut. Names of layers stay.

    Raises:
        ModelError: the net has no such stride; the message lists those that it has.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        >>> cut_at_stride(net, 2, "net")
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
          (1): ReLU()
        )
    """
    cuts: list[tuple[int, int, tuple[str, ...]]] = []  # stride, channels, and names of the layer before the cut
    reached, features = 1, torch.empty(1, 3, *IMAGE_SIZE, device="meta")
    try:
        for path, layer in _layers(without_data(backbone)):
            geometry, features = map_geometry(layer, features)
            reached *= geometry.stride
            cuts.append((reached, features.shape[1], path))
    except ValueError as error:
        raise ModelError(f"backbone {name!r} cannot be used: {error}") from error
    if reached == stride:
        return backbone
    fitting = [(channels, path) for here, channels, path in cuts if here == stride]
    if not fitting:
        strides = ", ".join(map(str, sorted({here for here, _, _ in cuts})))
        raise ModelError(f"{name} has no map with a cell every {stride} pixels: expected one of the strides {strides}")
    _, path = max(reversed(fitting), key=lambda each: each[0])
    return _until(backbone, path)


def _until(module: nn.Module, path: tuple[str, ...]) -> nn.Module:
    """The part of a chain up to the layer at ``path`` (names from the outermost module to the innermost), that layer included."""
    if not path:
        return module
    part = nn.Sequential()
    for name, child in _steps(module)[0]:
        last = name == path[0]
        part.add_module(name.replace(".", "_"), _until(child, path[1:]) if last else child)
        if last:
            break
    return part


def _layers(module: nn.Module, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """The finest parts that ``module`` hands its input through, one after the other, and the way to each."""
    steps, users = _steps(module)
    if not steps or [user.op for user in users] != ["output"]:
        yield path, module
        return
    for name, child in steps:
        yield from _layers(child, (*path, name))


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
