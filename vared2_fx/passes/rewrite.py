"""Put dynamic regions in, take decisions out, fix choices: GraphModule → new GraphModule."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import (
    FULL,
    ChannelRebuild,
    Choice,
    ChoiceGrid,
    ConvGeometry,
    Decision,
    DynamicBlock,
    DynamicConv,
    DynamicRegion,
    FrameRebuild,
    SelfGated,
    StaticRegion,
    predict_channels,
)
from vared2_fx.passes.inline import inline
from vared2_fx.passes.leaves import inner_regions, inner_targets, leaves, replace_inside, run_recorded
from vared2_fx.passes.trace import calls, fork, kept_call, module_of
from vared2_fx.passes.variants import make_gate


def gate_convs(gm: fx.GraphModule, *, sites: Mapping[str, ChoiceGrid], config: ConvertConfig) -> fx.GraphModule:
    """Put a gate and a dynamic convolution in place of the convolution at each site.

    The gate is a node `<path>.gate` in front of the region `<path>`, its decision the region's second argument. In a
    leaf, where there are no nodes, one module holds both.

    Needs: each site is a Conv3d that is called exactly once.
    Keeps: inputs, outputs and, while every gate picks the full choice, every bit of the result.

    Raises:
        ConvertError: a site is missing, or is called more than once.
    """
    nodes, in_leaves = {}, inner_targets(gm)
    for path in (path for path in sites if path not in in_leaves):  # look at everything before changing anything
        called = gm.graph.find_nodes(op="call_module", target=path)
        if len(called) != 1:
            raise ConvertError(
                f"gate_convs: `{path}` is called {len(called)} times, expected 1. Each call would need its own "
                f"gate; keep it static with ConvertConfig(exclude=({path!r},))."
            )
        if not isinstance(module_of(gm, called[0]), nn.Conv3d):
            raise ConvertError(f"gate_convs: `{path}` is a {type(module_of(gm, called[0])).__name__}, no Conv3d.")
        nodes[path] = called[0]
    out = fork(gm)
    for path, grid in sites.items():
        if path in in_leaves:
            target, name = in_leaves[path]
            leaf = out.get_submodule(target)
            region = make_region(leaf.get_submodule(name), grid, config, mean=None)
            replace_inside(leaf, name, SelfGated(region))
            continue
        region = make_region(out.get_submodule(path), grid, config, mean=_mean_after(gm, nodes[path]))
        out.set_submodule(path, region)
        (node,) = out.graph.find_nodes(op="call_module", target=path)
        with out.graph.inserting_before(node):
            x = node.args[0] if node.args else node.kwargs["input"]
            decision = out.graph.call_module(f"{path}.gate", (x,))
        node.args, node.kwargs = (x, decision), {}
    out.graph.lint()
    out.recompile()
    return out


def make_region(conv: nn.Module, grid: ChoiceGrid, config: ConvertConfig, *, mean: Tensor | None) -> DynamicConv:
    """The dynamic region of one convolution.

    Args:
        conv: the convolution; used as it is, not copied.
        grid: its choices.
        config: gate and cheap operations.
        mean: average of each output channel where known, see `predict_channels`.
    """
    assert isinstance(conv, nn.Conv3d)
    geometry = ConvGeometry.of(conv)
    gate = make_gate(geometry.in_channels, grid, geometry.out_frames, config)
    frames = [FrameRebuild(geometry.out_channels, r, config.frame_rebuild_kind) for r in grid.frame_strides[1:]]
    channels = []
    for share in grid.channel_shares[1:]:
        kept = geometry.kept_channels(share)
        start = predict_channels(conv.weight, conv.bias, mean, kept=kept, groups=geometry.groups)
        channels.append(ChannelRebuild(*start, kept=kept, kind=config.channel_rebuild))
    region = DynamicConv(conv, gate, frames, channels)
    region.to(device=conv.weight.device, dtype=conv.weight.dtype)
    return region.train(conv.training)


def regions(gm: fx.GraphModule) -> dict[str, DynamicRegion]:
    """The dynamic regions of a converted network by path, in the order in which they run."""
    return dict(called_regions(gm))


def called_regions(gm: fx.GraphModule) -> Iterator[tuple[str, DynamicRegion]]:
    """`regions`, found one by one: a policy is entered around single calls, which must not wait for a whole search."""
    for node in gm.graph.find_nodes(op="call_module"):
        module = module_of(gm, node)
        if isinstance(module, DynamicRegion):
            yield str(node.target), module
        elif module._modules:
            for path, gated in inner_regions(gm, str(node.target)).items():
                yield path, gated.region


def with_decisions(dynamic: fx.GraphModule) -> fx.GraphModule:
    """The same network, returning what its gates decided beside its output.

    Args:
        dynamic: a converted network.

    Returns:
        A network that shares every module with `dynamic`; its forward takes the same inputs and returns
        `(output, {path: Decision})`; inside a module that could not be followed, only of what it called. Wrap this one
        in DDP, and feed its decisions to `efficiency_loss`.

    Raises:
        ConvertError: `dynamic` holds no dynamic region.
    """
    out = fork(dynamic)
    decisions: dict[str, fx.Node] = {}
    for node in calls(out, DynamicRegion):
        x, weights = node.args
        with out.graph.inserting_before(node):
            macs = out.graph.call_module(f"{node.target}.cost", (x,))
            table, gate_macs = (out.graph.call_function(_item, (macs, i)) for i in range(2))
            decisions[str(node.target)] = out.graph.call_function(Decision, (weights, table, gate_macs))
    inside = [_record_leaf(out, node) for node in calls(out, nn.Module) if inner_regions(out, str(node.target))]
    if not decisions and not inside:
        raise ConvertError("with_decisions: the network holds no dynamic region; convert it first.")
    output = out.graph.output_node()
    found: Any = decisions
    if inside:
        with out.graph.inserting_before(output):
            found = kept_call(out.graph, joined, (decisions, *inside))
    output.args = ((output.args[0], found),)
    out.graph.lint()
    out.recompile()
    return out


def fix_choices(dynamic: fx.GraphModule, choices: Mapping[str, Choice]) -> fx.GraphModule:
    """Put the chosen variant in place of each dynamic region, and drop its gate.

    Args:
        dynamic: a converted network.
        choices: a choice for every region, by path.

    Returns:
        A static network of plain operators; weights shared with `dynamic`.
    """

    def variant_of(path: str, region: DynamicRegion) -> nn.Module:
        variant = region.variant(choices[path])
        variant.training = region.training
        return variant

    return _replace_regions(dynamic, variant_of)


def full_regions(dynamic: fx.GraphModule) -> fx.GraphModule:
    """The original network with one node for each region, called like it, and no gates; for looking at regions."""
    return _replace_regions(dynamic, lambda _, region: StaticRegion(region.variant(FULL)))


def remove_gates(dynamic: fx.GraphModule, entries: dict[str, fx.Node] | None = None) -> fx.GraphModule:
    """Put the original layers back in place of each dynamic region, and drop its gate.

    Args:
        dynamic: a converted network.
        entries: filled with the node, in the result, that each region of the graph reads, by path.

    Returns:
        The original network; parameters have their original names, and are shared with `dynamic`.
    """
    return _replace_regions(dynamic, lambda _, region: region.body, entries)


def _replace_regions(
    dynamic: fx.GraphModule,
    make: Callable[[str, DynamicRegion], nn.Module],
    entries: dict[str, fx.Node] | None = None,
) -> fx.GraphModule:
    out = fork(dynamic)
    for node in calls(out, DynamicRegion):
        path, region = str(node.target), module_of(out, node)
        x, decision = node.args
        assert isinstance(decision, fx.Node)
        if entries is not None:
            assert isinstance(x, fx.Node)
            entries[path] = x
        static = make(path, region)
        if isinstance(static, fx.GraphModule):
            assert isinstance(region, DynamicBlock)
            inline(out, node, static, region.prefix)
        else:
            out.set_submodule(path, static)
            node.args = (x,)
        out.graph.erase_node(decision)
    for target, leaf in leaves(out).items():
        for path, module in inner_regions(out, target).items():
            replace_inside(leaf, inner_targets(out)[path][1], make(path, module.region))
    out.graph.lint()
    out.recompile()
    return out


def _record_leaf(out: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Let the decisions taken inside a leaf come out beside its output; returns the node that has them."""
    with out.graph.inserting_before(node):
        leaf = out.graph.get_attr(str(node.target))
        both = kept_call(out.graph, run_recorded, (leaf, node.args, node.kwargs, str(node.target)))
        result, decisions = (out.graph.call_function(_item, (both, i)) for i in range(2))
    node.replace_all_uses_with(result)
    out.graph.erase_node(node)
    return decisions


def joined(*decisions: dict[str, Decision]) -> dict[str, Decision]:
    """Those of the graph and of every leaf in one dict."""
    return {path: decision for some in decisions for path, decision in some.items()}


def _item(values: tuple[Any, ...], index: int) -> Any:
    return values[index]


def _mean_after(gm: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """Average output of a convolution, where a batch norm that reads nothing else keeps it."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    norm = module_of(gm, users[0])
    if isinstance(norm, nn.BatchNorm3d) and norm.running_mean is not None:
        return torch.as_tensor(norm.running_mean).detach()
    return None
