"""Evaluation mode for a while, and other states that are given back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; every module's own mode afterwards."""
    with same_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Give every module the mode back that it had before the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def same_attributes(model: nn.Module, *, keep: Callable[[object], bool] = lambda value: False) -> Iterator[None]:
    """Take back what forward assigns inside the block to attributes and buffers of any module of `model`.

    Args:
        model: the network.
        keep: which new attributes stay.
    """
    before = [(store, dict(store)) for module in model.modules() for store in _stores(module)]
    try:
        yield
    finally:
        for store, values in before:
            for name in [name for name, value in store.items() if name not in values and not keep(value)]:
                del store[name]
            store.update((name, value) for name, value in values.items() if store.get(name) is not value)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Take back what forward assigns inside the block, and give every buffer the value back that it had before."""
    before = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in model.buffers()]
    with same_attributes(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in before:
                    if version is None or _version(buffer) != version:
                        with torch.inference_mode(buffer.is_inference()):
                            buffer.copy_(value)


def _version(buffer: Tensor) -> int | None:
    """How often it was changed; None of one made in inference mode, which does not count."""
    return None if buffer.is_inference() else buffer._version


def _stores(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return () if isinstance(module, torch.jit.ScriptModule) else (vars(module), module._buffers)
