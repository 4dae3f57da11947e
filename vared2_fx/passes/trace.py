"""Model → GraphModule of its own, and the small graph helpers that every pass uses."""

import copy
from typing import Any

import torch
from torch import fx, nn

from vared2_fx.errors import ConvertError
from vared2_fx.layers import ConvVariant
from vared2_fx.passes.follow_mode import trace_both_modes
from vared2_fx.passes.hooks import recomputed_weights

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)
"""One node each, subclasses from anywhere included (torch.fx would look into those)."""

CONVERSION = "vared2_fx"
"""Where a converted network keeps how it was made: in `meta`, which deep copies keep, and as an attribute, which
pickles keep."""


class ConvTracer(fx.Tracer):
    """Traces into a module only as far as there are 3D convolutions inside.

    Whatever holds none stays one node: it is not ours to change, its control flow need not be followed, and what
    it does in training (dropout, stochastic depth) goes on following its mode instead of being frozen.
    """

    proxy_buffer_attributes = True  # or what forward computes of buffers would be computed now, and kept for ever

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace `root`."""
        self._autocast = _autocast()
        return super().trace(root, concrete_args)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note an operation; refuse it where its surroundings would be lost."""
        if _autocast() != self._autocast:
            raise ConvertError("it switches torch.autocast, which a graph does not hold")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        if isinstance(m, (*CONVOLUTIONS, ConvVariant)) or super().is_leaf_module(m, module_qualified_name):
            return True
        return not any(isinstance(child, CONVOLUTIONS) for child in m.modules())


def _autocast() -> tuple[object, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, for everything that follows to work on.

    Raises:
        ConvertError: the network cannot be copied.
    """
    try:
        return copy.deepcopy(model, recomputed_weights(model))
    except Exception as exc:
        raise ConvertError(
            f"copy: {type(model).__name__} cannot be copied ({type(exc).__name__}: {exc}). "
            "Convert works on a copy; remove what cannot be copied from the network first."
        ) from exc


def trace(own: nn.Module) -> fx.GraphModule:
    """Trace a network; the result shares its leaf modules with `own`, and their modes.

    Raises:
        ConvertError: torch.fx cannot follow its forward function.
    """
    kind = type(own).__name__
    try:
        graph = trace_both_modes(own, lambda: ConvTracer().trace(own))
    except Exception as exc:
        raise ConvertError(
            f"trace: torch.fx cannot follow {kind}.forward ({type(exc).__name__}: {exc}). "
            "Wrap the part that depends on tensor values in a module of its own without convolutions."
        ) from exc
    return _graph_module(own, graph, kind)


def fork(gm: fx.GraphModule) -> fx.GraphModule:
    """Give `gm` a graph and a module tree of its own; leaf modules stay shared, so replace them, never edit them."""
    out = _graph_module(gm, copy.deepcopy(gm.graph), type(gm).__name__)
    out.meta.update(gm.meta)
    if CONVERSION in vars(gm):
        setattr(out, CONVERSION, getattr(gm, CONVERSION))
    return out


def _graph_module(source: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A GraphModule whose containers, which torch.fx makes anew, have the modes of those that they stand for."""
    out = fx.GraphModule(source, graph, name)
    for path, module in out.named_modules():
        module.training = source.get_submodule(path).training
    return out


def calls(gm: fx.GraphModule, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[fx.Node]:
    """Nodes that call a module of `kind`, in order."""
    nodes = gm.graph.find_nodes(op="call_module")
    return [node for node in nodes if isinstance(gm.get_submodule(node.target), kind)]


def module_of(gm: fx.GraphModule, node: fx.Node) -> Any:
    """The module that `node` calls."""
    assert isinstance(node.target, str)
    return gm.get_submodule(node.target)
