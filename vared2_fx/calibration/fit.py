"""Φt and Φc of one region by least squares, from maps that pass by.

N clips, C channels (K kept), T frames, I of them computed, H height, W width; R frame stride, r channel share.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from vared2_fx.calibration.kept import explained
from vared2_fx.calibration.moments import ChannelMoments, FrameFits, LinearFits, SpatialFits
from vared2_fx.errors import DataError
from vared2_fx.layers import ChannelRebuild, FrameRebuild

ENOUGH = 4
"""Values of a map for each unknown; a covariance of C channels counts as C unknowns."""


def check_values(path: str, count: int, unknowns: int, num_clips: int, *, finite: bool) -> None:
    """Refuse to fit what cannot be fitted.

    Args:
        path: of the region.
        count: values seen of each map.
        unknowns: see `ENOUGH`.
        num_clips: that they are from.
        finite: whether all values were.

    Raises:
        DataError: values are not finite, or too few.
    """
    if not finite:
        raise DataError(f"calibrate: `{path}` gives values that are not finite for these clips.")
    if count < ENOUGH * unknowns:
        needed = -(-ENOUGH * unknowns * num_clips // max(1, count))
        raise DataError(
            f"calibrate: {num_clips} clips give `{path}` {count} values of each map, too few to fit it; pass about "
            f"{needed} clips or more."
        )


class FramesFit:
    """Gathers for the Φt of a region, one for each R; those without parameters are left out."""

    def __init__(self, path: str, rebuilds: Iterable[nn.Module]) -> None:
        """Begin with nothing; `rebuilds` are set in the end."""
        self.path = path
        self.rebuilds = [r for r in cast("Iterable[FrameRebuild]", rebuilds) if r.kind != "hold"]
        self._fits = {r: FrameFits(r.stride, both=r.next_scale is not None) for r in self.rebuilds}

    def add(self, rebuild: FrameRebuild, computed: Tensor, full: Tensor) -> None:
        """Count in what `rebuild` is given, (N, C, I, H, W), and is to make of it, (N, C, T, H, W)."""
        self._fits[rebuild].add(computed, full)

    @torch.no_grad()
    def set(self, ridge: float, num_clips: int) -> None:
        """Set scales and biases; phases that no clip had stay as they are.

        Raises:
            DataError: as `check_values`.
        """
        for rebuild, found in self._fits.items():
            both = rebuild.next_scale is not None
            for place, fits in enumerate(found.phases):
                if not fits.count:
                    continue
                check_values(self.path, fits.count, 3 if both else 2, num_clips, finite=fits.finite)
                factors, offsets = fits.solve(_start(rebuild, place), ridge)
                rebuild.scale[place] = factors[:, 0]
                rebuild.bias[place] = offsets
                if rebuild.next_scale is not None:
                    rebuild.next_scale[place] = factors[:, 1]


@torch.no_grad()
def set_channels(rebuild: ChannelRebuild, moments: ChannelMoments, ridge: float) -> None:
    """Set source, scale and bias of a Φc from the moments of all channels; of a 3×3 kernel its middle."""
    covariance, mean, kept = moments.covariance, moments.mean, rebuild.kept
    source = explained(covariance)[:kept, kept:].argmax(0)
    power = covariance.diagonal()[source] * (1 + ridge)
    shared = covariance[source, torch.arange(kept, len(mean), device=source.device)]
    scale = torch.where(power > 0, shared / power, 0.0)
    rebuild.source.copy_(source)
    rebuild.bias.copy_(mean[kept:] - scale * mean[source])
    if rebuild.kind == "depthwise":
        rebuild.scale.zero_()
        rebuild.scale[:, 0, 0, 1, 1] = scale.to(rebuild.scale.dtype)
    else:
        rebuild.scale.copy_(scale)


@torch.no_grad()
def set_kernels(rebuild: ChannelRebuild, fits: LinearFits, ridge: float) -> None:
    """Set the 3×3 kernels of a `depthwise` Φc, whose sources are set, from fits of 9 regressors."""
    factors, offsets = fits.solve(rebuild.scale.flatten(1), ridge)
    rebuild.scale.copy_(factors.view_as(rebuild.scale))
    rebuild.bias.copy_(offsets)


def gather_patches(rebuild: ChannelRebuild, fits: SpatialFits, y: Tensor) -> None:
    """Count in all channels, (N, C, T, H, W), for `set_kernels`."""
    fits.add(y.index_select(1, rebuild.source), y[:, rebuild.kept :])


def _start(rebuild: FrameRebuild, place: int) -> Tensor:
    """The factors of a fresh Φt at one phase: hold the frame, or blend, (C, 1 or 2)."""
    fresh = FrameRebuild(rebuild.scale.shape[1], rebuild.stride, rebuild.kind).to(rebuild.scale.device)
    tables = [fresh.scale] if fresh.next_scale is None else [fresh.scale, fresh.next_scale]
    return torch.stack([table[place] for table in tables], dim=1).detach()
