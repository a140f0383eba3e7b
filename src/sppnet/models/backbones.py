"""Backbones by name: images [N, 3, H, W] -> features [N, C, h, w], for any H and W.

``efficientnet_lite0`` (`sppnet.models.efficientnet_lite`), ``compact`` and the nets of the paper (`sppnet.models.networks`) are
defined here; every other name is a classification model of torchvision, or of timm where that is installed, cut before its pooling and
classifier (`sppnet.models.cut`). BatchNorm is folded into the convolutions before it: the same outputs, in half the time.
Weights come from the packages by name, from a local file, or are random. Packages are imported when a name asks for one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sppnet.errors import ModelError, SettingsError
from sppnet.models.cut import convolutional_part, dilate_to_stride, fold_batch_norm
from sppnet.models.efficientnet_lite import LITE_MEAN, LITE_STD, efficientnet_lite0, load_packaged, strides_in_order
from sppnet.models.networks import compact_resnet, convnet5, overfeat5, overfeat7, zf5
from sppnet.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, RGB

COMPACT, LITE = "compact", "efficientnet_lite0"
PAPER_NETS: dict[str, Callable[[], nn.Module]] = {net.__name__: net for net in (zf5, convnet5, overfeat5, overfeat7)}
OWN_NETS = {LITE: efficientnet_lite0, COMPACT: compact_resnet, **PAPER_NETS}
INCEPTIONS = ("googlenet", "inception_v3")
TIMM = "timm:"  # before a name that torchvision has too
RANDOM, PACKAGED = "random", "DEFAULT"
SHIPPED = {"voc": Path(__file__).with_name("voc.safetensors")}  # models that come with the package


def build_backbone(
    name: str, weights: str | Path = RANDOM, stride: int | None = None, *, fold: bool = True
) -> nn.Module:
    """Build a backbone and give it weights.

    Args:
        name: ``efficientnet_lite0``; ``compact``, of earlier shipped models; one of the paper's nets, ``zf5``, ``convnet5``, ``overfeat5`` or ``overfeat7``; a torchvision
            classification model such as ``squeezenet1_0``, ``mobilenet_v2``, ``vgg16`` or ``resnet18``; or, with the
            extra ``timm``, one of its models, such as ``resnet50d``, or ``timm:resnet18`` for a name that both have.
        weights: ``"random"``; a name that torchvision or timm has for weights of this model, such as
            ``DEFAULT`` or ``IMAGENET1K_V1`` (downloaded once, by the package); or the path of a file, .safetensors or
            .pth, the latter read without executing anything in it. It holds a model of this project with this backbone,
            or a state dict under the net's own key names, with or without a classifier.
        stride: pixels from one cell of the map to the next, such as 16 or 8, by dilation: see
            `sppnet.models.cut.dilate_to_stride`. None for the net's own.
        fold: whether BatchNorm is folded. Not for a net that is to learn from random weights.

    Returns:
        The convolutional part, in evaluation mode.

    Raises:
        ModelError: no such backbone, no map of that stride, weights that do not exist, or a file that does not fit.

    Example:
        >>> build_backbone("squeezenet1_0")(torch.zeros(1, 3, 224, 300)).shape
        torch.Size([1, 512, 13, 18])
        >>> build_backbone("resnet18", stride=16)(torch.zeros(1, 3, 224, 300)).shape
        torch.Size([1, 512, 14, 19])
    """
    path = Path(weights)
    by_name = weights == PACKAGED if name == LITE else name not in OWN_NETS and not path.exists() and path.suffix == ""
    from_file = weights != RANDOM and not by_name
    net, backbone = _parts(name, None if from_file or weights == RANDOM else str(weights), fold and weights == RANDOM)
    finished: dict[str, Tensor] = {}
    if from_file:
        state = _read(path, name)
        # A model file of this project holds its backbone as it is in the end: cut and folded.
        finished = {key.removeprefix("backbone."): state[key] for key in state if key.startswith("backbone.")}
        if not finished:
            kept = {id(value) for value in backbone.state_dict(keep_vars=True).values()}
            needed = [key for key, value in net.state_dict(keep_vars=True).items() if id(value) in kept]
            _load(net, state, needed, path, name)
    elif name == COMPACT and not fold:
        backbone = compact_resnet(folded=False).eval()
    if stride is not None:
        dilate_to_stride(backbone, stride, name, strides_in_order(backbone) if name == LITE else None)
    if fold:
        fold_batch_norm(backbone)
    if finished:
        _load(backbone, finished, [*backbone.state_dict()], path, name)
    return backbone


def pretrained_weights(name: str) -> str | Path:
    """The weights that a backbone is used with where nothing else is said: what `build_backbone` takes as ``weights``.

    Raises:
        SettingsError: a backbone of the paper, which nobody publishes weights of.

    Example:
        >>> pretrained_weights("mobilenet_v2")
        'DEFAULT'
    """
    if name in OWN_NETS and name != LITE:
        remedy = f"give a file with --weights, or train all layers from --weights {RANDOM}"
        raise SettingsError(f"{name} has no pretrained weights, and random ones are never frozen: {remedy}")
    return PACKAGED


def normalization(name: str) -> tuple[RGB, RGB]:
    """Mean and std, in 0..1, of the pixels that a backbone was taught on.

    Example:
        >>> normalization("resnet18")[0]
        (0.485, 0.456, 0.406)
    """
    return (LITE_MEAN, LITE_STD) if name == LITE else (IMAGENET_MEAN, IMAGENET_STD)


def check_not_random(name: str, weights: str | Path) -> None:
    """Raise a `SettingsError` where a backbone is to be frozen with random weights."""
    if weights == RANDOM:
        remedy = "leave --weights out for pretrained ones, or train all layers"
        raise SettingsError(f"{name} with random weights cannot be frozen: {remedy}")


def _parts(name: str, weights: str | None, folded: bool) -> tuple[nn.Module, nn.Module]:
    """A net as its package builds it, and its convolutional part, in evaluation mode; weights by name."""
    if name in OWN_NETS:
        net = (efficientnet_lite0(folded=folded) if name == LITE else OWN_NETS[name]()).eval()
        if weights is not None:
            load_packaged(net)
        return net, net
    import torchvision

    named = name in torchvision.models.list_models(torchvision.models)
    try:
        net = (_torchvision_net if named else _timm_net)(name, weights).eval()
    except Exception as error:  # of the packages' many kinds
        if weights is None or isinstance(error, ModelError):
            raise
        reason = f"could not be downloaded ({_beginning(error)}); give a local file"
        raise ModelError(f"weights {weights} of {name} {reason}") from error
    backbone = convolutional_part(net)
    if backbone is None:
        raise ModelError(f"{name} has no plain convolutional part to pool from: use a VGG, ResNet or MobileNet instead")
    if name in INCEPTIONS:
        # From ImageNet's normalization to the -1..1 that torchvision's weights were trained on, as its models do by themselves.
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        pixels = nn.Conv2d(3, 3, 1, groups=3).requires_grad_(False)
        pixels.load_state_dict({"weight": (std / 0.5)[:, None, None, None], "bias": (mean - 0.5) / 0.5})
        backbone = nn.Sequential(OrderedDict(pixels=pixels, **dict(backbone.named_children())))
    return net, backbone.eval()


def _torchvision_net(name: str, weights: str | None) -> Any:
    import torchvision

    # Not their own change of pixels, but that of `_parts`; and no drawing of weights that takes a minute.
    extra = {"transform_input": False, "init_weights": False} if name in INCEPTIONS else {}
    _check_known(name, weights, [entry.name for entry in torchvision.models.get_model_weights(name)], "torchvision")
    return torchvision.models.get_model(name, weights=weights, **extra)


def _timm_net(name: str, weights: str | None) -> Any:
    try:
        import timm
    except ImportError as error:
        if name.startswith(TIMM):
            raise ModelError(f"{name} needs timm, which is not installed: pip install 'sppnet[timm]'") from error
        raise _unknown(name, "; with pip install 'sppnet[timm]', also any model of timm") from error
    model, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(model):
        raise _unknown(name, ", or one of timm.list_models()")
    known = [each.partition(".")[2] for each in timm.list_models(f"{model}.*", pretrained=True)]
    _check_known(name, weights, known, "timm")
    tag = tag if weights in (None, "DEFAULT") else weights
    return timm.create_model(f"{model}.{tag}" if tag else model, pretrained=weights is not None)


def _unknown(name: str, more: str) -> ModelError:
    others = f"a torchvision classification model such as 'squeezenet1_0', 'mobilenet_v2' or 'resnet18'{more}"
    return ModelError(f"no backbone named {name!r}: expected {', '.join(map(repr, OWN_NETS))}, or {others}")


def _check_known(name: str, weights: str | None, known: Sequence[str], package: str) -> None:
    known = ["DEFAULT", *known] if known else []
    if weights not in (None, *known):
        names = f"{package} knows {', '.join(known) or 'none'}"
        raise ModelError(f"{name} has no weights named {weights!r}: {names}; or give the path of a file")


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict that a file holds."""
    if not path.is_file():
        raise ModelError(f"no such weights file: {path}")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path} is not a weights file that can be read: {_beginning(error)}") from error
    except Exception as error:  # unpickling refuses with exceptions of many types, and advises to allow it
        expected = "expected .safetensors, or .pth with tensors alone"
        raise ModelError(f"{path} is not a state dict that can be read without executing code: {expected}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} does not hold a state dict (names to tensors), as {name} needs")
    return {str(key): value for key, value in state.items()}


def _load(net: nn.Module, state: dict[str, Tensor], needed: Sequence[str], path: Path, name: str) -> None:
    """Load the needed part of a state dict; what else it holds must be known to the net, such as another classifier."""
    own = net.state_dict()
    problems = [f"{key} is unknown" for key in state if key not in own]
    problems += [f"{key} is missing" for key in needed if key not in state and not key.endswith("num_batches_tracked")]
    state = {key: state[key] for key in needed if key in state}
    shapes = {key: (list(value.shape), list(own[key].shape)) for key, value in state.items()}
    problems += [f"{key} is {found}, expected {right}" for key, (found, right) in shapes.items() if found != right]
    if problems:
        problem = f"{problems[0]}; {len(problems)} such problems"
        raise ModelError(f"{path} does not fit {name}: expected the key names and shapes of that net ({problem})")
    net.load_state_dict(state, strict=False)


def _beginning(error: Exception) -> str:
    """An error's message as one line of bearable length."""
    return shorten(str(error), 200, placeholder=" ...")
