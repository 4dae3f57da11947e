"""Runs of layers with one input and one output that keep time: what one decision may cover.

Found in the graph, whatever its modules are called: a block's input dominates its output, and nothing inside is read
outside.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
from torch import fx

from vared2_fx.config import Granularity
from vared2_fx.passes.roles import Kind, Role, is_map, keeps_time, roles

_IN_BLOCKS: frozenset[Kind] = frozenset({"conv", "norm", "pointwise", "mixing", "pool", "squeeze", "scale"})
_IN_STAGES: frozenset[Kind] = _IN_BLOCKS | {"join", "concat"}


@dataclass(frozen=True, slots=True)
class Block:
    """A run of nodes; their order is the graph's."""

    entry: fx.Node
    """The one value that it reads, from outside."""
    nodes: tuple[fx.Node, ...]
    """The last gives the output."""

    @property
    def exit(self) -> fx.Node:
        """The one value that is read outside."""
        return self.nodes[-1]


def find_blocks(gm: fx.GraphModule, granularity: Granularity, takes: Callable[[fx.Node], bool]) -> tuple[Block, ...]:
    """The largest blocks of a measured graph, in its order; none has a node of another.

    `block`: convolutions, norms, activations, squeeze and excitation, and poolings that keep time; so a residual
    branch, a branch between concatenations, or the layers between two poolings of a plain chain. `stage`: also what
    joins maps, so a run of residual blocks, from a change of resolution up to the next.

    Args:
        gm: the graph, with shapes.
        granularity: `block` or `stage`.
        takes: whether a block may hold this convolution.
    """
    if granularity not in ("block", "stage"):
        return ()
    search = _Search(gm, granularity, takes)
    found = [block for node in gm.graph.nodes if (block := search.largest_up_to(node)) is not None]
    taken: set[fx.Node] = set()
    chosen = []
    for block in sorted(found, key=lambda block: len(block.nodes), reverse=True):
        if taken.isdisjoint(block.nodes):
            taken.update(block.nodes)
            chosen.append(block)
    return tuple(sorted(chosen, key=lambda block: search.order[block.exit]))


class _Search:
    def __init__(self, gm: fx.GraphModule, granularity: Granularity, takes: Callable[[fx.Node], bool]) -> None:
        self.roles, self.takes = roles(gm), takes
        self.order = {node: place for place, node in enumerate(gm.graph.nodes)}
        self.is_stage = granularity == "stage"
        self.kinds = _IN_STAGES if self.is_stage else _IN_BLOCKS
        self.dominators = _dominators(self.roles)

    def largest_up_to(self, exit: fx.Node) -> Block | None:
        """The largest block that ends with `exit`, found by going up from dominator to dominator."""
        if self.roles[exit].kind not in self.kinds or not _has_time(exit):
            return None
        inside: set[fx.Node] = set()
        best: Block | None = None
        cut = exit
        while (entry := self.dominators.get(cut)) is not None:
            if cut is not exit and (not inside.issuperset(cut.users) or self._changes_resolution(cut, exit)):
                break
            between = self._between(entry, cut)
            if not all(self._fits(node) for node in between):
                break
            inside |= between
            if not all(inside.issuperset(node.users) for node in between - {cut}):
                break
            if self._may_enter(entry, inside) and any(self.roles[node].kind == "conv" for node in inside):
                constants = self._constants(inside)
                if constants is not None:
                    best = Block(entry, tuple(sorted(inside | constants, key=self.order.__getitem__)))
            cut = entry
        return best

    def _fits(self, node: fx.Node) -> bool:
        role = self.roles[node]
        if role.kind in ("conv", "pool") and (role.geometry is None or not keeps_time(role.geometry)):
            return False
        if role.kind == "conv":
            return self.takes(node)
        if role.kind == "pool" and not self.is_stage:
            return role.geometry is not None and role.geometry.stride[0] == 1
        return role.kind in self.kinds

    def _changes_resolution(self, cut: fx.Node, exit: fx.Node) -> bool:
        return self.is_stage and cut.meta["shape"][3:] != exit.meta["shape"][3:]

    def _may_enter(self, entry: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether frames of `entry` may be skipped: it has some, and is not written over."""
        readers = [self.roles[node] for node in entry.users if node in inside]
        return _has_time(entry) and not any(role.in_place and role.reads[0] is entry for role in readers)

    def _between(self, entry: fx.Node, cut: fx.Node) -> set[fx.Node]:
        """`cut`, and everything on the ways from `entry` to it."""
        found, ahead = {cut}, [cut]
        while ahead:
            for source in self.roles[ahead.pop()].reads:
                if source is not entry and source not in found:
                    found.add(source)
                    ahead.append(source)
        return found

    def _constants(self, inside: set[fx.Node]) -> set[fx.Node] | None:
        """What `inside` reads besides the input; None where others read it too."""
        found: set[fx.Node] = set()
        ahead = list(inside)
        while ahead:
            for source in ahead.pop().all_input_nodes:
                if self.roles[source].kind == "constant" and source not in found:
                    found.add(source)
                    ahead.append(source)
        return found if all((inside | found).issuperset(node.users) for node in found) else None


def _has_time(node: fx.Node) -> bool:
    return is_map(node) and node.meta["shape"][2] > 1


def _dominators(found: Mapping[fx.Node, Role]) -> dict[fx.Node, fx.Node]:
    """For each value the nearest one through which all ways lead to it, where there is one."""
    root = object()
    graph = nx.DiGraph(list(_edges(found, root)))
    dominators = nx.immediate_dominators(graph, root)
    return {
        node: above for node, above in dominators.items() if isinstance(node, fx.Node) and isinstance(above, fx.Node)
    }


def _edges(found: Mapping[fx.Node, Role], root: object) -> Iterator[tuple[object, fx.Node]]:
    for node, role in found.items():
        if role.kind == "constant":
            continue
        if not role.reads:
            yield root, node
        yield from ((source, node) for source in role.reads)
