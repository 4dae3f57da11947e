"""Where the 3D convolutions of a traced network are, and which of them could be made dynamic at all."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from vared2_fx.errors import ConvertError
from vared2_fx.layers import ConvGeometry
from vared2_fx.passes.hooks import has_hooks
from vared2_fx.passes.leaves import WHOLE, inner_calls, path_of
from vared2_fx.passes.trace import CONVOLUTIONS, calls, module_of

Reason = Literal[
    "convert",
    "called_twice",
    "custom_forward",
    "dtype",
    "excluded",
    "few_channels",
    "few_frames",
    "few_macs",
    "filtered",
    "functional",
    "hooks",
    "no_block",
    "no_choice",
    "not_faster",
    "not_worth_it",
    "padding",
    "parametrized",
    "quantized",
    "read_elsewhere",
    "scripted",
    "transposed",
    "unbatched",
]
"""Why a convolution is converted (`convert`) or stays static (the others)."""


_COMPUTING = ("forward", "_conv_forward")
"""The methods of Conv3d that compute its output."""


@dataclass(frozen=True, slots=True)
class Site:
    """A convolution: the module's path and every node that calls it."""

    path: str
    conv: nn.Module
    nodes: tuple[fx.Node, ...]
    first: fx.Node
    """Of the network's graph: the first of `nodes`, or the one that calls the leaf around them."""


def conv_sites(gm: fx.GraphModule) -> tuple[Site, ...]:
    """Every 3D convolution that the graph calls, or a leaf may call, in order of first call."""
    found: dict[str, tuple[nn.Module, list[fx.Node], fx.Node]] = {}
    for node in calls(gm, nn.Module):
        if isinstance(module_of(gm, node), CONVOLUTIONS):
            found.setdefault(str(node.target), (module_of(gm, node), [], node))[1].append(node)
        for path, module, nodes in inner_calls(gm, node):
            found.setdefault(path, (module, [], node))[1].extend(nodes)
    return tuple(Site(path, module, tuple(nodes), first) for path, (module, nodes, first) in found.items())


@dataclass(frozen=True, slots=True)
class Hidden:
    """A 3D convolution that is no module of ours to replace: it stays as it is, and is listed."""

    path: str
    operation: str
    reason: Reason
    detail: str
    node: fx.Node
    """The node that computes it, maybe among other things."""
    macs: int | None
    """Multiply-adds for the batch; None where they cannot be told from those of the node's other parts."""


def hidden_convs(gm: fx.GraphModule) -> Iterator[Hidden]:
    """3D convolutions that are no `Conv3d` module: called as functions, quantised, or inside a compiled program.

    Functions called inside of modules that the graph does not look into are known only after `measure_shapes`.
    """
    for node in gm.graph.nodes:
        if node.op == "call_function" and re.match(r"conv(_transpose)?3d", getattr(node.target, "__name__", "")):
            yield _functional(_where(node), node.target.__name__.split(".")[0], node, node.meta.get("macs"))
        if node.op != "call_module" or isinstance(module_of(gm, node), CONVOLUTIONS):
            continue
        for name, macs in node.meta.get("functional", ()):
            yield _functional(
                path_of(str(node.target), name) if node.target == WHOLE else str(node.target), name, node, macs
            )
        for child, module in module_of(gm, node).named_modules():
            path = path_of(str(node.target), child) if child else str(node.target)
            kind = type(module).__name__
            if type(module).__module__.startswith("torch.ao.nn") and re.search("Conv.*3d", kind):
                yield Hidden(
                    path,
                    kind,
                    "quantized",
                    "its weights are whole numbers, and it is not counted; convert the float network",
                    node,
                    None,
                )
            name = str(getattr(module, "original_name", ""))
            if isinstance(module, torch.jit.ScriptModule) and re.fullmatch("Conv.*3d", name):
                detail = "inside a compiled program, which cannot be changed; put in the module that it was made from"
                yield Hidden(path, name, "scripted", detail, node, None)


def _functional(path: str, name: str, node: fx.Node, macs: int | None) -> Hidden:
    detail = "called as a function, so no module is there that could be replaced; use nn.Conv3d"
    return Hidden(path, f"F.{name}", "functional", detail, node, macs)


def _where(node: fx.Node) -> str:
    """A path for a function call: that of the module whose forward makes it, and the node's name."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    owner = next(reversed(stack.values()))[0] if stack else ""
    return f"{owner}.{node.name}" if owner else node.name


def why_not(site: Site) -> tuple[Reason, str] | None:
    """The reason for which this convolution can never be converted, whatever the config; None if it can."""
    conv = site.conv
    if not isinstance(conv, nn.Conv3d):
        return "transposed", "a transposed convolution has no output frames that could be skipped by a stride"
    if len(site.nodes) > 1:
        return "called_twice", f"called {len(site.nodes)} times; each call would need a gate of its own"
    reads = site.first.graph.find_nodes(op="get_attr")
    if any(str(node.target).startswith(f"{site.path}.") for node in reads):
        return "read_elsewhere", "its weights are also read outside of its call"
    kind = type(conv)
    own = any(getattr(kind, name) is not getattr(nn.Conv3d, name) for name in _COMPUTING)
    if own or not vars(conv).keys().isdisjoint(_COMPUTING):
        return "custom_forward", f"{kind.__name__} computes its output in its own way"
    if parametrize.is_parametrized(conv):
        return "parametrized", "its weight is computed from other parameters; remove the parametrization first"
    if has_hooks(conv):
        return "hooks", "it carries hooks (weight_norm and spectral_norm set some); remove them first"
    if not torch.is_floating_point(conv.weight):
        return "dtype", f"its weights are {str(conv.weight.dtype).removeprefix('torch.')}"
    if conv.padding_mode != "zeros":
        return "padding", f"padding_mode={conv.padding_mode!r}"
    try:
        ConvGeometry.of(conv)
    except ConvertError as exc:
        return "padding", str(exc)
    return None
