"""Which layers of a detector learn end to end: all, those from one on, or the fully connected ones alone.

Fine-tuning stops at the pooling in SPP-net, and Fast R-CNN shows what that costs: mAP 61.4 where the fully connected layers
learn, 66.9 from VGG-16's third stage on, 67.2 from its second on, of which the first is not worth its time (1504.08083,
table 5). Layers before the first that learns keep no activations: their part of a step costs what it costs in use.
"""

from __future__ import annotations

from torch import nn

from sppnet.errors import UserError

FC_ONLY, FROM, ALL = "fc_only", "from:", "all"


def choose_layers(backbone: nn.Module, learn: str) -> dict[str, nn.Parameter]:
    """Let some of a backbone's layers learn, and no others.

    Args:
        backbone: its parameters' ``requires_grad`` are set. BatchNorm that is not folded (it follows no convolution) never
            learns: two images say little about the statistics of all.
        learn: ``"fc_only"``: none of them, SPP-net's limit; ``"all"``; or ``"from:LAYER"``: the layer and all that come
            after it in the order in which the backbone holds them. LAYER is the name of a module, such as ``layer3`` or
            ``14.conv.1``, or the index of a top-level layer, from 0; -1 is the last.

    Returns:
        The parameters that learn, by name.

    Raises:
        UserError: another word, no such layer, or none from there on that could learn. The message lists the layers.

    Source: arXiv:1504.08083, section 4.5 and table 5.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> list(choose_layers(net, "from:1"))
        ['2.weight', '2.bias']
    """
    modules = [name for name, _ in backbone.named_modules()]  # a module stands before those that it holds
    norms = tuple(
        name for name, module in backbone.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )
    if learn == FC_ONLY:
        first = len(modules)
    elif learn == ALL:
        first = 0
    elif learn.startswith(FROM):
        first = modules.index(_layer(backbone, learn.removeprefix(FROM)))
    else:
        raise UserError(f"learn must be '{FC_ONLY}', '{ALL}' or '{FROM}LAYER': got {learn!r}")
    learning = {}
    for name, parameter in backbone.named_parameters():
        owner = name.rpartition(".")[0]
        parameter.requires_grad_(modules.index(owner) >= first and owner not in norms)
        if parameter.requires_grad:
            learning[name] = parameter
    if not learning and learn != FC_ONLY:
        raise UserError(f"{learn!r}: no layer from there on has weights that learn; {_expected(backbone)}")
    return learning


def _layer(backbone: nn.Module, wanted: str) -> str:
    """The name of the module that was meant."""
    children = [name for name, _ in backbone.named_children()]
    if wanted in dict(backbone.named_modules()) and wanted:
        return wanted
    try:
        return children[int(wanted)]
    except (ValueError, IndexError):
        raise UserError(f"'{FROM}{wanted}': no such layer; {_expected(backbone)}") from None


def _expected(backbone: nn.Module) -> str:
    children = [name for name, _ in backbone.named_children()]
    return f"expected a name out of {', '.join(children)}, or of a layer inside them, or an index below {len(children)}"
