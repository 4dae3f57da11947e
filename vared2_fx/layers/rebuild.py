"""Cheap operations Φ: what was not computed, from what was.

N clips, C channels (K of them computed), T frames (I of them computed), H height, W width; R frame stride.
"Cheap linear operations" are the paper's; their kernels are unknown to us, so all forms here are ours.
Each is written with one `addcmul` per multiply-add, so that counters can see it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.config import ChannelRebuildKind, FrameRebuildKind
from vared2_fx.layers.geometry import Size, computed_frames, is_known


class FrameRebuild(nn.Module):
    """Φt for one R: the frames between the computed ones, of which there is one in every R (`computed_frames`).

    `hold`: the frames iR … iR+R−1 are the one of them that is computed; no parameters, no multiply-adds.
    `repeat`: so, times a scale plus a bias per channel and phase, at first 1 and 0 (a still clip is rebuilt exactly).
    `interpolate`: a second scale, at first the linear blend of the computed frames before and after; where there is
    only one of the two it is taken twice.

    The phase of a frame is its distance from the last computed frame, 1 … R−1.
    """

    scale: Tensor
    bias: Tensor
    next_scale: Tensor | None

    def __init__(self, channels: int, stride: int, kind: FrameRebuildKind = "repeat") -> None:
        """Make Φt for `channels` and R = `stride` ≥ 2."""
        super().__init__()
        self.stride, self.kind = stride, kind
        phases = torch.arange(1, stride).float().div(stride).unsqueeze(1).expand(-1, channels)
        scale = 1 - phases if kind == "interpolate" else torch.ones(stride - 1, channels)
        for name, value in (("scale", scale), ("bias", torch.zeros(stride - 1, channels))):
            if kind == "hold":
                self.register_buffer(name, value, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(value))
        self.register_parameter("next_scale", nn.Parameter(phases.clone()) if kind == "interpolate" else None)

    def forward(self, computed: Tensor, num_frames: int) -> Tensor:
        """(N, C, I, H, W) → (N, C, num_frames, H, W); I = len(computed_frames(num_frames, R))."""
        first, last = computed[:, :, :1], computed[:, :, -1:]
        if self.next_scale is None:
            # Plain code: while a graph is traced neither number is known, and a frame too many is cut off again.
            if not is_known(num_frames) or computed.shape[2] < self._num_groups(num_frames):
                computed = torch.cat([computed, last], dim=2)
            return self._fill(computed, start=-1)[:, :, :num_frames]
        before, after = torch.cat([first, computed], dim=2), torch.cat([computed, last], dim=2)
        return self._fill(before, after)[:, :, self.stride - 1 : self.stride - 1 + num_frames]

    def _fill(self, frames: Tensor, following: Tensor | None = None, *, start: int = 0) -> Tensor:
        """Make R frames of each, of the phases `start` and up; stacked, which keeps the memory format."""

        def along_time(table: Tensor) -> Tensor:
            return table.roll(-start, 0).t()[None, :, None, :, None, None].to(frames.dtype)

        out = torch.stack([frames] * self.stride, dim=3)
        if self.kind == "hold":
            return out.flatten(2, 3)
        scale, bias, next_scale = self.phases()
        out = torch.addcmul(along_time(bias), out, along_time(scale))
        if following is not None and next_scale is not None:
            out = torch.addcmul(out, following.unsqueeze(3), along_time(next_scale))
        return out.flatten(2, 3)

    def matrix(self, num_frames: int, step: int = 1) -> Tensor:
        """Φt without its bias as a matrix per channel, from the frames computed at frame stride `step`.

        Returns:
            (C, T, len(computed_frames(T, step))); `step` is a divisor of R.
        """
        frames = torch.arange(num_frames, device=self.scale.device)
        given = computed_frames(num_frames, step)
        scale, _, next_scale = self._tables(frames - 1)

        def picks(groups: Tensor) -> Tensor:
            """Give the one-hot columns of the computed frames number `groups`."""
            known = computed_frames(num_frames, self.stride)
            columns = groups.clamp(0, len(known) - 1) * (self.stride // step) + (known.start - given.start) // step
            return F.one_hot(columns, len(given))

        if next_scale is None:
            return scale.t().unsqueeze(2) * picks(frames // self.stride)
        before = torch.div(frames - 1, self.stride, rounding_mode="floor")
        return scale.t().unsqueeze(2) * picks(before) + next_scale.t().unsqueeze(2) * picks(before + 1)

    def frame_bias(self, num_frames: int) -> Tensor:
        """Bias of each frame, (C, T)."""
        return self._tables(torch.arange(num_frames, device=self.scale.device) - 1)[1].t()

    def macs(self, out_size: Size) -> int:
        """Multiply-adds for one clip whose rebuilt map has `out_size`."""
        if self.kind == "hold":
            return 0
        t, h, w = out_size
        groups = self._num_groups(t) if self.next_scale is None else len(computed_frames(t, self.stride)) + 1
        terms = 1 if self.next_scale is None else 2
        return terms * self.scale.shape[1] * groups * self.stride * h * w

    def _num_groups(self, num_frames: int) -> int:
        return -(-num_frames // self.stride)

    def _tables(self, phases: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scale, bias and second scale of frames at `phases` (modulo R), (T, C) each."""
        scale, bias, next_scale = (None if v is None else v[phases % self.stride] for v in self.phases())
        assert scale is not None
        assert bias is not None
        return scale, bias, next_scale

    def phases(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scale, bias and second scale of the phases 0 … R−1, (R, C) each; phase 0 is computed: 1, 0, 0."""
        scale, bias = F.pad(self.scale, (0, 0, 1, 0), value=1.0), F.pad(self.bias, (0, 0, 1, 0))
        return scale, bias, None if self.next_scale is None else F.pad(self.next_scale, (0, 0, 1, 0))


class ChannelRebuild(nn.Module):
    """Φc for one r: channels K … C−1, each from one of the kept channels 0 … K−1.

    `scale`: times a scale plus a bias. `depthwise`: a 1×3×3 kernel plus a bias. Pointwise in time, so it may run
    before Φt, on the computed frames only.
    """

    source: Tensor

    def __init__(
        self, source: Tensor, scale: Tensor, bias: Tensor, kept: int, kind: ChannelRebuildKind = "scale"
    ) -> None:
        """Make Φc.

        Args:
            source: for each rebuilt channel the kept one it is made from, int64 (C−K,).
            scale: its starting factor (C−K,); `depthwise` puts it in the kernel's middle.
            bias: its starting bias (C−K,).
            kept: K.
            kind: see the class.
        """
        super().__init__()
        self.kept, self.num_rebuilt, self.kind = kept, len(source), kind
        self.register_buffer("source", source)
        if kind == "depthwise":
            kernel = scale.new_zeros(len(scale), 1, 1, 3, 3)
            kernel[:, 0, 0, 1, 1] = scale
            scale = kernel
        self.scale = nn.Parameter(scale.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, computed: Tensor) -> Tensor:
        """(N, ≥K, T, H, W) → the rebuilt channels alone, (N, C−K, T, H, W)."""
        picked = computed.index_select(1, self.source)
        if self.kind == "depthwise":
            return F.conv3d(picked, self.scale, self.bias, padding=(0, 1, 1), groups=self.num_rebuilt)
        scale, bias = (values.view(-1, 1, 1, 1).to(picked.dtype) for values in (self.scale, self.bias))
        return torch.addcmul(bias, picked, scale)

    def complete(self, computed: Tensor) -> Tensor:
        """(N, K, T, H, W) → all channels, (N, C, T, H, W)."""
        return torch.cat([computed, self(computed)], dim=1)

    def macs(self, out_size: Size) -> int:
        """Multiply-adds for one clip of `out_size` (T of the computed frames)."""
        t, h, w = out_size
        return self.scale.numel() * t * h * w


def predict_channels(
    weight: Tensor, bias: Tensor | None, mean: Tensor | None, *, kept: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose Φc's start from a convolution's weights alone (ours).

    Each skipped filter is matched with the kept filter that explains most of it, by least squares between the
    two kernels: the best factor for inputs that are white noise. Filters of different groups see different
    inputs and explain nothing of each other.

    Args:
        weight: (C, C_in / groups, k_t, k_h, k_w).
        bias: (C,) or None.
        mean: (C,) average output per channel where it is known (a following norm's statistics), so that the
            rebuilt channels keep theirs; None takes inputs to be zero on average.
        kept: K, a whole number of groups when grouped.
        groups: groups of the convolution.

    Returns:
        source int64 (C−K,), scale (C−K,), bias (C−K,), as `ChannelRebuild` takes them.
    """
    num_skipped = weight.shape[0] - kept
    center = mean if mean is not None else bias if bias is not None else weight.new_zeros(len(weight))
    if groups > 1:
        source = torch.arange(num_skipped, device=weight.device) % kept
        scale = weight.new_zeros(num_skipped)
    else:
        kernels = weight.detach().flatten(1).float()
        products = kernels[kept:] @ kernels[:kept].t()
        power = kernels[:kept].square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        source = (products.square() / power).argmax(1)
        scale = (products.gather(1, source[:, None])[:, 0] / power[source]).to(weight.dtype)
    offset = center[kept:] - scale * center[source]
    return source, scale, offset.detach().to(weight.dtype)
