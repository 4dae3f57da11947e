"""pytorchvideo's Swish → SiLU, the same function."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from vared2_fx.passes.deploy.inside import class_path, replace_modules

_SWISH = "pytorchvideo.layers.swish.Swish"


def replace_swish(gm: fx.GraphModule) -> fx.GraphModule:
    """Put `nn.SiLU` in place of pytorchvideo's `Swish`, and one operation in place of x · sigmoid(x).

    `Swish` is an autograd function of its own, at which `torch.compile` breaks the graph and which saves its input;
    tracing through it leaves a product and a sigmoid, two passes over the map.
    """
    out = replace_modules(gm, _silu)
    for node in list(out.graph.nodes):
        if (x := _times_its_sigmoid(node)) is not None:
            with out.graph.inserting_before(node):
                silu = out.graph.call_function(F.silu, (x,))
            silu.meta.update(node.meta)
            node.replace_all_uses_with(silu)
    out.graph.eliminate_dead_code(lambda node: node.target not in (torch.sigmoid, operator.mul, torch.mul, "sigmoid"))
    out.graph.lint()
    out.recompile()
    return out


def _silu(module: nn.Module) -> nn.Module | None:
    return nn.SiLU().train(module.training) if class_path(module) == _SWISH else None


def _times_its_sigmoid(node: fx.Node) -> fx.Node | None:
    """x, where `node` is x · sigmoid(x)."""
    is_product = node.op == "call_function" and node.target in (operator.mul, torch.mul)
    if not is_product or len(node.args) != 2 or node.kwargs:
        return None
    for x, gate in (node.args, node.args[::-1]):
        if not isinstance(x, fx.Node) or not isinstance(gate, fx.Node) or gate.kwargs or gate.args != (x,):
            continue
        if (gate.op, gate.target) in (("call_function", torch.sigmoid), ("call_method", "sigmoid")):
            return x
    return None
