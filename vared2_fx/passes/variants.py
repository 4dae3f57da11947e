"""A block at each of its choices: the same graph with frames skipped, channels slimmed, and frames rebuilt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from vared2_fx.config import ConvertConfig
from vared2_fx.layers import (
    FULL,
    BlockGeometry,
    ChannelRebuild,
    Choice,
    ChoiceGrid,
    ConvGeometry,
    DynamicBlock,
    FrameRebuild,
    FrameReturn,
    FrameSkip,
    Gate,
    SlimConv,
    SlimNorm,
    Step,
    predict_channels,
)
from vared2_fx.passes.blocks import Block
from vared2_fx.passes.channels import ChannelGroup, channel_groups
from vared2_fx.passes.roles import Role
from vared2_fx.passes.trace import module_of


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """A block of a measured graph, and what making and pricing its variants needs to know."""

    block: Block
    roles: Mapping[fx.Node, Role]
    groups: tuple[ChannelGroup, ...]

    @classmethod
    def of(cls, block: Block, found: Mapping[fx.Node, Role], config: ConvertConfig) -> "BlockFacts":
        """Look at `block`."""
        return cls(block, found, channel_groups(block, found, config.min_channels))

    def kept(self, node: fx.Node, share: float) -> int:
        """Channels of a value of the block that are computed at `share`."""
        group = self._group(node)
        return node.meta["shape"][1] if group is None else group.kept(node, share)

    def is_slim(self, node: fx.Node, share: float) -> bool:
        """Whether only some of its channels are computed."""
        return bool(self.kept(node, share) < node.meta["shape"][1])

    def geometry(self, share: float) -> BlockGeometry:
        """Sizes and multiply-adds at `share`."""
        numbers: dict[fx.Node, int] = {self.block.entry: -1}
        steps = []
        for node in self.block.nodes:
            role = self.roles[node]
            if role.kind == "constant":
                continue
            operation = role.geometry
            if isinstance(operation, ConvGeometry):
                operation = self._slim(operation, node, share)
            steps.append(Step(tuple(numbers[n] for n in role.reads), operation, squeezes=role.kind == "squeeze"))
            numbers[node] = len(steps) - 1
        return BlockGeometry(tuple(steps))

    def rebuilt_places(self, share: float) -> list[fx.Node]:
        """The dense convolutions that read slimmed channels: each has a Φc of its own."""
        convs = (node for node in self.block.nodes if self.roles[node].kind == "conv")
        return [node for node in convs if self._is_dense(node) and self.is_slim(self.roles[node].reads[0], share)]

    def maker_of(self, node: fx.Node) -> fx.Node:
        """The dense convolution that the channels of a slimmed value come from, the first of several."""
        group = self._group(node)
        assert group is not None
        return next(n for n in self.block.nodes if n in group.makers)

    def _group(self, node: fx.Node) -> ChannelGroup | None:
        return next((group for group in self.groups if node in group.values), None)

    def _is_dense(self, node: fx.Node) -> bool:
        geometry = self.roles[node].geometry
        return isinstance(geometry, ConvGeometry) and geometry.groups == 1

    def _slim(self, whole: ConvGeometry, node: fx.Node, share: float) -> ConvGeometry:
        given, out = self.kept(self.roles[node].reads[0], share), self.kept(node, share)
        groups = whole.groups * out // whole.out_channels if whole.groups > 1 else 1
        return ConvGeometry(given, out, whole.kernel_size, whole.stride, whole.padding, whole.dilation, groups)


def offered(facts: BlockFacts, config: ConvertConfig) -> ChoiceGrid:
    """The config's choices that make a difference to a block: no stride above T, no share that slims nothing."""
    frames = facts.block.exit.meta["shape"][2], facts.block.entry.meta["shape"][2]
    strides = tuple(r for r in config.frame_strides if r <= min(frames))
    shares: dict[tuple[int, ...], float] = {}
    for share in config.channel_shares:
        shares.setdefault(tuple(group.kept(group.makers[0], share) for group in facts.groups), share)
    return ChoiceGrid(strides, tuple(shares.values()))


