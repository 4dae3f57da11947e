"""Hooks on modules that tracing looks into: what they compute is traced, what they only see would be lost."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from vared2_fx.errors import ConvertError
from vared2_fx.passes.leaves import WHOLE

_FORWARD = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or after `module` computes."""
    return any(getattr(module, name) for name in (*_FORWARD, *_BACKWARD))


def recomputed_weights(model: nn.Module) -> dict[int, Any]:
    """Stand-ins for the weights that `weight_norm` and `spectral_norm` hooks compute anew in every forward call.

    They carry a history, which keeps them from being copied; as a `memo` for `deepcopy` this takes them out of the way.
    """
    memo = {}
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                weight = getattr(module, hook.name)
                memo[id(weight)] = weight.detach().clone()
    return memo


@contextmanager
def watched_hooks(own: nn.Module) -> Iterator[set[str]]:
    """Give the paths of the modules whose hooks only looked on while `own` was traced."""
    only_looked: set[str] = set()
    before = [
        (path, hooks, dict(hooks)) for path, module in _places(own) for hooks in (getattr(module, n) for n in _FORWARD)
    ]
    try:
        for path, hooks, original in before:
            hooks.update({key: _watched(hook, partial(only_looked.add, path)) for key, hook in original.items()})
        yield only_looked
    finally:
        for _, hooks, original in before:
            hooks.update(original)


def no_hook_lost(gm: fx.GraphModule, own: nn.Module, only_looked: Collection[str]) -> None:
    """Compare the hooks of `own` with those that its graph calls.

    Raises:
        ConvertError: the graph would not call one that the network calls.
    """
    called = {str(node.target) for node in gm.graph.find_nodes(op="call_module")}
    for path, module in _places(own):
        inside = [path[:end] for end, letter in enumerate(f"{path}.") if letter == "."]
        if WHOLE in called or not called.isdisjoint(inside):
            continue  # it runs its own code, hooks and all
        if any(getattr(module, name) for name in _BACKWARD):
            raise _lost(path, module, "a backward hook")
        if path in only_looked:
            raise _lost(path, module, "a hook that returns nothing")


def _places(own: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in own.named_modules() if path and any(module.children())]


def _watched(hook: Callable[..., Any], report: Callable[[], None]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        result = hook(*args, **kwargs)
        if result is None and any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            report()
        return result

    return run


def _lost(path: str, module: nn.Module, what: str) -> ConvertError:
    return ConvertError(
        f"convert: `{path}` ({type(module).__name__}) carries {what}. The converted network computes what is inside "
        "it without calling it, so the hook would be lost; remove it, and set it on a layer of the result instead."
    )
