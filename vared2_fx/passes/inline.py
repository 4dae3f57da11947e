"""Put the layers of a block back into the graph around it."""

from torch import fx, nn

from vared2_fx.layers import FrameReturn, FrameSkip
from vared2_fx.passes.trace import module_of
from vared2_fx.passes.variants import get, put


def inline(out: fx.GraphModule, node: fx.Node, inner: nn.Module, prefix: str) -> None:
    """Put the nodes of `inner` in place of `node`, which calls a block; modules stay shared.

    Args:
        out: the graph, changed in place.
        node: calls the block as (x, …).
        inner: the block's body or a variant of it.
        prefix: path of the module in `out` in which the names of `inner` begin.
    """
    assert isinstance(inner, fx.GraphModule)
    path, values = str(node.target), dict[fx.Node, fx.Node]()
    out.delete_submodule(path)
    with out.graph.inserting_before(node):
        for step in inner.graph.nodes:
            if step.op == "placeholder":
                values[step] = node.all_input_nodes[0]
            elif step.op == "output":
                node.replace_all_uses_with(values[step.args[0]])
            else:
                copied = values[step] = out.graph.node_copy(step, values.__getitem__)
                if step.op in ("call_module", "get_attr"):
                    copied.target = _target(inner, step, path, prefix)
                    put(out, copied.target, get(inner, step.target))
    out.graph.erase_node(node)


def _target(inner: fx.GraphModule, step: fx.Node, path: str, prefix: str) -> str:
    if step.op == "call_module" and isinstance(module_of(inner, step), (FrameSkip, FrameReturn)):
        return f"{path}_{step.target}"  # beside the block: inside, its path may be that of a layer
    return f"{prefix}.{step.target}" if prefix else str(step.target)