def price_block(facts: BlockFacts, grid: ChoiceGrid, config: ConvertConfig) -> tuple[tuple[int, ...], int]:
    """Multiply-adds per clip of each choice of a block, in the order of `grid.all()`, and those of its gate."""
    with torch.device("meta"):  # the block itself says what it costs; this one has no values
        bare = DynamicBlock(
            nn.Identity(),
            _gate(facts, grid, config),
            _frame_rebuilds(facts, grid, config),
            (),
            (),
            {},
            {share: facts.geometry(share) for share in grid.channel_shares},
        )
    t, h, w = facts.block.entry.meta["shape"][2:]
    return tuple(int(bare.macs((t, h, w), choice)) for choice in grid.all()), int(bare.gate.macs((t, h, w)))


def make_block(
    gm: fx.GraphModule, facts: BlockFacts, grid: ChoiceGrid, config: ConvertConfig, prefix: str
) -> DynamicBlock:
    """The dynamic region of a block.

    Args:
        gm: the graph that the block is in; its modules are used as they are, not copied.
        facts: the block.
        grid: its choices.
        config: gate and cheap operations.
        prefix: path of the module around all of the block's, whose names begin there.
    """
    body, nodes = _cut_out(gm, facts.block, prefix)
    places = {share: facts.rebuilt_places(share) for share in grid.channel_shares[1:]}
    channel_rebuilds = {
        share: {node: _channel_rebuild(gm, facts, node, share) for node in at} for share, at in places.items()
    }
    norms = [node for node in facts.block.nodes if facts.roles[node].kind == "norm"]
    statistics = {
        choice: {node: _statistics(module_of(gm, node), facts.kept(node, choice.channel_share)) for node in norms}
        for choice in grid.all()[1:]
    }
    frame_rebuilds = _frame_rebuilds(facts, grid, config)
    gate = _gate(facts, grid, config)
    like = next(module_of(gm, node).weight for node in facts.block.nodes if facts.roles[node].kind == "conv")
    for module in (gate, *frame_rebuilds):
        module.to(device=like.device, dtype=like.dtype)
    geometries = {share: facts.geometry(share) for share in grid.channel_shares}
    variants: dict[Choice, fx.GraphModule] = {FULL: body}
    for choice in grid.all()[1:]:
        stride, share = choice
        swaps: dict[fx.Node, nn.Module] = {}
        for node in facts.block.nodes:
            if facts.roles[node].kind == "norm":
                swaps[nodes[node]] = SlimNorm(module_of(gm, node), statistics[choice][node])
            elif facts.roles[node].kind == "conv":
                rebuild = channel_rebuilds[share].get(node) if share < 1.0 else None
                swaps[nodes[node]] = _slim_conv(gm, facts, node, share, rebuild)
        frames = None if stride == 1 else frame_rebuilds[grid.frame_strides.index(stride) - 1]
        variants[choice] = _variant(body, swaps, None if frames is None else FrameReturn(frames, geometries[1.0]))
    block = DynamicBlock(
        body,
        gate,
        frame_rebuilds,
        [list(at.values()) for at in channel_rebuilds.values()],
        [list(of.values()) for of in statistics.values()],
        variants,
        geometries,
        prefix,
    )
    return block.train(body.training)


def _variant(body: fx.GraphModule, swaps: Mapping[fx.Node, nn.Module], back: FrameReturn | None) -> fx.GraphModule:
    """`body` with modules swapped, and, where `back` returns frames, those between skipped at the front."""
    graph = fx.Graph()
    modules = {str(node.target): module for node, module in swaps.items()}
    values: dict[fx.Node, fx.Node] = {}
    for node in body.graph.nodes:
        if node.op == "placeholder":
            x = values[node] = graph.node_copy(node)
            if back is not None:
                modules["frame_skip"] = FrameSkip(back.rebuild.stride)
                values[node] = graph.call_module("frame_skip", (x,))
        elif node.op == "output":
            y = values[node.args[0]]
            if back is not None:
                modules["frame_return"] = back
                y = graph.call_module("frame_return", (y, x))
            graph.output(y)
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    root = nn.Module()
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            put(root, node.target, modules[node.target] if node.target in modules else get(body, node.target))
    variant = fx.GraphModule(root, graph, "Variant")
    variant.training = body.training
    return variant


