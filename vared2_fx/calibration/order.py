"""Which channels are computed where only some are: those from which the others are best rebuilt.

C channels (K kept); r channel share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, fx

from vared2_fx.calibration.blocks import blocks_of, slimmed_inputs
from vared2_fx.calibration.clips import run_clips
from vared2_fx.calibration.convs import Taker, inputs_to, outputs_to
from vared2_fx.calibration.fit import check_values
from vared2_fx.calibration.kept import choose_kept, explained
from vared2_fx.calibration.moments import ChannelMoments
from vared2_fx.layers import ChannelRebuild, DynamicConv
from vared2_fx.packing import Pack
from vared2_fx.passes.reorder import ChannelSet, FreeChannels, free_channels, reorder_channels
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.trace import module_of


@dataclass(slots=True)
class _Rebuilt:
    """A value of the network of which some choice rebuilds channels."""

    path: str
    """Of the region."""
    node: fx.Node
    """Of the graph without gates."""
    kept: int
    """K of the largest share below 1."""
    weight: Tensor
    """What a squared error in each channel counts, (C,)."""
    reader: fx.Node | None = None
    """The convolution that has the others from Φc in its kernel; None: the value is rebuilt as it is computed."""
    moments: ChannelMoments = field(default_factory=ChannelMoments)

    def gain(self) -> Tensor:
        """Share of the value's weighed variance that channel i explains of channel j, (C, C) at [i, j]."""
        covariance = self.moments.covariance
        weight = self.weight.to(covariance)
        total = (covariance.diagonal() * weight).sum()
        return explained(covariance) * weight / total if total > 0 else torch.zeros_like(covariance)


def choose_channels(dynamic: fx.GraphModule, batches: Sequence[Tensor], pack: Pack) -> dict[str, int]:
    """Reorder channels, in place, such that those come first that best predict the others.

    Where values share one order (the branches of a sum), the choice is the best for all that are rebuilt together.
    In evaluation mode, without gradients.

    Returns:
        For each region whose channels can be chosen: how many of those kept at its largest share below 1 are others
        than before; in a block, at all places together.

    Raises:
        DataError: as `check_values`.
        ConvertError: the network does not run on the clips.
    """
    like = next(dynamic.parameters())
    free = free_channels(dynamic, pack(batches[0][:1].to(like)))
    rebuilt = [value for value in _rebuilt(free) if value.node in free.sets]
    outputs: dict[torch.nn.Module, Taker] = {
        module_of(free.plain, value.node): value.moments.add for value in rebuilt if value.reader is None
    }
    inputs: dict[torch.nn.Module, Taker] = {
        module_of(free.plain, value.reader): value.moments.add for value in rebuilt if value.reader is not None
    }
    with outputs_to(outputs), inputs_to(inputs):
        run_clips(free.plain, batches, pack)
    together: dict[ChannelSet, list[_Rebuilt]] = {}
    for value in rebuilt:
        check_values(
            value.path,
            value.moments.count,
            len(value.weight),
            sum(map(len, batches)),
            finite=value.moments.finite,
        )
        together.setdefault(free.sets[value.node], []).append(value)
    orders = {values: _order(some) for values, some in together.items()}
    reorder_channels(free, orders)
    new: dict[str, int] = {}
    for values, some in together.items():
        for value in some:
            new[value.path] = new.get(value.path, 0) + int((orders[values][: value.kept] >= value.kept).sum())
    return new


def _rebuilt(free: FreeChannels) -> list[_Rebuilt]:
    found = []
    for path, region in regions(free.dynamic).items():
        node = free.of_conv(path)
        rebuilds = list(cast("Iterable[ChannelRebuild]", region.channel_rebuilds))
        if isinstance(region, DynamicConv) and rebuilds and node is not None:
            kept = max(rebuild.kept for rebuild in rebuilds)
            found.append(_Rebuilt(path, node, kept, _norm_scale(free, node).square()))
    return found + _rebuilt_in_blocks(free)


def _rebuilt_in_blocks(free: FreeChannels) -> list[_Rebuilt]:
    """An error in a channel counts there what the convolution that reads it makes of it."""
    nodes = {module_of(free.plain, node): node for node, role in free.roles.items() if role.kind == "conv"}
    found: dict[fx.Node, _Rebuilt] = {}
    for path, block in blocks_of(free.dynamic).items():
        for slim in slimmed_inputs(block):
            reader = nodes[slim.conv]
            if reader in found:
                found[reader].kept = max(found[reader].kept, slim.num_in)
                continue
            if tuple(free.roles[reader].reads[0].meta["shape"][2:]) == (1, 1, 1):
                continue  # one value per clip says too little; what it is squeezed from has a say
            weight = slim.conv.weight.square().sum((0, 2, 3, 4))
            found[reader] = _Rebuilt(path, free.roles[reader].reads[0], slim.num_in, weight, reader)
    return list(found.values())


def _order(values: Sequence[_Rebuilt]) -> Tensor:
    """The chosen channels, most useful first, then the others as they were: int64 (C,)."""
    gain = torch.cat([value.gain() for value in values], dim=1).cpu()
    chosen = choose_kept(gain, max(value.kept for value in values))
    left = torch.ones(len(gain), dtype=torch.bool)
    left[chosen] = False
    return torch.cat([chosen, left.nonzero()[:, 0]])


def _norm_scale(free: FreeChannels, node: fx.Node) -> Tensor:
    """By how much a batch norm that alone reads a convolution scales each channel, (C,); 1 without."""
    users = list(node.users)
    if len(users) == 1 and free.roles[users[0]].kind == "norm":
        norm = module_of(free.plain, users[0])
        if norm.running_var is not None:
            scale: Tensor = (norm.running_var + norm.eps).rsqrt()
            return scale if norm.weight is None else scale * norm.weight
    return torch.ones_like(module_of(free.plain, node).weight[:, 0, 0, 0, 0])
