"""What a network computes besides its weights, as text that can be saved and compared."""

import re
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument, _get_qualified_name, map_arg

from vared2_fx.layers import DynamicRegion, Gate, SelfGated
from vared2_fx.passes.leaves import inner, path_of
from vared2_fx.passes.trace import module_of

Fingerprint = dict[str, Any]
"""`nodes`: a line for each operation; `modules`: by path the type and the settings of all modules that are called."""

_NO_MATTER = {"training", "inplace", "p", "drop_prob"}
"""Settings that change nothing in evaluation."""


def fingerprint(gm: fx.GraphModule) -> Fingerprint:
    """Describe a traced network; a converted one by its convolutions, its gates are the config's."""
    numbers = {node: f"%{number}" for number, node in enumerate(gm.graph.nodes)}
    nodes, modules = [], {}
    for node, number in numbers.items():
        given = node.args[:1] if node.target is torch._assert else node.args  # it also says in which line it stood
        args = _text(map_arg((given, node.kwargs), lambda arg: _Name(numbers[arg])))
        nodes.append(f"{number} = {node.op} {_target(node)} {args}")
        if node.op == "call_module" and not isinstance(module := module_of(gm, node), Gate):
            target = str(node.target)
            called = module.body if isinstance(module, DynamicRegion) else module
            if isinstance(called, fx.GraphModule) and called is not module:
                nodes += [f"  {line}" for line in fingerprint(called)["nodes"]]
            found = {path_of(target, name): part for name, part in inner(called).items()}
            for name, part in called.named_modules():
                path = path_of(target, name) if name else target
                if not any(path.startswith(f"{place}.") for place in found):
                    modules[path] = _settings(part.region.body if isinstance(part, SelfGated) else part)
    return {"nodes": nodes, "modules": modules}


def difference(saved: Fingerprint, found: Fingerprint) -> str | None:
    """The first difference between two descriptions in words; None where there is none.

    A setting that only one of them has does not count: another release of a library may have added it.
    """
    for path, settings in saved["modules"].items():
        other = found["modules"].get(path)
        if other is None:
            return f"`{path}` ({settings['type']}) is not there, or not called"
        for name in settings.keys() & other.keys():
            if settings[name] != other[name]:
                return f"`{path}` was saved with {name}={settings[name]}, here it has {name}={other[name]}"
    if added := found["modules"].keys() - saved["modules"].keys():
        return f"`{min(added)}` was not there when it was saved"
    for line, other in zip(saved["nodes"], found["nodes"], strict=False):
        if line != other:
            return f"its forward function computed `{line}`, here it computes `{other}`"
    if len(saved["nodes"]) != len(found["nodes"]):
        return f"its forward function had {len(saved['nodes'])} operations, here it has {len(found['nodes'])}"
    return None


class _Name(str):
    """A node's number, shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _text(value: Argument) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else _get_qualified_name(node.target)


def _settings(module: nn.Module) -> dict[str, str]:
    plain = (bool, int, float, str, type(None))
    out = {"type": type(module).__qualname__}
    for name, value in vars(module).items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        if not name.startswith("_") and name not in _NO_MATTER and all(isinstance(v, plain) for v in values):
            out[name] = repr(value)
    return out
