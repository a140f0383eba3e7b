"""Backbones by name: images [N, 3, H, W] -> features [N, C, h, w], for any H and W.

``compact`` is this project's own (`sppnet.models.compact`); every other name is a torchvision classification model, cut
before its pooling and classifier. A max pooling at the very end is left out too: the pyramid replaces it (arXiv:1406.4729,
section 2.2). BatchNorm is folded into the convolutions before it: the same outputs, in half the time. Weights come from torchvision by name, from a local file, or are random.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sppnet.errors import UserError
from sppnet.models.compact import compact_resnet

OWN = "compact"


def build_backbone(name: str, weights: str | Path | None = None) -> nn.Module:
    """Build a backbone and give it weights.

    Args:
        name: ``compact``, or a torchvision classification model such as ``squeezenet1_0``, ``mobilenet_v2``, ``vgg16``,
            ``resnet18``.
        weights: None for random weights; for ``compact`` the path of a model file whose backbone it is, or of the file
            that ``scripts/distill_backbone.py`` writes; for the others a name that torchvision knows for this model, such as ``DEFAULT`` or
            ``IMAGENET1K_V1`` (downloaded once, by torchvision); or the path of a file that holds the whole model's state
            dict under torchvision's key names (.safetensors, or .pth read without executing anything in it).

    Returns:
        The convolutional part, in evaluation mode, its BatchNorms folded.

    Raises:
        UserError: no such backbone, weights that do not exist, or a file that does not fit the backbone.

    Example:
        >>> build_backbone("squeezenet1_0")(torch.zeros(1, 3, 224, 300)).shape
        torch.Size([1, 512, 13, 18])
    """
    if name == OWN:
        backbone: nn.Module = compact_resnet()
        if weights is not None:
            _load(backbone, Path(weights), name)
        return backbone.eval()
    if name not in torchvision.models.list_models(torchvision.models):
        raise UserError(
            f"no backbone named {name!r}: expected {OWN!r} or a torchvision classification model such as "
            "'squeezenet1_0', 'mobilenet_v2' or 'resnet18'"
        )
    path = None if weights is None else Path(weights)
    if path is not None and (path.exists() or path.suffix):
        model = _without_weights(name)
        _load(model, path, name)
    elif weights is not None:
        model = _with_published_weights(name, str(weights))
    else:
        model = _without_weights(name)
    backbone = _cut(model, name).eval()
    fold_batch_norm(backbone)
    return backbone


def _without_weights(name: str) -> nn.Module:
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra)


def _with_published_weights(name: str, weights: str) -> nn.Module:
    known = [entry.name for entry in torchvision.models.get_model_weights(name)]
    if weights not in ("DEFAULT", *known):
        raise UserError(
            f"{name} has no weights named {weights!r}: torchvision knows DEFAULT, {', '.join(known)}; "
            "or give the path of a file"
        )
    try:
        return torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise UserError(f"weights {weights} of {name} could not be downloaded ({error}); give a local file") from error


def _load(model: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise UserError(f"no such weights file: {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a weights file that can be read: {_beginning(error)}") from error
    except Exception as error:  # unpickling refuses with exceptions of many types, and advises to allow it
        raise UserError(
            f"{path} is not a state dict that can be read without executing code in it: expected .safetensors, or .pth "
            "with tensors alone"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} does not hold a state dict (names to tensors), as {name} needs")
    state = {str(key): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):  # a model file of this project: its backbone alone
        state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    try:
        model.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        )
    except RuntimeError as error:
        whose = "this project's own" if name == OWN else "torchvision's"
        raise UserError(
            f"{path} does not fit {name}: expected {whose} key names and shapes ({_beginning(error)})"
        ) from error


def _beginning(error: Exception) -> str:
    """An error's message as one line of bearable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _cut(model: nn.Module, name: str) -> nn.Module:
    """The convolutional part of a torchvision classifier."""
    if isinstance(model.get_submodule("features") if hasattr(model, "features") else None, nn.Sequential):
        layers = dict(model.get_submodule("features").named_children())
    elif hasattr(model, "layer4"):  # the ResNet family
        layers = {key: child for key, child in model.named_children() if key not in ("avgpool", "fc")}
    elif hasattr(model, "trunk_output"):  # RegNet
        layers = {key: child for key, child in model.named_children() if key in ("stem", "trunk_output")}
    elif hasattr(model, "conv5") and hasattr(model, "stage4"):  # ShuffleNet
        layers = {key: child for key, child in model.named_children() if key != "fc"}
    else:
        raise UserError(
            f"{name} has no plain convolutional part to pool from: use a VGG, ResNet, MobileNet, ... instead"
        )
    backbone = nn.Sequential()
    for key, child in layers.items():
        backbone.add_module(key, child)
    if isinstance(backbone[-1], nn.MaxPool2d):
        backbone = backbone[:-1]
    return backbone


def fold_batch_norm(backbone: nn.Module) -> None:
    """Write each BatchNorm's running statistics into the convolution before it, in place; the outputs stay the same.

    A BatchNorm that does not follow a convolution, or that shares it with another layer, stays as it is.

    Args:
        backbone: a module that `torch.fx` can trace; others are left as they are. Must not be in training mode.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batch_norm(block)
        >>> block[1]
        Identity()
    """
    try:
        graph = fx.symbolic_trace(backbone).graph
    except Exception:  # whatever makes a net untraceable, folding is only a matter of speed
        return
    modules = dict(backbone.named_modules())
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
            fused = fuse_conv_bn_eval(convolution, modules[str(node.target)])
            backbone.set_submodule(str(before.target), fused)
            backbone.set_submodule(str(node.target), nn.Identity())


def map_shape(backbone: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of the map for an image of ``size`` (height, width), without computing it.

    Example:
        >>> map_shape(build_backbone("compact"), (480, 640))
        (384, 15, 20)
    """
    with torch.no_grad():
        features = deepcopy(backbone).to("meta")(torch.empty(1, 3, *size, device="meta"))
    _, channels, height, width = features.shape
    return channels, height, width
