"""Batch norm of evaluation into the weights of what comes before it."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from vared2_fx.layers import ConvVariant, FrameRebuild
from vared2_fx.passes.deploy.inside import shallow_copy
from vared2_fx.passes.trace import fork, module_of

_KINDS: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.Conv1d, nn.BatchNorm1d),
    (nn.Conv2d, nn.BatchNorm2d),
    (nn.Conv3d, nn.BatchNorm3d),
    (nn.ConvTranspose3d, nn.BatchNorm3d),
    (nn.Linear, nn.BatchNorm1d),
)
_METHODS = ("forward", "_conv_forward", "__call__")


def fold_norms(gm: fx.GraphModule) -> fx.GraphModule:
    """Scale and shift the weights of each convolution or linear layer as the batch norm behind it does its output.

    Of a convolution whose frames are rebuilt, those of the rebuild as well. Channels that are rebuilt from normed ones
    would have to be divided by those ones' scale, which may be zero; such a norm stays.

    Needs: evaluation mode, a norm with statistics; the layer is called once and only the norm sees its output; both
    are of torch's own classes, or subclasses that compute the same way, without hooks or parametrizations. Whatever
    differs stays as it is. Behind a linear layer shapes have to be known: the norm's channels are the second axis.
    """
    out = fork(gm)
    num_calls = Counter(module_of(out, node) for node in out.graph.find_nodes(op="call_module"))
    read = {str(node.target).rpartition(".")[0] for node in out.graph.find_nodes(op="get_attr")}
    for node in out.graph.find_nodes(op="call_module"):
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer, norm = module_of(out, before), module_of(out, node)
        if num_calls[layer] != 1 or str(before.target) in read or not _fits(layer, norm, before):
            continue
        out.set_submodule(str(before.target), _folded(layer, norm))
        before.meta.update({key: node.meta[key] for key in ("shape", "dtype") if key in node.meta})
        node.replace_all_uses_with(before)
        out.graph.erase_node(node)
    out.delete_all_unused_submodules()
    out.graph.lint()
    out.recompile()
    return out


def _fits(layer: nn.Module, norm: nn.Module, call: fx.Node) -> bool:
    if isinstance(layer, ConvVariant) and layer.channel_rebuild is None:
        layer = layer.body
    for kind, norm_kind in _KINDS:
        if isinstance(layer, kind) and isinstance(norm, norm_kind):
            break
    else:
        return False
    plain = all(_same_methods(module, as_) for module, as_ in ((layer, kind), (norm, norm_kind)))
    if not plain or norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if width != norm.num_features or layer.weight.dtype != norm.running_var.dtype:
        return False
    if isinstance(layer, nn.ConvTranspose3d) and layer.groups != 1:  # its weight has the output channels of one group
        return False
    return not isinstance(layer, nn.Linear) or len(call.meta.get("shape", ())) == 2


def _same_methods(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` computes as `kind` does, and nothing listens or intervenes."""
    if any(getattr(type(module), name, None) is not getattr(kind, name, None) for name in _METHODS):
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module) and not is_parametrized(module)


def _folded(layer: Any, norm: Any) -> nn.Module:
    """A copy of `layer` with weights of its own; computed in float64, rounded once."""
    if isinstance(layer, ConvVariant):
        new = shallow_copy(layer)
        new._modules["body"] = _folded(layer.body, norm)
        if layer.frame_rebuild is not None:
            new._modules["frame_rebuild"] = _rebuild_of_normed(layer.frame_rebuild, norm)
        return new
    values = (layer.weight, layer.bias, norm.running_mean, norm.running_var)
    weight, bias, mean, var = (None if value is None else value.detach().double() for value in values)
    scale, shift = (None if value is None else value.detach().double() for value in (norm.weight, norm.bias))
    transposed = isinstance(layer, nn.ConvTranspose3d)
    assert weight is not None
    assert mean is not None
    assert var is not None
    folded = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift, transpose=transposed)
    new = shallow_copy(layer)
    for name, value in zip(("weight", "bias"), folded, strict=True):
        new._parameters[name] = nn.Parameter(value.detach().to(layer.weight.dtype), requires_grad=False)
    return new


def _rebuild_of_normed(rebuild: FrameRebuild, norm: Any) -> FrameRebuild:
    """Φt of frames that were normed before: norm(s · x + s' · x' + β) = s · norm(x) + s' · norm(x') + β'."""
    new = copy.deepcopy(rebuild)
    if rebuild.kind == "hold":
        return new
    gain = (norm.running_var.double() + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.double())
    shift = (0.0 if norm.bias is None else norm.bias.double()) - norm.running_mean.double() * gain
    scales = rebuild.scale.double() if rebuild.next_scale is None else rebuild.scale.double() + rebuild.next_scale
    with torch.no_grad():
        new.bias.copy_(gain * rebuild.bias.double() + shift * (1 - scales))
    return new
