"""Folding BatchNorm into the convolutions before it: the same features from fewer layers, for a net that has learned."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(backbone: nn.Module) -> None:
    """Write each BatchNorm's running statistics into the convolution before it, in place; the outputs stay the same.

    A BatchNorm that does not follow a convolution, or that shares it with another layer, stays as it is; so does one where it,
    or the convolution, is called more than once. Of timm's, which
    apply an activation too, the activation stays.

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
    try:
        graph = _NormTracer().trace(backbone)
    except Exception:  # whatever makes a net untraceable, folding is only a matter of speed
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


class _NormTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a layer does beside normalising; None where that is not known."""
    if norm.running_mean is None:
        return None
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":  # timm's
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    return None
