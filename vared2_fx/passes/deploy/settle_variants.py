"""Layers of a specialised block that share weights with others → plain layers with weights of their own."""

import torch
from torch import Tensor, fx, nn

from vared2_fx.layers import FULL, ConvVariant, SlimConv, SlimNorm
from vared2_fx.passes.deploy.inside import replace_modules


def settle_variants(gm: fx.GraphModule) -> fx.GraphModule:
    """Put plain convolutions and batch norms in place of slimmed ones, with the kernels that they would compute.

    The cheap channel rebuild is a part of those kernels, so that it is gone afterwards.
    """
    return replace_modules(gm, _settled)


@torch.no_grad()
def _settled(module: nn.Module) -> nn.Module | None:
    if isinstance(module, SlimConv):
        return _plain_conv(module)
    if isinstance(module, SlimNorm):
        return _plain_norm(module)
    return module.body if isinstance(module, ConvVariant) and module.choice == FULL else None


def _plain_conv(slim: SlimConv) -> nn.Conv3d:
    weight, bias = slim.weights()
    conv = slim.conv
    with torch.device("meta"):  # no values that would be replaced at once
        plain = nn.Conv3d(
            slim.num_in,
            slim.num_out,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=slim.groups,
            bias=bias is not None,
        )
    plain.weight = _own(weight)
    plain.bias = None if bias is None else _own(bias)
    return plain.train(slim.training)


def _plain_norm(slim: SlimNorm) -> nn.BatchNorm3d:
    statistics, norm = slim.statistics, slim.norm
    kept = statistics.num_features
    plain = nn.BatchNorm3d(
        kept, norm.eps, statistics.momentum, affine=norm.affine, track_running_stats=statistics.track_running_stats
    )
    for name, buffer in statistics.named_buffers():
        setattr(plain, name, buffer.clone())
    if norm.affine:
        plain.weight, plain.bias = _own(norm.weight[:kept]), _own(norm.bias[:kept])
    return plain.train(statistics.training)


def _own(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
