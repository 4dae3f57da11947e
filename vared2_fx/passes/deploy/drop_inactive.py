"""Taking out what evaluation hands on unchanged."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from vared2_fx.passes.deploy.inside import class_path
from vared2_fx.passes.follow_mode import IsTraining
from vared2_fx.passes.trace import fork, module_of

_DROPPED = {"torchvision.ops.stochastic_depth.StochasticDepth", "pytorchvideo.layers.drop_path.DropPath"}
_FUNCTIONS = (
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
)
_ASSIGNMENTS = {operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow}
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def drop_inactive(gm: fx.GraphModule) -> fx.GraphModule:
    """Take out dropout and its kin, `Identity`, and pooling over single values; settle what asks for the mode.

    Needs: evaluation mode; of a module that is in training nothing is taken out.
    """
    out = fork(gm)
    for node in list(out.graph.nodes):
        if node.op == "call_module" and type(module_of(out, node)) is IsTraining and not module_of(out, node).training:
            _settle_mode(node)
    for node in list(out.graph.nodes):
        if (x := _handed_on(out, node)) is not None:
            node.replace_all_uses_with(x)
            out.graph.erase_node(node)
    out.delete_all_unused_submodules()
    out.graph.lint()
    out.recompile()
    return out


def _settle_mode(node: fx.Node) -> None:
    """Put False in place of a node that asks whether this is training, and True in place of its negation."""
    for user in list(node.users):
        if user.op == "call_function" and user.target is operator.not_:
            _put(user, True)
    _put(node, False)


def _put(node: fx.Node, value: bool) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda arg: value if arg is node else arg)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda arg: value if arg is node else arg)
    node.graph.erase_node(node)


def _handed_on(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What `node` is given, where it gives that on."""
    x = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(x, fx.Node):
        return None
    if node.op == "call_function":
        return x if node.target in _FUNCTIONS and _is_off(node) else None
    if node.op != "call_module":
        return None
    module = module_of(gm, node)
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    drops = isinstance(module, _DropoutNd) or class_path(module) in _DROPPED
    same = type(module) is nn.Identity or (drops and not module.training)
    return x if same or (_pools_nothing(module) and _may_be_one_tensor(gm, node, x)) else None


def _is_off(node: fx.Node) -> bool:
    """Whether a functional dropout is told that this is not training."""
    name = "train" if node.target is torch.dropout else "training"
    given: Any = node.kwargs.get(name, node.args[2] if len(node.args) > 2 else None)
    return given is False  # a node: who knows; none: functional dropout takes it to be training


def _pools_nothing(module: nn.Module) -> bool:
    if type(module) in _ADAPTIVE:
        return not getattr(module, "return_indices", False) and set(_values(module.output_size)) == {None}
    if type(module) not in _POOLS or getattr(module, "return_indices", False):
        return False
    by_one = {*_values(module.kernel_size), *_values(module.stride), *_values(getattr(module, "dilation", 1))} == {1}
    return by_one and set(_values(module.padding)) == {0} and getattr(module, "divisor_override", None) in (None, 1)


def _values(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _may_be_one_tensor(gm: fx.GraphModule, node: fx.Node, x: fx.Node) -> bool:
    """Whether what `node` is given and what it gives, two tensors, may become one: nobody writes into either."""
    return x.op == "call_module" and not any(_writes(gm, user) for user in (*node.users, *x.users))


def _writes(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` may write into what it is given."""
    if node.op == "call_module":
        return any(getattr(module, "inplace", False) for module in module_of(gm, node).modules())
    name = str(getattr(node.target, "__name__", node.target))
    named_so = (name.endswith("_") and not name.endswith("__")) or node.target in _ASSIGNMENTS
    flagged = any(value is True for value in (*node.args, node.kwargs.get("inplace")))  # as in F.relu(x, True)
    return named_so or flagged or "out" in node.kwargs
