"""Wrappers around a network: seeing through them, and through what they do to the names of weights."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

T = TypeVar("T")

PREFIXES = ("module.", "_orig_mod.")
"""Put before the name of every weight by DataParallel and its kin, and by torch.compile."""


def inner_name(model: nn.Module) -> str | None:
    """Where a wrapper keeps the network that it wraps (`module`, `_orig_mod`); None for what is no wrapper."""
    parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    if parallel or type(model).__name__ == "FullyShardedDataParallel":
        return "module"
    return "_orig_mod" if "_orig_mod" in model._modules else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside all wrappers."""
    while isinstance(model, nn.Module) and (name := inner_name(model)) is not None:
        model = getattr(model, name)
    return model


def without_prefixes(state: Mapping[str, T], known: Mapping[str, object]) -> dict[str, T]:
    """A state dict with its keys as an unwrapped network has them.

    Args:
        state: of a network that may have been wrapped, also more than once.
        known: the names that the network itself has; of those nothing is taken.
    """
    out = dict(state)
    while out and not out.keys() & known.keys():
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in out)), None)
        if prefix is None:
            break
        out = {key.removeprefix(prefix): value for key, value in out.items()}
    return out
