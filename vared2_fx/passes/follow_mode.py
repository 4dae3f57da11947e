"""Let a traced network follow its mode where tracing would freeze it, as in `F.dropout(x, training=self.training)`."""

import logging
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

log = logging.getLogger(__name__)


class IsTraining(nn.Module):
    """A node of the graph that says in which mode the network is."""

    def forward(self) -> bool:
        """Whether this is training."""
        return self.training


def trace_both_modes(own: nn.Module, trace: Callable[[], fx.Graph]) -> fx.Graph:
    """Trace what a network computes in evaluation; flags that differ in training then follow the mode.

    Where a network computes by other operations in training (an auxiliary output, say), those of evaluation are taken.

    Args:
        own: the network; gets an `is_training` module in each place whose mode is asked for. Its modes stay.
        trace: traces it.
    """
    modes = {module: module.training for module in own.modules()}
    try:
        own.train()
        try:
            training = trace()
        except Exception:  # only evaluation has to be traceable
            training = None
        own.eval()
        graph = trace()
    finally:
        for module, mode in modes.items():
            module.training = mode
    flags = None if training is None else _flags(graph, training)
    if flags is None:
        log.info("%s computes other operations in training; converted is what evaluation computes", type(own).__name__)
    for node in flags or ():
        _follow(own, graph, *node)
    return graph


def _flags(graph: fx.Graph, training: fx.Graph) -> list[tuple[fx.Node, Any, Any]] | None:
    """Nodes whose arguments differ between the modes, with both; None where other things differ."""
    twin: dict[fx.Node, fx.Node] = {}
    found = []
    if len(graph.nodes) != len(training.nodes):
        return None
    for node, other in zip(graph.nodes, training.nodes, strict=True):
        twin[other] = node
        theirs = fx.node.map_arg((other.args, other.kwargs), twin.__getitem__)
        ours = (node.args, node.kwargs)
        if (node.op, node.target) != (other.op, other.target) or not _only_flags(ours, theirs):
            return None
        if ours != theirs:
            found.append((node, ours, theirs))
    return found


def _only_flags(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        return len(ours) == len(theirs) and all(map(_only_flags, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_only_flags(ours[key], theirs[key]) for key in ours)
    return (isinstance(ours, bool) and isinstance(theirs, bool)) or bool(ours == theirs)


def _follow(own: nn.Module, graph: fx.Graph, node: fx.Node, ours: Any, theirs: Any) -> None:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    owner = str(next(reversed(stack.values()))[0])
    place = own.get_submodule(owner)
    if not hasattr(place, "is_training"):
        place.add_module("is_training", IsTraining())
    assert isinstance(place.is_training, IsTraining), f"{owner}.is_training is taken"
    place.is_training.training = place.training
    with graph.inserting_before(node):
        mode = graph.call_module(f"{owner}.is_training".lstrip("."))

        def mixed(one: Any, other: Any) -> Any:
            if isinstance(one, (tuple, list)):
                return type(one)(map(mixed, one, other))
            if isinstance(one, dict):
                return {key: mixed(one[key], other[key]) for key in one}
            if one is other or one == other:
                return one
            return mode if other else graph.call_function(operator.not_, (mode,))

        node.args, node.kwargs = mixed(ours[0], theirs[0]), mixed(ours[1], theirs[1])
