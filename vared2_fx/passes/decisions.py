"""Taking back what `with_decisions` did to a graph."""

from typing import Any

from torch import fx

from vared2_fx.layers import Decision
from vared2_fx.passes.leaves import run_recorded
from vared2_fx.passes.rewrite import joined
from vared2_fx.passes.trace import fork


def without_decisions(gm: fx.GraphModule) -> fx.GraphModule:
    """The network beneath one that shows its decisions; shares every module with it. Any other comes back as it is."""
    shown: list[fx.Node] = gm.graph.find_nodes(op="call_function", target=Decision)
    if not shown and not gm.graph.find_nodes(op="call_function", target=run_recorded):
        return gm
    out = fork(gm)
    output: Any = out.graph.output_node()
    output.args = (output.args[0][0],)
    for node in out.graph.find_nodes(op="call_function", target=joined):
        out.graph.erase_node(node)
    for decision in reversed(out.graph.find_nodes(op="call_function", target=Decision)):
        parts = [part for part in decision.args[1:] if isinstance(part, fx.Node)]
        (cost,) = {part.all_input_nodes[0] for part in parts}
        for node in (decision, *parts, cost):
            out.graph.erase_node(node)
    for both in out.graph.find_nodes(op="call_function", target=run_recorded):
        leaf, args, kwargs, target = both.args
        result, decisions = both.users
        with out.graph.inserting_before(both):
            called = out.graph.call_module(target, tuple(args), dict(kwargs))
        result.replace_all_uses_with(called)
        for node in (decisions, result, both, leaf):
            out.graph.erase_node(node)
    out.graph.lint()
    out.recompile()
    return out
