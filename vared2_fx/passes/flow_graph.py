"""How the operations of a network are connected, in short."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx

from vared2_fx.passes.leaves import inner_calls

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphNode:
    """A point of the network's graph: a counted operation, the input, the output, or a join of several values."""

    name: str
    """Path of the operation; for others the name of their node."""
    operation: str
    reads: tuple[str, ...]
    """Names of the points that its values come from."""


def flow_graph(gm: fx.GraphModule, counted: Collection[str]) -> tuple[GraphNode, ...]:
    """Reduce a measured graph to its input, its counted operations, joins of several of them, and its output.

    A module that torch.fx could not follow is a point, too; what runs inside has no place of its own.

    Args:
        gm: a graph whose nodes carry shapes.
        counted: paths of the operations that count: the rows of a report, the convolutions of a plan.

    Returns:
        In the order in which they run; an operation that is called again reads what all its calls read.
    """
    points: dict[str, GraphNode] = {}
    origins: dict[fx.Node, tuple[str, ...]] = {}
    for node in gm.graph.nodes:
        reads = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in origins[source]))
        path = str(node.target) if node.op == "call_module" else node.name
        if node.op == "placeholder":
            points.setdefault(INPUT, GraphNode(name=INPUT, operation="", reads=()))
            origins[node] = (INPUT,)
        elif node.op == "output":
            points[OUTPUT] = GraphNode(name=OUTPUT, operation="", reads=reads)
        elif node.op.startswith("call_") and path in counted:
            before = points[path].reads if path in points else ()
            points[path] = GraphNode(
                name=path, operation=_kind(gm, node), reads=tuple(dict.fromkeys((*before, *reads)))
            )
            origins[node] = (path,)
        elif (len(reads) > 1 and "shape" in node.meta) or _is_leaf(gm, node):
            points[node.name] = GraphNode(name=node.name, operation=_kind(gm, node), reads=reads)
            origins[node] = (node.name,)
        else:
            origins[node] = reads
    return tuple(points.values())


def _is_leaf(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it is a module that could not be followed, with convolutions inside: those are rows, but no points."""
    return node.op == "call_module" and bool(inner_calls(gm, node))


def _kind(gm: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(gm.get_submodule(str(node.target))).__name__
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_")
