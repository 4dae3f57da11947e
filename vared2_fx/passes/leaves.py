"""Convolutions inside modules that torch.fx could not follow: finding, replacing and watching them.

A leaf is such a module: one node of the graph, with 3D convolutions inside that no node calls. A leaf's path in the
graph is `target`; `path` is the convolution's in the original network.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx.layers import (
    ConvVariant,
    Decision,
    DynamicRegion,
    SelfGated,
    SlimConv,
    StaticRegion,
    recorded_decisions,
)
from vared2_fx.passes.functional import FunctionalConvs

WHOLE = "whole_network"
"""Target of the one leaf of a network whose own forward function cannot be followed; no part of any path."""

_CALL = " (call "
UNITS = (nn.Conv3d, nn.ConvTranspose3d, ConvVariant, SlimConv, StaticRegion, DynamicRegion, SelfGated)
"""One node each where tracing meets them: convolutions, subclasses from anywhere included (torch.fx would look into
those), and what stands in their place."""


@dataclass(slots=True)
class InnerCalls:
    """What was seen of one convolution in a leaf while the leaf ran."""

    in_shapes: list[tuple[int, ...]] = field(default_factory=list)
    """A shape for each call."""
    out_shapes: list[tuple[int, ...]] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    """Multiply-adds of the batch, for each call."""


def inner(module: nn.Module) -> dict[str, nn.Module]:
    """The convolutions inside `module`, and what stands in their place, by name; none for one of these itself."""
    if isinstance(module, UNITS):
        return {}
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def look(parent: nn.Module, prefix: str) -> None:
        for name, child in parent.named_children():
            if child in seen:
                continue
            seen.add(child)
            if isinstance(child, UNITS):
                found[prefix + name] = child
            else:
                look(child, f"{prefix}{name}.")

    look(module, "")
    return found


def leaves(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """Every leaf of the graph by its target, in order."""
    found = {}
    for node in gm.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            module = _attribute(gm, node.target)
            if isinstance(module, nn.Module) and inner(module):
                found[node.target] = module
    return found


def path_of(target: str, name: str) -> str:
    """Path, in the original network, of the module called `name` in the leaf at `target`."""
    return name if target == WHOLE else f"{target}.{name}"


def inner_targets(gm: fx.GraphModule) -> dict[str, tuple[str, str]]:
    """Leaf and name in it of every convolution inside a leaf, by path."""
    return {path_of(target, name): (target, name) for target, leaf in leaves(gm).items() for name in inner(leaf)}


def inner_regions(gm: fx.GraphModule, target: str) -> dict[str, SelfGated]:
    """The dynamic convolutions in the leaf at `target`, by path."""
    found = inner(gm.get_submodule(target))
    return {path_of(target, name): module for name, module in found.items() if isinstance(module, SelfGated)}


def replace_inside(leaf: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in place of the convolution `name`, under every name that it has in `leaf`."""
    old = leaf.get_submodule(name)
    for parent in list(leaf.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def own_tree(leaf: nn.Module) -> nn.Module:
    """A copy of `leaf` whose convolutions can be replaced: containers of its own, everything else shared."""
    copies: dict[nn.Module, nn.Module] = {}

    def shell(module: nn.Module) -> nn.Module:
        if not inner(module):
            return module
        if module not in copies:
            copies[module] = new = copy.copy(module)
            for name in ("_parameters", "_buffers", "_modules"):
                object.__setattr__(new, name, dict(getattr(module, name)))
            for key, child in module._modules.items():
                new._modules[key] = None if child is None else shell(child)
        return copies[module]

    return shell(leaf)


def run_recorded(leaf: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], target: str) -> tuple[Any, Any]:
    """Run a leaf; returns its output and what the gates inside decided, by path.

    Of a convolution that is called more than once, later calls have their number behind the path.
    """
    with recorded_decisions() as found:
        output = leaf(*args, **kwargs)
    paths = {module.region: path_of(target, n) for n, module in inner(leaf).items() if isinstance(module, SelfGated)}
    decisions: dict[str, Decision] = {}
    for region, decision in found:
        path, number = paths[region], 1
        while (name := path if number == 1 else f"{path}{_CALL}{number})") in decisions:
            number += 1
        decisions[name] = decision
    return output, decisions


def called_path(name: str) -> str:
    """Path of the convolution whose decision `run_recorded` gave under `name`."""
    return name.partition(_CALL)[0]


@contextmanager
def watch(leaf: nn.Module, counter: FlopCounterMode, functional: FunctionalConvs) -> Iterator[dict[str, InnerCalls]]:
    """Note the calls of the convolutions in `leaf` inside the block, where `counter` counts.

    `functional` is left with those that are called as functions and are no part of these.
    """
    seen: dict[str, InnerCalls] = {}
    starts: dict[str, tuple[int, int]] = {}
    hooks = []

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        starts[name] = counter.get_total_flops(), len(functional.found)
        seen.setdefault(name, InnerCalls()).in_shapes.append(tuple(x.shape))

    def after(name: str, output: Tensor) -> None:
        seen[name].out_shapes.append(tuple(output.shape))
        flops, num_functional = starts[name]
        seen[name].macs.append((counter.get_total_flops() - flops) // 2)
        del functional.found[num_functional:]  # its own

    for name, module in inner(leaf).items():
        hooks.append(
            module.register_forward_pre_hook(lambda m, args, kwargs, n=name: before(n, args, kwargs), with_kwargs=True)
        )
        hooks.append(module.register_forward_hook(lambda m, args, output, n=name: after(n, output)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def inner_calls(gm: fx.GraphModule, node: fx.Node) -> list[tuple[str, nn.Module, tuple[fx.Node, ...]]]:
    """Path, module and calls of every convolution in the leaf that `node` calls.

    The calls are nodes of a small graph of their own, since the network's has none for them; they carry what was
    measured, where the leaf was. Of a convolution that was not called then, the one node carries nothing.
    """
    found = []
    measured: dict[str, InnerCalls] = node.meta.get("inside", {})
    for name, module in inner(gm.get_submodule(str(node.target))).items():
        graph, path = fx.Graph(), path_of(str(node.target), name)
        seen, nodes = measured.get(name, InnerCalls()), []
        for k in range(max(1, len(seen.macs))):
            x = graph.placeholder(f"x{k}")
            nodes.append(graph.call_module(path, (x,)))
            if k < len(seen.macs):
                x.meta["shape"] = seen.in_shapes[k]
                nodes[-1].meta.update(shape=seen.out_shapes[k], macs=seen.macs[k])
        found.append((path, module, tuple(nodes)))
    return found


def _attribute(gm: fx.GraphModule, target: str) -> Any:
    found: Any = gm
    for name in target.split("."):
        found = getattr(found, name)
    return found
