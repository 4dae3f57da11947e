"""3D convolution of few frames, such that torch keeps `channels_last_3d` and takes its fast kernels [ours].

N clips, C channels, T frames, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vared2_fx.layers.geometry import is_known

_SMALL = 20480
"""C·T·H of one clip up to which torch (aten/src/ATen/native/Convolution.cpp, `use_mkldnn`) does not ask oneDNN but
takes a matrix product of its own, whose output is contiguous."""


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """`F.conv3d`, in another shape where torch would not hand a clip in `channels_last_3d` to oneDNN.

    A map of which few frames are left falls below the size from which torch does. Frames that a kernel does not mix are
    shown to it as clips, rows and columns that it does not mix as rows alone: views both. A kernel that mixes all three
    is left as it is.

    Args:
        x: (N, C_in, T_in, H_in, W_in).
        weight: (C, C_in / groups, k_t, k_h, k_w).
        bias: (C,) or None.
        stride: three numbers, as all of these.
        padding: or a word, as `F.conv3d` takes it.
        dilation: distance of the kernel's values.
        groups: of the convolution.

    Returns:
        (N, C, T, H, W).
    """
    if groups > 1 or isinstance(padding, str) or not _is_small(x):
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    if weight.shape[2] == 1 and padding[0] == 0 and x.shape[2] > stride[0]:
        frames = x[:, :, :: stride[0]].transpose(0, 2)
        return F.conv3d(frames, weight, bias, (1, *stride[1:]), padding, dilation).transpose(0, 2)
    if weight.shape[3:] == (1, 1) and stride[1:] == (1, 1) and padding[1:] == (0, 0):
        n, c, t, h, w = x.shape
        column = x.permute(0, 2, 3, 4, 1).reshape(n, t, h * w, 1, c).permute(0, 4, 1, 2, 3)
        y = F.conv3d(column, weight, bias, stride, padding, dilation)
        _, c, t, _, _ = y.shape
        return y.permute(0, 2, 3, 4, 1).reshape(n, t, h, w, c).permute(0, 4, 1, 2, 3)
    return F.conv3d(x, weight, bias, stride, padding, dilation)


def _is_small(x: Tensor) -> bool:
    """Whether x is one clip in `channels_last_3d`, on the processor and at hand, that torch keeps for itself."""
    if isinstance(x, fx.Proxy) or torch.compiler.is_compiling() or not all(map(is_known, x.shape)):
        return False
    n, c, t, h, _ = x.shape
    return n == 1 and c * t * h <= _SMALL and x.device.type == "cpu" and x.stride(1) == 1 < c
