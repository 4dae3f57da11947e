"""Cheap operations Φ: what was not computed, from what was.

N clips, C channels (K of them computed), T frames (I of them computed), H height, W width; R frame stride.
"Cheap linear operations" are the paper's; their kernels are unknown to us, so all forms here are ours.
Each is written with one `addcmul` per multiply-add, so that counters can see it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.config import ChannelRebuildKind, FrameRebuildKind
from vared2_fx.layers.geometry import Size


class FrameRebuild(nn.Module):
    """Φt for one R: frames iR+1 … iR+R−1 from computed frame iR.

    `repeat`: a scale and a bias per channel and phase, at first 1 and 0 (a still clip is rebuilt exactly).
    `interpolate`: a second scale for the next computed frame, at first the linear blend; the frames after the
    last computed one take it twice.
    """

    def __init__(self, channels: int, stride: int, kind: FrameRebuildKind = "repeat") -> None:
        """Make Φt for `channels` and R = `stride` ≥ 2."""
        super().__init__()
        self.stride = stride
        phases = torch.arange(1, stride).float().div(stride).unsqueeze(1).expand(-1, channels)
        self.next_scale: Tensor | None
        self.scale = nn.Parameter(torch.ones(stride - 1, channels) if kind == "repeat" else 1 - phases)
        self.bias = nn.Parameter(torch.zeros(stride - 1, channels))
        self.register_parameter("next_scale", None if kind == "repeat" else nn.Parameter(phases.clone()))

    def forward(self, computed: Tensor, num_frames: int) -> Tensor:
        """(N, C, I, H, W) → (N, C, num_frames, H, W); I = ⌈num_frames / R⌉."""
        frames = computed.unsqueeze(3)
        scale, bias = self._phases(self.scale, 1.0, frames), self._phases(self.bias, 0.0, frames)
        out = torch.addcmul(bias, frames, scale)
        if self.next_scale is not None:
            following = torch.cat([frames[:, :, 1:], frames[:, :, -1:]], dim=2)
            out = torch.addcmul(out, following, self._phases(self.next_scale, 0.0, frames))
        return out.flatten(2, 3)[:, :, :num_frames]

    def matrix(self, num_frames: int, step: int = 1) -> Tensor:
        """Φt without its bias as a matrix per channel, from every `step`-th frame: (C, T, ⌈T / step⌉)."""
        frames = torch.arange(num_frames, device=self.scale.device)
        before = frames - frames % self.stride
        total = self._by_frame(self.scale, 1.0, frames) * _one_hot(before // step, num_frames, step)
        if self.next_scale is not None:
            after = (before + self.stride).clamp(max=(num_frames - 1) // self.stride * self.stride)
            total = total + self._by_frame(self.next_scale, 0.0, frames) * _one_hot(after // step, num_frames, step)
        return total

    def frame_bias(self, num_frames: int) -> Tensor:
        """Bias of each frame, (C, T)."""
        frames = torch.arange(num_frames, device=self.scale.device)
        return self._by_frame(self.bias, 0.0, frames)[:, :, 0]

    def macs(self, out_size: Size) -> int:
        """Multiply-adds for one clip whose rebuilt map has `out_size`."""
        t, h, w = out_size
        terms = 1 if self.next_scale is None else 2
        return terms * self.scale.shape[1] * -(-t // self.stride) * self.stride * h * w

    def _phases(self, values: Tensor, computed: float, like: Tensor) -> Tensor:
        """(R−1, C) → (1, C, 1, R, 1, 1), phase 0 (the computed frame itself) filled with `computed`."""
        return F.pad(values.t(), (1, 0), value=computed)[None, :, None, :, None, None].to(like.dtype)

    def _by_frame(self, values: Tensor, computed: float, frames: Tensor) -> Tensor:
        """(R−1, C) → (C, T, 1). Transposed last, so that gradients have the layout that DDP wants."""
        return F.pad(values, (0, 0, 1, 0), value=computed)[frames % self.stride].t().unsqueeze(2)


def _one_hot(columns: Tensor, num_frames: int, step: int) -> Tensor:
    return F.one_hot(columns, -(-num_frames // step))


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
        self.kept, self.kind = kept, kind
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
            return F.conv3d(picked, self.scale, self.bias, padding=(0, 1, 1), groups=len(self.bias))
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
