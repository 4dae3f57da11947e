"""Calibrating the dynamic convolutions of a network.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from torch import Tensor, fx, nn

from vared2_fx.calibration.clips import run_clips
from vared2_fx.calibration.fit import FramesFit, check_values, gather_patches, set_channels, set_kernels
from vared2_fx.calibration.moments import ChannelMoments, SpatialFits
from vared2_fx.layers import ChannelRebuild, DynamicConv, computed_frames
from vared2_fx.packing import Pack
from vared2_fx.passes.rewrite import regions, remove_gates

Taker = Callable[[Tensor], None]


def fit_convs(dynamic: fx.GraphModule, batches: Sequence[Tensor], pack: Pack, ridge: float, *, frames: bool) -> None:
    """Set Φc, and with `frames` Φt, of every dynamic convolution, in place.

    From its output where the network computes everything; one that no clip reaches, in a branch, stays as it is. In
    evaluation mode, without gradients.

    Raises:
        DataError: as `check_values`.
    """
    found = {
        path: _ConvFit(path, region, frames) for path, region in regions(dynamic).items() if type(region) is DynamicConv
    }
    if not found:
        return
    plain, num_clips = remove_gates(dynamic), sum(map(len, batches))
    takers: dict[nn.Module, Taker] = {fit.region.body: fit.add for fit in found.values()}
    with outputs_to(takers):
        run_clips(plain, batches, pack)
    for fit in found.values():
        fit.set(ridge, num_clips)
    takers = {fit.region.body: fit.add_patches for fit in found.values() if fit.patches}
    if takers:
        with outputs_to(takers):
            run_clips(plain, batches, pack)
    for fit in found.values():
        fit.set_kernels(ridge)


@contextmanager
def outputs_to(takers: Mapping[nn.Module, Taker]) -> Iterator[None]:
    """Hand what these modules compute inside the block to their takers."""
    hooks = [module.register_forward_hook(lambda m, _, y: takers[m](y)) for module in takers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def inputs_to(takers: Mapping[nn.Module, Taker]) -> Iterator[None]:
    """Hand what these modules are given inside the block to their takers."""
    hooks = [module.register_forward_pre_hook(lambda m, args: takers[m](args[0])) for module in takers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _ConvFit:
    """One dynamic convolution."""

    def __init__(self, path: str, region: DynamicConv, frames: bool) -> None:
        self.path, self.region = path, region
        self.frames, self.channels = FramesFit(path, region.frame_rebuilds if frames else ()), ChannelMoments()
        self.rebuilds = list(cast("Iterable[ChannelRebuild]", region.channel_rebuilds))
        self.patches = {rebuild: SpatialFits() for rebuild in self.rebuilds if rebuild.kind == "depthwise"}

    def add(self, y: Tensor) -> None:
        if self.rebuilds:
            self.channels.add(y)
        for rebuild in self.frames.rebuilds:
            self.frames.add(rebuild, y[:, :, list(computed_frames(y.shape[2], rebuild.stride))], y)

    def add_patches(self, y: Tensor) -> None:
        for rebuild, fits in self.patches.items():
            gather_patches(rebuild, fits, y)

    def set(self, ridge: float, num_clips: int) -> None:
        self.frames.set(ridge, num_clips)
        if not self.channels.count:  # no clip came here, or nothing is rebuilt
            return
        unknowns = self.region.geometry.out_channels
        check_values(self.path, self.channels.count, unknowns, num_clips, finite=self.channels.finite)
        for rebuild in self.rebuilds:
            set_channels(rebuild, self.channels, ridge)

    def set_kernels(self, ridge: float) -> None:
        for rebuild, patches in self.patches.items():
            if patches.fits.count:
                set_kernels(rebuild, patches.fits, ridge)
