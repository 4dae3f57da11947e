"""A dynamic convolution: one kernel, and a table of choices that share it.

N clips, C channels (K kept), T frames, H height, W width; J frame strides, I channel shares.
"""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.layers.convolve import convolve
from vared2_fx.layers.gate import Gate
from vared2_fx.layers.geometry import FULL, Choice, ConvGeometry, Size, computed_frames
from vared2_fx.layers.mixture import mix
from vared2_fx.layers.rebuild import ChannelRebuild, FrameRebuild
from vared2_fx.layers.region import DynamicRegion


class ConvVariant(nn.Module):
    """A convolution at one fixed choice: plain operators, weights shared with the region it came from."""

    def __init__(
        self,
        body: nn.Conv3d,
        choice: Choice,
        frame_rebuild: FrameRebuild | None,
        channel_rebuild: ChannelRebuild | None,
    ) -> None:
        """Fix `body` at `choice`; a rebuild is None where the choice leaves nothing to rebuild."""
        super().__init__()
        self.body, self.choice = body, choice
        self.frame_rebuild, self.channel_rebuild = frame_rebuild, channel_rebuild
        self.geometry = ConvGeometry.of(body)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T_in, H_in, W_in) → (N, C, T, H, W)."""
        y = self.compute(x)
        if self.channel_rebuild is not None:
            y = self.channel_rebuild.complete(y)
        if self.frame_rebuild is not None:
            y = self.frame_rebuild(y, self.geometry.out_frames(x.shape[2]))
        return y

    def compute(self, x: Tensor) -> Tensor:
        """The computed part alone: (N, K, I, H, W), I the number of computed frames."""
        if self.choice == FULL:
            full: Tensor = self.body(x)
            return full
        geo, share = self.geometry, self.choice.channel_share
        kept, groups = geo.kept_channels(share), geo.kept_groups(share) if geo.groups > 1 else 1
        used = geo.in_channels // geo.groups * groups
        bias = self.body.bias
        x, padding = geo.frame_window(x if used == geo.in_channels else x[:, :used], self.choice.frame_stride)
        return convolve(
            x,
            self.body.weight[:kept],
            None if bias is None else bias[:kept],
            (geo.stride[0] * self.choice.frame_stride, *geo.stride[1:]),
            (padding, *geo.padding[1:]),
            geo.dilation,
            groups,
        )


class DynamicConv(DynamicRegion):
    """A Conv3d that computes, for each clip, the frames and channels that its decision asks for.

    Training: the full output once, from which every choice is sampled and rebuilt; the weighted sum of all, so
    that gradients reach every parameter. Evaluation: clips are bucketed by what their decision needs computed, and
    nothing else is. The two agree to rounding for every one-hot decision [VA-RED², section 3, as we understand
    it; bucketing is ours].
    """

    body: nn.Conv3d

    def __init__(
        self,
        body: nn.Conv3d,
        gate: Gate,
        frame_rebuilds: list[FrameRebuild],
        channel_rebuilds: list[ChannelRebuild],
    ) -> None:
        """Make the layer; arguments as for `DynamicRegion`."""
        super().__init__(body, gate, frame_rebuilds, nn.ModuleList(channel_rebuilds))
        self.geometry = ConvGeometry.of(body)
        self._variants = {choice: self.variant(choice) for choice in self.grid.all()}  # own no weights: no submodules

    def variant(self, choice: Choice) -> ConvVariant:
        """The region at one fixed choice, sharing weights."""
        j, i = self.grid.index(choice)
        return ConvVariant(self.body, choice, self._frame_rebuilds()[j], self._channel_rebuilds()[i])

    def _frame_rebuilds(self) -> list[FrameRebuild | None]:
        return [None, *cast("Iterable[FrameRebuild]", self.frame_rebuilds)]

    def _channel_rebuilds(self) -> list[ChannelRebuild | None]:
        return [None, *cast("Iterable[ChannelRebuild]", self.channel_rebuilds)]

    def out_frames(self, in_frames: int) -> int:
        """T of the output for T of the input."""
        return self.geometry.out_frames(in_frames)

    def conv_macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of the convolution alone for one clip of `in_size` (T, H, W) at `choice`."""
        return self.geometry.macs(in_size, choice)

    def cheap_macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of the cheap operations alone for one clip of `in_size` (T, H, W) at `choice`."""
        t, h, w = self.geometry.out_size(in_size)
        variant, total = self._variants[choice], 0
        if variant.channel_rebuild is not None:
            total += variant.channel_rebuild.macs((len(computed_frames(t, choice.frame_stride)), h, w))
        if variant.frame_rebuild is not None:
            total += variant.frame_rebuild.macs((t, h, w))
        return total

    def _train(self, x: Tensor, decision: Tensor) -> Tensor:
        y = self.body(x)
        return self._mix(y, decision, (0, 0), y.shape[2])

    def _run(self, x: Tensor, decision: Tensor, j: int, i: int, alone: bool) -> Tensor:
        variant = self._variants[self.grid[j, i]]
        if alone:
            whole: Tensor = variant(x)
            return whole
        return self._mix(variant.compute(x), decision, (j, i), self.geometry.out_frames(x.shape[2]))

    def _mix(self, y: Tensor, decision: Tensor, first: tuple[int, int], num_frames: int) -> Tensor:
        """Weighted sum of choice `first` and all coarser ones, from y, which is the computed part at `first`."""
        (j, i), num_strides = first, len(self.grid.frame_strides)
        missing = self.geometry.out_channels - y.shape[1]
        return mix(
            F.pad(y, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else y,
            decision[:, j:num_strides],
            decision[:, num_strides + i :],
            self._frame_rebuilds()[j:],
            self._channel_rebuilds()[i:],
            num_frames=num_frames,
            step=self.grid.frame_strides[j],
        )
