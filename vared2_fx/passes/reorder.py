"""Put the channels of a converted network into another order, in all weights alike, so that it computes the same.

C channels. Choices keep the first channels of a value, so which they are is a matter of order.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from vared2_fx.errors import ConvertError
from vared2_fx.layers import ConvGeometry, DynamicConv, FrameRebuild
from vared2_fx.passes.hooks import has_hooks
from vared2_fx.passes.rewrite import regions, remove_gates
from vared2_fx.passes.roles import Role, is_map, roles
from vared2_fx.passes.shapes import Inputs, measure_shapes
from vared2_fx.passes.trace import module_of

ChannelSet = frozenset[fx.Node]
"""Values of a graph whose channels can be reordered, if they are alike."""


@dataclass(frozen=True, slots=True)
class FreeChannels:
    """Where the order of channels is free; the graph shares all modules with the converted network."""

    dynamic: fx.GraphModule
    plain: fx.GraphModule
    """The original network."""
    roles: Mapping[fx.Node, Role]
    """Of its nodes."""
    sets: Mapping[fx.Node, ChannelSet]
    """By value. One whose order is fixed is in none: an input or output of the network, or what is read by an
    operation of which it is not known what it does to channels, or by weights that others share."""
    entries: Mapping[str, fx.Node]
    """What each region reads, by path; not of those inside a leaf."""

    def of_conv(self, path: str) -> fx.Node | None:
        """The node that calls the convolution at `path`, if it is in the graph."""
        return next(iter(self.plain.graph.find_nodes(op="call_module", target=path)), None)


def free_channels(dynamic: fx.GraphModule, example_inputs: Inputs) -> FreeChannels:
    """Find the values of a converted network whose channels can be reordered.

    Raises:
        ConvertError: it does not run on `example_inputs`.
    """
    entries: dict[str, fx.Node] = {}
    plain = measure_shapes(remove_gates(dynamic, entries), example_inputs)
    found = roles(plain)
    together = nx.utils.UnionFind(plain.graph.nodes)
    rigid: set[fx.Node] = set()
    alone = _called_once(plain)
    for node, role in found.items():
        if role.kind == "constant":
            continue
        if role.kind == "conv" and node in alone and _is_dense(role):
            continue
        if role.kind in ("pointwise", "pool", "squeeze", "scale", "join") or (
            node in alone and (role.kind == "norm" or _is_depthwise(role))
        ):
            together.union(node, *role.reads)
        else:
            rigid.update((node, *node.all_input_nodes))
    sets: dict[fx.Node, ChannelSet] = {}
    for values in map(frozenset, together.to_sets()):
        if rigid.isdisjoint(values) and all(is_map(value) for value in values):
            sets.update(dict.fromkeys(values, values))
    return FreeChannels(dynamic, plain, found, sets, entries)


@torch.no_grad()
def reorder_channels(free: FreeChannels, orders: Mapping[ChannelSet, Tensor]) -> None:
    """Reorder channels in the weights of a converted network, in place: also in its gates and in Φt.

    Φc is not: which channels it has to rebuild is another matter now, it is to be set anew.

    Args:
        free: of the network.
        orders: for some of the sets, the channel that comes to each place, int64 (C,).

    Keeps: what the original network computes, up to the rounding of sums that are added up in another order.

    Raises:
        ConvertError: a trained gate looks at some channels only, and would see others; nothing is changed.
    """
    for path, region in regions(free.dynamic).items():
        source = _order(free, orders, free.entries.get(path))
        if source is not None and not region.gate.bears_reordering:
            raise ConvertError(
                f"calibrate: the gate of `{path}` is trained, on the first {region.gate.num_seen} of "
                f"{region.gate.in_channels} channels, which another order would take from it. Calibrate before "
                "fine-tuning, or pass reorder=False."
            )
    for node, role in free.roles.items():
        order, source = _order(free, orders, node), _order(free, orders, *role.reads[:1])
        if role.kind == "conv" and (order is not None or source is not None):
            conv = module_of(free.plain, node)
            _permute((conv.weight, conv.bias), order)
            if _is_dense(role):
                _permute((conv.weight,), source, dim=1)
        elif role.kind == "norm" and order is not None:
            norm = module_of(free.plain, node)
            _permute((norm.weight, norm.bias, norm.running_mean, norm.running_var), order)
    for path, region in regions(free.dynamic).items():
        source = _order(free, orders, free.entries.get(path))
        if source is not None:
            region.gate.reorder_inputs(source)
        if isinstance(region, DynamicConv):
            order = _order(free, orders, free.of_conv(path))
            for rebuild in cast("list[FrameRebuild]", list(region.frame_rebuilds)):
                _permute((rebuild.scale, rebuild.bias, rebuild.next_scale), order, dim=1)


def _order(free: FreeChannels, orders: Mapping[ChannelSet, Tensor], node: fx.Node | None = None) -> Tensor | None:
    found = None if node is None else free.sets.get(node)
    return None if found is None else orders.get(found)


def _permute(tensors: tuple[Tensor | None, ...], order: Tensor | None, dim: int = 0) -> None:
    for tensor in tensors:
        if tensor is not None and order is not None:
            tensor.copy_(tensor.index_select(dim, order.to(tensor.device)))


def _called_once(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes that call a module which computes as its class does, with weights that nothing else reads."""
    called = [node for node in gm.graph.nodes if node.op == "call_module"]
    owners: Counter[int] = Counter()
    for node in called:
        owners.update({id(parameter) for parameter in module_of(gm, node).parameters()})
    for node in gm.graph.find_nodes(op="get_attr"):
        held: Any = gm
        for name in str(node.target).split("."):
            held = getattr(held, name)
        owners.update(map(id, held.parameters() if isinstance(held, nn.Module) else (held,)))
    times = Counter(module_of(gm, node) for node in called)
    return {node for node in called if times[module_of(gm, node)] == 1 and _is_plain(module_of(gm, node), owners)}


def _is_plain(module: nn.Module, owners: Mapping[int, int]) -> bool:
    own = isinstance(module, nn.Conv3d) and (
        type(module).forward is not nn.Conv3d.forward or type(module)._conv_forward is not nn.Conv3d._conv_forward
    )
    shared = any(owners[id(parameter)] > 1 for parameter in module.parameters())
    changed = parametrize.is_parametrized(module) or has_hooks(module) or "forward" in vars(module)
    return not (own or shared or changed)


def _is_dense(role: Role) -> bool:
    return isinstance(role.geometry, ConvGeometry) and role.geometry.groups == 1


def _is_depthwise(role: Role) -> bool:
    geometry = role.geometry
    return isinstance(geometry, ConvGeometry) and geometry.groups == geometry.in_channels == geometry.out_channels
