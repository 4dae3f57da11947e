"""What the variants of a block are made of; each shares its weights with the layer that it stands for.

N clips, C channels (K kept), T frames (I of them computed), H height, W width; R frame stride.
Plain operators without decisions on values, so that a graph which holds them can be traced and exported again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.layers.block_geometry import BlockGeometry
from vared2_fx.layers.convolve import convolve
from vared2_fx.layers.geometry import ConvGeometry, is_known
from vared2_fx.layers.rebuild import ChannelRebuild, FrameRebuild


class FrameSkip(nn.Module):
    """Every R-th frame, from the second on: `computed_frames`."""

    def __init__(self, stride: int) -> None:
        """Take one of every `stride` ≥ 2 frames."""
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C, I, H, W), a view."""
        single = is_known(x.shape[2]) and x.shape[2] == 1
        return x[:, :, int(not single) :: self.stride]


class FrameReturn(nn.Module):
    """All frames of a block's output again, from those that a `FrameSkip` at its input let it compute."""

    def __init__(self, rebuild: FrameRebuild, geometry: BlockGeometry) -> None:
        """Rebuild with Φt; `geometry` tells how many frames there are."""
        super().__init__()
        self.rebuild, self.geometry = rebuild, geometry

    def forward(self, computed: Tensor, x: Tensor) -> Tensor:
        """(N, C, I, H, W) and the block's input (N, C_in, T_in, H_in, W_in) → (N, C, T, H, W)."""
        y: Tensor = self.rebuild(computed, self.geometry.out_frames(x.shape[2]))
        return y


class SlimConv(nn.Module):
    """A convolution that gives its first K channels, or reads only the first of its input's, or both, or neither.

    What it does not read is a linear function of what it reads (Φc), so that it is part of its kernel: Σ over the
    skipped channels s of w_s · (scale_s · x_source(s) + bias_s). At the rim of a padded map the bias is counted as if
    the map went on (ours).

    Without gradients the kernel is kept until a parameter changes; a change by way of `.data` cannot be seen.
    """

    def __init__(self, conv: nn.Conv3d, num_out: int, num_in: int, rebuild: ChannelRebuild | None) -> None:
        """Keep `num_out` of the output channels, given `num_in` of the input's, the others by `rebuild`.

        A convolution in groups, depthwise for one, keeps whole groups with their inputs, and takes no `rebuild`.
        """
        super().__init__()
        self.conv, self.num_out, self.num_in, self.rebuild = conv, num_out, num_in, rebuild
        self.groups = conv.groups * num_out // conv.out_channels if conv.groups > 1 else 1
        self._kept: tuple[object, Tensor, Tensor | None] | None = None

    @property
    def geometry(self) -> ConvGeometry:
        """That of what is computed."""
        whole = ConvGeometry.of(self.conv)
        return ConvGeometry(
            self.num_in, self.num_out, whole.kernel_size, whole.stride, whole.padding, whole.dilation, self.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_in, T_in, H_in, W_in) → (N, num_out, T, H, W)."""
        weight, bias = self.weights()
        conv = self.conv
        return convolve(x, weight, bias, conv.stride, conv.padding, conv.dilation, self.groups)

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Kernel (num_out, num_in / groups, …) and bias (num_out,) of what is computed."""
        conv, rebuild = self.conv, self.rebuild
        weight, bias = conv.weight[: self.num_out], None if conv.bias is None else conv.bias[: self.num_out]
        if rebuild is None:
            return weight, bias
        if torch.is_grad_enabled():
            return self._folded(weight, bias, rebuild)
        parameters = [conv.weight, rebuild.scale, rebuild.bias, rebuild.source]
        parameters += [] if conv.bias is None else [conv.bias]
        state = (
            [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters] if _can_be_watched(parameters) else None
        )
        kept = self._kept
        if state is None or kept is None or kept[0] != state:
            self._kept = kept = (state, *self._folded(weight, bias, rebuild))  # one assignment: threads see all or none
        return kept[1], kept[2]

    @staticmethod
    def _folded(weight: Tensor, bias: Tensor | None, rebuild: ChannelRebuild) -> tuple[Tensor, Tensor]:
        used, skipped = weight[:, : rebuild.kept], weight[:, rebuild.kept :]
        folded = used.index_add(1, rebuild.source, skipped * rebuild.scale.view(1, -1, 1, 1, 1))
        offset = (skipped.sum((2, 3, 4)) * rebuild.bias).sum(1)  # no product that autocast would round, and be kept so
        return folded, offset if bias is None else bias + offset

    def __getstate__(self) -> dict[str, object]:
        """Everything but the kernel made from others."""
        return {**self.__dict__, "_kept": None}


class SlimNorm(nn.Module):
    """A batch norm of the first K channels, with statistics of its own: those of the frames that a variant computes."""

    def __init__(self, norm: nn.BatchNorm3d, statistics: nn.BatchNorm3d) -> None:
        """Share scale and bias of `norm`; `statistics`, of K channels without scale and bias, has the rest."""
        super().__init__()
        self.norm, self.statistics = norm, statistics

    def forward(self, x: Tensor) -> Tensor:
        """(N, K, T, H, W) → the same shape."""
        own, kept = self.statistics, self.statistics.num_features
        momentum = own.momentum
        if own.training and own.num_batches_tracked is not None:
            own.num_batches_tracked.add_(1)
            momentum = 1.0 / float(own.num_batches_tracked) if momentum is None else momentum
        weight, bias = (None if p is None else p[:kept] for p in (self.norm.weight, self.norm.bias))
        return F.batch_norm(
            x,
            own.running_mean,
            own.running_var,
            weight,
            bias,
            own.training or own.running_mean is None,
            0.0 if momentum is None else momentum,
            self.norm.eps,
        )


def _can_be_watched(parameters: list[Tensor]) -> bool:
    """Whether it can be told later that they have changed."""
    return all(type(p) in (Tensor, nn.Parameter) and not p.is_meta and not p.is_inference() for p in parameters)
