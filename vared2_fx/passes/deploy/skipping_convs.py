"""Convolutions that skip frames themselves, where torch would copy the frames that they read.

N clips, C channels, T frames, H height, W width; R frame stride.
"""

import sys
from typing import Any

import torch
from torch import Tensor, fx

from vared2_fx.passes.deploy.onednn import PackedWeight, onednn_conv, replace_node
from vared2_fx.passes.trace import kept_call

_SLICE = torch.ops.aten.slice.Tensor


def skipping_convs(gm: fx.GraphModule) -> fx.GraphModule:
    """Let every oneDNN convolution that reads each R-th frame of a map read the map itself.

    oneDNN takes dense maps only, so torch would copy such frames.

    Args:
        gm: what `onednn_convs` gave; changed in place, as it belongs to nobody else.
    """
    for node in gm.graph.find_nodes(op="call_function", target=onednn_conv):
        if (found := _every_rth(node.args[0])) is None:
            continue
        x, first, stride = found
        with gm.graph.inserting_before(node):
            reading = kept_call(gm.graph, conv_of_every_rth, (x, *node.args[1:], first, stride))
        replace_node(node, reading)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def conv_of_every_rth(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
    first: int,
    every: int,
) -> Tensor:
    """`onednn_conv` of x[:, :, first::every], with its arguments at the same places.

    Of one clip as a convolution with stride, padding and dilation in time R times as large. Of several, where the
    kernel has one frame, in the same way of all clips end to end. Else of a copy, as torch does it.

    Returns:
        (N, C, I, H, W), in `channels_last_3d` if x is.
    """
    n, _, t, _, _ = x.shape
    single = weight.shape[2] == 1 and padding[0] == 0
    laid = x.is_contiguous(memory_format=torch.channels_last_3d)
    if n == 1 and laid:
        return onednn_conv(
            x[:, :, first:],
            weight,
            bias,
            [padding[0] * every, *padding[1:]],
            [stride[0] * every, *stride[1:]],
            [dilation[0] * every, *dilation[1:]],
            groups,
            relu,
        )
    if not (laid and single and t % (stride[0] * every) == 0):
        return onednn_conv(x[:, :, first::every], weight, bias, padding, stride, dilation, groups, relu)
    ends = x.permute(0, 2, 3, 4, 1).reshape(1, n * t, *x.shape[3:], x.shape[1]).permute(0, 4, 1, 2, 3)
    step = [stride[0] * every, *stride[1:]]
    y = onednn_conv(ends[:, :, first:], weight, bias, padding, step, dilation, groups, relu)
    _, c, frames, h, w = y.shape
    return y.permute(0, 2, 3, 4, 1).reshape(n, frames // n, h, w, c).permute(0, 4, 1, 2, 3)


def _every_rth(value: Any) -> tuple[fx.Node, int, int] | None:
    """The map, first frame and R, where `value` is each R-th frame of one."""
    if not isinstance(value, fx.Node) or value.target is not _SLICE or len(value.args) != 5:
        return None
    x, dim, first, end, every = value.args
    if dim != 2 or end != sys.maxsize or not (type(first) is type(every) is int and 0 <= first < every > 1):
        return None
    while isinstance(x, fx.Node) and x.target is _SLICE and _takes_all(x):
        x = x.args[0]
    return (x, first, every) if isinstance(x, fx.Node) else None


def _takes_all(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and tuple(source.meta["val"].shape) == tuple(node.meta["val"].shape)
