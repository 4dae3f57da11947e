"""Model → GraphModule of its own, and the small graph helpers that every pass uses."""

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from vared2_fx.errors import ConvertError
from vared2_fx.passes.follow_mode import trace_both_modes
from vared2_fx.passes.hooks import recomputed_weights
from vared2_fx.passes.leaves import WHOLE, leaves, own_tree
from vared2_fx.passes.nesting import Nesting, own_containers
from vared2_fx.passes.tracer import ConvTracer
from vared2_fx.passes.untraced import Untraced, where_it_stopped

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)
"""One node each, subclasses from anywhere included (torch.fx would look into those)."""

CONVERSION = "vared2_fx"
"""Where a converted network keeps how it was made: in `meta`, which deep copies keep, and as an attribute, which
pickles keep."""

UNTRACED = "vared2_fx_untraced"
"""Where a traced network keeps, in `meta`, which modules could not be followed."""


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


def trace(
    own: nn.Module,
    nesting: Nesting = (),
    *,
    untraced: Iterable[Untraced] = (),
    num_given: int | None = None,
    tracer: type[ConvTracer] = ConvTracer,
) -> fx.GraphModule:
    """Trace a network; the result shares its leaf modules with `own`, and their modes.

    Where torch.fx cannot follow a module's forward function, the innermost such module stays one node. If that is
    the network itself, the graph has one node, called `WHOLE`. `meta[UNTRACED]` lists them.

    Args:
        own: the network.
        nesting: how lists, tuples and dicts lie in each other in its positional arguments.
        untraced: what is known not to be followed.
        num_given: how many positional arguments it will be called with. A network with more, which are None unless
            given, is kept whole where it uses one: tracing would take what depends on that as if they were given.
            None: all of them.
        tracer: how far it follows.

    Raises:
        ConvertError: the network as a whole cannot be followed, and takes any number of arguments.
    """
    kind, known = type(own).__name__, {where.path: where for where in untraced}
    while "" not in known:
        tracers = [tracer(known, nesting)]

        def attempt(known: dict[str, Untraced] = known, tracers: list[ConvTracer] = tracers) -> fx.Graph:
            tracers.append(tracer(known, nesting))
            return tracers[-1].trace(own)

        try:
            graph = trace_both_modes(own, attempt)
            _no_optional_input(graph, num_given)
            break
        except Exception as exc:
            path = tracers[-1].failed_in(exc)
            while path and path in known:  # what it does from outside another module does
                path = path.rpartition(".")[0]
            known = {p: where for p, where in known.items() if path and not p.startswith(f"{path}.")}
            known[path] = where_it_stopped(own.get_submodule(path), path, exc)
    source = own
    if "" in known:
        graph, source = _one_call(own, known[""]), nn.Module()
        source.training = own.training
        source.add_module(WHOLE, own)
    gm = _graph_module(source, graph, kind)
    if leaves(gm):  # a leaf may write into a list or dict that it is called with; the caller's stays as it is
        for node in gm.graph.find_nodes(op="placeholder"):
            with gm.graph.inserting_after(node):
                copied = kept_call(gm.graph, own_containers, (node,))
            node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
        gm.recompile()
    gm.meta[UNTRACED] = tuple(known.values())
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


def _no_optional_input(graph: fx.Graph, num_given: int | None) -> None:
    for node in graph.find_nodes(op="placeholder")[num_given:] if num_given is not None else ():
        if node.args == (None,) and node.users:
            raise ConvertError(f"`{node.target}` is None unless it is given, and a graph holds only one of the cases")


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
