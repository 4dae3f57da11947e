"""How much of each region's output its choices keep, measured by running them.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from vared2_fx.calibration.clips import run_clips
from vared2_fx.layers import Choice, DynamicRegion, StaticRegion
from vared2_fx.packing import Pack
from vared2_fx.passes.leaves import inner, leaves, path_of
from vared2_fx.passes.rewrite import full_regions, regions
from vared2_fx.passes.trace import calls, module_of

R2 = dict[str, dict[Choice, float]]
"""By path and choice: 1 − squared error / variance of the region's whole output, channel by channel around its mean."""


def kept_by_choices(dynamic: fx.GraphModule, batches: Sequence[Tensor], pack: Pack) -> R2:
    """Run every choice of every region on what the region is given while all of them compute everything.

    In evaluation mode, without gradients.
    """
    static = full_regions(dynamic)
    found = {path: _Kept(region) for path, region in regions(dynamic).items()}
    places = static_regions(static)
    hooks = [places[path].register_forward_hook(kept.add) for path, kept in found.items()]
    try:
        run_clips(static, batches, pack)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: kept.r2() for path, kept in found.items()}


def static_regions(static: fx.GraphModule) -> dict[str, nn.Module]:
    """The regions of what `full_regions` made, by path."""
    found = {str(node.target): module_of(static, node) for node in calls(static, StaticRegion)}
    for target, leaf in leaves(static).items():
        for name, module in inner(leaf).items():
            if isinstance(module, StaticRegion):
                found[path_of(target, name)] = module
    return found


class _Kept:
    """Errors and variance of one region."""

    def __init__(self, region: DynamicRegion) -> None:
        self.region = region
        self.errors = dict.fromkeys(region.grid.all()[1:], 0.0)
        self.totals: dict[Choice, Tensor] = {}

    def add(self, _: nn.Module, args: Any, y: Tensor) -> None:
        (x,) = args
        rows = y.movedim(1, 0).flatten(1).double()
        totals = torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)])
        for choice in self.errors:
            if choice.frame_stride > self.region.out_frames(x.shape[2]):  # not offered to such a clip
                continue
            made: Tensor = self.region.variant(choice)(x)
            self.errors[choice] += float((made - y).double().square().sum())
            self.totals[choice] = totals + self.totals[choice] if choice in self.totals else totals

    def r2(self) -> dict[Choice, float]:
        """Of the choices that were offered to any clip."""
        out = {}
        for choice, (count, total, square) in ((c, t.unbind()) for c, t in self.totals.items()):
            variance = float((square - total.square() / count).sum())
            out[choice] = 1 - self.errors[choice] / variance if variance > 0 else 1.0
        return out
