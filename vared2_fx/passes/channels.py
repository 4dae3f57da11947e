"""Which channels of a block belong together, and how many of them each share of the channels keeps."""

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
from torch import fx

from vared2_fx.layers import ConvGeometry
from vared2_fx.layers.geometry import ceil_share
from vared2_fx.passes.blocks import Block
from vared2_fx.passes.roles import Role


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Values whose channels are kept or skipped together: what lies between two dense convolutions."""

    values: frozenset[fx.Node]
    makers: tuple[fx.Node, ...]
    """The dense convolutions that give such values."""
    granules: int
    """Channels are kept in this many equal parts: channels, or groups of a grouped convolution."""

    def kept(self, value: fx.Node, share: float) -> int:
        """How many channels of `value` are kept: the first of them."""
        channels: int = value.meta["shape"][1]
        return channels // self.granules * ceil_share(share, self.granules)


def channel_groups(block: Block, found: Mapping[fx.Node, Role], min_channels: int) -> tuple[ChannelGroup, ...]:
    """The groups of a block that can be slimmed, in order.

    Not the ones that its input or output is in, which others read; nor those behind a squeeze, which cost nothing;
    nor narrow ones.
    """
    together = nx.utils.UnionFind([block.entry, *block.nodes])
    rigid = {block.entry, block.exit}
    granules: dict[fx.Node, int] = {}
    for node in block.nodes:
        role = found[node]
        if role.kind == "constant":
            continue
        if role.kind in ("mixing", "concat"):
            rigid.update((node, *role.reads))
        elif isinstance(role.geometry, ConvGeometry) and role.geometry.groups == 1:
            continue
        else:
            together.union(node, *role.reads)
        if isinstance(role.geometry, ConvGeometry):
            granules[node] = role.geometry.groups
    sets = [frozenset(values) for values in together.to_sets()]
    groups = [_group(values, found, granules) for values in sets if rigid.isdisjoint(values)]
    order = {node: place for place, node in enumerate(block.nodes)}
    fit = [group for group in groups if group.makers and _can_be_slimmed(group, min_channels)]
    return tuple(sorted(fit, key=lambda group: order[group.makers[0]]))


def _group(values: frozenset[fx.Node], found: Mapping[fx.Node, Role], granules: Mapping[fx.Node, int]) -> ChannelGroup:
    makers = tuple(node for node in values if found[node].kind == "conv" and node not in granules)
    parts = {granules[node] for node in values if node in granules}
    channels = {int(node.meta["shape"][1]) for node in values if "shape" in node.meta}
    return ChannelGroup(values, makers, min(parts | channels, default=1))


def _can_be_slimmed(group: ChannelGroup, min_channels: int) -> bool:
    shapes = [node.meta["shape"] for node in group.values]
    wide = all(shape[1] >= min_channels and shape[1] % group.granules == 0 for shape in shapes)
    return wide and any(shape[2] > 1 for shape in shapes)
