"""Hooks on modules that tracing looks into: what they compute is traced, what they only see would be lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from vared2_fx.errors import ConvertError

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
def no_hook_lost(own: nn.Module) -> Iterator[None]:
    """Watch the hooks of `own` while it is traced.

    Raises:
        ConvertError: the graph would not call one that the network calls.
    """
    places = [(path, module) for path, module in own.named_modules() if path and any(module.children())]
    for path, module in places:
        if any(getattr(module, name) for name in _BACKWARD):
            raise _lost(path, module, "a backward hook")
    only_looked: list[tuple[str, nn.Module]] = []
    before = [(hooks, dict(hooks)) for _, module in places for hooks in (getattr(module, name) for name in _FORWARD)]
    try:
        for path, module in places:
            for name in _FORWARD:
                hooks = getattr(module, name)
                for key, hook in hooks.items():
                    hooks[key] = _watched(hook, partial(only_looked.append, (path, module)))
        yield
    finally:
        for hooks, original in before:
            hooks.update(original)
    for path, module in only_looked:
        raise _lost(path, module, "a hook that returns nothing")


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
