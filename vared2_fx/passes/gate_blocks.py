"""Put dynamic blocks in: GraphModule → new GraphModule."""

from collections.abc import Sequence

from torch import fx

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.blocks import Block
from vared2_fx.passes.plan import PlanRegion
from vared2_fx.passes.roles import Role, geometry_of
from vared2_fx.passes.trace import fork, module_of
from vared2_fx.passes.variants import BlockFacts, make_block


def gate_blocks(gm: fx.GraphModule, *, blocks: Sequence[PlanRegion], config: ConvertConfig) -> fx.GraphModule:
    """Put a gate and a dynamic block in place of each planned run of layers.

    The gate is a node `<path>.gate` in front of the region `<path>`, its decision the region's second argument.

    Needs: the graph that the blocks were planned for, or one traced like it.
    Keeps: inputs, outputs and, while every gate picks the full choice, every bit of the result.

    Raises:
        ConvertError: the graph has not the nodes of a block.
    """
    out = fork(gm)
    found = [_find(out, region, config) for region in blocks]  # look at everything before changing anything
    made = [
        make_block(out, facts, region.grid, config, region.prefix) for region, facts in zip(blocks, found, strict=True)
    ]
    replaced: dict[fx.Node, fx.Node] = {}
    for region, facts, dynamic in zip(blocks, found, made, strict=True):
        entry, last = replaced.get(facts.block.entry, facts.block.entry), facts.block.exit
        out.set_submodule(region.path, dynamic)
        with out.graph.inserting_after(last):
            node = out.graph.call_module(region.path, (entry,))
        with out.graph.inserting_before(node):
            decision = out.graph.call_module(f"{region.path}.gate", (entry,))
        node.args = (entry, decision)
        last.replace_all_uses_with(node)
        replaced[last] = node
        for inner in reversed(facts.block.nodes):
            out.graph.erase_node(inner)
    out.delete_all_unused_submodules()
    out.graph.lint()
    out.recompile()
    return out


def _find(gm: fx.GraphModule, region: PlanRegion, config: ConvertConfig) -> BlockFacts:
    by_name = {node.name: node for node in gm.graph.nodes}
    missing = [planned.name for planned in region.nodes if planned.name not in by_name]
    if missing:
        raise ConvertError(f"gate_blocks: the block `{region.path}` needs `{missing[0]}`, which this graph has not.")
    roles: dict[fx.Node, Role] = {}
    for planned in region.nodes:
        node = by_name[planned.name]
        node.meta["shape"] = (1, *planned.shape)
        reads = tuple(n for n in node.all_input_nodes if n in roles and roles[n].kind != "constant")
        geometry = geometry_of(module_of(gm, node)) if node.op == "call_module" else None
        roles[node] = Role(planned.kind, reads, geometry)
    entry, *nodes = roles
    return BlockFacts.of(Block(entry, tuple(nodes)), roles, config)
