"""Which blocks of a network are worth a gate, and what they are called."""

from collections.abc import Sequence

from torch import fx

from vared2_fx.config import ConvertConfig
from vared2_fx.passes.blocks import Block, find_blocks
from vared2_fx.passes.plan import PlanNode, PlanRegion
from vared2_fx.passes.regions import Reason, Site
from vared2_fx.passes.roles import roles
from vared2_fx.passes.select import Deselected
from vared2_fx.passes.variants import BlockFacts, offered, price_block


def plan_blocks(
    gm: fx.GraphModule,
    sites: Sequence[Site],
    never: Deselected,
    config: ConvertConfig,
    network: int | None,
    batch: int,
) -> tuple[dict[str, tuple[Reason, str]], tuple[PlanRegion, ...]]:
    """Why convolutions stay static, and the regions that hold the others.

    Args:
        gm: the measured graph.
        sites: its convolutions.
        never: those that no block may hold, and why.
        config: what may be converted.
        network: multiply-adds of the network per clip.
        batch: clips that it was measured with.
    """
    paths = {site.nodes[0]: site.path for site in sites if site.path not in never}
    found = roles(gm)
    static, regions = dict(never), []
    for block in find_blocks(gm, config.granularity, paths.__contains__):
        convs = tuple(paths[node] for node in block.nodes if node in paths)
        facts = BlockFacts.of(block, found, config)
        grid = offered(facts, config)
        macs = sum(node.meta["macs"] for node in block.nodes) // batch
        reason = _thresholds(block, config, macs, network)
        if reason is None and len(grid) == 1:
            reason = "no_choice", "no frame stride or channel share of the config makes its block cheaper"
        if reason is not None:
            static |= dict.fromkeys(convs, reason)
            continue
        choice_macs, gate_macs = price_block(facts, grid, config)
        path, prefix = name_of(gm, block)
        regions.append(
            PlanRegion(
                path=path,
                convs=convs,
                grid=grid,
                in_shape=_clip_shape(block.entry),
                out_shape=_clip_shape(block.exit),
                choice_macs=choice_macs,
                gate_macs=gate_macs,
                prefix=prefix,
                nodes=tuple(
                    PlanNode(name=node.name, kind=found[node].kind, shape=_clip_shape(node))
                    for node in (block.entry, *block.nodes)
                ),
            )
        )
    within = {path for region in regions for path in region.convs}
    detail = f"in no {config.granularity}: no run of layers through it has one input and one output, and keeps time"
    static |= {site.path: ("no_block", detail) for site in sites if site.path not in within and site.path not in static}
    return static, tuple(regions)


def name_of(gm: fx.GraphModule, block: Block) -> tuple[str, str]:
    """Path of a block's region, and of the module around all of its layers.

    The path of that module, where it holds nothing else; or, in it, the names of the first and the last layer.
    """
    inside = [str(node.target) for node in block.nodes if node.op in ("call_module", "get_attr")]
    members = set(block.nodes)
    others = [str(n.target) for n in gm.graph.nodes if n.op in ("call_module", "get_attr") and n not in members]
    ways = [target.split(".") for target in inside]
    shared = 0
    while all(len(way) > shared + 1 and way[shared] == ways[0][shared] for way in ways):
        shared += 1
    prefix = ".".join(ways[0][:shared])
    if prefix and not any(_is_within(other, prefix) for other in others):
        return prefix, prefix
    first, last = ways[0][shared], ways[-1][shared]
    name = first if {way[shared] for way in ways} == {first} else f"{first}-{last}"
    return f"{prefix}.{name}" if prefix else name, prefix


def _is_within(target: str, prefix: str) -> bool:
    return target == prefix or target.startswith(f"{prefix}.")


def _thresholds(block: Block, config: ConvertConfig, macs: int, network: int | None) -> tuple[Reason, str] | None:
    if block.exit.meta["shape"][2] < config.min_frames:
        return "few_frames", f"its block gives fewer than min_frames={config.min_frames} frames"
    if network and macs < config.min_macs_share * network:
        return "few_macs", f"its block does less than min_macs_share={config.min_macs_share:g} of the multiply-adds"
    return None


def _clip_shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get("shape", ())[1:])
