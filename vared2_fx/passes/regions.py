"""Where the 3D convolutions of a traced network are, and which of them could be made dynamic at all."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from vared2_fx.errors import ConvertError
from vared2_fx.layers import ConvGeometry
from vared2_fx.passes.leaves import inner_calls
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
    "hooks",
    "no_choice",
    "not_worth_it",
    "padding",
    "parametrized",
    "read_elsewhere",
    "transposed",
    "unbatched",
]
"""Why a convolution is converted (`convert`) or stays static (the others)."""


@dataclass(frozen=True, slots=True)
class Site:
    """A convolution of the graph: the module's path and every node that calls it."""

    path: str
    conv: nn.Module
    nodes: tuple[fx.Node, ...]


def conv_sites(gm: fx.GraphModule) -> tuple[Site, ...]:
    """Every 3D convolution that the graph calls, or a leaf may call, in order of first call."""
    found: dict[str, tuple[nn.Module, list[fx.Node]]] = {}
    for node in calls(gm, nn.Module):
        if isinstance(module_of(gm, node), CONVOLUTIONS):
            found.setdefault(str(node.target), (module_of(gm, node), []))[1].append(node)
        for path, module, nodes in inner_calls(gm, node):
            found.setdefault(path, (module, []))[1].extend(nodes)
    return tuple(Site(path, module, tuple(nodes)) for path, (module, nodes) in found.items())


def why_not(site: Site) -> tuple[Reason, str] | None:
    """The reason for which this convolution can never be converted, whatever the config; None if it can."""
    conv = site.conv
    if not isinstance(conv, nn.Conv3d):
        return "transposed", "a transposed convolution has no output frames that could be skipped by a stride"
    if len(site.nodes) > 1:
        return "called_twice", f"called {len(site.nodes)} times; each call would need a gate of its own"
    reads = site.nodes[0].graph.find_nodes(op="get_attr")
    if any(str(node.target).startswith(f"{site.path}.") for node in reads):
        return "read_elsewhere", "its weights are also read outside of its call"
    kind = type(conv)
    own = kind.forward is not nn.Conv3d.forward or kind._conv_forward is not nn.Conv3d._conv_forward
    if own or not vars(conv).keys().isdisjoint(("forward", "_conv_forward")):
        return "custom_forward", f"{kind.__name__} computes its output in its own way"
    if parametrize.is_parametrized(conv):
        return "parametrized", "its weight is computed from other parameters; remove the parametrization first"
    if conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks:
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
