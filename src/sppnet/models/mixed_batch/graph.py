"""A backbone as a graph of single operations, and how it is run node by node.

`torch.fx` traces it down to PyTorch's own modules and functions. Running it by hand gives the place between two layers where
what lies beyond the edges can be set back; or, without numbers, the shape of every value.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sppnet.errors import UserError
from sppnet.models.geometry import without_data

NOT_A_MAP = "the backbone must end in one feature map [N, C, h, w]: leave its pooling and classifier out"

Arguments = tuple[Any, ...]
Named = dict[str, Any]  # arguments by name


class Graph:
    """A traced backbone. It shares the backbone's layers, and does not keep the backbone itself alive.

    Args:
        backbone: images [N, 3, H, W] -> features. It is left as it was.

    Raises:
        UserError: it cannot be traced, needs more than images, or gives more than one value.
    """

    def __init__(self, backbone: nn.Module) -> None:
        before = set(vars(backbone))
        try:
            graph = fx.Tracer().trace(backbone)
            self.without_data = without_data(backbone).float()
        except Exception as error:
            raise UserError(
                f"the backbone's graph cannot be traced, so that mixed sizes cannot be exact: {first_line(error)}; "
                "use images of one size, or one at a time"
            ) from error
        self.constants = {name: vars(backbone).pop(name) for name in set(vars(backbone)) - before}  # the tracer's own
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        self.modules = {name: backbone.get_submodule(name) for name in called}
        self.schedule, self.output = _schedule(graph)

    def describe(self, node: fx.Node) -> str:
        """A layer, or an operation and the layer that it is in, for messages."""
        if node.op == "call_module":
            return f"layer {str(node.target)!r} ({type(self.modules[str(node.target)]).__name__})"
        layer, kind = [("", nn.Module), *(node.meta.get("nn_module_stack") or {}).values()][-1]
        name = operation_name(node) or getattr(node.target, "__name__", str(node.target))
        return (
            f"operation {name!r} in layer {layer!r} ({kind.__name__})"
            if layer
            else f"operation {name!r} of the backbone"
        )


class Run:
    """One run of a graph, node by node; each value is forgotten after its last use.

    Args:
        graph: of a backbone.
        backbone: gives the weights that the graph asks for by name: the one that was traced, or a copy of it.
        modules: its layers by name.
    """

    def __init__(self, graph: Graph, backbone: nn.Module, modules: dict[str, nn.Module]) -> None:
        self.graph, self.backbone, self.modules = graph, backbone, modules

    def run(self, images: Tensor) -> Any:
        values: dict[fx.Node, Any] = {}
        for node, done in self.graph.schedule:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                args = args or (images,)
            values[node] = self.compute(node, args, kwargs)
            for used in done:
                del values[used]
        return values[self.graph.output]

    def compute(self, node: fx.Node, args: Arguments, kwargs: Named) -> Any:
        """The node's own operation, as it is."""
        if node.op == "placeholder":
            return args[0]
        if node.op == "get_attr":
            constant = self.graph.constants.get(str(node.target))
            return operator.attrgetter(str(node.target))(self.backbone) if constant is None else constant
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


class ShapeRun(Run):
    """A run on the meta device that keeps every value.

    Args:
        graph: of a backbone.
        same: layers whose result has the shape of what they are given: left out, as there they would take longest.
    """

    def __init__(self, graph: Graph, same: set[fx.Node]) -> None:
        super().__init__(graph, graph.without_data, dict(graph.without_data.named_modules()))
        self.same = same
        self.values: dict[fx.Node, Any] = {}
        self.node = graph.output  # the one at hand

    def compute(self, node: fx.Node, args: Arguments, kwargs: Named) -> Any:
        self.node = node
        value = args[0] if node in self.same else super().compute(node, args, kwargs)
        self.values[node] = value.to("meta") if isinstance(value, Tensor) else value
        return self.values[node]


def operation_name(node: fx.Node) -> str:
    """`add` for ``+``, `torch.add`, ``x.add`` and ``x.add_``; "" for a function that is not PyTorch's."""
    if isinstance(node.target, str):
        return node.target.rstrip("_")
    origin = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    return getattr(node.target, "__name__", "") if origin in ("torch", "torchvision", "_operator", "builtins") else ""


def source_of(node: fx.Node) -> fx.Node:
    """The node that gives the map which this one is called with."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def first_line(error: Exception) -> str:
    """Of an error's message, or what kind of error it is."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _schedule(graph: fx.Graph) -> tuple[list[tuple[fx.Node, list[fx.Node]]], fx.Node]:
    """The nodes in order, each with those whose values nobody needs after it; and the node of the result."""
    *nodes, end = graph.nodes
    output = end.args[0]
    if not isinstance(output, fx.Node):
        raise UserError(NOT_A_MAP)
    if [node.args for node in nodes if node.op == "placeholder"].count(()) != 1:
        raise UserError("the backbone must be called with images [N, 3, H, W] and nothing else that it needs")
    done: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    seen = {output}
    for node in reversed(nodes):
        if "input" in node.kwargs and not node.args:  # the map is the first argument, never one by name
            node.args = (node.kwargs["input"],)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}
        for used in (node, *node.all_input_nodes):
            if used not in seen:
                seen.add(used)
                done[node].append(used)
    return [(node, done[node]) for node in nodes], output
