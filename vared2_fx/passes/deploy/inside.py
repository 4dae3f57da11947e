"""Replacing modules of a graph, also those inside modules that are one node; what was given stays as it is."""

import copy
from collections.abc import Callable

from torch import fx, nn

from vared2_fx.passes.hooks import has_hooks
from vared2_fx.passes.trace import fork

Replace = Callable[[nn.Module], nn.Module | None]
"""Gives what is to stand in place of a module, or None where the module stays."""


def replace_modules(gm: fx.GraphModule, replace: Replace) -> fx.GraphModule:
    """Ask `replace` about every module that a node calls, and about all that is inside one, but for those with hooks.

    Returns:
        A fork of `gm`; a module that two places share is replaced by one that they share.
    """
    out = fork(gm)
    known: dict[nn.Module, nn.Module] = {}
    for target in dict.fromkeys(str(node.target) for node in out.graph.find_nodes(op="call_module")):
        module = out.get_submodule(target)
        new = _replaced(module, replace, known)
        if new is not module:
            out.set_submodule(target, new)
    out.recompile()
    return out


def class_path(module: nn.Module) -> str:
    """Where the class of `module` is defined; compared in place of importing a library to look."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters, buffers and children can be exchanged; they themselves are shared."""
    new = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        object.__setattr__(new, name, dict(getattr(module, name)))
    return new


def _replaced(module: nn.Module, replace: Replace, known: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in known:
        new = None if has_hooks(module) else replace(module)
        if new is None:
            children = {name: child for name, child in module._modules.items() if child is not None}
            others = {name: _replaced(child, replace, known) for name, child in children.items()}
            if all(others[name] is child for name, child in children.items()):
                new = module
            else:
                new = shallow_copy(module)
                new._modules.update(others)
        known[module] = new
    return known[module]
