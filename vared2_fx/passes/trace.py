"""Model → GraphModule of its own, and the small graph helpers that every pass uses."""

import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from vared2_fx.errors import ConvertError
from vared2_fx.passes.leaves import WHOLE, leaves, own_tree
from vared2_fx.passes.untraced import Untraced, is_assertion, is_torchs, where_it_stopped

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)
"""One node each, subclasses from anywhere included (torch.fx would look into those)."""

CONVERSION = "vared2_fx"
"""Where a converted network keeps how it was made: in `meta`, which deep copies keep, and as an attribute, which
pickles keep."""

UNTRACED = "vared2_fx_untraced"
"""Where a traced network keeps, in `meta`, which modules could not be followed."""


class ConvTracer(fx.Tracer):
    """Traces into a module only as far as there are 3D convolutions inside.

    Whatever holds none stays one node: it is not ours to change, its control flow need not be followed, and what
    it does in training (dropout, stochastic depth) goes on following its mode instead of being frozen. Except for
    what is called with a list or dict: it may write into it, which the code around it may count on.

    An `assert` becomes a node that checks, whenever the graph runs, what the original checks.
    """

    def __init__(self, untraced: Mapping[str, Untraced] | None = None, nesting: tuple[Any, ...] = ()) -> None:
        """Keep the modules at the paths `untraced` whole; `nesting` is that of `trace`."""
        super().__init__()
        self.untraced, self.nesting = untraced or {}, nesting
        self._failure: tuple[Exception, str] | None = None
        self._called_with_lists = False

    def failed_in(self, exc: Exception) -> str:
        """Path of the innermost module that `exc` came out of; empty for the network itself."""
        return self._failure[1] if self._failure is not None and self._failure[0] is exc else ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        if isinstance(m, CONVOLUTIONS) or module_qualified_name in self.untraced:
            return True
        if self._called_with_lists:
            return False
        if super().is_leaf_module(m, module_qualified_name):
            return True
        return not any(isinstance(child, CONVOLUTIONS) for child in m.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow a call, and remember what could not be followed."""
        self._called_with_lists = any(isinstance(x, (list, dict)) for x in (*args, *kwargs.values()))
        followed = not self.is_leaf_module(m, self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as exc:
            if followed and (self._failure is None or self._failure[0] is not exc):
                self._failure = exc, self.path_of_module(m)
            raise

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Hand the forward function lists, tuples and dicts of its own where it is given such."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, nested in enumerate(self.nesting[: len(args) - 1], start=1):  # the first is the module
            args[i] = _unpack(args[i], nested)
        return function, args

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Follow an `assert`; refuse every other decision on a value, as torch.fx does."""
        frame = sys._getframe(1)
        while frame.f_back is not None and is_torchs(frame):
            frame = frame.f_back
        if not is_assertion(frame):
            return super().to_bool(obj)
        where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        self.create_proxy("call_function", torch._assert, (obj, f"assertion of the original network at {where}"), {})
        return True


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, for everything that follows to work on.

    Raises:
        ConvertError: the network cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as exc:
        raise ConvertError(
            f"copy: {type(model).__name__} cannot be copied ({type(exc).__name__}: {exc}). "
            "Convert works on a copy; remove what cannot be copied from the network first."
        ) from exc


def trace(own: nn.Module, nesting: tuple[Any, ...] = ()) -> fx.GraphModule:
    """Trace a network; the result shares its leaf modules with `own`, and their modes.

    Where torch.fx cannot follow a module's forward function, the innermost such module stays one node. If that is
    the network itself, the graph has one node, called `WHOLE`. `meta[UNTRACED]` lists them.

    Args:
        own: the network.
        nesting: for each positional argument, how lists, tuples and dicts lie in each other in it; see `nesting_of`.

    Raises:
        ConvertError: the network as a whole cannot be followed, and takes any number of arguments.
    """
    kind, untraced = type(own).__name__, dict[str, Untraced]()
    while True:
        tracer = ConvTracer(untraced, nesting)
        try:
            graph = tracer.trace(own)
            source = own
            break
        except Exception as exc:
            path = tracer.failed_in(exc)
            untraced = {p: where for p, where in untraced.items() if path and not p.startswith(f"{path}.")}
            untraced[path] = where_it_stopped(own.get_submodule(path), path, exc)
            if not path:
                graph, source = _one_call(own, untraced[path]), nn.Module()
                source.training = own.training
                source.add_module(WHOLE, own)
                break
    gm = _graph_module(source, graph, kind)
    if leaves(gm):  # a leaf may write into a list or dict that it is called with; the caller's stays as it is
        for node in gm.graph.find_nodes(op="placeholder"):
            with gm.graph.inserting_after(node):
                copied = kept_call(gm.graph, own_containers, (node,))
            node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
        gm.recompile()
    gm.meta[UNTRACED] = tuple(untraced.values())
    return gm


def kept_call(graph: fx.Graph, function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
    """A node that calls `function`, and goes on to: a graph that is pickled is traced again when it is read."""
    node = graph.call_function(function, args)
    node.meta["is_wrapped"] = True
    return node


def forget_shapes(gm: fx.GraphModule) -> None:
    """Clear what was measured: it need not hold for what comes."""
    for node in gm.graph.nodes:
        kept = node.meta.get("is_wrapped", False)
        node.meta.clear()
        if kept:
            node.meta["is_wrapped"] = True


def nesting_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """How lists, tuples and dicts lie in each other in `args`; empty where there are none.

    `("list", None, None)` for a list of two things that are neither, None for such a thing.
    """
    nesting = tuple(_nesting(arg) for arg in args)
    return nesting if any(nesting) else ()


def own_containers(value: Any) -> Any:
    """Lists and dicts, and those inside, as new ones with the same contents, which may be written into."""
    if type(value) in (list, immutable_list):
        return [own_containers(item) for item in value]
    if type(value) in (dict, immutable_dict):
        return {key: own_containers(item) for key, item in value.items()}
    return value


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
    for target, leaf in leaves(out).items():
        out.set_submodule(target, own_tree(leaf))
    return out


def calls(gm: fx.GraphModule, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[fx.Node]:
    """Nodes that call a module of `kind`, in order."""
    nodes = gm.graph.find_nodes(op="call_module")
    return [node for node in nodes if isinstance(gm.get_submodule(node.target), kind)]


def module_of(gm: fx.GraphModule, node: fx.Node) -> Any:
    """The module that `node` calls."""
    assert isinstance(node.target, str)
    return gm.get_submodule(node.target)


def _nesting(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value).__name__, *map(_nesting, value)
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return "dict", {key: _nesting(item) for key, item in value.items()}
    return None


def _unpack(proxy: Any, nested: Any) -> Any:
    if nested is None:
        return proxy
    kind, *items = nested
    if kind == "dict":
        return {key: _unpack(proxy[key], item) for key, item in items[0].items()}
    unpacked = [_unpack(proxy[i], item) for i, item in enumerate(items)]
    return tuple(unpacked) if kind == "tuple" else unpacked


def _one_call(own: nn.Module, where: Untraced) -> fx.Graph:
    """A graph that calls the whole network as one leaf."""
    graph, args, kwargs = fx.Graph(), list[fx.Node](), dict[str, Any]()
    for parameter in inspect.signature(own.forward).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConvertError(
                f"trace: torch.fx cannot follow {where}. Since it takes {parameter}, it cannot be kept whole either: "
                "name its arguments, or move what depends on values into a module of its own."
            )
        node = graph.placeholder(parameter.name, default_value=parameter.default)
        if parameter.kind == parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = node
        else:
            args.append(node)
    graph.output(graph.call_module(WHOLE, tuple(args), kwargs))
    return graph