def _cut_out(gm: fx.GraphModule, block: Block, prefix: str) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """The block as a network of its own, and which of its nodes is which."""
    graph, root = fx.Graph(), nn.Module()
    values = {block.entry: graph.placeholder("x")}
    for node in block.nodes:
        copied = values[node] = graph.node_copy(node, values.__getitem__)
        if node.op in ("call_module", "get_attr"):
            path = str(node.target)
            copied.target = path.removeprefix(f"{prefix}.") if prefix else path
            put(root, copied.target, get(gm, path))
    graph.output(values[block.exit])
    body = fx.GraphModule(root, graph, "Block")
    body.training = gm.training
    return body, values


def get(root: nn.Module, path: str) -> object:
    """The module, parameter or buffer at `path`."""
    found: object = root
    for name in path.split("."):
        found = getattr(found, name)
    return found


def put(root: nn.Module, path: str, value: object) -> None:
    """Set a module, parameter or buffer at `path`; what is missing on the way is made."""
    *way, name = path.split(".")
    place = root
    for step in way:
        if step not in place._modules:
            place.add_module(step, nn.Module())
        place = place.get_submodule(step)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        place.register_buffer(name, value)
    else:
        setattr(place, name, value)


def make_gate(in_channels: int, grid: ChoiceGrid, out_frames: Callable[[int], int], config: ConvertConfig) -> Gate:
    """A gate as the config says; arguments as for `Gate`."""
    return Gate(
        in_channels,
        grid,
        out_frames,
        kind=config.gate,
        hidden=config.gate_hidden,
        num_bins=config.gate_bins,
        normalize=config.normalize,
    )


def _gate(facts: BlockFacts, grid: ChoiceGrid, config: ConvertConfig) -> Gate:
    return make_gate(facts.block.entry.meta["shape"][1], grid, facts.geometry(1.0).out_frames, config)


def _frame_rebuilds(facts: BlockFacts, grid: ChoiceGrid, config: ConvertConfig) -> list[FrameRebuild]:
    channels = facts.block.exit.meta["shape"][1]
    return [FrameRebuild(channels, stride, config.frame_rebuild_kind) for stride in grid.frame_strides[1:]]


def _statistics(norm: nn.BatchNorm3d, kept: int) -> nn.BatchNorm3d:
    """The norm's own, of the first `kept` channels, to begin with."""
    own = nn.BatchNorm3d(kept, norm.eps, norm.momentum, affine=False, track_running_stats=norm.track_running_stats)
    own.training = norm.training
    if norm.running_mean is not None and norm.running_var is not None:
        assert own.running_mean is not None
        assert own.running_var is not None
        own.to(device=norm.running_mean.device, dtype=norm.running_mean.dtype)
        own.running_mean.copy_(norm.running_mean[:kept])
        own.running_var.copy_(norm.running_var[:kept])
    return own


def _slim_conv(
    gm: fx.GraphModule, facts: BlockFacts, node: fx.Node, share: float, rebuild: ChannelRebuild | None
) -> nn.Module:
    conv, source = module_of(gm, node), facts.roles[node].reads[0]
    return SlimConv(conv, facts.kept(node, share), facts.kept(source, share), rebuild)


def _channel_rebuild(gm: fx.GraphModule, facts: BlockFacts, node: fx.Node, share: float) -> ChannelRebuild:
    """Φc for the channels that `node` reads: each skipped one as the kept one whose kernel is most alike.

    Between the convolution that makes them and this one are norms and activations, so a factor below zero means
    nothing alike; zero then (ours).
    """
    maker = facts.maker_of(facts.roles[node].reads[0])
    kept = facts.kept(facts.roles[node].reads[0], share)
    conv = module_of(gm, maker)
    with torch.no_grad():
        weight = conv.weight * _norm_scale(gm, facts, maker).view(-1, 1, 1, 1, 1)
        source, scale, bias = predict_channels(weight, None, None, kept=kept, groups=1)
    return ChannelRebuild(source, scale.clamp_min(0), torch.zeros_like(bias), kept)


def _norm_scale(gm: fx.GraphModule, facts: BlockFacts, conv: fx.Node) -> Tensor:
    """By how much a batch norm that reads a convolution scales each channel; 1 without."""
    users = list(conv.users)
    module = module_of(gm, conv)
    if len(users) == 1 and facts.roles.get(users[0], Role("other")).kind == "norm":
        norm = module_of(gm, users[0])
        if norm.running_var is not None:
            scale: Tensor = (norm.running_var + norm.eps).rsqrt()
            return scale if norm.weight is None else torch.mul(scale, norm.weight)
    return torch.ones_like(module.weight[:, 0, 0, 0, 0])
