"""What torch would do in passes of its own over a map, done by the convolution; weights packed for oneDNN.

N clips, C channels, T frames, H height, W width.
"""

from typing import Any

import torch
from torch import Tensor, fx

from vared2_fx.passes.deploy.onednn import PackedWeight, onednn_conv, replace_node
from vared2_fx.passes.deploy.skipping_convs import conv_of_every_rth
from vared2_fx.passes.trace import kept_call

_ATEN = torch.ops.aten
_RELU = (_ATEN.relu.default, _ATEN.relu_.default)
_ADD = (_ATEN.add.Tensor, _ATEN.add_.Tensor)
_CONVS = (onednn_conv, conv_of_every_rth)
_WEIGHT, _RELU_AT = 1, 7
"""Places among the arguments of both; of `onednn_conv`, a summand comes after."""


def fuse_convs(gm: fx.GraphModule) -> fx.GraphModule:
    """Let a convolution add the other summand, and apply the ReLU, that follow it and it alone.

    Sums and activations are passes over whole maps, which the multiply-adds do not count. SiLU is left alone: fused it
    is hardly faster (`benchmarks/fused_convs.py`).

    Args:
        gm: what `skipping_convs` gave; changed in place, as it belongs to nobody else.
    """
    for node in list(gm.graph.nodes):
        if node.target in _ADD:
            _fuse_sum(gm, node)
    for node in list(gm.graph.nodes):
        conv: Any = node.args[0] if node.target in _RELU else None
        if conv is not None and conv.target in _CONVS and len(conv.users) == 1:
            conv.update_arg(_RELU_AT, True)
            node.replace_all_uses_with(conv)
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def _fuse_sum(gm: fx.GraphModule, node: fx.Node) -> None:
    """Sum and convolution become one node, where the sum stands: both summands are known there."""
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return
    one, two = node.args
    in_place = node.target is _ATEN.add_.Tensor
    pairs: list[tuple[Any, Any]] = [(one, two)] if in_place else [(one, two), (two, one)]
    for conv, other in pairs:
        if not _may_add(conv, other) or _changes_between(conv, node):
            continue
        with gm.graph.inserting_before(node):
            both = kept_call(gm.graph, onednn_conv, (*conv.args, other))
        replace_node(node, both)
        gm.graph.erase_node(conv)
        return


def _may_add(conv: Any, other: Any) -> bool:
    if not (isinstance(conv, fx.Node) and isinstance(other, fx.Node)) or conv is other:
        return False
    if conv.target is not onednn_conv or len(conv.args) > _RELU_AT + 1 or len(conv.users) != 1:
        return False
    mine, its = conv.meta["val"], other.meta.get("val")
    return isinstance(its, Tensor) and its.dtype == mine.dtype and _sizes(its) == _sizes(mine)


def _sizes(x: Tensor) -> list[str]:
    return [str(size) for size in x.shape]  # two symbols are not compared by value: that would fix them


def _changes_between(conv: fx.Node, node: fx.Node) -> bool:
    """Whether some operator between the two changes a tensor in place: it might be what the convolution reads."""
    while (conv := conv.next) is not node:
        if isinstance(conv.target, torch._ops.OpOverload) and conv.target._schema.is_mutable:
            return True
    return False


def pack_weights(gm: fx.GraphModule) -> fx.GraphModule:
    """Let every convolution keep its weight packed for oneDNN; it lies in memory a second time then.

    Args:
        gm: what `fuse_convs` gave; changed in place, as it belongs to nobody else.
    """
    for number, node in enumerate([node for node in gm.graph.nodes if node.target in _CONVS]):
        weight = node.args[_WEIGHT]
        if weight.op == "get_attr":
            name = f"packed_{number}"
            gm.add_submodule(name, PackedWeight(_attribute(gm, weight.target)))
            with gm.graph.inserting_before(node):
                node.update_arg(_WEIGHT, gm.graph.get_attr(name))
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def _attribute(gm: fx.GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value: Tensor = getattr(gm.get_submodule(owner), name)
    return value.detach()
