"""Taking back what `with_decisions` did to a graph."""

from typing import Any, cast

from torch import fx

from vared2_fx.layers import Decision
from vared2_fx.passes.trace import fork


def without_decisions(gm: fx.GraphModule) -> fx.GraphModule:
    """The network beneath one that shows its decisions; shares every module with it. Any other comes back as it is."""
    if not gm.graph.find_nodes(op="call_function", target=Decision):
        return gm
    out = fork(gm)
    output = out.graph.output_node()
    answer, shown = cast("tuple[Any, dict[str, fx.Node]]", output.args[0])
    output.args = (answer,)
    for decision in reversed(shown.values()):
        parts = [part for part in decision.args[1:] if isinstance(part, fx.Node)]
        (cost,) = {part.all_input_nodes[0] for part in parts}
        for node in (decision, *parts, cost):
            out.graph.erase_node(node)
    out.graph.lint()
    out.recompile()
    return out
