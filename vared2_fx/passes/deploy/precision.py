"""Computing in bfloat16 what is given and gives float32."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from vared2_fx.passes.shapes import Interpreter
from vared2_fx.passes.trace import kept_call


def compute_in_bf16(gm: fx.GraphModule, *, args: tuple[Any, ...]) -> fx.GraphModule:
    """Compute in bfloat16: weights and maps, not the statistics of batch norms that were not folded.

    Operations that torch has not in bfloat16 (`avg_pool3d`, say) stay in float32; running the network once finds
    them. It still takes and gives float32. Inputs of fewer than four axes, such as boxes, are left as they are:
    positions in a frame do not fit into eight bits.

    Args:
        gm: a network in float32.
        args: positional arguments that it runs on.

    Returns:
        A network with weights of its own.
    """
    out = copy.deepcopy(gm)
    for module in out.modules():
        if not isinstance(module, _BatchNorm):
            _cast(module)
    for node in out.graph.find_nodes(op="placeholder"):
        with out.graph.inserting_after(node):
            cast = kept_call(out.graph, maps_to_bf16, (node,))
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    end = out.graph.output_node()
    with out.graph.inserting_before(end):
        end.args = (kept_call(out.graph, to_float32, (end.args[0],)),)
    out.recompile()
    _keep_in_float32(out, gm, _refused(out, gm, args))
    out.graph.lint()
    out.recompile()
    return out


def maps_to_bf16(value: Any) -> Any:
    """`value` with each float map (N, C, …, H, W) in it as bfloat16; containers are new ones."""
    return tree_map_only(Tensor, lambda x: x.bfloat16() if x.dim() >= 4 and x.is_floating_point() else x, value)


def to_bf16(value: Any) -> Any:
    """`value` with each float32 tensor in it as bfloat16."""
    return tree_map_only(Tensor, lambda x: x.bfloat16() if x.dtype == torch.float32 else x, value)


def to_float32(value: Any) -> Any:
    """`value` with each bfloat16 tensor in it as float32."""
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, value)


class _Trial(Interpreter):
    """Runs a network in bfloat16; what torch refuses it runs as it was in float32, and notes."""

    def __init__(self, gm: fx.GraphModule, precise: fx.GraphModule) -> None:
        super().__init__(gm)
        self.precise, self.refused = precise, list[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except (NotImplementedError, RuntimeError):
            args, kwargs = to_float32(self.fetch_args_kwargs_from_env(n))
            self.refused.append(n)
            return to_bf16(self._in_float32(n, args, kwargs))

    def _in_float32(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n.op == "call_module":
            return self.precise.get_submodule(str(n.target))(*args, **kwargs)
        return getattr(self, n.op)(n.target, args, kwargs)


def _refused(out: fx.GraphModule, gm: fx.GraphModule, args: tuple[Any, ...]) -> list[fx.Node]:
    trial = _Trial(out, gm)
    with torch.no_grad():
        trial.run(*tree_map_only(Tensor, torch.clone, args))
    targets = {node.target for node in trial.refused if node.op == "call_module"}
    return [node for node in out.graph.nodes if node in trial.refused or node.target in targets]


def _keep_in_float32(out: fx.GraphModule, gm: fx.GraphModule, nodes: list[fx.Node]) -> None:
    for node in nodes:
        if node.op == "call_module":
            out.set_submodule(str(node.target), copy.deepcopy(gm.get_submodule(str(node.target))))
        with out.graph.inserting_before(node):
            for source in node.all_input_nodes:
                node.replace_input_with(source, kept_call(out.graph, to_float32, (source,)))
        with out.graph.inserting_after(node):
            back = kept_call(out.graph, to_bf16, (node,))
        for user in [user for user in node.users if user is not back]:
            user.replace_input_with(node, back)


def _cast(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.is_floating_point():
            module._parameters[name] = nn.Parameter(parameter.detach().bfloat16(), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_floating_point():
            module._buffers[name] = buffer.bfloat16()
