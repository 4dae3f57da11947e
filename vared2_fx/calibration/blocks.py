"""Calibrating the dynamic blocks of a network.

N clips, C channels, T frames, I of them computed, H height, W width; R frame stride, r channel share.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from vared2_fx.calibration.clips import run_clips
from vared2_fx.calibration.convs import Taker, inputs_to
from vared2_fx.calibration.fit import FramesFit, check_values, set_channels
from vared2_fx.calibration.measure import static_regions
from vared2_fx.calibration.moments import ChannelMoments
from vared2_fx.layers import Choice, DynamicBlock, FrameRebuild, FrameReturn, SlimConv
from vared2_fx.packing import Pack
from vared2_fx.passes.rewrite import full_regions, regions, remove_gates
from vared2_fx.train.norms import has_own_norms, recalibrate_norms


def fit_blocks(dynamic: fx.GraphModule, batches: Sequence[Tensor], pack: Pack, ridge: float, *, frames: bool) -> None:
    """Set Φc, and with `frames` Φt, of every dynamic block in place, and measure the norms of its choices anew.

    First Φc, from what the convolutions that hold it read where the network computes everything; then, with norms that
    fit, Φt from the frames that each stride computes to all that the block would. In evaluation mode, without
    gradients.

    Raises:
        DataError: as `check_values`.
    """
    found = blocks_of(dynamic)
    if not found:
        return
    _fit_channels(dynamic, found, batches, pack, ridge)
    if has_own_norms(dynamic):
        recalibrate_norms(dynamic, batches)
    if not frames:
        return
    _fit_frames(dynamic, found, batches, pack, ridge)
    if has_own_norms(dynamic):  # what Φt makes is what the blocks behind it see
        recalibrate_norms(dynamic, batches)


def blocks_of(dynamic: fx.GraphModule) -> dict[str, DynamicBlock]:
    """The dynamic blocks by path."""
    return {path: region for path, region in regions(dynamic).items() if isinstance(region, DynamicBlock)}


def slimmed_inputs(block: DynamicBlock) -> list[SlimConv]:
    """What reads some channels of a value, and has the others from Φc in its kernel, at each share in turn."""
    variants = [block.variant(Choice(1, share)) for share in block.grid.channel_shares[1:]]
    found = [module for variant in variants for module in variant.modules() if isinstance(module, SlimConv)]
    return [slim for slim in found if slim.rebuild is not None]


def _fit_channels(
    dynamic: fx.GraphModule, found: dict[str, DynamicBlock], batches: Sequence[Tensor], pack: Pack, ridge: float
) -> None:
    slims = [(path, slim) for path, block in found.items() for slim in slimmed_inputs(block)]
    moments = {slim.conv: ChannelMoments() for _, slim in slims}
    takers: dict[nn.Module, Taker] = {conv: gathered.add for conv, gathered in moments.items()}
    with inputs_to(takers):
        run_clips(remove_gates(dynamic), batches, pack)
    num_clips = sum(map(len, batches))
    for path, slim in slims:
        seen = moments[slim.conv]
        # Of a squeezed map there is one value per clip: enough for a scale and a bias, if not for the best source.
        unknowns = 2 if seen.count == num_clips else slim.conv.in_channels
        check_values(path, seen.count, unknowns, num_clips, finite=seen.finite)
        assert slim.rebuild is not None
        set_channels(slim.rebuild, seen, ridge)


def _fit_frames(
    dynamic: fx.GraphModule, found: dict[str, DynamicBlock], batches: Sequence[Tensor], pack: Pack, ridge: float
) -> None:
    fits = {path: FramesFit(path, block.frame_rebuilds) for path, block in found.items()}
    static = full_regions(dynamic)
    places = static_regions(static)
    hooks = [places[path].register_forward_hook(_taker(found[path], fit)) for path, fit in fits.items() if fit.rebuilds]
    if not hooks:
        return
    try:
        run_clips(static, batches, pack)
    finally:
        for hook in hooks:
            hook.remove()
    for fit in fits.values():
        fit.set(ridge, sum(map(len, batches)))


def _taker(block: DynamicBlock, fit: FramesFit) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that has every stride computed of what the block is given."""

    def take(_: nn.Module, args: Any, full: Tensor) -> None:
        (x,) = args
        for rebuild in fit.rebuilds:
            if rebuild.stride <= block.out_frames(x.shape[2]):
                fit.add(rebuild, _computed(block.variant(Choice(rebuild.stride, 1.0)), rebuild, x), full)

    return take


def _computed(variant: nn.Module, rebuild: FrameRebuild, x: Tensor) -> Tensor:
    """The frames that a variant computes of x, before it returns the others: (N, C, I, H, W)."""
    (back,) = (m for m in variant.modules() if isinstance(m, FrameReturn) and m.rebuild is rebuild)
    seen: list[Tensor] = []
    hook = back.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        variant(x)
    finally:
        hook.remove()
    return seen[0]
